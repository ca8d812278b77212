#include "cpu/lossless.hpp"

#include <cstring>

#include "cpu/threads.hpp"
#include "numeric/check.hpp"

namespace resfed {
namespace {

uint64_t width_mask(uint32_t elem_bytes) { return ~0ull >> (64 - 8 * elem_bytes); }

// Difference modulo 2^width as a signed number, zigzag: 0, -1, 1, -2, ... become 0, 1, 2, 3, ...
uint64_t change_between(uint64_t before, uint64_t after, uint32_t elem_bytes) {
  const unsigned unused = 64 - 8 * elem_bytes;
  const int64_t difference = static_cast<int64_t>((after - before) << unused) >> unused;
  return (static_cast<uint64_t>(difference) << 1) ^ static_cast<uint64_t>(difference >> 63);
}

uint64_t apply_change(uint64_t before, uint64_t change, uint32_t elem_bytes) {
  const uint64_t difference = (change >> 1) ^ (0 - (change & 1u));
  return (before + difference) & width_mask(elem_bytes);
}

}  // namespace

std::vector<ChangedElement> find_changes(const Group& group) {
  std::vector<std::vector<ChangedElement>> found(n_chunks(group));
  parallel_for(found.size(), [&](size_t s) {
    for_each_member(group, s, [&](const Member& member, uint64_t first, uint64_t n, uint32_t) {
      const Tensor& t = *member.tensor;
      const size_t offset = first * t.elem_bytes;
      if (std::memcmp(static_cast<const uint8_t*>(t.current) + offset,
                      static_cast<const uint8_t*>(t.reference) + offset, n * t.elem_bytes) == 0) {
        return;
      }
      for (uint64_t i = first; i < first + n; ++i) {
        const uint64_t change =
            change_between(load_element(t.reference, i, t.elem_bytes),
                           load_element(t.current, i, t.elem_bytes), t.elem_bytes);
        if (change != 0) found[s].push_back({member.begin + i, change});
      }
    });
  });
  std::vector<ChangedElement> changes;
  for (const auto& in_chunk : found) {
    changes.insert(changes.end(), in_chunk.begin(), in_chunk.end());
  }
  return changes;
}

RestoredElements restore_changes(const Group& group, const std::vector<ChangedElement>& changes) {
  RestoredElements restored;
  restored.bits = ElementBits(group, changes.size());
  for_each_change(group, changes, [&](const Member& member, uint64_t element, size_t i) {
    const uint32_t elem_bytes = member.tensor->elem_bytes;
    if (changes[i].change > width_mask(elem_bytes))
      throw Failure{Code::kBadSlice, i, changes[i].change};
    const uint64_t before = load_element(member.tensor->reference, element, elem_bytes);
    const uint64_t after = apply_change(before, changes[i].change, elem_bytes);
    std::memcpy(restored.bits.at(i), &after, elem_bytes);
    restored.check += check_term(changes[i].index, before, after);
  });
  return restored;
}

void write_changes(const Group& group, const std::vector<ChangedElement>& changes,
                   const RestoredElements& restored) {
  for_each_change(group, changes, [&](const Member& member, uint64_t element, size_t i) {
    const Tensor& t = *member.tensor;
    if (t.out == nullptr) return;
    std::memcpy(static_cast<uint8_t*>(t.out) + element * t.elem_bytes, restored.bits.at(i),
                t.elem_bytes);
  });
}

}  // namespace resfed
