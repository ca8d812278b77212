#include "cpu/lossless.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <span>

#include "cpu/threads.hpp"
#include "numeric/check.hpp"

namespace resfed {
namespace {

static_assert(kChunkElems == kOrderedElems);

Patterns patterns_of(const Tensor& t) {
  return {8 * t.elem_bytes, t.dtype == DType::kOther ? 0 : mantissa_bits_of(t.dtype)};
}

template <class UInt>
UInt load(const void* elements, uint64_t i) {
  UInt element;
  std::memcpy(&element, static_cast<const uint8_t*>(elements) + i * sizeof(UInt), sizeof(UInt));
  return element;
}

// The classes of a chunk's elements in the reference, and where each class begins in their order.
class ExponentOrder {
 public:
  ExponentOrder(const Group& group, uint64_t chunk) : classes_(kOrderedElems) {
    for_each_member(group, chunk, [&](const Member& m, uint64_t first, uint64_t n, uint32_t at) {
      const Patterns patterns = patterns_of(*m.tensor);
      with_width(m.tensor->elem_bytes, [&](auto width) {
        for (uint64_t i = 0; i < n; ++i) {
          const auto bits = load<decltype(width)>(m.tensor->reference, first + i);
          classes_[at + i] = static_cast<uint8_t>(patterns.exponent_class(bits));
        }
      });
      n_ = at + n;
    });
    std::array<uint32_t, kExponentClasses> counts[4] = {};
    for (size_t i = 0; i < n_; ++i) ++counts[i % 4][classes_[i]];
    uint32_t begin = 0;
    for (uint32_t c = 0; c < kExponentClasses; ++c) {
      begins_[c] = begin;
      for (const auto& part : counts) begin += part[c];
    }
    begins_[kExponentClasses] = begin;
  }

  // Of ascending offsets in the chunk, calls visit(which, place in the order).
  template <class Visit>
  void places_of(std::span<const uint16_t> offsets, Visit visit) const {
    std::array<uint32_t, kExponentClasses> next;
    std::copy_n(begins_.begin(), kExponentClasses, next.begin());
    size_t at = 0;
    for (size_t which = 0; which < offsets.size(); ++which) {
      for (; at < offsets[which]; ++at) ++next[classes_[at]];
      visit(which, next[classes_[at]]);
    }
  }
  // Of ascending places in the order, calls visit(which, offset in the chunk), offsets ascending.
  template <class Visit>
  void offsets_of(std::span<const uint32_t> places, Visit visit) const {
    std::array<uint32_t, kExponentClasses> next, wanted_next;
    std::copy_n(begins_.begin(), kExponentClasses, next.begin());
    std::array<size_t, kExponentClasses> which;
    for (uint32_t c = 0; c < kExponentClasses; ++c) {
      which[c] = static_cast<size_t>(std::lower_bound(places.begin(), places.end(), begins_[c]) -
                                     places.begin());
      wanted_next[c] = which[c] < places.size() ? places[which[c]] : ~0u;
    }
    size_t left = places.size();
    for (size_t at = 0; at < n_ && left > 0; ++at) {
      const uint8_t c = classes_[at];
      if (next[c]++ != wanted_next[c]) continue;
      visit(which[c], static_cast<uint16_t>(at));
      --left;
      wanted_next[c] = ++which[c] < places.size() ? places[which[c]] : ~0u;
    }
  }

 private:
  std::vector<uint8_t> classes_;
  size_t n_ = 0;
  std::array<uint32_t, kExponentClasses + 1> begins_;
};

// Calls work(chunk, begin, end) for the changes of each chunk that has some.
template <class Work>
void for_each_chunk(const Group& group, const ChangedElements& changes, Work work) {
  std::vector<size_t> begins(n_chunks(group) + 1, 0);
  for (const ChangedElement& changed : changes) ++begins[changed.index() / kOrderedElems + 1];
  std::partial_sum(begins.begin(), begins.end(), begins.begin());
  parallel_for(n_chunks(group), [&](size_t chunk) {
    if (begins[chunk] < begins[chunk + 1]) work(chunk, begins[chunk], begins[chunk + 1]);
  });
}

}  // namespace

ChangedElements find_changes(const Group& group) {
  std::vector<ChangedElements> found(n_chunks(group));
  parallel_for(found.size(), [&](size_t s) {
    for_each_member(group, s, [&](const Member& member, uint64_t first, uint64_t n, uint32_t) {
      const Tensor& t = *member.tensor;
      const Patterns patterns = patterns_of(t);
      with_width(t.elem_bytes, [&](auto width) {
        using UInt = decltype(width);
        constexpr uint64_t kBlock = 256 / sizeof(UInt);
        for (uint64_t begin = first; begin < first + n; begin += kBlock) {
          const uint64_t end = std::min(begin + kBlock, first + n);
          if (std::memcmp(static_cast<const UInt*>(t.current) + begin,
                          static_cast<const UInt*>(t.reference) + begin,
                          (end - begin) * sizeof(UInt)) == 0)
            continue;
          for (uint64_t i = begin; i < end; ++i) {
            const UInt before = load<UInt>(t.reference, i), after = load<UInt>(t.current, i);
            if (before != after)
              found[s].emplace_back(member.begin + i, patterns.change(before, after));
          }
        }
      });
    });
  });
  ChangedElements changes;
  for (const auto& in_chunk : found) {
    changes.insert(changes.end(), in_chunk.begin(), in_chunk.end());
  }
  return changes;
}

ChangedElements in_exponent_order(const Group& group, ChangedElements changes) {
  for_each_chunk(group, changes, [&](size_t chunk, size_t begin, size_t end) {
    const uint64_t base = chunk * kOrderedElems;
    std::vector<uint16_t> offsets(end - begin);
    for (size_t i = begin; i < end; ++i)
      offsets[i - begin] = static_cast<uint16_t>(changes[i].index() - base);
    ExponentOrder(group, chunk).places_of(offsets, [&](size_t which, uint32_t place) {
      changes[begin + which] = {base + place, changes[begin + which].level()};
    });
    const auto by_index = [](const ChangedElement& a, const ChangedElement& b) {
      return a.index() < b.index();
    };
    std::sort(changes.begin() + static_cast<ptrdiff_t>(begin),
              changes.begin() + static_cast<ptrdiff_t>(end), by_index);
  });
  return changes;
}

ChangedElements in_element_order(const Group& group, ChangedElements changes) {
  for_each_chunk(group, changes, [&](size_t chunk, size_t begin, size_t end) {
    const uint64_t base = chunk * kOrderedElems;
    std::vector<uint32_t> places(end - begin);
    std::vector<int64_t> levels(end - begin);
    for (size_t i = begin; i < end; ++i) {
      places[i - begin] = static_cast<uint32_t>(changes[i].index() - base);
      levels[i - begin] = changes[i].level();
    }
    size_t next = begin;
    ExponentOrder(group, chunk).offsets_of(places, [&](size_t which, uint16_t offset) {
      changes[next++] = {base + offset, levels[which]};
    });
  });
  return changes;
}

RestoredElements restore_changes(const Group& group, const ChangedElements& changes) {
  RestoredElements restored;
  restored.bits = ElementBits(group, changes.size());
  for_each_change(group, changes, [&](const Member& member, uint64_t element, size_t i) {
    const Tensor& t = *member.tensor;
    const Patterns patterns = patterns_of(t);
    const int64_t change = changes[i].level();
    if (!patterns.is_change(change)) throw Failure{Code::kBadSlice, i};
    const uint64_t before = load_element(t.reference, element, t.elem_bytes);
    const uint64_t after = patterns.changed(before, change);
    std::memcpy(restored.bits.at(i), &after, t.elem_bytes);
    restored.check += check_term(changes[i].index(), before, after);
  });
  return restored;
}

void write_changes(const Group& group, const ChangedElements& changes,
                   const RestoredElements& restored) {
  for_each_change(group, changes, [&](const Member& member, uint64_t element, size_t i) {
    const Tensor& t = *member.tensor;
    if (t.out == nullptr) return;
    std::memcpy(static_cast<uint8_t*>(t.out) + element * t.elem_bytes, restored.bits.at(i),
                t.elem_bytes);
  });
}

}  // namespace resfed
