#include "cuda/changes.cuh"
#include "numeric/check.hpp"

namespace resfed::cuda {
namespace {

constexpr unsigned kThreads = 256;

// Calls visit(i, change) for the changes of integers in a run. All of these are of class 0.
template <class Visit>
__device__ void for_each_integer(const DeviceGroup& group, const ExponentOrder& order,
                                 ChangeList changes, uint64_t run, Visit visit) {
  const uint64_t n_of_class = order.elements.of_class[1];
  const uint64_t end = min_of(changes.n, (run + 1) * kRunOfChanges);
  for (uint64_t i = run * kRunOfChanges; i < end; ++i) {
    const ChangedElement change = changes.of[i];
    if (change.index() >= n_of_class) return;
    if (group.member_at(changes.elements[i]).dtype == DType::kOther) visit(i, change);
  }
}

__global__ void __launch_bounds__(kThreads)
    sum_up_runs(DeviceGroup group, ExponentOrder order, ChangeList changes, ChangeRuns runs,
                bool decodes, const Progress* progress) {
  if (progress->is_damaged()) return;
  for_each_of_grid(runs.n, [&](uint64_t run) {
    LastChange all = LastChange::any();
    for_each_integer(group, order, changes, run, [&](uint64_t, ChangedElement change) {
      const int64_t level = change.level();
      all = all.then(decodes ? LastChange::after(level) : LastChange::is(level));
    });
    runs.of[run] = all;
  });
}

// By one block.
__global__ void __launch_bounds__(kThreads) begin_runs(ChangeRuns runs, const Progress* progress) {
  __shared__ LastChange of_threads[kThreads];
  __shared__ int64_t lasts[kThreads];
  if (progress->is_damaged()) return;
  const auto [begin, end] = range_of_thread(runs.n);
  LastChange all = LastChange::any();
  for (uint64_t run = begin; run < end; ++run) all = all.then(runs.of[run]);
  of_threads[threadIdx.x] = all;
  __syncthreads();
  if (threadIdx.x == 0) {
    int64_t last = RepeatedChange().last;
    for (unsigned t = 0; t < kThreads; ++t) {
      lasts[t] = last;
      last = of_threads[t].of(last);
    }
  }
  __syncthreads();
  int64_t last = lasts[threadIdx.x];
  for (uint64_t run = begin; run < end; ++run) {
    runs.lasts[run] = last;
    last = runs.of[run].of(last);
  }
}

__global__ void __launch_bounds__(kThreads)
    change_runs(DeviceGroup group, ExponentOrder order, ChangeList changes, ChangeRuns runs,
                bool decodes, const Progress* progress) {
  if (progress->is_damaged()) return;
  for_each_of_grid(runs.n, [&](uint64_t run) {
    RepeatedChange repeated{runs.lasts[run]};
    for_each_integer(group, order, changes, run, [&](uint64_t i, ChangedElement change) {
      const int64_t level = change.level();
      changes.of[i] = {change.index(),
                       decodes ? repeated.change_of(level) : repeated.level_of(level)};
    });
  });
}

__global__ void __launch_bounds__(kThreads)
    restore_each(DeviceGroup group, ChangeList changes, Partition p, bool decodes, uint64_t* bits,
                 Progress* progress) {
  if (progress->is_damaged()) return;
  uint32_t check = 0;
  for_each_of_grid(changes.n, [&](uint64_t i) {
    const ChangedElement change = changes.of[i];
    const uint64_t element = changes.elements[i];
    const bool ascends = i == 0 || changes.of[i - 1].index() < change.index();
    if (element >= group.n_elems || change.index() >= group.n_elems || !ascends) {
      progress->unsteady = 1;
      return;
    }
    const DeviceMember& member = group.member_at(element);
    const Patterns patterns = member.patterns;
    if (!patterns.is_change(change.level())) {
      if (decodes) {
        const auto begin_of = [&](uint64_t s) { return part_begin(p, s * kLanesOfSlice); };
        lower_atomically(&progress->bad_slice, last_at_most(slices_of(p.n_parts), i, begin_of));
      } else {
        progress->unsteady = 1;
      }
      return;
    }
    with_bits(patterns.n_bits, [&]<class UInt>(UInt) {
      const UInt before = static_cast<const UInt*>(member.reference)[element - member.begin];
      bits[i] = patterns.changed(before, change.level());
      check += check_term(element, before, bits[i]);
    });
  });
  check = sum_of_warp(check);
  if (lane_of_thread() == 0 && check != 0) atomicAdd(&progress->check, check);
}

__global__ void __launch_bounds__(kThreads) copy_references(DeviceGroup group) {
  for (uint64_t t = blockIdx.x; t < group.n_chunks; t += gridDim.x) {
    const DeviceMember& member = group.member_of_chunk(t);
    if (!member.writes_prediction) continue;
    const uint64_t first = (t - member.first_chunk) * kTileElems;
    const uint64_t end = min_of<uint64_t>(first + kTileElems, member.n_elems);
    with_bits(member.patterns.n_bits, [&]<class UInt>(UInt) {
      const auto* const from = static_cast<const UInt*>(member.reference);
      auto* const to = static_cast<UInt*>(member.out);
      for (uint64_t i = first + threadIdx.x; i < end; i += blockDim.x) to[i] = from[i];
    });
  }
}

__global__ void __launch_bounds__(kThreads)
    write_changes(DeviceGroup group, ChangeList changes, const uint64_t* bits) {
  for_each_of_grid(changes.n, [&](uint64_t i) {
    const DeviceMember& member = group.member_at(changes.elements[i]);
    if (member.out == nullptr) return;
    with_bits(member.patterns.n_bits, [&]<class UInt>(UInt) {
      static_cast<UInt*>(member.out)[changes.elements[i] - member.begin] =
          static_cast<UInt>(bits[i]);
    });
  });
}

unsigned blocks_for(const Stage& stage, uint64_t n) {
  return static_cast<unsigned>(min_of<uint64_t>(n_blocks_of(n, kThreads), stage.n_blocks));
}

}  // namespace

void change_integers(const Stage& stage, const ExponentOrder& order, ChangeList changes,
                     ChangeRuns runs, bool decodes) {
  const Progress* const progress = stage.progress;
  const unsigned n_blocks = blocks_for(stage, runs.n);
  launch(sum_up_runs, n_blocks, kThreads, stage.stream, stage.group, order, changes, runs, decodes,
         progress);
  launch(begin_runs, 1, kThreads, stage.stream, runs, progress);
  launch(change_runs, n_blocks, kThreads, stage.stream, stage.group, order, changes, runs, decodes,
         progress);
}

void restore_elements(const Stage& stage, ChangeList changes, Partition p, bool decodes,
                      uint64_t* bits) {
  launch(restore_each, blocks_for(stage, changes.n), kThreads, stage.stream, stage.group, changes,
         p, decodes, bits, stage.progress);
}

void write_unchanged(const Stage& stage) {
  launch(copy_references,
         static_cast<unsigned>(min_of<uint64_t>(stage.group.n_chunks, stage.n_blocks)), kThreads,
         stage.stream, stage.group);
}

void write_changed(const Stage& stage, ChangeList changes, const uint64_t* bits) {
  launch(write_changes, blocks_for(stage, changes.n), kThreads, stage.stream, stage.group, changes,
         bits);
}

}  // namespace resfed::cuda
