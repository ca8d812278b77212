// The searches of max_bytes and max_error, which try selections of several sizes; docs/format.md,
// section 8. What a try does is the caller's: backends share only the order of the tries.
#pragma once

#include <functional>
#include <limits>

#include "api.hpp"
#include "numeric/exact_sum.hpp"

namespace resfed {

// The most elements whose payload fits into max_bytes. Calls size_of(k_matrix, k_vector, limit) for
// the bytes of payloads; sizes beyond the limit are all alike, and may be given as kBeyond. The
// last one that fits is the one to send. Throws kBudgetTooSmall.
constexpr uint64_t kBeyond = std::numeric_limits<uint64_t>::max();
using SizeOf = std::function<uint64_t(uint64_t k_matrix, uint64_t k_vector, uint64_t limit)>;
void search_budget(const EncodeOptions& options, uint64_t n_matrix, uint64_t n_vector,
                   const SizeOf& size_of);

// How many elements of float64 tensors changed, before the change is rounded to float32; and the
// first tensor, among all of the call, that has one.
struct Changes {
  uint64_t count = 0;
  uint64_t first = ~uint64_t{0};

  void add(const Changes& other) {
    count += other.count;
    first = first < other.first ? first : other.first;
  }
};

// The fewest elements that keep a group within max_error. Calls remaining(k) for the squares that
// remain of its residuals, of `all`, when k are sent; and keep() directly after the tries that are
// within the bound, of which the last one is to be sent. Throws kErrorUnreachable, kTooSmallChange.
using Remaining = std::function<ExactSquares(uint64_t k)>;
void search_error(double max_error, uint64_t n_elems, const ExactSquares& all,
                  const Changes& float64_changes, const Remaining& remaining,
                  const std::function<void()>& keep);

}  // namespace resfed
