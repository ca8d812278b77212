#include "cuda/scan.cuh"
#include "entropy/scan_order.hpp"

namespace resfed::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kScanThreads = 1024;

// Calls visit(i, symbol, matrix) for all symbols of matrices of two dimensions; whole warps take
// part, with a matrix of ~0 for what is none.
template <class Visit>
__device__ void for_each_scanned(const SentSymbol* symbols, uint64_t n, const ScanBuffers& b,
                                 Visit visit) {
  const uint64_t step = static_cast<uint64_t>(gridDim.x) * blockDim.x;
  for (uint64_t i = blockIdx.x * static_cast<uint64_t>(blockDim.x) + threadIdx.x;
       i - lane_of_thread() < n; i += step) {
    uint64_t matrix = kNone;
    SentSymbol symbol(0, 1);
    if (i < n) {
      symbol = symbols[i];
      const MatrixShape* const m = matrix_at(b.matrices, b.n_matrices, symbol.index());
      if (m != nullptr && m->row_length > 0) matrix = static_cast<uint64_t>(m - b.matrices);
    }
    visit(i, symbol, matrix);
  }
}

__global__ void __launch_bounds__(kThreads)
    begin_scan(const SentSymbol* symbols, uint64_t n, ScanBuffers b) {
  const uint64_t first = blockIdx.x * static_cast<uint64_t>(blockDim.x) + threadIdx.x;
  const uint64_t step = static_cast<uint64_t>(gridDim.x) * blockDim.x;
  if (first == 0) *b.any_columns = 0;
  for (uint64_t i = first; i < b.n_lines / 32; i += step) b.occurs[i] = 0;
  for (uint64_t i = first; i < b.n_lines; i += step) b.agree[i] = 0;
  for (uint64_t i = first; i < b.n_matrices; i += step) {
    const MatrixShape& m = b.matrices[i];
    const auto index_of = [=](uint64_t which) { return symbols[which].index(); };
    const uint64_t begin = first_at_least(0, n, m.begin, index_of);
    const uint64_t end = first_at_least(begin, n, m.begin + m.n_elems, index_of);
    b.choices[i] = {
        begin, end - begin, b.plans[i].n_rows, b.plans[i].n_cols, 0, 0, 0, 0, false, false,
        false, false};
  }
}

__device__ void mark(uint32_t* occurs, uint64_t line) {
  const uint32_t bit = 1u << line % 32;
  if ((occurs[line / 32] & bit) == 0) atomicOr(&occurs[line / 32], bit);
}

// By one block.
__device__ void count_lines(const ScanBuffers& b) {
  const auto [begin, end] = range_of_thread(b.n_lines / 32);
  uint64_t mine = 0, total = 0;
  for (uint64_t w = begin; w < end; ++w) mine += static_cast<unsigned>(__popc(b.occurs[w]));
  uint64_t before = sum_of_threads_below(mine, &total);
  for (uint64_t w = begin; w < end; ++w) {
    b.before[w] = static_cast<uint32_t>(before);
    before += static_cast<unsigned>(__popc(b.occurs[w]));
  }
  __syncthreads();
}

// How many lines from `first` to before `line` are sent to.
__device__ uint32_t kept_before(const ScanBuffers& b, uint64_t first, uint64_t line) {
  const uint32_t below = b.occurs[line / 32] & ((1u << line % 32) - 1);
  return b.before[line / 32] - b.before[first / 32] + static_cast<uint32_t>(__popc(below));
}

// Whether a matrix leaves out rows and columns.
__device__ void choose_lines(const ScanBuffers& b, uint64_t matrix) {
  const LinePlan& plan = b.plans[matrix];
  ScanChoice& choice = b.choices[matrix];
  if (plan.n_rows == 0 || choice.n == 0) return;
  const auto keep = [&](uint64_t first, uint64_t n_lines, uint64_t* n, bool* keeps) {
    const uint64_t last = first + n_lines - 1;
    const uint64_t n_kept = kept_before(b, first, last) + (b.occurs[last / 32] >> last % 32 & 1u);
    *keeps = leaving_out_pays(n_lines, n_kept, choice.n);
    if (*keeps) *n = n_kept;
  };
  keep(plan.first_row, plan.n_rows, &choice.n_rows, &choice.keeps_rows);
  keep(plan.first_col, plan.n_cols, &choice.n_cols, &choice.keeps_cols);
}

// The block that ends last chooses the lines of all matrices.
__global__ void __launch_bounds__(kThreads)
    mark_lines(const SentSymbol* symbols, uint64_t n, ScanBuffers b, Progress* progress) {
  for_each_scanned(symbols, n, b, [&](uint64_t, SentSymbol symbol, uint64_t matrix) {
    if (matrix == kNone) return;
    const MatrixShape& m = b.matrices[matrix];
    const Place place = divide(symbol.index() - m.begin, m.row_length);
    mark(b.occurs, b.plans[matrix].first_row + place.quotient);
    mark(b.occurs, b.plans[matrix].first_col + place.remainder);
  });
  if (!is_last_block(progress)) return;
  count_lines(b);
  for (uint64_t i = threadIdx.x; i < b.n_matrices; i += blockDim.x) choose_lines(b, i);
}

// Adds to a number of a matrix; whole warps take part.
__device__ void add_up(const ScanBuffers& b, uint64_t matrix, uint64_t mine,
                       uint64_t ScanChoice::* number) {
  // As a rule, all of a warp lie in one matrix.
  const uint64_t of_first = __shfl_sync(kAllLanes, matrix, 0);
  const bool together = __ballot_sync(kAllLanes, matrix != of_first) == 0;
  if (together) mine = sum_of_warp(mine);
  if (matrix != kNone && mine != 0 && (!together || lane_of_thread() == 0)) {
    add_atomically(&(b.choices[matrix].*number), mine);
  }
}

// The row among those that are kept, and the column among all.
__device__ Place place_in_kept_row(const ScanBuffers& b, uint64_t matrix, SentSymbol symbol) {
  const MatrixShape& m = b.matrices[matrix];
  Place place = divide(symbol.index() - m.begin, m.row_length);
  if (b.choices[matrix].keeps_rows) {
    const uint64_t first = b.plans[matrix].first_row;
    place.quotient = kept_before(b, first, first + place.quotient);
  }
  return place;
}
__device__ uint64_t kept_column(const ScanBuffers& b, uint64_t matrix, uint64_t column) {
  const uint64_t first = b.plans[matrix].first_col;
  return kept_before(b, first, first + column);
}

// What gaps take. The block that ends last keeps all columns where that is better.
__global__ void __launch_bounds__(kThreads)
    measure_gaps(const SentSymbol* symbols, uint64_t n, ScanBuffers b, Progress* progress) {
  for_each_scanned(symbols, n, b, [&](uint64_t i, SentSymbol symbol, uint64_t matrix) {
    uint64_t of_all = 0, of_rows = 0, of_cols = 0;
    if (matrix != kNone && i > b.choices[matrix].first &&
        (b.choices[matrix].keeps_rows || b.choices[matrix].keeps_cols)) {
      const ScanChoice& choice = b.choices[matrix];
      const Place here = place_in_kept_row(b, matrix, symbol);
      const Place before = place_in_kept_row(b, matrix, symbols[i - 1]);
      const uint64_t n_rows = here.quotient - before.quotient;
      of_all = floor_log2(symbol.index() - symbols[i - 1].index());
      of_rows =
          floor_log2(n_rows * b.matrices[matrix].row_length + here.remainder - before.remainder);
      if (choice.keeps_cols) {
        of_cols = floor_log2(n_rows * choice.n_cols + kept_column(b, matrix, here.remainder) -
                             kept_column(b, matrix, before.remainder));
      }
    }
    add_up(b, matrix, of_all, &ScanChoice::bits_of_all);
    add_up(b, matrix, of_rows, &ScanChoice::bits_of_rows);
    add_up(b, matrix, of_cols, &ScanChoice::bits_of_cols);
  });
  if (!is_last_block(progress)) return;
  for (uint64_t i = threadIdx.x; i < b.n_matrices; i += blockDim.x) {
    ScanChoice& choice = b.choices[i];
    const uint64_t n_cols = b.plans[i].n_cols;
    if (!choice.keeps_cols ||
        leaving_out_shortens_gaps(choice.bits_of_rows, choice.bits_of_cols, n_cols)) {
      continue;
    }
    choice.keeps_cols = false;
    choice.n_cols = n_cols;
  }
}

// To the rows and columns that are kept; the order stays.
__global__ void __launch_bounds__(kThreads)
    compact(const SentSymbol* symbols, uint64_t n, ScanBuffers b, SentSymbol* sent) {
  for_each_scanned(symbols, n, b, [&](uint64_t i, SentSymbol symbol, uint64_t matrix) {
    if (i >= n) return;
    if (matrix != kNone && (b.choices[matrix].keeps_rows || b.choices[matrix].keeps_cols)) {
      const ScanChoice& choice = b.choices[matrix];
      Place place = place_in_kept_row(b, matrix, symbol);
      if (choice.keeps_cols) place.remainder = kept_column(b, matrix, place.remainder);
      symbol = {b.matrices[matrix].begin + place.quotient * choice.n_cols + place.remainder,
                symbol.level()};
    }
    sent[i] = symbol;
  });
}

__device__ bool same_sign(SentSymbol a, SentSymbol b) { return (a.level() > 0) == (b.level() > 0); }

__device__ void choose_columns(const ScanBuffers& b, uint64_t matrix) {
  ScanChoice& choice = b.choices[matrix];
  if (b.plans[matrix].n_rows == 0) return;
  choice.columns = columns_pay(static_cast<int64_t>(choice.votes), choice.n);
  if (choice.columns) *b.any_columns = 1;
  if (choice.keeps_rows && !choice.columns &&
      !leaving_out_shortens_gaps(choice.bits_of_all, choice.bits_of_rows, b.plans[matrix].n_rows)) {
    choice.keeps_rows = false;
    choice.n_rows = b.plans[matrix].n_rows;
  }
  if (choice.columns || choice.keeps_cols) b.matrices[matrix].block = 0;
}

// Whether nonzeros resemble the one above them more often than the one to their left. The block
// that ends last chooses.
__global__ void __launch_bounds__(kThreads)
    vote(const SentSymbol* sent, uint64_t n, ScanBuffers b, Progress* progress) {
  for_each_scanned(sent, n, b, [&](uint64_t i, SentSymbol symbol, uint64_t matrix) {
    int64_t votes = 0;
    if (matrix != kNone) {
      const ScanChoice& choice = b.choices[matrix];
      const uint64_t begin = b.matrices[matrix].begin, index = symbol.index();
      if (i > 0 && sent[i - 1].index() + 1 == index &&
          divide(index - begin, choice.n_cols).remainder != 0) {
        votes -= same_sign(sent[i - 1], symbol) ? 1 : 0;
      }
      if (index - begin >= choice.n_cols) {
        const uint64_t above = index - choice.n_cols;
        const uint64_t found =
            first_at_least(max_of(choice.first, i - min_of(i, choice.n_cols)), i, above,
                           [=](uint64_t which) { return sent[which].index(); });
        if (found < i && sent[found].index() == above) {
          votes += same_sign(sent[found], symbol) ? 1 : 0;
        }
      }
    }
    add_up(b, matrix, static_cast<uint64_t>(votes), &ScanChoice::votes);
  });
  if (!is_last_block(progress)) return;
  for (uint64_t i = threadIdx.x; i < b.n_matrices; i += blockDim.x) choose_columns(b, i);
}

// Pairs of neighbours by their place in a line: those that agree in sign, and in the low half those
// that do not. There are fewer than 2^32 of each, for so many lines there are at most.
constexpr unsigned long long kOneDiffers = 1, kOneAgrees = 1ull << 32;
__device__ int64_t agreements(uint64_t pairs) {
  return static_cast<int64_t>(pairs >> 32) - static_cast<int64_t>(static_cast<uint32_t>(pairs));
}

__global__ void __launch_bounds__(kThreads)
    compare_neighbors(const SentSymbol* sent, uint64_t n, ScanBuffers b) {
  for_each_scanned(sent, n, b, [&](uint64_t i, SentSymbol symbol, uint64_t matrix) {
    if (matrix == kNone || i == 0 || sent[i - 1].index() + 1 != symbol.index()) return;
    const ScanChoice& choice = b.choices[matrix];
    const uint64_t length = choice.columns ? choice.n_rows : choice.n_cols;
    const uint64_t place = divide(symbol.index() - b.matrices[matrix].begin, length).remainder;
    if (place == 0) return;
    atomicAdd(&b.agree[b.plans[matrix].first_row + place],
              same_sign(sent[i - 1], symbol) ? kOneAgrees : kOneDiffers);
  });
}

// A block takes a matrix.
__global__ void __launch_bounds__(kScanThreads) choose_flips(ScanBuffers b) {
  for (uint64_t i = blockIdx.x; i < b.n_matrices; i += gridDim.x) {
    const LinePlan& plan = b.plans[i];
    ScanChoice& choice = b.choices[i];
    if (plan.n_rows == 0) continue;
    const uint64_t length = choice.columns ? choice.n_rows : choice.n_cols;
    const unsigned long long* const agree = b.agree + plan.first_row;
    uint8_t* const flips = b.flips + plan.first_row;
    const auto [begin, end] = range_of_thread(length);
    uint64_t n_changes = 0, more = 0, less = 0, pairs = 0;
    for (uint64_t p = begin; p < end; ++p) {
      const int64_t here = agreements(agree[p]);
      pairs += (agree[p] >> 32) + static_cast<uint32_t>(agree[p]);
      n_changes += here < 0 ? 1 : 0;
      (here < 0 ? less : more) += static_cast<uint64_t>(here < 0 ? -here : here);
    }
    uint64_t n_more = 0, n_less = 0, n_pairs = 0, unused = 0;
    sum_of_threads_below(more, &n_more);
    sum_of_threads_below(less, &n_less);
    sum_of_threads_below(pairs, &n_pairs);
    uint64_t before = sum_of_threads_below(n_changes, &unused);
    for (uint64_t p = begin; p < end; ++p) {
      before += agreements(agree[p]) < 0 ? 1 : 0;
      flips[p] = static_cast<uint8_t>(before & 1u);
    }
    if (threadIdx.x == 0) choice.flips = flips_pay(n_more, n_less, n_pairs, length);
  }
}

__global__ void __launch_bounds__(kThreads) flip(uint64_t n, ScanBuffers b, SentSymbol* sent) {
  for_each_scanned(sent, n, b, [&](uint64_t i, SentSymbol symbol, uint64_t matrix) {
    if (matrix == kNone || !b.choices[matrix].flips) return;
    const ScanChoice& choice = b.choices[matrix];
    const uint64_t length = choice.columns ? choice.n_rows : choice.n_cols;
    const uint64_t place = divide(symbol.index() - b.matrices[matrix].begin, length).remainder;
    if (b.flips[b.plans[matrix].first_row + place] != 0) {
      sent[i] = {symbol.index(), -symbol.level()};
    }
  });
}

}  // namespace

void scan_symbols(const Stage& stage, const SentSymbol* symbols, uint64_t n, const ScanBuffers& b,
                  SentSymbol* sent, SentSymbol* other) {
  const auto& [group, progress, n_blocks, stream] = stage;
  const auto each =
      static_cast<unsigned>(min_of<uint64_t>((n + kThreads - 1) / kThreads, n_blocks));
  launch(begin_scan, n_blocks, kThreads, stream, symbols, n, b);
  launch(mark_lines, each, kThreads, stream, symbols, n, b, progress);
  launch(measure_gaps, each, kThreads, stream, symbols, n, b, progress);
  launch(compact, each, kThreads, stream, symbols, n, b, sent);
  launch(vote, each, kThreads, stream, static_cast<const SentSymbol*>(sent), n, b, progress);
  launch(compact, each, kThreads, stream, symbols, n, b, sent);  // with the rows chosen since
  sort_transposed(stage, n, b, sent, other);
  launch(compare_neighbors, each, kThreads, stream, static_cast<const SentSymbol*>(sent), n, b);
  launch(choose_flips, static_cast<unsigned>(min_of<uint64_t>(b.n_matrices, n_blocks)),
         kScanThreads, stream, b);
  launch(flip, each, kThreads, stream, n, b, sent);
}

}  // namespace resfed::cuda
