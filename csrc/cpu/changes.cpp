#include "cpu/changes.hpp"

#include <span>

#include "cpu/threads.hpp"
#include "entropy/changes.hpp"
#include "entropy/slice.hpp"

namespace resfed {
namespace {

constexpr size_t kSlicesPerThread = 8;

// Where every slice starts, ready to be copied.
template <class Format>
struct Contexts {
  static constexpr uint32_t kSize = Format::Contexts::kLossless;
  Probability of[kSize];
  constexpr Contexts() : of() {
    for (uint32_t i = 0; i < kSize; ++i) {
      of[i] = initial_probability(Format::initial_lossless_state(i));
    }
  }
};
template <class Format>
constexpr Contexts<Format> kInitialContexts;

struct DecisionList {
  std::vector<Decision> decisions;
  void put(Decision d) { decisions.push_back(d); }
};

// The changes [begin, end); the gap of the first is counted from the change before.
Slice encode_slice(const std::vector<ChangedElement>& changes, uint64_t begin, uint64_t end) {
  Contexts<CurrentFormat> contexts = kInitialContexts<CurrentFormat>;
  DecisionList list;
  RecordingCoder<DecisionList> coder{contexts.of, list};
  LosslessHistory history;
  uint64_t covered = begin == 0 ? 0 : changes[begin - 1].index + 1;
  for (uint64_t i = begin; i < end; ++i) {
    Change change{changes[i].index + 1 - covered, changes[i].change};
    code_change<CurrentFormat>(coder, history, change);
    covered = changes[i].index + 1;
  }
  std::vector<uint8_t> bytes(2 * list.decisions.size() + kSliceStateBytes);
  SliceWriter writer{list.decisions.data(), list.decisions.size(), bytes.data() + bytes.size()};
  const uint8_t* const first = writer.finish();
  return {first, const_cast<const uint8_t*>(bytes.data()) + bytes.size()};
}

// Indices are relative to the slice before; returns the last index + 1, or 0 where the slice is
// damaged.
template <class Format>
uint64_t decode_slice(const uint8_t* slice, uint64_t n_bytes, uint64_t n_elems,
                      std::span<ChangedElement> changes) {
  Contexts<Format> contexts = kInitialContexts<Format>;
  DecodingCoder coder;
  if (!open_slice(slice, n_bytes, contexts.of, &coder)) return 0;
  LosslessHistory history;
  uint64_t covered = 0;
  for (ChangedElement& changed : changes) {
    Change change{};
    if (!code_change<Format>(coder, history, change) || change.gap > n_elems - covered) return 0;
    if (coder.underrun) return 0;
    changed = {covered + change.gap - 1, change.change};
    covered += change.gap;
  }
  return coder.finished() ? covered : 0;
}

}  // namespace

std::vector<Slice> encode_changes(const std::vector<ChangedElement>& changes) {
  const Partition p = partition(changes.size(), kChangesLog2);
  std::vector<Slice> slices(p.n_parts);
  parallel_for(
      p.n_parts,
      [&](size_t s) { slices[s] = encode_slice(changes, part_begin(p, s), part_begin(p, s + 1)); },
      kSlicesPerThread);
  return slices;
}

std::vector<ChangedElement> decode_changes(const uint8_t* payload, const Frame& frame) {
  const Partition p = frame.lossless_partition();
  const uint64_t first = frame.n_lossy_slices();
  std::vector<uint64_t> offsets{frame.slices_offset};
  for (const uint64_t n_bytes : frame.slice_bytes) offsets.push_back(offsets.back() + n_bytes);
  std::vector<ChangedElement> changes(p.n_symbols);
  std::vector<uint64_t> bases(p.n_parts + 1, 0);
  with_format(frame.version, [&]<class Format>(Format) {
    parallel_for(
        p.n_parts,
        [&](size_t s) {
          const uint64_t begin = part_begin(p, s), n = part_begin(p, s + 1) - begin;
          bases[s + 1] =
              decode_slice<Format>(payload + offsets[first + s], frame.slice_bytes[first + s],
                                   frame.n_lossless, std::span(changes).subspan(begin, n));
          if (bases[s + 1] == 0) throw Failure{Code::kBadSlice, first + s};
        },
        kSlicesPerThread);
  });
  for (uint64_t s = 0; s < p.n_parts; ++s) {
    if (bases[s + 1] > frame.n_lossless - bases[s]) throw Failure{Code::kBadSlice, first + s};
    for (uint64_t i = part_begin(p, s); i < part_begin(p, s + 1); ++i) changes[i].index += bases[s];
    bases[s + 1] += bases[s];
  }
  return changes;
}

}  // namespace resfed
