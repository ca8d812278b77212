// Stage 3 on the device: from selected residuals to symbols in order, and from symbols to what the
// model's elements become.
#include "cuda/pipeline.cuh"
#include "numeric/check.hpp"

namespace resfed::cuda {
namespace {

constexpr unsigned kThreads = 256;

// As means.add(), but by sums that lie in registers.
__device__ void add(Quantized quantized, LevelMeans* means) {
  RESFED_UNROLL
  for (unsigned i = 0; i < kMaxOffsets; ++i) {
    if (quantized.level != i + 1) continue;
    means->position_sum[i] += quantized.position;
    ++means->count[i];
  }
  means->highest = max_of(means->highest, quantized.level);
}

__device__ LevelMeans means_of_warp(LevelMeans means) {
  for (unsigned i = 0; i < kMaxOffsets; ++i) {
    means.position_sum[i] = sum_of_warp(means.position_sum[i]);
    means.count[i] = sum_of_warp(means.count[i]);
  }
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    means.highest = max_of(means.highest, __shfl_xor_sync(kAllLanes, means.highest, distance));
  }
  return means;
}

// A warp takes a chunk's candidates 32 at a time and writes those that are sent, in order: from
// `at` on, and so many of those that equal the threshold.
__device__ void quantize_chunk(const Chunk& chunk, uint64_t first_index, Candidates candidates,
                               const Progress& progress, uint64_t at, uint32_t ties_left,
                               SentSymbol* symbols, LevelMeans* means) {
  for (uint32_t i = 0; i < chunk.n_candidates; i += kWarp) {
    const uint32_t mine = i + lane_of_thread();
    const bool there = mine < chunk.n_candidates;
    const float r = there ? candidates.residuals[chunk.first_candidate + mine] : 0.0f;
    const uint32_t key = magnitude_key(r);
    const bool equal = there && key == progress.key;
    const unsigned equals = __ballot_sync(kAllLanes, equal);
    const bool kept =
        there && (key > progress.key ||
                  (equal && static_cast<unsigned>(__popc(equals & lanes_below())) < ties_left));
    const unsigned ballot = __ballot_sync(kAllLanes, kept);
    if (kept) {
      const Quantized quantized = quantize(progress.quantizer, float_from_bits(key));
      add(quantized, means);
      const int32_t level = static_cast<int32_t>(quantized.level);
      const uint64_t index = first_index + candidates.offsets[chunk.first_candidate + mine];
      symbols[at + static_cast<unsigned>(__popc(ballot & lanes_below()))] = {
          index, float_bits(r) >> 31 != 0 ? -level : level};
    }
    at += static_cast<unsigned>(__popc(ballot));
    ties_left -= min_of(ties_left, static_cast<uint32_t>(__popc(equals)));
  }
}

__global__ void __launch_bounds__(kThreads)
    quantize_chunks(DeviceGroup group, Candidates candidates, const Chunk* chunks,
                    const ChunkSums* sums, SentSymbol* symbols, Progress* progress) {
  __shared__ LevelMeans of_warps[kThreads / kWarp];
  __shared__ uint64_t places[kThreads];
  __shared__ uint32_t ties_left[kThreads];
  LevelMeans means{};
  const auto [begin, end] = range_of_block(group.n_chunks);
  const uint64_t ties = progress->ties;
  ChunkSums before = sums[blockIdx.x];
  for (uint64_t first = begin; first < end; first += kThreads) {
    const uint64_t own = first + threadIdx.x;
    const uint64_t n_above = own < end ? chunks[own].n_above : 0;
    const uint32_t n_equal = own < end ? chunks[own].n_equal : 0;
    uint64_t total = 0;  // both in one number
    const uint64_t below = sum_of_threads_below(n_above << 32 | n_equal, &total);
    const uint64_t equal_before = before.n_equal + (below & 0xffffffffu);
    ties_left[threadIdx.x] = ties_to_keep(ties, equal_before, n_equal);
    places[threadIdx.x] = before.n_above + (below >> 32) + min_of(ties, equal_before);
    before = {before.n_above + (total >> 32), before.n_equal + (total & 0xffffffffu)};
    __syncthreads();
    for (uint64_t t = first + threadIdx.x / kWarp; t < min_of(end, first + kThreads);
         t += kThreads / kWarp) {
      if (chunks[t].n_above + ties_left[t - first] == 0) continue;
      const DeviceMember& member = group.member_of_chunk(t);
      const uint64_t first_index = member.begin + (t - member.first_chunk) * kChunkElems;
      quantize_chunk(chunks[t], first_index, candidates, *progress, places[t - first],
                     ties_left[t - first], symbols, &means);
    }
    __syncthreads();
  }
  means = means_of_warp(means);
  if (lane_of_thread() == 0) of_warps[threadIdx.x / kWarp] = means;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (unsigned w = 1; w < kThreads / kWarp; ++w) means.add(of_warps[w]);
    for (unsigned i = 0; i < kMaxOffsets; ++i) {
      if (means.count[i] == 0) continue;
      add_atomically(&progress->means.position_sum[i], means.position_sum[i]);
      add_atomically(&progress->means.count[i], means.count[i]);
    }
    if (means.highest > 0) atomicMax(&progress->means.highest, means.highest);
  }
  if (is_last_block(progress) && threadIdx.x == 0) {
    progress->means.complete(&progress->quantizer);
  }
}

// Everything is computed before anything is written: `out` may be the reference, and tied tensors
// may share memory.
__global__ void __launch_bounds__(kThreads)
    compute_recovered(DeviceGroup group, const SentSymbol* symbols, uint64_t* bits, float* left,
                      Progress* progress) {
  if (progress->is_damaged()) return;
  uint32_t check = 0;
  for (uint64_t i = blockIdx.x * static_cast<uint64_t>(blockDim.x) + threadIdx.x;
       i < progress->n_sent; i += static_cast<uint64_t>(gridDim.x) * blockDim.x) {
    const uint64_t index = symbols[i].index();
    const int32_t level = symbols[i].level();
    if (index >= group.n_elems || level == 0) {  // only in a forged payload
      progress->outside = 1;
      continue;
    }
    const DeviceMember& member = group.member_at(index);
    const float value = value_of(progress->quantizer, level);
    const uint64_t element = index - member.begin;
    with_type(member.dtype, [&]<class T>(T) {
      const T before = predicted_at<T>(member, element);
      const T after = recover(before, value);
      check += check_term(index, element_bits(before), element_bits(after));
      if (bits != nullptr) bits[i] = element_bits(after);
      if (left != nullptr) left[i] = residual_to(member, element, after);
    });
  }
  check = sum_of_warp(check);
  if (lane_of_thread() == 0 && check != 0) atomicAdd(&progress->check, check);
}

// Feedback and predictions of all elements.
__global__ void __launch_bounds__(kThreads) write_all(DeviceGroup group) {
  for (uint64_t t = blockIdx.x; t < group.n_chunks; t += gridDim.x) {
    const DeviceMember& member = group.member_of_chunk(t);
    if (member.feedback == nullptr && !member.writes_prediction) continue;
    const uint64_t first = (t - member.first_chunk) * kChunkElems;
    const uint64_t last = min_of<uint64_t>(first + kChunkElems, member.n_elems);
    with_type(member.dtype, [&]<class T>(T) {
      for (uint64_t i = first + threadIdx.x; i < last; i += blockDim.x) {
        const T predicted = predicted_at<T>(member, i);
        if (member.feedback != nullptr) member.feedback[i] = residual_to(member, i, predicted);
        if (member.writes_prediction) static_cast<T*>(member.out)[i] = predicted;
      }
    });
  }
}

__global__ void __launch_bounds__(kThreads)
    write_each(DeviceGroup group, const SentSymbol* symbols, const uint64_t* bits,
               const float* left, const Progress* progress) {
  for (uint64_t i = blockIdx.x * static_cast<uint64_t>(blockDim.x) + threadIdx.x;
       i < progress->n_sent; i += static_cast<uint64_t>(gridDim.x) * blockDim.x) {
    const DeviceMember& member = group.member_at(symbols[i].index());
    const uint64_t element = symbols[i].index() - member.begin;
    with_type(member.dtype, [&]<class T>(T) {
      if (member.out != nullptr) from_bits(bits[i], static_cast<T*>(member.out) + element);
    });
    if (member.feedback != nullptr) member.feedback[element] = left[i];
  }
}

}  // namespace

void quantize_candidates(const Stage& stage, Candidates candidates, const Chunk* chunks,
                         const ChunkSums* sums, SentSymbol* symbols) {
  launch(quantize_chunks, stage.n_blocks, kThreads, stage.stream, stage.group, candidates, chunks,
         sums, symbols, stage.progress);
}

void recover_symbols(const Stage& stage, const SentSymbol* symbols, uint64_t* bits, float* left) {
  launch(compute_recovered, stage.n_blocks, kThreads, stage.stream, stage.group, symbols, bits,
         left, stage.progress);
}

void write_elements(const Stage& stage) {
  launch(write_all, stage.n_blocks, kThreads, stage.stream, stage.group);
}

void write_sent(const Stage& stage, const SentSymbol* symbols, const uint64_t* bits,
                const float* left) {
  launch(write_each, stage.n_blocks, kThreads, stage.stream, stage.group, symbols, bits, left,
         stage.progress);
}

}  // namespace resfed::cuda
