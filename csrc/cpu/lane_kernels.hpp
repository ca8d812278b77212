// Decoding the lanes of a slice together, as far as all have nonzeros left: what vector units do of
// it. The scalar decoder does the rest, and gives the same symbols.
#pragma once

#include "cpu/lanes.hpp"

namespace resfed {

// Lanes between two nonzeros: an array for each number of LaneContexts. Vectors take lanes along
// that do not exist: these numbers are 0.
struct LaneArrays {
  size_t n = 0;  // lanes
  alignas(64) uint32_t state[kLanesOfSlice] = {};
  alignas(64) uint32_t shift[kLanesOfSlice] = {};  // of levels, at most kMostVectorShift
  alignas(64) uint32_t activity[kLanesOfSlice] = {}, gap_log2[kLanesOfSlice] = {},
                       level[kLanesOfSlice] = {}, changes[kLanesOfSlice] = {},
                       sign[kLanesOfSlice] = {};
  // Of lanes with blocks; the size of others is 0. `first_left` is what is left after the first
  // nonzero; crossed and whole are 0 or 1.
  alignas(64) uint32_t block_size[kLanesOfSlice] = {},
                       first_left[kLanesOfSlice] = {}, left[kLanesOfSlice] = {},
                       crossed[kLanesOfSlice] = {}, whole[kLanesOfSlice] = {};
  alignas(64) uint64_t covered[kLanesOfSlice] = {};
  alignas(64) SentSymbol* out[kLanesOfSlice] = {};
  const Table* gaps[kLanesOfSlice] = {};
  const Table* levels[kLanesOfSlice] = {};
};

// A level's raw bits are one piece.
constexpr unsigned kMostVectorShift = 11;

// Decodes n_steps nonzeros of each lane from `words` on, behind whose end are zeros for one more
// step; returns the word after, or null where a symbol is out of range or the words have ended.
using DecodeLanes = const uint16_t*(LaneArrays* lanes, uint64_t n_steps, uint64_t n_elems,
                                    const uint16_t* words, const uint16_t* end);

// What an encoder knows of each lane: codes and raw bits of its gaps and levels, from its first
// nonzero on, and its tables.
struct LaneCodes {
  size_t n = 0;  // lanes
  alignas(64) uint32_t state[kLanesOfSlice] = {};
  alignas(64) uint32_t shift[kLanesOfSlice] = {};
  const uint16_t* gaps[kLanesOfSlice] = {};
  const uint16_t* raw_gaps[kLanesOfSlice] = {};
  const uint16_t* levels[kLanesOfSlice] = {};
  const uint16_t* raw_levels[kLanesOfSlice] = {};
  const Slots* gap_slots[kLanesOfSlice] = {};
  const Slots* level_slots[kLanesOfSlice] = {};
};

// Encodes the nonzeros [first, last) of each lane, backwards. What occurs in their steps is
// kRawLevels at most. Writes words below `next`, four of a nonzero at most; returns the last one.
using EncodeLanes = uint16_t*(LaneCodes* lanes, const uint8_t* steps, uint64_t first, uint64_t last,
                              uint16_t* next);
constexpr size_t kMostWordsOfPlainNonzero = 4;

#if defined(RESFED_X86)
DecodeLanes decode_lanes_avx2, decode_lanes_avx512;
EncodeLanes encode_lanes_avx2, encode_lanes_avx512;
#elif defined(RESFED_NEON)
DecodeLanes decode_lanes_neon;
EncodeLanes encode_lanes_neon;
#endif

// For so many lanes, on this processor, by the kernels that were chosen; null: the scalar one.
DecodeLanes* vector_decoder(size_t n_lanes);
EncodeLanes* vector_encoder(size_t n_lanes);

}  // namespace resfed
