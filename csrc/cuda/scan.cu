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

struct Place {
  uint64_t quotient, remainder;
};
__device__ Place divide(uint64_t n, uint64_t d) {  // shorter where both are short
  if ((n | d) >> 32 == 0) {
    const auto quotient = static_cast<uint32_t>(n) / static_cast<uint32_t>(d);
    return {quotient, static_cast<uint32_t>(n) - quotient * static_cast<uint32_t>(d)};
  }
  return {n / d, n % d};
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
    b.choices[i] = {begin, end - begin, b.plans[i].n_rows, b.plans[i].n_cols, 0, false, false,
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

// To the rows and columns that are kept; the order stays.
__global__ void __launch_bounds__(kThreads)
    compact(const SentSymbol* symbols, uint64_t n, ScanBuffers b, SentSymbol* sent) {
  for_each_scanned(symbols, n, b, [&](uint64_t i, SentSymbol symbol, uint64_t matrix) {
    if (i >= n) return;
    if (matrix != kNone && (b.choices[matrix].keeps_rows || b.choices[matrix].keeps_cols)) {
      const MatrixShape& m = b.matrices[matrix];
      const LinePlan& plan = b.plans[matrix];
      const ScanChoice& choice = b.choices[matrix];
      Place place = divide(symbol.index() - m.begin, m.row_length);
      if (choice.keeps_rows) {
        place.quotient = kept_before(b, plan.first_row, plan.first_row + place.quotient);
      }
      if (choice.keeps_cols) {
        place.remainder = kept_before(b, plan.first_col, plan.first_col + place.remainder);
      }
      symbol = {m.begin + place.quotient * choice.n_cols + place.remainder, symbol.level()};
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
    // As a rule, all of a warp lie in one matrix.
    const uint64_t of_first = __shfl_sync(kAllLanes, matrix, 0);
    auto sum = static_cast<uint64_t>(votes);
    const bool together = __ballot_sync(kAllLanes, matrix != of_first) == 0;
    if (together) sum = sum_of_warp(sum);
    if (matrix != kNone && sum != 0 && (!together || lane_of_thread() == 0)) {
      add_atomically(&b.choices[matrix].votes, sum);
    }
  });
  if (!is_last_block(progress)) return;
  for (uint64_t i = threadIdx.x; i < b.n_matrices; i += blockDim.x) choose_columns(b, i);
}

// To an index in the transposed matrix, where the matrix is one.
__device__ SentSymbol transposed(SentSymbol symbol, const ScanBuffers& b) {
  const MatrixShape* const m = matrix_at(b.matrices, b.n_matrices, symbol.index());
  if (m == nullptr || !b.choices[m - b.matrices].columns) return symbol;
  const ScanChoice& choice = b.choices[m - b.matrices];
  const Place place = divide(symbol.index() - m->begin, choice.n_cols);
  return {m->begin + place.remainder * choice.n_rows + place.quotient, symbol.level()};
}

// ---- a radix sort by index; each pass by a digit, and stable. A block takes a tile, each of its
// warps consecutive symbols of it.

constexpr unsigned kSortWarps = kSortThreads / kWarp;
constexpr uint64_t kPerSortWarp = kSortTile / kSortWarps;
struct Digits {
  unsigned shift, n_bits;
  __device__ uint32_t of(SentSymbol symbol) const {
    return static_cast<uint32_t>(symbol.index() >> shift) & ((1u << n_bits) - 1);
  }
};

// `transposes`: takes the symbols to the transposed matrices before.
__global__ void __launch_bounds__(kSortThreads)
    count_by_digit(SentSymbol* from, uint64_t n, Digits digits, bool transposes, ScanBuffers b) {
  __shared__ uint32_t counts[1u << kMostDigitBits];
  if (*b.any_columns == 0) return;
  const uint64_t n_tiles = n_sort_tiles(n);
  for (uint64_t tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
    for (unsigned d = threadIdx.x; d < 1u << digits.n_bits; d += blockDim.x) counts[d] = 0;
    __syncthreads();
    const uint64_t end = min_of(n, (tile + 1) * kSortTile);
    for (uint64_t i = tile * kSortTile + threadIdx.x; i < end; i += blockDim.x) {
      SentSymbol symbol = from[i];
      if (transposes) symbol = from[i] = transposed(symbol, b);
      atomicAdd(&counts[digits.of(symbol)], 1u);
    }
    __syncthreads();
    for (unsigned d = threadIdx.x; d < 1u << digits.n_bits; d += blockDim.x) {
      b.histograms[d * n_tiles + tile] = counts[d];
    }
    __syncthreads();
  }
}

// A warp takes a digit: how many symbols with it lie in the tiles before, and in all.
__global__ void __launch_bounds__(kSortThreads)
    sum_over_tiles(uint64_t n_tiles, Digits digits, ScanBuffers b) {
  if (*b.any_columns == 0) return;
  const unsigned digit = blockIdx.x * kSortWarps + threadIdx.x / kWarp;
  if (digit >= 1u << digits.n_bits) return;
  uint32_t* const counts = b.histograms + digit * n_tiles;
  uint64_t before = 0;
  for (uint64_t first = 0; first < n_tiles; first += kWarp) {
    const uint64_t tile = first + lane_of_thread();
    const uint64_t count = tile < n_tiles ? counts[tile] : 0;
    const uint64_t below = sum_of_lanes_below(count);
    if (tile < n_tiles) counts[tile] = static_cast<uint32_t>(before + below);
    before += __shfl_sync(kAllLanes, below + count, kWarp - 1);
  }
  if (lane_of_thread() == 0) b.digit_counts[digit] = static_cast<uint32_t>(before);
}

__global__ void __launch_bounds__(kSortThreads)
    move_by_digit(const SentSymbol* from, uint64_t n, Digits digits, ScanBuffers b,
                  SentSymbol* to) {
  __shared__ uint32_t places[kSortWarps][1u << kMostDigitBits];  // of the warp's next symbol
  __shared__ uint32_t begins[1u << kMostDigitBits];              // of the digits
  if (*b.any_columns == 0) return;
  const uint64_t n_tiles = n_sort_tiles(n);
  const unsigned warp = threadIdx.x / kWarp, n_digits = 1u << digits.n_bits;
  const auto [first_digit, last_digit] = range_of_thread(n_digits);
  uint64_t mine = 0, total = 0;
  for (uint64_t d = first_digit; d < last_digit; ++d) mine += b.digit_counts[d];
  uint64_t before = sum_of_threads_below(mine, &total);
  for (uint64_t d = first_digit; d < last_digit; ++d) {
    begins[d] = static_cast<uint32_t>(before);
    before += b.digit_counts[d];
  }
  __syncthreads();
  for (uint64_t tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
    for (unsigned d = lane_of_thread(); d < n_digits; d += kWarp) places[warp][d] = 0;
    __syncwarp();
    const uint64_t begin = min_of(n, tile * kSortTile + warp * kPerSortWarp);
    const uint64_t end = min_of(n, begin + kPerSortWarp);
    for (uint64_t i = begin + lane_of_thread(); i < end; i += kWarp) {
      atomicAdd(&places[warp][digits.of(from[i])], 1u);
    }
    __syncthreads();
    for (unsigned d = threadIdx.x; d < n_digits; d += blockDim.x) {
      uint32_t place = begins[d] + b.histograms[d * n_tiles + tile];
      for (unsigned w = 0; w < kSortWarps; ++w) {
        const uint32_t count = places[w][d];
        places[w][d] = place;
        place += count;
      }
    }
    __syncthreads();
    for (uint64_t i = begin + lane_of_thread(); i - lane_of_thread() < end; i += kWarp) {
      const bool there = i < end;
      const SentSymbol symbol = there ? from[i] : SentSymbol(0, 1);
      const uint32_t digit = digits.of(symbol);
      unsigned same = __ballot_sync(kAllLanes, there);
      for (unsigned bit = 0; bit < digits.n_bits; ++bit) {
        const unsigned ones = __ballot_sync(kAllLanes, digit >> bit & 1u);
        same &= (digit >> bit & 1u) != 0 ? ones : ~ones;
      }
      uint32_t place = 0;
      if (there) place = places[warp][digit] + static_cast<uint32_t>(__popc(same & lanes_below()));
      __syncwarp();
      if (there && (same & lanes_below()) == 0) {
        places[warp][digit] += static_cast<uint32_t>(__popc(same));
      }
      __syncwarp();
      if (there) to[place] = symbol;
    }
    __syncthreads();
  }
}

void sort(const Stage& stage, uint64_t n, const ScanBuffers& b, SentSymbol* sent,
          SentSymbol* other) {
  const unsigned n_bits = floor_log2(stage.group.n_elems) + 1;
  const unsigned n_passes = n_bits <= 2 * kMostDigitBits ? 2 : 4;  // even: ends where it began
  static_assert(4 * kMostDigitBits >= 39 + 1);
  const unsigned n_digit_bits = (n_bits + n_passes - 1) / n_passes;
  const uint64_t n_tiles = n_sort_tiles(n);
  const auto n_blocks = static_cast<unsigned>(min_of<uint64_t>(n_tiles, stage.n_blocks));
  for (unsigned pass = 0; pass < n_passes; ++pass) {
    const Digits digits{pass * n_digit_bits, n_digit_bits};
    launch(count_by_digit, n_blocks, kSortThreads, stage.stream, sent, n, digits, pass == 0, b);
    launch(sum_over_tiles, static_cast<unsigned>(n_blocks_of(1u << n_digit_bits, kSortWarps)),
           kSortThreads, stage.stream, n_tiles, digits, b);
    launch(move_by_digit, n_blocks, kSortThreads, stage.stream, sent, n, digits, b, other);
    std::swap(sent, other);
  }
}

// ---- signs

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
  launch(compact, each, kThreads, stream, symbols, n, b, sent);
  launch(vote, each, kThreads, stream, static_cast<const SentSymbol*>(sent), n, b, progress);
  sort(stage, n, b, sent, other);
  launch(compare_neighbors, each, kThreads, stream, static_cast<const SentSymbol*>(sent), n, b);
  launch(choose_flips, static_cast<unsigned>(min_of<uint64_t>(b.n_matrices, n_blocks)),
         kScanThreads, stream, b);
  launch(flip, each, kThreads, stream, n, b, sent);
}

}  // namespace resfed::cuda
