#include "cuda/exponent_order.cuh"

namespace resfed::cuda {
namespace {

constexpr unsigned kThreads = 512, kWarps = kThreads / kWarp, kSumThreads = kClasses;
constexpr uint32_t kPerWarp = kTileElems / kWarps;  // consecutive elements

// Of a class, in one number: elements, and above them wanted elements.
constexpr unsigned kWantedShift = 16;
constexpr uint32_t kOneWanted = 1u << kWantedShift, kElementsMask = kOneWanted - 1;
static_assert(kTileElems < kOneWanted);
struct TileCounts {
  uint32_t of[kWarps][kClasses];
};

// An element of a tile: an encoder wants those that changed, a decoder looks for all.
struct Seen {
  uint32_t class_number;
  bool wanted;
};
template <class UInt>
struct Tile {
  const DeviceMember& member;
  uint64_t first;  // of the member's elements
  uint32_t n;
  bool encodes;

  __device__ Seen at(uint32_t i) const {
    const UInt before = static_cast<const UInt*>(member.reference)[first + i];
    const bool wanted = !encodes || static_cast<const UInt*>(member.current)[first + i] != before;
    return {member.patterns.exponent_class(before), wanted};
  }
};

// Calls visit(tile) with the type of its elements' bits.
template <class Visit>
__device__ void with_tile(const DeviceGroup& group, uint64_t number, bool encodes, Visit visit) {
  const DeviceMember& member = group.member_of_chunk(number);
  const uint64_t first = (number - member.first_chunk) * kTileElems;
  const auto n = static_cast<uint32_t>(min_of<uint64_t>(kTileElems, member.n_elems - first));
  with_bits(member.patterns.n_bits,
            [&]<class UInt>(UInt) { visit(Tile<UInt>{member, first, n, encodes}); });
}

// By a block, which has to be together before and after.
template <class UInt>
__device__ void count(const Tile<UInt>& tile, TileCounts* counts) {
  for (uint32_t i = threadIdx.x; i < kWarps * kClasses; i += kThreads) {
    counts->of[i / kClasses][i % kClasses] = 0;
  }
  __syncthreads();
  const uint32_t warp = threadIdx.x / kWarp;
  const uint32_t end = min_of(tile.n, (warp + 1) * kPerWarp);
  for (uint32_t i = warp * kPerWarp + lane_of_thread(); i < end; i += kWarp) {
    const Seen seen = tile.at(i);
    atomicAdd(&counts->of[warp][seen.class_number], seen.wanted ? 1 + kOneWanted : 1u);
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kThreads)
    count_tiles(DeviceGroup group, ExponentOrder order, bool encodes) {
  __shared__ TileCounts counts;
  for (uint64_t t = blockIdx.x; t < group.n_chunks; t += gridDim.x) {
    with_tile(group, t, encodes, [&](const auto& tile) { count(tile, &counts); });
    for (uint32_t c = threadIdx.x; c < kClasses; c += kThreads) {
      uint32_t elements = 0, wanted = 0;
      for (unsigned w = 0; w < kWarps; ++w) {
        elements += counts.of[w][c] & kElementsMask;
        wanted += counts.of[w][c] >> kWantedShift;
      }
      order.elements.of_tile[c * group.n_chunks + t] = elements;
      if (encodes) order.changes.of_tile[c * group.n_chunks + t] = wanted;
    }
    __syncthreads();
  }
}

// From counts to sums: a block takes a class; the one that ends last sums over the classes.
__global__ void __launch_bounds__(kSumThreads)
    sum_classes(ClassBegins begins, uint64_t n_tiles, Progress* progress) {
  uint64_t* const of_tile = begins.of_tile + blockIdx.x * n_tiles;
  uint64_t before = 0, total = 0;
  for (uint64_t first = 0; first < n_tiles; first += kSumThreads) {
    const uint64_t t = first + threadIdx.x;
    const uint64_t n = t < n_tiles ? of_tile[t] : 0;
    const uint64_t below = sum_of_threads_below(n, &total);
    if (t < n_tiles) of_tile[t] = before + below;
    before += total;
  }
  if (threadIdx.x == 0) begins.of_class[blockIdx.x] = before;
  if (!is_last_block(progress)) return;
  const uint64_t n = begins.of_class[threadIdx.x];
  begins.of_class[threadIdx.x] = sum_of_threads_below(n, &total);
  if (threadIdx.x == 0) begins.of_class[kClasses] = total;
}

// Calls visit(i, class, elements and wanted ones of the class in the tile before it) for the wanted
// elements. `counts` are the tile's.
template <class UInt, class Visit>
__device__ void for_each_wanted(const Tile<UInt>& tile, TileCounts* counts, Visit visit) {
  for (uint32_t c = threadIdx.x; c < kClasses; c += kThreads) {
    uint32_t before = 0;
    for (unsigned w = 0; w < kWarps; ++w) {
      const uint32_t own = counts->of[w][c];
      counts->of[w][c] = before;
      before += own;
    }
  }
  __syncthreads();
  const uint32_t warp = threadIdx.x / kWarp;
  uint32_t* const own = counts->of[warp];
  const uint32_t end = min_of(tile.n, (warp + 1) * kPerWarp);
  for (uint32_t i = warp * kPerWarp + lane_of_thread(); i - lane_of_thread() < end; i += kWarp) {
    const bool there = i < end;
    const Seen seen = there ? tile.at(i) : Seen{0, false};
    const unsigned wanted = __ballot_sync(kAllLanes, seen.wanted);
    if (wanted == 0) {
      if (there) atomicAdd(&own[seen.class_number], 1u);
      __syncwarp();
      continue;
    }
    unsigned same = __ballot_sync(kAllLanes, there);
    for (unsigned bit = 0; bit < 8; ++bit) {
      const bool one = (seen.class_number >> bit & 1u) != 0;
      const unsigned ones = __ballot_sync(kAllLanes, one);
      same &= one ? ones : ~ones;
    }
    const auto both = [](unsigned elements, unsigned of_them) {
      return static_cast<uint32_t>(__popc(elements)) |
             static_cast<uint32_t>(__popc(elements & of_them)) << kWantedShift;
    };
    const uint32_t before = own[seen.class_number] + both(same & lanes_below(), wanted);
    __syncwarp();
    if (there && (same & lanes_below()) == 0) own[seen.class_number] += both(same, wanted);
    __syncwarp();
    if (seen.wanted) {
      visit(i, seen.class_number, before & kElementsMask, before >> kWantedShift);
    }
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kThreads)
    place_changes(DeviceGroup group, ExponentOrder order, ChangeList changes, Progress* progress) {
  __shared__ TileCounts counts;
  __shared__ uint64_t elements_before[kClasses], changes_before[kClasses];
  __shared__ bool any;
  const uint64_t n_tiles = group.n_chunks;
  for (uint64_t t = blockIdx.x; t < n_tiles; t += gridDim.x) {
    if (threadIdx.x == 0) any = false;
    __syncthreads();
    for (uint32_t c = threadIdx.x; c < kClasses; c += kThreads) {
      elements_before[c] = order.elements.begin(c, t, n_tiles);
      changes_before[c] = order.changes.begin(c, t, n_tiles);
      if (order.changes.end(c, t, n_tiles) > changes_before[c]) any = true;
    }
    __syncthreads();
    const bool has_changes = any;
    __syncthreads();
    if (!has_changes) continue;
    with_tile(group, t, true, [&]<class UInt>(const Tile<UInt>& tile) {
      count(tile, &counts);
      const DeviceMember& m = tile.member;
      if (threadIdx.x == 0) lower_atomically(&progress->first_changed, m.begin);
      for_each_wanted(tile, &counts, [&](uint32_t i, uint32_t c, uint32_t before, uint32_t which) {
        const uint64_t place = changes_before[c] + which, e = tile.first + i;
        if (place >= changes.n) return;  // the model is being written to
        const UInt was = static_cast<const UInt*>(m.reference)[e];
        const UInt is = static_cast<const UInt*>(m.current)[e];
        changes.of[place] = {elements_before[c] + before, m.patterns.change(was, is)};
        changes.elements[place] = m.begin + e;
      });
    });
  }
}

__global__ void __launch_bounds__(kThreads)
    place_elements(DeviceGroup group, ExponentOrder order, ChangeList changes,
                   const Progress* progress) {
  __shared__ TileCounts counts;
  // Of a class and this tile: where its elements begin, and its changes, and where these end.
  __shared__ uint64_t begins[kClasses], firsts[kClasses], ends[kClasses];
  __shared__ bool any;
  if (progress->is_damaged()) return;
  const uint64_t n_tiles = group.n_chunks;
  const auto index_of = [&](uint64_t i) { return changes.of[i].index(); };
  for (uint64_t t = blockIdx.x; t < n_tiles; t += gridDim.x) {
    if (threadIdx.x == 0) any = false;
    __syncthreads();
    for (uint32_t c = threadIdx.x; c < kClasses; c += kThreads) {
      begins[c] = order.elements.begin(c, t, n_tiles);
      const uint64_t end = order.elements.end(c, t, n_tiles);
      firsts[c] = first_at_least(0, changes.n, begins[c], index_of);
      ends[c] = end == begins[c] ? firsts[c] : first_at_least(firsts[c], changes.n, end, index_of);
      if (ends[c] > firsts[c]) any = true;
    }
    __syncthreads();
    const bool has_changes = any;
    __syncthreads();
    if (!has_changes) continue;
    with_tile(group, t, false, [&](const auto& tile) {
      count(tile, &counts);
      for_each_wanted(tile, &counts, [&](uint32_t i, uint32_t c, uint32_t before, uint32_t) {
        const uint64_t index = begins[c] + before;
        const uint64_t found = first_at_least(firsts[c], ends[c], index, index_of);
        if (found < ends[c] && index_of(found) == index) {
          changes.elements[found] = tile.member.begin + tile.first + i;
        }
      });
    });
  }
}

unsigned blocks_of(const Stage& stage) {
  return static_cast<unsigned>(min_of<uint64_t>(stage.group.n_chunks, stage.n_blocks));
}

void count_and_sum(const Stage& stage, const ExponentOrder& order, bool encodes) {
  launch(count_tiles, blocks_of(stage), kThreads, stage.stream, stage.group, order, encodes);
  launch(sum_classes, kClasses, kSumThreads, stage.stream, order.elements, stage.group.n_chunks,
         stage.progress);
}

}  // namespace

void count_elements(const Stage& stage, const ExponentOrder& order) {
  count_and_sum(stage, order, false);
}

void count_changes(const Stage& stage, const ExponentOrder& order) {
  count_and_sum(stage, order, true);
  launch(sum_classes, kClasses, kSumThreads, stage.stream, order.changes, stage.group.n_chunks,
         stage.progress);
}

void order_changes(const Stage& stage, const ExponentOrder& order, ChangeList changes) {
  launch(place_changes, blocks_of(stage), kThreads, stage.stream, stage.group, order, changes,
         stage.progress);
}

void find_elements(const Stage& stage, const ExponentOrder& order, ChangeList changes) {
  launch(place_elements, blocks_of(stage), kThreads, stage.stream, stage.group, order, changes,
         static_cast<const Progress*>(stage.progress));
}

}  // namespace resfed::cuda
