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

template <class UInt>
UInt load(const void* elements, uint64_t i) {
  UInt element;
  std::memcpy(&element, static_cast<const uint8_t*>(elements) + i * sizeof(UInt), sizeof(UInt));
  return element;
}

constexpr size_t kClasses = kExponentClasses;
using ClassCounts = std::array<uint64_t, kClasses>;

// Calls visit(i) where elements [begin, end) differ.
template <class UInt, class Visit>
void for_each_difference(const void* a, const void* b, uint64_t begin, uint64_t end, Visit visit) {
  constexpr uint64_t kBlock = 64;
  for (; end - begin >= kBlock; begin += kBlock) {
    alignas(8) uint8_t differs[kBlock];
    for (uint64_t i = 0; i < kBlock; ++i)
      differs[i] = load<UInt>(a, begin + i) != load<UInt>(b, begin + i) ? 1 : 0;
    for (uint64_t i = 0; i < kBlock; i += 8) {
      for (auto eight = load<uint64_t>(differs, i / 8); eight != 0; eight &= eight - 1)
        visit(begin + i + static_cast<uint64_t>(std::countr_zero(eight)) / 8);
    }
  }
  for (; begin < end; ++begin) {
    if (load<UInt>(a, begin) != load<UInt>(b, begin)) visit(begin);
  }
}

template <class UInt>
void find_classes(const void* elements, uint64_t first, uint64_t n, const Patterns patterns,
                  uint8_t* classes) {
  for (uint64_t i = 0; i < n; ++i)
    classes[i] = patterns.exponent_class(load<UInt>(elements, first + i));
}

// The classes of a chunk's elements in the reference, and zeros to the end of a block.
constexpr size_t kClassBlock = 64;
struct Classes {
  size_t n = 0;
  std::vector<uint8_t> of_elements;
};

Classes classes_of(const Group& group, uint64_t chunk) {
  Classes classes{std::min(kChunkElems, group.n_elems - chunk * kChunkElems), {}};
  classes.of_elements.resize((classes.n + kClassBlock - 1) / kClassBlock * kClassBlock);
  for_each_member(group, chunk, [&](const Member& m, uint64_t first, uint64_t n, uint32_t at) {
    const Patterns patterns = patterns_of(*m.tensor);
    if (patterns.mantissa_bits == 0) return;  // all are 0
    with_width(m.tensor->elem_bytes, [&](auto width) {
      find_classes<decltype(width)>(m.tensor->reference, first, n, patterns,
                                    classes.of_elements.data() + at);
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

// Counts classes in parts, so that equal neighbours do not wait for each other.
class Histogram {
 public:
  void add(size_t i, uint8_t c) { ++parts_[i % kParts][c]; }
  uint32_t count(size_t c) const {
    uint32_t n = 0;
    for (const auto& part : parts_) n += part[c];
    return n;
  }

 private:
  static constexpr size_t kParts = 8;

  uint32_t parts_[kParts][kClasses] = {};
};

// Finds the elements of one class in a chunk by their ranks, which ascend.
class ElementsOfClass {
 public:
  ElementsOfClass(const Classes& classes, uint8_t c) : classes_(classes), class_(c) {}

  // Where the element with this rank is; the number of elements or more if there is none.
  size_t find(uint64_t rank) {
    while (rank >= n_before_ + n_inside_) {
      n_before_ += n_inside_;
      begin_ = end_;
      if (begin_ >= classes_.n) return classes_.n;
      end_ += kClassBlock;
      n_inside_ = count(classes_.of_elements.data() + begin_);
    }
    uint64_t left = rank - n_before_;
    for (size_t at = begin_;; at += 8) {
      uint64_t same = equal_bytes(load<uint64_t>(classes_.of_elements.data(), at / 8));
      const uint64_t n = same * kOnes >> 56;
      if (left >= n) {
        left -= n;
        continue;
      }
      for (; left > 0; --left) same &= same - 1;
      return at + static_cast<size_t>(std::countr_zero(same)) / 8;
    }
  }

 private:
  static constexpr uint64_t kOnes = 0x0101010101010101;

  uint64_t count(const uint8_t* block) const {
    uint8_t n = 0;
    for (size_t i = 0; i < kClassBlock; ++i) n += block[i] == class_ ? 1 : 0;
    return n;
  }

  // 1 in each byte that is the class, 0 in the others.
  uint64_t equal_bytes(uint64_t bytes) const {
    const uint64_t differ = bytes ^ class_ * kOnes;
    const uint64_t low = (differ & 0x7f * kOnes) + 0x7f * kOnes;
    return (~(low | differ) >> 7) & kOnes;
  }

  const Classes& classes_;
  uint8_t class_;
  size_t begin_ = 0, end_ = 0;  // of a block
  uint64_t n_before_ = 0, n_inside_ = 0;
};

// Where the elements of each chunk and class begin in the order of exponents.
std::vector<ClassCounts> exponent_order(const Group& group) {
  std::vector<ClassCounts> counts(n_chunks(group));
  parallel_for(counts.size(), [&](size_t chunk) {
    const Classes classes = classes_of(group, chunk);
    Histogram histogram;
    const uint8_t* const of_chunk = classes.of_elements.data();
    for (size_t i = 0; i < classes.n; ++i) histogram.add(i, of_chunk[i]);
    for (size_t c = 0; c < kClasses; ++c) counts[chunk][c] = histogram.count(c);
  });
  return begins_of(std::move(counts));
}

bool is_float(const Member& member) { return member.tensor->dtype != DType::kOther; }
bool has_floats(const Group& group) {
  return std::any_of(group.members.begin(), group.members.end(), is_float);
}

// Calls visit(change) for those of integers, in the order of elements.
template <class Visit>
void for_each_integer(const Group& group, ChangedElements* changes, Visit visit) {
  if (std::all_of(group.members.begin(), group.members.end(), is_float)) return;
  for_each_change(group, *changes, [&](const Member& member, uint64_t, size_t i) {
    if (!is_float(member)) visit((*changes)[i]);
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
        for_each_difference<UInt>(t.reference, t.current, first, first + n, [&](uint64_t i) {
          const auto before = load<UInt>(t.reference, i), after = load<UInt>(t.current, i);
          found[s].emplace_back(member.begin + i, patterns.change(before, after));
        });
      });
    });
  });
  ChangedElements changes;
  for (const auto& in_chunk : found) {
    changes.insert(changes.end(), in_chunk.begin(), in_chunk.end());
  }
  return changes;
}

ChangedElements levels_of(const Group& group, ChangedElements changes) {
  RepeatedChange repeated;
  for_each_integer(group, &changes,
                   [&](ChangedElement& c) { c = {c.index(), repeated.level_of(c.level())}; });
  return changes;
}

ChangedElements changes_of(const Group& group, ChangedElements levels) {
  RepeatedChange repeated;
  for_each_integer(group, &levels,
                   [&](ChangedElement& c) { c = {c.index(), repeated.change_of(c.level())}; });
  return levels;
}

ChangedElements in_exponent_order(const Group& group, ChangedElements changes) {
  if (changes.empty() || !has_floats(group)) return changes;
  std::vector<size_t> firsts(n_chunks(group) + 1);  // of each chunk's changes
  for (size_t chunk = 0; chunk < firsts.size(); ++chunk) {
    const auto before = [&](const ChangedElement& c) { return c.index() < chunk * kChunkElems; };
    firsts[chunk] = static_cast<size_t>(
        std::partition_point(changes.begin(), changes.end(), before) - changes.begin());
  }
  std::vector<ClassCounts> counts(n_chunks(group)), n_changes(n_chunks(group));
  std::vector<uint8_t> classes(changes.size());
  // Indices become ranks among the elements of the chunk and class.
  parallel_for(counts.size(), [&](size_t chunk) {
    const Classes of_chunk = classes_of(group, chunk);
    Histogram histogram;
    size_t at = 0;
    for (size_t i = firsts[chunk]; i < firsts[chunk + 1]; ++i) {
      const size_t offset = changes[i].index() - chunk * kChunkElems;
      for (; at < offset; ++at) histogram.add(at, of_chunk.of_elements[at]);
      classes[i] = of_chunk.of_elements[at];
      changes[i] = {histogram.count(classes[i]), changes[i].level()};
      ++n_changes[chunk][classes[i]];
    }
    for (; at < of_chunk.n; ++at) histogram.add(at, of_chunk.of_elements[at]);
    for (size_t c = 0; c < kClasses; ++c) counts[chunk][c] = histogram.count(c);
  });
  const std::vector<ClassCounts> begins = begins_of(std::move(counts));
  std::vector<ClassCounts> places = begins_of(std::move(n_changes));
  ChangedElements ordered(changes.size());
  parallel_for(begins.size(), [&](size_t chunk) {
    for (size_t i = firsts[chunk]; i < firsts[chunk + 1]; ++i) {
      ChangedElement& place = ordered[places[chunk][classes[i]]++];
      place = changes[i];
      place.move_up(begins[chunk][classes[i]]);
    }
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
    const Classes classes = classes_of(group, chunk);
    std::array<uint64_t, kChunkElems / 64> changed{};  // a bit for each element
    for (size_t c = 0; c < kClasses; ++c) {
      ElementsOfClass elements(classes, static_cast<uint8_t>(c));
      for (size_t i = firsts[chunk][c]; i < last_of(chunk, c); ++i) {
        const size_t at = elements.find(changes[i].index() - begins[chunk][c]);
        if (at >= classes.n) throw Failure{Code::kChangedDuringCall};  // it was read twice
        changed[at / 64] |= 1ull << (at % 64);
      }
    }
    ClassCounts which = firsts[chunk];
    size_t out = ends[chunk];
    for (size_t word = 0; word < changed.size(); ++word) {
      for (uint64_t bits = changed[word]; bits != 0; bits &= bits - 1) {
        const size_t at = 64 * word + static_cast<size_t>(std::countr_zero(bits));
        ordered[out++] = {chunk * kChunkElems + at,
                          changes[which[classes.of_elements[at]]++].level()};
      }
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
    store_element(restored.bits.at(i), 0, t.elem_bytes, after);
    restored.check += check_term(changes[i].index(), before, after);
  });
  return restored;
}

void write_changes(const Group& group, const ChangedElements& changes,
                   const RestoredElements& restored) {
  for_each_change(group, changes, [&](const Member& member, uint64_t element, size_t i) {
    const Tensor& t = *member.tensor;
    if (t.out == nullptr) return;
    store_element(t.out, element, t.elem_bytes, load_element(restored.bits.at(i), 0, t.elem_bytes));
  });
}

}  // namespace resfed
