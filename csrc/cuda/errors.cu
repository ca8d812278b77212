// Exact sums of squares on the device, for max_error and max_norm. A block sums in shared memory.
#include <type_traits>

#include "cuda/pipeline.cuh"

namespace resfed::cuda {
namespace {

constexpr unsigned kThreads = 256;

struct BlockSquares {
  uint64_t low[ExactSquares::kBins], high[ExactSquares::kBins];

  __device__ void clear() {
    for (unsigned i = threadIdx.x; i < ExactSquares::kBins; i += blockDim.x) low[i] = high[i] = 0;
    __syncthreads();
  }
  __device__ void add(float value) {
    const ExactSquare square = exact_square(value);
    if (square.low != 0) add_atomically(&low[square.bin], square.low);
    if (square.high != 0) add_atomically(&high[square.bin], square.high);
  }
  __device__ void subtract(float value) {
    const ExactSquare square = exact_square(value);
    if (square.low != 0) add_atomically(&low[square.bin], 0 - square.low);
    if (square.high != 0) add_atomically(&high[square.bin], 0 - square.high);
  }
  __device__ void add_to(ExactSquares* sums) {
    __syncthreads();
    for (unsigned i = threadIdx.x; i < ExactSquares::kBins; i += blockDim.x) {
      if (low[i] != 0) add_atomically(&sums->low[i], low[i]);
      if (high[i] != 0) add_atomically(&sums->high[i], high[i]);
    }
  }
};

__global__ void __launch_bounds__(kThreads) sum_all(DeviceGroup group, AllSquares* sums) {
  __shared__ BlockSquares of_block;
  of_block.clear();
  uint64_t n_float64 = 0;
  for (uint64_t t = blockIdx.x; t < group.n_chunks; t += gridDim.x) {
    const DeviceMember& member = group.member_of_chunk(t);
    const uint64_t first = (t - member.first_chunk) * kChunkElems;
    const uint64_t end = min_of<uint64_t>(first + kChunkElems, member.n_elems);
    with_type(member.dtype, [&]<class T>(T) {
      for (uint64_t i = first + threadIdx.x; i < end; i += blockDim.x) {
        const T predicted = predicted_at<T>(member, i);
        of_block.add(residual_to(member, i, predicted));
        if constexpr (std::is_same_v<T, double>) {
          if (!has_changed(static_cast<const double*>(member.current)[i], predicted)) continue;
          ++n_float64;
          lower_atomically(&sums->first_float64, member.begin + i);
        }
      }
    });
  }
  of_block.add_to(&sums->squares);
  n_float64 = sum_of_warp(n_float64);
  if (lane_of_thread() == 0 && n_float64 != 0) add_atomically(&sums->n_float64, n_float64);
}

__global__ void __launch_bounds__(kThreads)
    sum_remaining(DeviceGroup group, const SentSymbol* symbols, const Progress* progress,
                  ExactSquares* sums) {
  __shared__ BlockSquares of_block;
  of_block.clear();
  for_each_of_grid(progress->n_sent, [&](uint64_t i) {
    const DeviceMember& member = group.member_at(symbols[i].index());
    const uint64_t element = symbols[i].index() - member.begin;
    const float value = value_of(progress->quantizer, symbols[i].level());
    with_type(member.dtype, [&]<class T>(T) {
      const T before = predicted_at<T>(member, element);
      of_block.subtract(residual_to(member, element, before));
      of_block.add(residual_to(member, element, recover(before, value)));
    });
  });
  of_block.add_to(sums);
}

__global__ void __launch_bounds__(kThreads)
    sum_changes(DeviceGroup group, const SentSymbol* symbols, uint64_t n, Quantizer quantizer,
                ExactSquares* sums) {
  __shared__ BlockSquares of_block;
  of_block.clear();
  for_each_of_grid(n, [&](uint64_t i) {
    const DeviceMember& member = group.member_at(symbols[i].index());
    const uint64_t element = symbols[i].index() - member.begin;
    with_type(member.dtype, [&]<class T>(T) {
      const T before = predicted_at<T>(member, element);
      const T after = recover(before, value_of(quantizer, symbols[i].level()));
      of_block.add(change_rounded_up(before, after));
    });
  });
  of_block.add_to(sums);
}

}  // namespace

void sum_squares(const Stage& stage, AllSquares* sums) {
  launch(sum_all, stage.n_blocks, kThreads, stage.stream, stage.group, sums);
}

void add_remaining(const Stage& stage, const SentSymbol* symbols, ExactSquares* sums) {
  launch(sum_remaining, stage.n_blocks, kThreads, stage.stream, stage.group, symbols,
         static_cast<const Progress*>(stage.progress), sums);
}

void add_changes(const Stage& stage, const SentSymbol* symbols, uint64_t n,
                 const Quantizer& quantizer, ExactSquares* sums) {
  launch(sum_changes, stage.n_blocks, kThreads, stage.stream, stage.group, symbols, n, quantizer,
         sums);
}

}  // namespace resfed::cuda
