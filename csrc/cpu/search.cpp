#include "cpu/search.hpp"

#include <algorithm>
#include <cmath>

namespace resfed {
namespace {

// Smallest x in [low, high] for which holds(x), assuming it holds from some x on; `high` is known
// to hold.
template <class Holds>
void first_that_holds(uint64_t low, uint64_t high, Holds holds) {
  while (low < high) {
    const uint64_t middle = low + (high - low) / 2;
    if (holds(middle)) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
}

// The squares that may remain of a group's residuals, whose sum is `all`. A float64 change below
// float32's normal range is rounded by up to 2^-150, to nothing if it is small enough, and so is
// what remains of one; the limit leaves room for that. Throws kTooSmallChange where there is none.
double error_limit(double max_error, double all, const Changes& float64_changes) {
  const double limit = max_error * max_error * (1 - 1e-6) * all;
  const auto [n_changed, first] = float64_changes;
  if (n_changed == 0) return limit;
  const double unseen = std::sqrt(static_cast<double>(n_changed)) * 0x1p-150;
  const double root = std::sqrt(limit) - (1 + max_error) * unseen;
  if (root <= 0) throw Failure{Code::kTooSmallChange, first};
  return root * root;
}

__extension__ using WideUint = unsigned __int128;

// How many of a group's elements are sent when `t` of `total` are, at `share` times that density.
uint64_t proportional(uint64_t n_elems, uint64_t t, uint64_t total, uint64_t share) {
  if (n_elems == 0) return 0;
  const auto wanted = (static_cast<WideUint>(n_elems) * t * share + total - 1) / total;
  return wanted < n_elems ? static_cast<uint64_t>(wanted) : n_elems;
}

// The search for the most elements that a budget holds; docs/format.md, section 8. Payloads grow
// with t, nearly everywhere.
class BudgetSearch {
 public:
  BudgetSearch(uint64_t budget, uint64_t total)
      : budget_(budget), total_(total), high_(std::min(total, 4 * budget)) {}

  // Calls size_of(t) until the largest t that fits is known, or within a thousandth if it is large.
  uint64_t most_size() const { return 2 * budget_; }
  template <class SizeOf>
  void run(SizeOf size_of) {
    while (high_ > 0 && take(high_, size_of(high_))) {  // a nonzero takes about 2 bits
      if (low_ > total_) return;
      high_ = std::min(total_, 2 * high_);
    }
    while (low_ + low_ / kSlack < high_) {
      const uint64_t middle = next();
      if (!take(middle, size_of(middle))) high_ = middle;
    }
  }
  void fits(uint64_t size) { low_size_ = size; }  // that of nothing sent

 private:
  static constexpr uint64_t kSlack = 1024;
  static constexpr uint64_t kLarge = 1 << 16;

  bool take(uint64_t t, uint64_t size) {
    fitted_ = size <= budget_;
    (fitted_ ? low_size_ : high_size_) = size;
    if (fitted_) low_ = t + 1;
    return fitted_;
  }
  // Half way; or, where a try takes long, where a line between both ends meets the budget, and a
  // little further, so that the other end comes near, too.
  uint64_t next() const {
    const uint64_t width = high_ - low_;
    if (low_ <= kLarge || high_size_ > most_size()) return low_ + width / 2;
    const auto step =
        static_cast<WideUint>(width) * (budget_ - low_size_) / (high_size_ - low_size_);
    const uint64_t met = static_cast<uint64_t>(step), slack = low_ / (2 * kSlack);
    if (fitted_) return low_ + std::min(met + slack, width - 1);
    return low_ + (met > slack ? met - slack : 0);
  }

  uint64_t budget_, total_;
  uint64_t low_ = 1,
           high_;  // all below low_ are known to fit, high_ is known not to
  uint64_t low_size_ = 0, high_size_ = kBeyond;
  bool fitted_ = true;  // the last try
};

}  // namespace

void search_budget(const EncodeOptions& options, uint64_t n_matrix, uint64_t n_vector,
                   const SizeOf& size_of) {
  const uint64_t total = n_matrix + n_vector;
  BudgetSearch search(options.max_bytes, total);
  const auto size_of_part = [&](uint64_t t) {
    return size_of(proportional(n_matrix, t, total, 1),
                   proportional(n_vector, t, total, options.vector_share),
                   t > 0 ? search.most_size() : kBeyond);
  };
  const uint64_t least = size_of_part(0);
  if (least > options.max_bytes) throw Failure{Code::kBudgetTooSmall, 0, least};
  search.fits(least);
  search.run(size_of_part);
}

void search_error(double max_error, uint64_t n_elems, const ExactSquares& all,
                  const Changes& float64_changes, const Remaining& remaining,
                  const std::function<void()>& keep) {
  const double limit = error_limit(max_error, all.value(), float64_changes);
  double left = 0;
  const auto holds = [&](uint64_t k) {
    left = remaining(k).value();
    if (left <= limit) keep();
    return left <= limit;
  };
  if (all.value() == 0 || holds(0)) return;
  uint64_t low = 0, high = std::min<uint64_t>(n_elems, 1 + n_elems / 256);
  while (!holds(high)) {
    if (high == n_elems) {
      throw Failure{Code::kErrorUnreachable, 0, double_bits(std::sqrt(left / all.value()))};
    }
    low = high + 1;
    high = std::min(n_elems, 4 * high);
  }
  first_that_holds(low, high, holds);
}

}  // namespace resfed
