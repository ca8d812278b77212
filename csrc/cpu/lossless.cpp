#include "cpu/lossless.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <utility>

#include "cpu/threads.hpp"
#include "numeric/check.hpp"

namespace resfed {
namespace {

Patterns patterns_of(const Tensor& t) {
  return {8 * t.elem_bytes, t.dtype == DType::kOther ? 0 : mantissa_bits_of(t.dtype)};
}

template <class UInt>
UInt load(const void* elements, uint64_t i) {
  UInt element;
  std::memcpy(&element, static_cast<const uint8_t*>(elements) + i * sizeof(UInt), sizeof(UInt));
  return element;
}

constexpr size_t kClasses = kExponentClasses;
using ClassCounts = std::array<uint64_t, kClasses>;

// The classes of a chunk's elements in the reference.
std::vector<uint8_t> classes_of(const Group& group, uint64_t chunk) {
  std::vector<uint8_t> classes(std::min(kChunkElems, group.n_elems - chunk * kChunkElems));
  for_each_member(group, chunk, [&](const Member& m, uint64_t first, uint64_t n, uint32_t at) {
    const Patterns patterns = patterns_of(*m.tensor);
    with_width(m.tensor->elem_bytes, [&](auto width) {
      for (uint64_t i = 0; i < n; ++i) {
        const auto bits = load<decltype(width)>(m.tensor->reference, first + i);
        classes[at + i] = static_cast<uint8_t>(patterns.exponent_class(bits));
      }
    });
  });
  return classes;
}

// What is counted by chunk and class, as where each of these begins in the order of classes.
std::vector<ClassCounts> begins_of(std::vector<ClassCounts> counts) {
  uint64_t begin = 0;
  for (size_t c = 0; c < kClasses; ++c) {
    for (ClassCounts& of_chunk : counts) begin += std::exchange(of_chunk[c], begin);
  }
  return counts;
}

// Where the elements of each chunk and class begin in the order of exponents.
std::vector<ClassCounts> exponent_order(const Group& group) {
  std::vector<ClassCounts> counts(n_chunks(group));
  parallel_for(counts.size(), [&](size_t chunk) {
    const std::vector<uint8_t> classes = classes_of(group, chunk);
    std::array<uint32_t, kClasses> parts[4] = {};  // so that equal neighbours do not wait
    for (size_t i = 0; i < classes.size(); ++i) ++parts[i % 4][classes[i]];
    for (size_t c = 0; c < kClasses; ++c)
      counts[chunk][c] = uint64_t{parts[0][c]} + parts[1][c] + parts[2][c] + parts[3][c];
  });
  return begins_of(std::move(counts));
}

bool has_floats(const Group& group) {
  return std::any_of(group.members.begin(), group.members.end(),
                     [](const Member& m) { return m.tensor->dtype != DType::kOther; });
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
  if (changes.empty() || !has_floats(group)) return changes;
  const std::vector<ClassCounts> begins = exponent_order(group);
  std::vector<size_t> firsts(begins.size() + 1);  // of each chunk's changes
  for (size_t chunk = 0; chunk <= begins.size(); ++chunk) {
    const auto before = [&](const ChangedElement& c) { return c.index() < chunk * kChunkElems; };
    firsts[chunk] = static_cast<size_t>(
        std::partition_point(changes.begin(), changes.end(), before) - changes.begin());
  }
  std::vector<ClassCounts> counts(begins.size());
  std::vector<uint8_t> classes(changes.size());
  parallel_for(begins.size(), [&](size_t chunk) {
    if (firsts[chunk] == firsts[chunk + 1]) return;
    const std::vector<uint8_t> of_chunk = classes_of(group, chunk);
    ClassCounts next = begins[chunk];
    uint64_t at = 0;
    for (size_t i = firsts[chunk]; i < firsts[chunk + 1]; ++i) {
      const uint64_t offset = changes[i].index() - chunk * kChunkElems;
      for (; at < offset; ++at) ++next[of_chunk[at]];
      classes[i] = of_chunk[at];
      ++counts[chunk][classes[i]];
      changes[i] = {next[classes[i]], changes[i].level()};
    }
  });
  ChangedElements ordered(changes.size());
  std::vector<ClassCounts> places = begins_of(std::move(counts));
  parallel_for(begins.size(), [&](size_t chunk) {
    for (size_t i = firsts[chunk]; i < firsts[chunk + 1]; ++i)
      ordered[places[chunk][classes[i]]++] = changes[i];
  });
  // The reference was read twice.
  const auto ascend = [](const ChangedElement& a, const ChangedElement& b) {
    return a.index() < b.index();
  };
  if (std::adjacent_find(ordered.begin(), ordered.end(), std::not_fn(ascend)) != ordered.end() ||
      ordered.back().index() >= group.n_elems)
    throw Failure{Code::kChangedDuringCall};
  return ordered;
}

ChangedElements in_element_order(const Group& group, ChangedElements changes) {
  if (changes.empty() || !has_floats(group)) return changes;
  const std::vector<ClassCounts> begins = exponent_order(group);
  const auto first_from = [&](uint64_t index) {
    const auto before = [&](const ChangedElement& c) { return c.index() < index; };
    return static_cast<size_t>(std::partition_point(changes.begin(), changes.end(), before) -
                               changes.begin());
  };
  // The changes of each class and chunk lie together.
  std::vector<ClassCounts> firsts(begins.size());
  parallel_for(begins.size(), [&](size_t chunk) {
    for (size_t c = 0; c < kClasses; ++c) firsts[chunk][c] = first_from(begins[chunk][c]);
  });
  const auto last_of = [&](size_t chunk, size_t c) {
    if (chunk + 1 < firsts.size()) return firsts[chunk + 1][c];
    return c + 1 < kClasses ? firsts[0][c + 1] : changes.size();
  };
  std::vector<size_t> ends(begins.size() + 1, 0);  // of each chunk's changes in the result
  for (size_t chunk = 0; chunk < begins.size(); ++chunk) {
    ends[chunk + 1] = ends[chunk];
    for (size_t c = 0; c < kClasses; ++c) ends[chunk + 1] += last_of(chunk, c) - firsts[chunk][c];
  }
  ChangedElements ordered(changes.size());
  parallel_for(begins.size(), [&](size_t chunk) {
    if (ends[chunk] == ends[chunk + 1]) return;
    const std::vector<uint8_t> classes = classes_of(group, chunk);
    ClassCounts next = begins[chunk], which = firsts[chunk], wanted;
    const auto find_wanted = [&](size_t c) {
      wanted[c] = which[c] < last_of(chunk, c) ? changes[which[c]].index() : ~uint64_t{0};
    };
    for (size_t c = 0; c < kClasses; ++c) find_wanted(c);
    size_t out = ends[chunk];
    for (size_t at = 0; out < ends[chunk + 1]; ++at) {
      if (at == classes.size()) throw Failure{Code::kChangedDuringCall};  // it was read twice
      const uint8_t c = classes[at];
      if (next[c]++ != wanted[c]) continue;
      ordered[out++] = {chunk * kChunkElems + at, changes[which[c]++].level()};
      find_wanted(c);
    }
  });
  return ordered;
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
