// When another scan order of a matrix of n nonzeros pays.
#pragma once

#include "entropy/frequencies.hpp"
#include "host_device.hpp"

namespace resfed {

// Rows or columns of a matrix, for some of them to be left out: their numbers have 32 bits.
constexpr uint64_t kMostLines = 1ull << 32;

// To leave out all but n_kept of n_lines rows or columns: it shortens gaps, for one bit of each
// line. That is so for lines that lie anywhere.
RESFED_HD bool leaving_out_pays(uint64_t n_lines, uint64_t n_kept, uint64_t n) {
  return n_lines <= kMostLines &&
         n * (log2_in_32nds(n_lines) - log2_in_32nds(n_kept)) > 32 * n_lines;
}
// To leave out some of n_lines rows or columns where gaps along rows take fewer bits then: sums of
// log2. Where those that are kept lie together, as the columns of a kernel do, most gaps are short
// already.
RESFED_HD bool leaving_out_shortens_gaps(uint64_t bits_before, uint64_t bits_after,
                                         uint64_t n_lines) {
  return bits_before - bits_after > n_lines;
}
// To scan columns: so much more often a nonzero has the sign of the one above it than of the one to
// its left.
RESFED_HD bool columns_pay(int64_t more_often_above, uint64_t n) {
  return 16 * more_often_above > static_cast<int64_t>(n);
}
// To flip signs by their place in a line, at one bit a place. Neighbours agree in sign n_more times
// more often than not at some places, and n_less times less often than not at the others. Flipping
// moves their sum of agreements from n_more - n_less to n_more + n_less. A sum s among n_pairs
// saves about 0.7 s^2 / n_pairs bits, so this saves 3 to 4 n_more n_less / n_pairs.
RESFED_HD bool flips_pay(uint64_t n_more, uint64_t n_less, uint64_t n_pairs, uint64_t length) {
  if (n_more == 0 || n_less == 0) return false;
  return log2_in_32nds(n_more) + log2_in_32nds(n_less) + 2 * 32 >
         log2_in_32nds(n_pairs) + log2_in_32nds(length);
}

}  // namespace resfed
