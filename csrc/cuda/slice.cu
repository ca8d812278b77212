// Stage 4 on the device: symbols to slices and back. Each decision of a slice needs the one before,
// so one lane of a warp codes it; the others help to load and to copy.
#include "cuda/pipeline.cuh"
#include "format/version.hpp"

namespace resfed::cuda {
namespace {

constexpr unsigned kScanThreads = 1024;
constexpr unsigned kCopyThreads = 128;

// A slice's decisions in its buffer, where the words of the backward pass take their places from
// the end: every decision becomes one word at most, and is read before.
struct DecisionBuffer {
  uint16_t* entries;  // after the head
  uint64_t n = 0;
  __device__ void put(Decision d) { entries[n++] = packed_slots(d); }
};

// Bytes of the slice, at the end of the buffer's first kDecisionBufferHead + *n_decisions entries;
// 0 if it does not fit.
__device__ uint64_t code_slice(const SentSymbol* symbols, uint64_t begin, uint64_t end, Rows rows,
                               Probability* contexts, uint16_t* buffer, uint64_t n_entries,
                               uint64_t* first, uint64_t* n_decisions) {
  DecisionBuffer decisions{buffer + kDecisionBufferHead};
  const uint64_t room = n_entries - kDecisionBufferHead - CurrentFormat::kMaxDecisionsPerSymbol;
  RecordingCoder<DecisionBuffer> coder{contexts, decisions};
  bool fits = true;
  const SlicePattern pattern =
      choose_pattern<CurrentFormat>(symbols + begin, symbols + end, rows.data, rows.n);
  with_nonzero_code<CurrentFormat>(coder, symbols + begin, pattern, [&](auto code) {
    uint64_t covered = begin == 0 ? 0 : symbols[begin - 1].index() + 1;
    for (const SentSymbol* symbol = symbols + begin; symbol != symbols + end; ++symbol) {
      fits = decisions.n <= room;
      if (!fits) return;
      const uint64_t next = symbol->index() + 1;
      code.encode(coder, next - covered, *symbol);
      covered = next;
    }
  });
  if (!fits) return 0;
  *n_decisions = decisions.n;
  uint64_t at = kDecisionBufferHead + decisions.n;  // words are written below this
  uint32_t state = kRansLow;
  for (uint64_t left = decisions.n; left > 0; --left) {
    uint16_t word;
    if (rans_put(state, unpacked_slots(decisions.entries[left - 1]), &word)) buffer[--at] = word;
  }
  buffer[--at] = static_cast<uint16_t>(state >> 16);
  buffer[--at] = static_cast<uint16_t>(state);
  *first = at;
  return (kDecisionBufferHead + decisions.n - at) * sizeof(uint16_t);
}

// A slice's contexts, in the block's shared memory.
template <class Format>
struct SliceContexts {
  Probability of[Format::Contexts::kSlice];

  __device__ void load(const Probability* initial) {
    for (uint32_t i = lane_of_thread(); i < Format::Contexts::kSlice; i += kWarp) {
      of[i] = initial[i];
    }
    __syncwarp();
  }
};

__global__ void __launch_bounds__(kWarp)
    encode_each(const SentSymbol* symbols, uint64_t n_others, Rows rows, unsigned slice_log2,
                const Probability* initial, DecisionBuffers buffers, Bytes coded, SliceTable table,
                Progress* progress) {
  __shared__ SliceContexts<CurrentFormat> contexts;
  uint16_t* const buffer = buffers.entries + blockIdx.x * buffers.n_entries;
  const Partition p = partition(progress->n_sent + n_others, slice_log2);
  for (uint64_t slice = blockIdx.x; slice < p.n_slices; slice += gridDim.x) {
    contexts.load(initial);
    uint64_t first = 0, n_decisions = 0, n_bytes = 0, place = 0;
    if (lane_of_thread() == 0) {
      n_bytes = code_slice(symbols, slice_begin(p, slice), slice_begin(p, slice + 1), rows,
                           contexts.of, buffer, buffers.n_entries, &first, &n_decisions);
      atomicMax(&progress->most_decisions, static_cast<uint32_t>(n_decisions));
      place = add_atomically(&progress->n_slice_bytes, n_bytes);
      if (n_bytes == 0) atomicOr(&progress->problems, kDecisionsOverflow);
      if (place + n_bytes > coded.room) atomicOr(&progress->problems, kSlicesLackRoom);
      table.offsets[slice] = place;
      table.n_bytes[slice] = n_bytes;
    }
    __syncwarp();
    first = __shfl_sync(kAllLanes, first, 0);
    n_bytes = __shfl_sync(kAllLanes, n_bytes, 0);
    place = __shfl_sync(kAllLanes, place, 0);
    if (place + n_bytes <= coded.room) {
      auto* const to = reinterpret_cast<uint16_t*>(coded.data + place);
      for (uint64_t i = lane_of_thread(); i < n_bytes / 2; i += kWarp) to[i] = buffer[first + i];
    }
    __syncwarp();
  }
}

__global__ void append(SentSymbol* symbols, const SentSymbol* others, uint64_t n_others,
                       const Progress* progress) {
  for (uint64_t i = blockIdx.x * static_cast<uint64_t>(blockDim.x) + threadIdx.x; i < n_others;
       i += static_cast<uint64_t>(gridDim.x) * blockDim.x) {
    symbols[progress->n_sent + i] = others[i];
  }
}

// Where each slice goes; by one block.
__global__ void __launch_bounds__(kScanThreads)
    place_slices(uint64_t n_others, unsigned slice_log2, SliceTable table, Progress* progress) {
  const uint64_t n = partition(progress->n_sent + n_others, slice_log2).n_slices;
  const auto [begin, end] = range_of_thread(n);
  uint64_t mine = 0, total = 0;
  for (uint64_t i = begin; i < end; ++i) mine += table.n_bytes[i];
  uint64_t place = sum_of_threads_below(mine, &total);
  for (uint64_t i = begin; i < end; ++i) table.places[i] = place, place += table.n_bytes[i];
  if (threadIdx.x == 0) progress->n_slices = n;
}

__global__ void __launch_bounds__(kCopyThreads)
    pack(SliceTable table, Bytes coded, uint8_t* packed, const Progress* progress) {
  if (progress->problems != 0) return;
  for (uint64_t slice = blockIdx.x; slice < progress->n_slices; slice += gridDim.x) {
    const auto* const from = reinterpret_cast<const uint16_t*>(coded.data + table.offsets[slice]);
    auto* const to = reinterpret_cast<uint16_t*>(packed + table.places[slice]);
    for (uint64_t i = threadIdx.x; i < table.n_bytes[slice] / 2; i += blockDim.x) to[i] = from[i];
  }
}

// Decodes to indices relative to the end of the slice before; false if the slice is damaged.
template <class Format>
__device__ bool decode_slice(const uint8_t* slice, uint64_t n_bytes, SentSymbol* first,
                             SentSymbol* last, uint64_t n_elems, Probability* contexts,
                             uint64_t* covered) {
  DecodingCoder coder;
  if (!open_slice(slice, n_bytes, contexts, &coder)) return false;
  bool sound = true;
  with_nonzero_code<Format>(coder, first, {}, [&](auto code) {
    DecodingCoder mine = coder;  // in registers
    for (SentSymbol* symbol = first; sound && symbol != last; ++symbol) {
      sound = code.decode(mine, *covered, n_elems, symbol) && !mine.underrun;
      if (sound) *covered = symbol->index() + 1;
    }
    sound = sound && mine.finished();
  });
  return sound;
}

template <class Format>
__global__ void __launch_bounds__(kWarp)
    decode_each(const uint8_t* slices, const uint64_t* offsets, Partition p, uint64_t n_elems,
                const Probability* initial, uint64_t* bases, SentSymbol* symbols,
                Progress* progress) {
  __shared__ SliceContexts<Format> contexts;
  for (uint64_t slice = blockIdx.x; slice < p.n_slices; slice += gridDim.x) {
    contexts.load(initial);
    if (lane_of_thread() == 0) {
      uint64_t covered = 0;
      if (!decode_slice<Format>(slices + offsets[slice], offsets[slice + 1] - offsets[slice],
                                symbols + slice_begin(p, slice),
                                symbols + slice_begin(p, slice + 1), n_elems, contexts.of,
                                &covered)) {
        lower_atomically(&progress->bad_slice, slice);
      }
      bases[slice + 1] = covered;
    }
    __syncwarp();
  }
}

// From how much each slice covers to where it begins; by one block.
__global__ void __launch_bounds__(kScanThreads)
    sum_bases(uint64_t n, uint64_t n_elems, uint64_t* bases, Progress* progress) {
  const auto [begin, end] = range_of_thread(n);
  uint64_t mine = 0, total = 0;
  for (uint64_t i = begin; i < end; ++i) mine += bases[i + 1];
  uint64_t base = sum_of_threads_below(mine, &total);
  for (uint64_t i = begin; i < end; ++i) {
    base += bases[i + 1];
    bases[i + 1] = base;
    if (base > n_elems) lower_atomically(&progress->bad_base, i);
  }
  if (threadIdx.x == 0) bases[0] = 0;
}

__global__ void __launch_bounds__(kCopyThreads)
    move_symbols(Partition p, const uint64_t* bases, SentSymbol* symbols,
                 const Progress* progress) {
  if (progress->is_damaged()) return;
  for (uint64_t slice = blockIdx.x; slice < p.n_slices; slice += gridDim.x) {
    const uint64_t end = slice_begin(p, slice + 1);
    for (uint64_t i = slice_begin(p, slice) + threadIdx.x; i < end; i += blockDim.x) {
      symbols[i].move_up(bases[slice]);
    }
  }
}

}  // namespace

void encode_slices(const Stage& stage, SentSymbol* symbols, const SentSymbol* others,
                   uint64_t n_others, Rows rows, unsigned slice_log2, const Probability* initial,
                   DecisionBuffers buffers, Bytes coded, SliceTable table, uint8_t* packed) {
  const auto& [group, progress, n_blocks, stream] = stage;
  if (n_others > 0) {
    launch(append, n_blocks, kCopyThreads, stream, symbols, others, n_others, progress);
  }
  launch(encode_each, buffers.n, kWarp, stream, symbols, n_others, rows, slice_log2, initial,
         buffers, coded, table, progress);
  launch(place_slices, 1, kScanThreads, stream, n_others, slice_log2, table, progress);
  launch(pack, n_blocks, kCopyThreads, stream, table, coded, packed, progress);
}

void decode_slices(const Stage& stage, uint8_t version, const uint8_t* slices,
                   const uint64_t* offsets, Partition p, uint64_t n_elems,
                   const Probability* initial, uint64_t* bases, SentSymbol* symbols) {
  const auto& [group, progress, n_blocks, stream] = stage;
  const auto n_slices = static_cast<unsigned>(min_of<uint64_t>(p.n_slices, 1u << 20));
  with_format(version, [&, &progress = progress, &stream = stream]<class Format>(Format) {
    static_assert(std::is_same_v<Format, CurrentFormat>, "`initial` has these contexts alone");
    launch(decode_each<Format>, n_slices, kWarp, stream, slices, offsets, p, n_elems, initial,
           bases, symbols, progress);
  });
  launch(sum_bases, 1, kScanThreads, stream, p.n_slices, n_elems, bases, progress);
  launch(move_symbols, min_of(n_slices, n_blocks), kCopyThreads, stream, p, bases, symbols,
         progress);
}

}  // namespace resfed::cuda
