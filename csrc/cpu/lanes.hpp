// Stage 4 on the CPU: nonzeros to interleaved lanes and back. docs/format.md, section 5.
#pragma once

#include <optional>

#include "cpu/scan.hpp"
#include "entropy/interleaved_rans.hpp"
#include "format/frame.hpp"

namespace resfed {

using Slice = std::vector<uint8_t>;

struct CodedLanes {
  std::vector<uint8_t> tables;
  std::vector<Slice> slices;
};

// Nothing if slices and tables take more than max_bytes.
std::optional<CodedLanes> encode_nonzeros(const SentSymbols (&lists)[3],
                                          const MatrixShapes& matrices, unsigned lane_log2,
                                          uint64_t max_bytes);

// Indices come out strictly ascending and below the number of elements, levels within the format's
// range; else kBadTables or kBadSlice.
void decode_nonzeros(const uint8_t* payload, const Frame& frame, const MatrixShapes& matrices,
                     Scratch<SentSymbol>* symbols);

// The same for changed elements, whose indices are those of the coding order.
CodedLanes encode_changes(std::span<const ChangedElement> changes, unsigned lane_log2);
std::vector<ChangedElement> decode_changes(const uint8_t* payload, const Frame& frame);

// For fitting the trained sets: the symbols of each lane with their rows, as row * 32 + symbol.
struct TracedLane {
  bool blocks;
  std::vector<uint16_t> gaps, levels;
};
std::vector<TracedLane> trace_nonzeros(SentSymbols sent, const MatrixShapes& matrices,
                                       unsigned lane_log2);
std::vector<TracedLane> trace_changes(std::span<const ChangedElement> changes, unsigned lane_log2);

}  // namespace resfed
