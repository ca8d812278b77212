// Stage 4 on the CPU: sent elements to slices and back. Encoders write the current format.
#pragma once

#include <optional>

#include "cpu/lossless.hpp"
#include "cpu/quantize.hpp"
#include "entropy/symbols.hpp"
#include "format/frame.hpp"

namespace resfed {

using Slice = std::vector<uint8_t>;

using RowLengths = std::vector<RowLength>;

// The lossy symbols of a payload, group by group. Nothing if the slices take more than max_bytes;
// then most of them are not even made.
std::optional<std::vector<Slice>> encode_slices(SentSymbols matrix, SentSymbols vector,
                                                SentSymbols dense, const RowLengths& rows,
                                                unsigned slice_log2, uint64_t max_bytes);
std::vector<Slice> encode_slices(const std::vector<ChangedElement>& changes, unsigned slice_log2);

// The slices of a payload. Indices come out strictly ascending and below the number of elements,
// levels within the format's range; else kBadSlice.
void decode_symbols(const uint8_t* payload, const Frame& frame, Scratch<SentSymbol>* symbols);
std::vector<ChangedElement> decode_changes(const uint8_t* payload, const Frame& frame);

// For fitting the initial states: every adaptive decision in order, as
// [15 bits] context, [1 bit] bit, slice after slice; `ends` receives where each slice ends.
std::vector<uint16_t> trace_decisions(SentSymbols symbols, const RowLengths& rows,
                                      unsigned slice_log2, std::vector<uint64_t>* ends);

}  // namespace resfed
