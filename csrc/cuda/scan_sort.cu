// A radix sort by index; each pass by a digit, and stable. A block takes a tile, each of its warps
// consecutive symbols of it.
#include "cuda/scan.cuh"

namespace resfed::cuda {
namespace {

// To an index in the transposed matrix, where the matrix is one.
__device__ SentSymbol transposed(SentSymbol symbol, const ScanBuffers& b) {
  const MatrixShape* const m = matrix_at(b.matrices, b.n_matrices, symbol.index());
  if (m == nullptr || !b.choices[m - b.matrices].columns) return symbol;
  const ScanChoice& choice = b.choices[m - b.matrices];
  const Place place = divide(symbol.index() - m->begin, choice.n_cols);
  return {m->begin + place.remainder * choice.n_rows + place.quotient, symbol.level()};
}

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

}  // namespace

void sort_transposed(const Stage& stage, uint64_t n, const ScanBuffers& b, SentSymbol* sent,
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

}  // namespace resfed::cuda
