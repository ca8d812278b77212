// Stage 2 on the device: exact top-k by radix selection, the highest digit of the keys first, and
// what threshold and step follow from it. Ties are counted by chunk, so that the lower index wins.
#include "cuda/pipeline.cuh"

namespace resfed::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kScanThreads = 1024;

// One digit of the k-th largest key, from how often each occurs: by a whole block of kBins / 2
// threads at most. `ties` are the k of what is left, before and after.
__device__ void choose_digit(const unsigned* histogram, unsigned digit, uint32_t* key,
                             uint32_t* known_bits, uint64_t* ties) {
  if (threadIdx.x == 0) {
    unsigned bin = kBins - 1;
    uint64_t k = *ties;
    for (; bin > 0 && histogram[bin] < k; --bin) k -= histogram[bin];
    *ties = k;
    *key |= bin << digit_shift(digit);
    *known_bits = ~0u << digit_shift(digit);
  }
  __syncthreads();
}

// The key of this rank (0 is the largest) among samples, by one block.
__global__ void __launch_bounds__(kScanThreads)
    choose_min_key(const uint32_t* samples, uint32_t n_samples, uint32_t rank, Progress* progress) {
  __shared__ unsigned histogram[kBins];
  __shared__ uint32_t key, known_bits;
  __shared__ uint64_t ties;
  if (threadIdx.x == 0) key = 0, known_bits = 0, ties = rank + 1;
  for (unsigned digit = 0; digit < kDigits; ++digit) {
    for (unsigned bin = threadIdx.x; bin < kBins; bin += blockDim.x) histogram[bin] = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n_samples; i += blockDim.x) {
      if ((samples[i] & known_bits) == key) atomicAdd(&histogram[digit_of(samples[i], digit)], 1u);
    }
    __syncthreads();
    choose_digit(histogram, digit, &key, &known_bits, &ties);
  }
  if (threadIdx.x == 0) progress->min_key = min_of(max_of(key, 1u), kFirstNonFiniteKey);
}

// Adds a block's histogram to the progress's; the last block chooses the digit.
__device__ void finish_histogram(unsigned* histogram, unsigned digit, Progress* progress) {
  __syncthreads();
  for (unsigned bin = threadIdx.x; bin < kBins; bin += blockDim.x) {
    if (histogram[bin] != 0) atomicAdd(&progress->histogram[bin], histogram[bin]);
  }
  if (!is_last_block(progress)) return;
  choose_digit(progress->histogram, digit, &progress->key, &progress->known_bits, &progress->ties);
  for (unsigned bin = threadIdx.x; bin < kBins; bin += blockDim.x) progress->histogram[bin] = 0;
}

__global__ void __launch_bounds__(kThreads)
    count_digits(Candidates candidates, unsigned digit, Progress* progress) {
  __shared__ unsigned histogram[kBins];
  if (progress->known_bits == kAllBits) return;  // all candidates are sent, or none
  for (unsigned bin = threadIdx.x; bin < kBins; bin += blockDim.x) histogram[bin] = 0;
  __syncthreads();
  const uint32_t known_bits = progress->known_bits, known = progress->key;
  for (uint64_t i = blockIdx.x * static_cast<uint64_t>(blockDim.x) + threadIdx.x;
       i < progress->n_found; i += static_cast<uint64_t>(gridDim.x) * blockDim.x) {
    const uint32_t key = magnitude_key(candidates.residuals[i]);
    if ((key & known_bits) == known) atomicAdd(&histogram[digit_of(key, digit)], 1u);
  }
  finish_histogram(histogram, digit, progress);
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
  __shared__ unsigned histogram[kBins];
  for (unsigned bin = threadIdx.x; bin < kBins; bin += blockDim.x) histogram[bin] = 0;
  __syncthreads();
  const uint32_t known_bits = progress->known_bits, known = progress->key;
  for (uint64_t t = blockIdx.x; t < group.n_chunks; t += gridDim.x) {
    for_each_key(group, t, [&](uint32_t key) {
      if ((key & known_bits) == known) atomicAdd(&histogram[digit_of(key, digit)], 1u);
    });
  }
  finish_histogram(histogram, digit, progress);
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
__device__ void deal_ties(Chunk* chunks, uint64_t n, uint64_t ties) {
  const ThreadRange mine = range_of_thread(n);
  uint64_t n_equal = 0, total = 0;
  for (uint64_t t = mine.begin; t < mine.end; ++t) n_equal += chunks[t].n_equal;
  uint64_t before = sum_of_threads_below(n_equal, &total);
  for (uint64_t t = mine.begin; t < mine.end; ++t) {
    const uint64_t left = ties - min_of(ties, before);
    chunks[t].ties_to_keep = static_cast<uint32_t>(min_of<uint64_t>(left, chunks[t].n_equal));
    before += chunks[t].n_equal;
  }
}

__global__ void __launch_bounds__(kScanThreads)
    deal_all_ties(Chunk* chunks, uint64_t n, uint64_t k, Progress* progress) {
  __shared__ uint64_t ties;
  if (threadIdx.x == 0) {
    if (progress->key == 0) progress->ties = k;  // all that differ from zero
    progress->min_key = max_of(progress->key, 1u);
    progress->n_found = 0;
    ties = progress->ties;
  }
  __syncthreads();
  deal_ties(chunks, n, ties);
}

// Whether there is anything to choose among the candidates, and if so, that they serve.
__global__ void look_at_candidates(Candidates candidates, uint64_t k, bool all_nonzero,
                                   bool exactly, Progress* progress) {
  Progress& p = *progress;
  const uint64_t n = p.n_found;
  if (n > candidates.room || (n < k && !all_nonzero && !exactly)) {
    p.lacks_room = 1;
    p.n_found = 0;
  }
  p.key = 0;
  p.known_bits = 0;
  p.ties = k;
  if (k == 0 || p.lacks_room != 0) p.key = kAllBits;
  if (k == 0 || p.lacks_room != 0 || exactly || n <= k) p.known_bits = kAllBits;
}

// Of each chunk, by a warp: how many candidates lie above the threshold and on it.
__global__ void __launch_bounds__(kThreads)
    count_sent(Candidates candidates, Chunk* chunks, uint64_t n_chunks, Progress* progress) {
  const uint64_t n_warps = static_cast<uint64_t>(gridDim.x) * (kThreads / kWarp);
  const uint32_t threshold = progress->key;
  uint32_t least = kFirstNonFiniteKey, most = 0;
  double squares = 0;
  for (uint64_t t = blockIdx.x * (kThreads / kWarp) + threadIdx.x / kWarp; t < n_chunks;
       t += n_warps) {
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
  }
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    least = min_of(least, __shfl_xor_sync(kAllLanes, least, distance));
    most = max_of(most, __shfl_xor_sync(kAllLanes, most, distance));
    squares += __shfl_xor_sync(kAllLanes, squares, distance);
  }
  if (lane_of_thread() == 0 && most > 0) {
    atomicMin(&progress->least, least);
    atomicMax(&progress->most, most);
    atomicAdd(&progress->squares, squares);
  }
}

// Where each chunk's elements go, and how many are sent; by one block.
__global__ void __launch_bounds__(kScanThreads)
    place_chunks(Chunk* chunks, uint64_t n, Progress* progress) {
  const uint64_t ties = progress->ties;
  deal_ties(chunks, n, ties);
  const ThreadRange mine = range_of_thread(n);
  uint64_t n_sent = 0, n_equal = 0, total = 0, total_equal = 0;
  for (uint64_t t = mine.begin; t < mine.end; ++t) {
    n_equal += chunks[t].ties_to_keep;
    n_sent += chunks[t].n_above + chunks[t].ties_to_keep;
  }
  uint64_t before = sum_of_threads_below(n_sent, &total);
  sum_of_threads_below(n_equal, &total_equal);
  for (uint64_t t = mine.begin; t < mine.end; ++t) {
    chunks[t].first_sent = before;
    before += chunks[t].n_above + chunks[t].ties_to_keep;
  }
  if (threadIdx.x != 0) return;
  Progress& p = *progress;
  p.n_sent = total;
  p.ties = total_equal;
  if (total_equal > 0) {
    const double value = float_from_bits(p.key);
    p.least = min_of(p.least, p.key);
    p.most = max_of(p.most, p.key);
    p.squares += static_cast<double>(total_equal) * value * value;
  }
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

void estimate_threshold(const Stage& stage, const SamplePlan& plan, uint32_t* samples) {
  if (plan.n_samples == 0) return;
  sample(stage, plan.n_samples, samples);
  launch(choose_min_key, 1, kScanThreads, stage.stream, samples, plan.n_samples, plan.rank,
         stage.progress);
}

void find_threshold(const Stage& stage, uint64_t k, Chunk* chunks) {
  const auto& [group, progress, n_blocks, stream] = stage;
  for (unsigned digit = 0; digit < kDigits; ++digit) {
    launch(count_all_digits, n_blocks, kThreads, stream, group, digit, progress);
  }
  launch(count_all_equal, n_blocks, kThreads, stream, group, chunks, progress);
  launch(deal_all_ties, 1, kScanThreads, stream, chunks, group.n_chunks, k, progress);
}

void select_top(const Stage& stage, Candidates candidates, uint64_t k, bool all_nonzero,
                bool exactly, const StepRule& rule, Chunk* chunks) {
  const auto& [group, progress, n_blocks, stream] = stage;
  launch(look_at_candidates, 1, 1, stream, candidates, k, all_nonzero, exactly, progress);
  for (unsigned digit = 0; digit < kDigits; ++digit) {
    launch(count_digits, n_blocks, kThreads, stream, candidates, digit, progress);
  }
  launch(count_sent, n_blocks, kThreads, stream, candidates, chunks, group.n_chunks, progress);
  launch(place_chunks, 1, kScanThreads, stream, chunks, group.n_chunks, progress);
  launch(fit_step, n_blocks, kThreads, stream, candidates, rule, progress);
}

}  // namespace resfed::cuda
