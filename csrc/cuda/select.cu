// Stage 2 on the device: exact top-k by radix selection, the highest digit of the keys first, and
// what threshold and step follow from it. Ties are counted by chunk, so that the lower index wins.
#include "cuda/select.cuh"

namespace resfed::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kScanThreads = 1024;

__global__ void __launch_bounds__(kThreads)
    count_digits(Candidates candidates, unsigned digit, Progress* progress) {
  __shared__ DigitCounts counts;
  if (progress->known_bits == kAllBits) return;  // all candidates are sent, or none
  counts.clear();
  const uint32_t known_bits = progress->known_bits, known = progress->key;
  for (uint64_t i = blockIdx.x * static_cast<uint64_t>(blockDim.x) + threadIdx.x;
       i < progress->n_found; i += static_cast<uint64_t>(gridDim.x) * blockDim.x) {
    const uint32_t key = magnitude_key(candidates.residuals[i]);
    if ((key & known_bits) == known) counts.add(key, digit);
  }
  if (counts.complete(progress)) choose_digit(digit, progress);
}

// Calls visit(key) for all elements of a chunk.
template <class Visit>
__device__ void for_each_key(const DeviceGroup& group, uint64_t t, Visit visit) {
  const DeviceMember& member = group.member_of_chunk(t);
  const uint64_t first = (t - member.first_chunk) * kChunkElems;
  const uint64_t n = min_of<uint64_t>(kChunkElems, member.n_elems - first);
  with_type(member.dtype, [&]<class T>(T) {
    for (uint64_t i = threadIdx.x; i < n; i += blockDim.x) {
      visit(magnitude_key(residual_at<T>(member, first + i)));
    }
  });
}

// The same digits among all elements.
__global__ void __launch_bounds__(kThreads)
    count_all_digits(DeviceGroup group, unsigned digit, Progress* progress) {
  __shared__ DigitCounts counts;
  counts.clear();
  const uint32_t known_bits = progress->known_bits, known = progress->key;
  for (uint64_t t = blockIdx.x; t < group.n_chunks; t += gridDim.x) {
    for_each_key(group, t, [&](uint32_t key) {
      if ((key & known_bits) == known) counts.add(key, digit);
    });
  }
  if (counts.complete(progress)) choose_digit(digit, progress);
}

__global__ void __launch_bounds__(kThreads)
    count_all_equal(DeviceGroup group, Chunk* chunks, const Progress* progress) {
  const uint32_t wanted = max_of(progress->key, 1u);
  for (uint64_t t = blockIdx.x; t < group.n_chunks; t += gridDim.x) {
    uint64_t n = 0, total = 0;
    for_each_key(group, t, [&](uint32_t key) { n += key == wanted ? 1 : 0; });
    sum_of_threads_below(n, &total);
    if (threadIdx.x == 0) chunks[t].n_equal = static_cast<uint32_t>(total);
  }
}

// Deals the ties to the chunks in order; by one block.
__global__ void __launch_bounds__(kScanThreads)
    deal_all_ties(Chunk* chunks, uint64_t n, uint64_t k, Progress* progress) {
  const uint64_t ties = progress->key == 0 ? k : progress->ties;  // 0: all that differ from zero
  const OwnRange mine = range_of_thread(n);
  uint64_t n_equal = 0, total = 0;
  for (uint64_t t = mine.begin; t < mine.end; ++t) n_equal += chunks[t].n_equal;
  uint64_t before = sum_of_threads_below(n_equal, &total);
  for (uint64_t t = mine.begin; t < mine.end; ++t) {
    chunks[t].ties_to_keep = ties_to_keep(ties, before, chunks[t].n_equal);
    before += chunks[t].n_equal;
  }
  if (threadIdx.x != 0) return;
  progress->min_key = max_of(progress->key, 1u);
  progress->n_found = 0;
}

// What is sent of the chunks before each block's, and of all; by the block that ends last.
__device__ void place_blocks(ChunkSums* sums, Progress* progress) {
  const OwnRange mine = range_of_thread(gridDim.x);
  uint64_t n_above = 0, n_equal = 0, all_above = 0, all_equal = 0;
  for (uint64_t b = mine.begin; b < mine.end; ++b) {
    n_above += sums[b].n_above;
    n_equal += sums[b].n_equal;
  }
  ChunkSums before{sum_of_threads_below(n_above, &all_above),
                   sum_of_threads_below(n_equal, &all_equal)};
  for (uint64_t b = mine.begin; b < mine.end; ++b) {
    const ChunkSums own = sums[b];
    sums[b] = before;
    before = {before.n_above + own.n_above, before.n_equal + own.n_equal};
  }
  if (threadIdx.x != 0) return;
  Progress& p = *progress;
  p.ties = min_of(p.ties, all_equal);
  p.n_sent = all_above + p.ties;
  if (p.ties > 0) {
    const double value = float_from_bits(p.key);
    p.least = min_of(p.least, p.key);
    p.most = max_of(p.most, p.key);
    p.squares += static_cast<double>(p.ties) * value * value;
  }
}

// Of each chunk, by a warp: how many candidates lie above the threshold and on it.
__global__ void __launch_bounds__(kThreads)
    count_sent(Candidates candidates, Chunk* chunks, uint64_t n_chunks, ChunkSums* sums,
               Progress* progress) {
  __shared__ ChunkSums of_warps[kThreads / kWarp];
  const unsigned warp = threadIdx.x / kWarp;
  const auto [begin, end] = range_of_block(n_chunks);
  const uint32_t threshold = progress->key;
  uint32_t least = kFirstNonFiniteKey, most = 0;
  double squares = 0;
  ChunkSums all{0, 0};
  for (uint64_t t = begin + warp; t < end; t += kThreads / kWarp) {
    Chunk& chunk = chunks[t];
    uint32_t n_above = 0, n_equal = 0;
    for (uint32_t i = lane_of_thread(); i < chunk.n_candidates; i += kWarp) {
      const float r = candidates.residuals[chunk.first_candidate + i];
      const uint32_t key = magnitude_key(r);
      n_equal += key == threshold ? 1 : 0;
      if (key <= threshold) continue;
      ++n_above;
      least = min_of(least, key);
      most = max_of(most, key);
      squares += static_cast<double>(r) * static_cast<double>(r);
    }
    n_above = sum_of_warp(n_above);
    n_equal = sum_of_warp(n_equal);
    if (lane_of_thread() == 0) chunk.n_above = n_above, chunk.n_equal = n_equal;
    all = {all.n_above + n_above, all.n_equal + n_equal};
  }
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    least = min_of(least, __shfl_xor_sync(kAllLanes, least, distance));
    most = max_of(most, __shfl_xor_sync(kAllLanes, most, distance));
    squares += __shfl_xor_sync(kAllLanes, squares, distance);
  }
  if (lane_of_thread() == 0) {
    of_warps[warp] = all;
    if (most > 0) {
      atomicMin(&progress->least, least);
      atomicMax(&progress->most, most);
      atomicAdd(&progress->squares, squares);
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (unsigned w = 1; w < kThreads / kWarp; ++w) {
      all = {all.n_above + of_warps[w].n_above, all.n_equal + of_warps[w].n_equal};
    }
    sums[blockIdx.x] = all;
  }
  if (is_last_block(progress)) place_blocks(sums, progress);
}

// The exact sum of squares of what is sent, if it may matter; then threshold and step.
__global__ void __launch_bounds__(kThreads)
    fit_step(Candidates candidates, StepRule rule, Progress* progress) {
  __shared__ uint64_t low[ExactSquares::kBins], high[ExactSquares::kBins];
  Progress& p = *progress;
  if (p.n_sent == 0) return;
  const float least = float_from_bits(p.least), most = float_from_bits(p.most);
  const bool exactly = may_be_too_fine(rule, least, p.squares, p.n_sent);
  if (exactly) {
    for (unsigned i = threadIdx.x; i < ExactSquares::kBins; i += blockDim.x) low[i] = high[i] = 0;
    __syncthreads();
    const uint32_t threshold = p.key;
    for (uint64_t i = blockIdx.x * static_cast<uint64_t>(blockDim.x) + threadIdx.x; i < p.n_found;
         i += static_cast<uint64_t>(gridDim.x) * blockDim.x) {
      const float r = candidates.residuals[i];
      if (magnitude_key(r) <= threshold) continue;
      const ExactSquare square = exact_square(r);
      add_atomically(&low[square.bin], square.low);
      add_atomically(&high[square.bin], square.high);
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < ExactSquares::kBins; i += blockDim.x) {
      if (low[i] != 0) add_atomically(&p.exact_squares.low[i], low[i]);
      if (high[i] != 0) add_atomically(&p.exact_squares.high[i], high[i]);
    }
  }
  if (!is_last_block(progress) || threadIdx.x != 0) return;
  double finest = 0;
  if (exactly) {
    const ExactSquare square = exact_square(float_from_bits(p.key));
    p.exact_squares.low[square.bin] += p.ties * square.low;
    p.exact_squares.high[square.bin] += p.ties * square.high;
    finest = finest_automatic_step(p.exact_squares.value(), p.n_sent);
  }
  p.quantizer = fit_quantizer(rule, least, most, finest);
}

}  // namespace

void find_threshold(const Stage& stage, uint64_t k, Chunk* chunks) {
  const auto& [group, progress, n_blocks, stream] = stage;
  for (unsigned digit = 0; digit < kDigits; ++digit) {
    launch(count_all_digits, n_blocks, kThreads, stream, group, digit, progress);
  }
  launch(count_all_equal, n_blocks, kThreads, stream, group, chunks, progress);
  launch(deal_all_ties, 1, kScanThreads, stream, chunks, group.n_chunks, k, progress);
}

void count_again(const Stage& stage, Candidates candidates) {
  launch(count_digits, stage.n_blocks, kThreads, stage.stream, candidates, 0u, stage.progress);
}

void select_top(const Stage& stage, Candidates candidates, const StepRule& rule, Chunk* chunks,
                ChunkSums* sums) {
  const auto& [group, progress, n_blocks, stream] = stage;
  for (unsigned digit = 1; digit < kDigits; ++digit) {
    launch(count_digits, n_blocks, kThreads, stream, candidates, digit, progress);
  }
  launch(count_sent, n_blocks, kThreads, stream, candidates, chunks, group.n_chunks, sums,
         progress);
  launch(fit_step, n_blocks, kThreads, stream, candidates, rule, progress);
}

}  // namespace resfed::cuda
