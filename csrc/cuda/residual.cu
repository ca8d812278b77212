// Stage 1 on the device: the fused pass over model and reference. Every chunk's candidates lie
// together and in order; the chunks' lie as they come, and a table says where.
#include "cuda/select.cuh"

namespace resfed::cuda {
namespace {

constexpr unsigned kThreads = 256, kSampleThreads = 1024;
constexpr unsigned kPerLoad = 4;                                  // elements of a thread
constexpr unsigned kLoads = kChunkElems / (kThreads * kPerLoad);  // by every thread
constexpr unsigned kPerWarp = kChunkElems / (kThreads / kWarp);   // consecutive elements
static_assert(kChunkElems == kThreads * kPerLoad * kLoads && kChunkElems <= 1u << 16);

template <class T>
struct alignas(sizeof(T) * kPerLoad > 16 ? 16 : sizeof(T) * kPerLoad) Four {
  T of[kPerLoad];
};

// Where in its chunk a thread's elements of a load begin.
__device__ unsigned offset_of(unsigned load) {
  return threadIdx.x / kWarp * kPerWarp + load * kWarp * kPerLoad + lane_of_thread() * kPerLoad;
}

// The thread's residuals of a chunk; zero beyond the tensor's end.
template <class T>
__device__ void load_residuals(const DeviceMember& member, uint64_t first,
                               float (&residuals)[kLoads][kPerLoad]) {
  if (member.plain && member.aligned && first + kChunkElems <= member.n_elems) {
    const T* const x = static_cast<const T*>(member.current) + first;
    const T* const p = static_cast<const T*>(member.reference) + first;
    Four<T> of_x[kLoads], of_p[kLoads];
    RESFED_UNROLL
    for (unsigned load = 0; load < kLoads; ++load) {  // all are under way before one is needed
      of_x[load] = *reinterpret_cast<const Four<T>*>(x + offset_of(load));
      of_p[load] = *reinterpret_cast<const Four<T>*>(p + offset_of(load));
    }
    RESFED_UNROLL
    for (unsigned load = 0; load < kLoads; ++load) {
      RESFED_UNROLL
      for (unsigned j = 0; j < kPerLoad; ++j) {
        residuals[load][j] = residual(of_x[load].of[j], of_p[load].of[j]);
      }
    }
    return;
  }
  RESFED_UNROLL
  for (unsigned load = 0; load < kLoads; ++load) {
    RESFED_UNROLL
    for (unsigned j = 0; j < kPerLoad; ++j) {
      const uint64_t i = first + offset_of(load) + j;
      residuals[load][j] = i < member.n_elems ? residual_at<T>(member, i) : 0.0f;
    }
  }
}

// The offset that ends the first `ties` elements of the chunk with this key; by one warp.
template <class T>
__device__ uint32_t end_of_ties(const DeviceMember& member, uint64_t first, uint32_t key,
                                uint32_t ties) {
  uint32_t seen = 0;
  for (uint32_t offset = 0; offset < kChunkElems; offset += kWarp) {
    const uint64_t i = first + offset + lane_of_thread();
    const bool equal = i < member.n_elems && magnitude_key(residual_at<T>(member, i)) == key;
    const unsigned ballot = __ballot_sync(kAllLanes, equal);
    const unsigned here = static_cast<unsigned>(__popc(ballot));
    if (seen + here > ties) {  // it ends here: at the first too many
      const bool too_many = equal && seen + __popc(ballot & lanes_below()) == ties;
      const unsigned found = __ballot_sync(kAllLanes, too_many);
      return offset + static_cast<uint32_t>(__popc(found - 1));
    }
    seen += here;
  }
  return kChunkElems;
}

template <class T>
__device__ void collect_chunk(const DeviceMember& member, uint64_t first, Candidates candidates,
                              Chunk* chunk, bool exactly, DigitCounts* counts, Progress* progress) {
  __shared__ uint64_t shared_place;
  __shared__ uint32_t shared_end;
  __shared__ unsigned warp_counts[kThreads / kWarp];
  const unsigned warp = threadIdx.x / kWarp;

  const uint32_t min_key = progress->min_key;
  const bool drops_ties = exactly && chunk->ties_to_keep < chunk->n_equal;
  if (drops_ties && warp == 0) {
    const uint32_t end = end_of_ties<T>(member, first, min_key, chunk->ties_to_keep);
    if (lane_of_thread() == 0) shared_end = end;
  }

  float residuals[kLoads][kPerLoad];
  load_residuals<T>(member, first, residuals);
  const auto for_each = [&](auto visit) {
    RESFED_UNROLL
    for (unsigned load = 0; load < kLoads; ++load) {
      RESFED_UNROLL
      for (unsigned j = 0; j < kPerLoad; ++j) {
        visit(load * kPerLoad + j, magnitude_key(residuals[load][j]), offset_of(load) + j);
      }
    }
  };
  unsigned hits = 0;  // a bit for each residual
  uint32_t most = 0;
  for_each([&](unsigned i, uint32_t key, uint32_t) {
    hits |= (key >= min_key ? 1u : 0u) << i;
    most = max_of(most, key);
  });
  if (!is_finite_key(most)) {
    for_each([&](unsigned, uint32_t key, uint32_t offset) {
      if (is_finite_key(key)) return;
      lower_atomically(&progress->first_not_finite, member.begin + first + offset);
    });
  }
  if (drops_ties) {
    __syncthreads();
    for_each([&](unsigned i, uint32_t key, uint32_t offset) {
      if (key == min_key && offset >= shared_end) hits &= ~(1u << i);
    });
  }
  // How many hits each load has in this lane, a byte for each load; then in the lanes up to it.
  static_assert(kLoads == 4 && kPerLoad * kWarp < 256);
  uint32_t own = 0;
  RESFED_UNROLL
  for (unsigned load = 0; load < kLoads; ++load) {
    own |= static_cast<uint32_t>(__popc(hits >> (load * kPerLoad) & ((1u << kPerLoad) - 1)))
           << 8 * load;
  }
  uint32_t through = own;
  for (unsigned distance = 1; distance < kWarp; distance *= 2) {
    const uint32_t other = __shfl_up_sync(kAllLanes, through, distance);
    if (lane_of_thread() >= distance) through += other;
  }
  const uint32_t of_warp = __shfl_sync(kAllLanes, through, kWarp - 1);
  const auto hits_of = [](uint32_t counts, unsigned load) { return counts >> 8 * load & 255u; };
  const unsigned n_hits =
      hits_of(of_warp, 0) + hits_of(of_warp, 1) + hits_of(of_warp, 2) + hits_of(of_warp, 3);
  if (lane_of_thread() == 0) warp_counts[warp] = n_hits;
  __syncthreads();
  unsigned before = 0, all = 0;
  for (unsigned w = 0; w < kThreads / kWarp; ++w) {
    if (w == warp) before = all;
    all += warp_counts[w];
  }
  if (threadIdx.x == 0) {
    shared_place = all == 0 ? 0 : add_atomically(&progress->n_found, all);
    const bool fits = shared_place + all <= candidates.room;
    chunk->first_candidate = shared_place;
    chunk->n_candidates = fits ? all : 0;
  }
  __syncthreads();
  if (n_hits == 0 || shared_place + all > candidates.room) return;
  uint64_t at = shared_place + before;
  RESFED_UNROLL
  for (unsigned load = 0; load < kLoads; ++load) {
    uint64_t to = at + hits_of(through - own, load);
    RESFED_UNROLL
    for (unsigned j = 0; j < kPerLoad; ++j) {
      if ((hits >> (load * kPerLoad + j) & 1u) == 0) continue;
      candidates.offsets[to] = static_cast<uint16_t>(offset_of(load) + j);
      candidates.residuals[to] = residuals[load][j];
      counts->add(magnitude_key(residuals[load][j]), 0);
      ++to;
    }
    at += hits_of(of_warp, load);
  }
}

// Whether there is anything to choose among the candidates, and if so, that they serve.
__device__ void look_at_candidates(Candidates candidates, const Wanted& wanted,
                                   Progress* progress) {
  Progress& p = *progress;
  const uint64_t n = p.n_found;
  if (n > candidates.room || (n < wanted.k && !wanted.all_nonzero && !wanted.exactly)) {
    p.lacks_room = 1;
    p.n_found = 0;
  }
  p.choose(p.lacks_room != 0 ? 0 : wanted.k);
}

// The block that ends last also chooses the threshold's first digit.
__global__ void __launch_bounds__(kThreads)
    collect_chunks(DeviceGroup group, Candidates candidates, Chunk* chunks, Wanted wanted,
                   Progress* progress) {
  __shared__ DigitCounts counts;
  counts.clear();
  for (uint64_t t = blockIdx.x; t < group.n_chunks; t += gridDim.x) {
    const DeviceMember& member = group.member_of_chunk(t);
    const uint64_t first = (t - member.first_chunk) * kChunkElems;
    with_type(member.dtype, [&]<class T>(T) {
      collect_chunk<T>(member, first, candidates, &chunks[t], wanted.exactly, &counts, progress);
    });
    __syncthreads();  // the next chunk writes what this one shares
  }
  if (!counts.complete(progress)) return;
  if (threadIdx.x == 0) look_at_candidates(candidates, wanted, progress);
  __syncthreads();
  choose_digit(0, progress);
}

// The key of this rank (0 is the largest) among samples, by one block.
__device__ uint32_t key_of_rank(const uint32_t* samples, uint32_t n_samples, uint32_t rank) {
  __shared__ DigitCounts counts;
  __shared__ uint32_t key, known_bits;
  __shared__ uint64_t ties;
  if (threadIdx.x == 0) key = 0, known_bits = 0, ties = rank + 1;
  for (unsigned digit = 0; digit < kDigits; ++digit) {
    counts.clear();
    for (uint32_t i = threadIdx.x; i < n_samples; i += blockDim.x) {
      if ((samples[i] & known_bits) == key) counts.add(samples[i], digit);
    }
    __syncthreads();
    choose_digit(counts.of, digit, &key, &known_bits, &ties);
  }
  return key;
}

// The block that ends last also chooses the least key of candidates.
__global__ void __launch_bounds__(kSampleThreads)
    sample_keys(DeviceGroup group, SamplePlan plan, uint32_t* samples, Progress* progress) {
  const uint64_t interval = group.n_elems / plan.n_samples;
  for (uint64_t j = blockIdx.x * blockDim.x + threadIdx.x; j < plan.n_samples;
       j += static_cast<uint64_t>(gridDim.x) * blockDim.x) {
    const uint64_t index = sampled_index(interval, j);
    const DeviceMember& member = group.member_at(index);
    with_type(member.dtype, [&]<class T>(T) {
      samples[j] = magnitude_key(residual_at<T>(member, index - member.begin));
    });
  }
  if (!is_last_block(progress)) return;
  const uint32_t key = key_of_rank(samples, plan.n_samples, plan.rank);
  if (threadIdx.x == 0) progress->min_key = min_of(max_of(key, 1u), kFirstNonFiniteKey);
}

}  // namespace

void estimate_threshold(const Stage& stage, const SamplePlan& plan, uint32_t* samples) {
  if (plan.n_samples == 0) return;
  launch(sample_keys, static_cast<unsigned>(n_blocks_of(plan.n_samples, kSampleThreads)),
         kSampleThreads, stage.stream, stage.group, plan, samples, stage.progress);
}

void collect(const Stage& stage, Candidates candidates, const Wanted& wanted, Chunk* chunks) {
  launch(collect_chunks, stage.n_blocks, kThreads, stage.stream, stage.group, candidates, chunks,
         wanted, stage.progress);
}

}  // namespace resfed::cuda
