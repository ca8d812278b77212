// The link of a payload: which versions it builds on, and how they predict. docs/format.md, section
// 11.3, has the bytes; python/resfed_codec/stream/link.py interprets them.
//
// Hostile input: lists are counted against the bytes that are there and the receiver's layout
// before anything is allocated.
#pragma once

#include <bit>

#include "format/frame.hpp"

namespace resfed {

constexpr unsigned kMaxDepth = 3;  // versions back, in each direction
constexpr unsigned kPlaces = 2 * kMaxDepth;
constexpr unsigned kMaxCoefLog2 = 12;
constexpr uint64_t kMaxNumerator = 1 << 20;
constexpr uint8_t kPerTensor = 64, kCoefficients = 128;  // in the mask

struct Link {
  uint64_t version = 0;
  uint64_t back = 0;   // 0: no base
  uint64_t other = 0;  // 1 + the version; 0: none
  unsigned n_own = 0, n_other = 0, keep = 0;
  unsigned places = 0;  // bit j: place j is used
  unsigned coef_log2 = 0;
  // One per used place: of the common prediction, then of each tensor in `ordinals`.
  std::vector<int32_t> numerators;
  std::vector<uint32_t> ordinals;
};

// Throws Failure: one of the codes 1 to 7, or kNoSuchTensor.
inline Link read_link_fields(ByteReader in, uint64_t n_tensors) {
  const auto refuse_unless = [&](bool holds) {
    if (!holds) throw Failure{Code::kBadField, in.offset()};
  };
  Link link;
  link.version = in.varint(kMaxVarint);
  link.back = in.varint(kMaxVarint);
  link.other = in.varint(kMaxVarint);
  const uint8_t depths = in.fixed<uint8_t>();
  link.n_own = depths & 3;
  link.n_other = depths >> 2 & 3;
  link.keep = depths >> 4 & 3;
  refuse_unless(link.version > 0 && link.back <= link.version && depths < 64 && link.keep > 0);
  refuse_unless((link.back > 0) == (link.n_own > 0) && (link.other > 0) == (link.n_other > 0));

  const uint8_t mask = in.fixed<uint8_t>();
  link.places = mask & (kPerTensor - 1);
  const auto n_places = static_cast<size_t>(std::popcount(link.places));
  constexpr unsigned kOwnPlaces = (1u << kMaxDepth) - 1;
  refuse_unless(n_places > 0 && (link.n_own > 0 || (link.places & kOwnPlaces) == 0) &&
                (link.n_other > 0 || (link.places & ~kOwnPlaces) == 0));
  if ((mask & kCoefficients) == 0) {
    refuse_unless(n_places == 1 && (mask & kPerTensor) == 0);
    link.numerators = {1};
  } else {
    link.coef_log2 = in.fixed<uint8_t>();
    refuse_unless(link.coef_log2 <= kMaxCoefLog2);
    const auto read_numerators = [&] {
      bool any = false;
      for (size_t i = 0; i < n_places; ++i) {
        const uint64_t zigzag = in.varint(2 * kMaxNumerator);
        const auto half = static_cast<int32_t>(zigzag >> 1);
        link.numerators.push_back((zigzag & 1) != 0 ? -half - 1 : half);
        any = any || zigzag > 0;
      }
      refuse_unless(any);
    };
    read_numerators();
    if ((mask & kPerTensor) != 0) {
      const uint64_t n_bitmap = in.varint(in.left());
      const uint8_t* const bitmap = in.here();
      in.skip(n_bitmap);
      refuse_unless(n_bitmap > 0 && bitmap[n_bitmap - 1] != 0);
      const uint64_t last = 8 * n_bitmap - 1 - std::countl_zero(bitmap[n_bitmap - 1]);
      if (last >= n_tensors) throw Failure{Code::kNoSuchTensor, last, n_tensors};
      uint64_t n_named = 0;
      for (uint64_t i = 0; i < n_bitmap; ++i) n_named += std::popcount(bitmap[i]);
      if (n_named > in.left() / n_places) throw Failure{Code::kTruncated, in.offset()};
      link.ordinals.reserve(n_named);
      link.numerators.reserve((1 + n_named) * n_places);
      for (uint64_t i = 0; i <= last; ++i) {
        if ((bitmap[i / 8] >> i % 8 & 1) == 0) continue;
        link.ordinals.push_back(static_cast<uint32_t>(i));
        read_numerators();
      }
    }
  }
  if (in.left() > 0) throw Failure{Code::kTrailingBytes, in.offset()};
  return link;
}

// Throws Failure: kBadLink, or kNoSuchTensor.
inline Link read_link(std::string_view bytes, uint64_t n_tensors) {
  try {
    const auto* const data = reinterpret_cast<const uint8_t*>(bytes.data());
    return read_link_fields({data, bytes.size()}, n_tensors);
  } catch (const Failure& f) {
    if (f.code == Code::kNoSuchTensor) throw;
    throw Failure{Code::kBadLink, f.where, static_cast<uint64_t>(f.code)};
  }
}

}  // namespace resfed
