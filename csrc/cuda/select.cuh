// What kernels that count digits of keys share: a radix selection finds the k-th largest key digit
// by digit, the highest first.
#pragma once

#include "cuda/pipeline.cuh"

namespace resfed::cuda {

// One digit of the k-th largest key, from how often each occurs; by a whole block. `ties` are the k
// of what is left, before and after.
__device__ inline void choose_digit(const unsigned* histogram, unsigned digit, uint32_t* key,
                                    uint32_t* known_bits, uint64_t* ties) {
  const uint64_t k = *ties;
  const auto [begin, end] = range_of_thread(kBins);  // counted from the highest bin
  uint64_t mine = 0, total = 0;
  for (uint64_t i = begin; i < end; ++i) mine += histogram[kBins - 1 - i];
  uint64_t above = sum_of_threads_below(mine, &total);
  const bool none_below = begin < end && end == kBins;
  if (above < k && (above + mine >= k || none_below)) {
    uint64_t i = begin;
    for (; i + 1 < end && above + histogram[kBins - 1 - i] < k; ++i) {
      above += histogram[kBins - 1 - i];
    }
    *ties = k - above;
    *key |= static_cast<uint32_t>(kBins - 1 - i) << digit_shift(digit);
    *known_bits = ~0u << digit_shift(digit);
  }
  __syncthreads();
}

// A block's counts of a digit, in shared memory.
struct DigitCounts {
  unsigned of[kBins];

  __device__ void clear() {
    for (unsigned bin = threadIdx.x; bin < kBins; bin += blockDim.x) of[bin] = 0;
    __syncthreads();
  }
  __device__ void add(uint32_t key, unsigned digit) { atomicAdd(&of[digit_of(key, digit)], 1u); }
  // Adds to the progress's counts. True for the block that ends last: it has all of them.
  __device__ bool complete(Progress* progress) {
    __syncthreads();
    for (unsigned bin = threadIdx.x; bin < kBins; bin += blockDim.x) {
      if (of[bin] != 0) atomicAdd(&progress->histogram[bin], of[bin]);
    }
    return is_last_block(progress);
  }
};

// By the last block: a digit of the threshold, unless it is known already.
__device__ inline void choose_digit(unsigned digit, Progress* progress) {
  if (progress->known_bits != kAllBits) {
    choose_digit(progress->histogram, digit, &progress->key, &progress->known_bits,
                 &progress->ties);
  }
  for (unsigned bin = threadIdx.x; bin < kBins; bin += blockDim.x) progress->histogram[bin] = 0;
}

}  // namespace resfed::cuda
