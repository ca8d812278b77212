#include "cuda/pipeline.cuh"
#include "cuda/sums.cuh"

namespace resfed::cuda {
namespace {

constexpr unsigned kThreads = 256;

// Calls visit(tensor, element) for the thread's part of all elements.
template <class Visit>
__device__ void for_each_element(const ElementChanges& c, Visit visit) {
  for (uint64_t chunk = blockIdx.x; chunk < c.n_chunks; chunk += gridDim.x) {
    const SumTensor t = c.tensor_of_chunk(chunk);  // a copy, in registers
    const uint64_t first = (chunk - t.first_chunk) * kChunkElems;
    const uint64_t end = min_of<uint64_t>(first + kChunkElems, t.n_elems);
    for (uint64_t i = first + threadIdx.x; i < end; i += blockDim.x) visit(t, i);
  }
}

__device__ uint64_t load(const void* array, uint64_t element, uint32_t elem_bytes) {
  uint64_t bits = 0;
  with_bits(8 * elem_bytes,
            [&]<class UInt>(UInt) { bits = static_cast<const UInt*>(array)[element]; });
  return bits;
}

// Calls visit(tensor, element, bits after) for the thread's part of the changes.
template <class Visit>
__device__ void for_each_change(const ElementChanges& c, Visit visit) {
  if (!c.is_model) {
    return for_each_of_grid(c.n, [&](uint64_t i) {
      const SumTensor& t = c.tensor_at(c.places[i]);
      visit(t, c.places[i] - t.begin, c.bits[i]);
    });
  }
  for_each_element(c, [&](const SumTensor& t, uint64_t element) {
    const uint64_t after = load(t.model, element, t.elem_bytes);
    if (after != load(t.reference, element, t.elem_bytes)) visit(t, element, after);
  });
}

__device__ double float_change_of(const SumTensor& t, const Weight& weight, uint64_t element,
                                  uint64_t after) {
  double change = 0.0;
  with_type(t.dtype, [&]<class T>(T value) {
    from_bits(after, &value);
    change = float_change(weight, t.before<T>(element), value);
  });
  return change;
}

__device__ int128 integer_at(const SumTensor& t, uint64_t element) {
  return integer_value(load(t.reference, element, t.elem_bytes), t.elem_bytes, t.is_signed);
}
__device__ int128 integer_change_of(const SumTensor& t, uint64_t element, uint64_t after) {
  return integer_value(after, t.elem_bytes, t.is_signed) - integer_at(t, element);
}

__global__ void __launch_bounds__(kThreads)
    take_each(NewElements from, ElementChanges to, uint64_t at) {
  for_each_of_grid(from.n, [&](uint64_t i) {
    const uint64_t index = from.index(i);
    const DeviceMember& member = from.group.member_at(index);
    to.places[at + i] = to.tensors[member.ordinal].begin + (index - member.begin);
    to.bits[at + i] = from.bits[i];
  });
}

__global__ void __launch_bounds__(kThreads)
    find_largest_of_each(ElementChanges changes, Weight weight, uint64_t* largest) {
  uint64_t of = 0, most = 0;  // a tensor, and what this thread has found of it
  const auto put = [&] {
    // Nearly always another thread has found as much by now.
    const volatile uint64_t* const known = largest + of;
    if (most > *known) raise_atomically(largest + of, most);
  };
  for_each_change(changes, [&](const SumTensor& t, uint64_t element, uint64_t after) {
    if (t.ordinal != of) {
      put();
      of = t.ordinal;
      most = 0;
    }
    most = max_of(most, t.is_float()
                            ? magnitude_bits(float_change_of(t, weight, element, after))
                            : integer_magnitude(weight, integer_change_of(t, element, after)));
  });
  put();
}

__global__ void __launch_bounds__(kThreads) add_each(ElementChanges changes, Weight weight) {
  for_each_change(changes, [&](const SumTensor& t, uint64_t element, uint64_t after) {
    if (t.sums == nullptr) return;
    t.sums[element] += t.is_float() ? to_units(float_change_of(t, weight, element, after))
                                    : weight.units * integer_change_of(t, element, after);
  });
}

__global__ void __launch_bounds__(kThreads) carry_each(ElementChanges all, bool floats) {
  for_each_element(all, [&](const SumTensor& t, uint64_t element) {
    if (t.sums == nullptr || t.is_float() != floats) return;
    resfed::carry_over(t.sums + element, t.carries + element);
  });
}

__global__ void __launch_bounds__(kThreads)
    write_each_mean(ElementChanges all, double total_weight, int128 integer_weight) {
  for_each_element(all, [&](const SumTensor& t, uint64_t element) {
    const int128 sum = t.sums != nullptr ? t.sums[element] : 0;
    const int64_t carry = t.carries != nullptr ? t.carries[element] : 0;
    if (t.is_float()) {
      with_type(t.dtype, [&]<class T>(T) {
        static_cast<T*>(t.out)[element] =
            float_mean(t.before<T>(element), carry, sum, total_weight);
      });
      return;
    }
    const uint64_t mean = integer_mean(integer_at(t, element), carry, sum, integer_weight);
    with_bits(8 * t.elem_bytes, [&]<class UInt>(UInt) {
      static_cast<UInt*>(t.out)[element] = static_cast<UInt>(mean);
    });
  });
}

__global__ void __launch_bounds__(kThreads) clear_each(uint64_t* words, uint64_t n) {
  for_each_of_grid(n, [&](uint64_t i) { words[i] = 0; });
}

unsigned blocks_for(const WorkspaceLease& lease, uint64_t n) {
  return static_cast<unsigned>(min_of<uint64_t>(n_blocks_of(n, kThreads), lease.n_blocks()));
}
unsigned blocks_for(const WorkspaceLease& lease, const ElementChanges& c) {
  if (!c.is_model) return blocks_for(lease, c.n);
  return static_cast<unsigned>(min_of<uint64_t>(c.n_chunks, lease.n_blocks()));
}

}  // namespace

void take_elements(const WorkspaceLease& lease, const NewElements& from, const ElementChanges& to,
                   uint64_t at) {
  launch(take_each, blocks_for(lease, from.n), kThreads, lease.stream(), from, to, at);
}

void find_largest(const WorkspaceLease& lease, const ElementChanges& changes, const Weight& weight,
                  uint64_t* largest) {
  launch(find_largest_of_each, blocks_for(lease, changes), kThreads, lease.stream(), changes,
         weight, largest);
}

void add_changes(const WorkspaceLease& lease, const ElementChanges& changes, const Weight& weight) {
  launch(add_each, blocks_for(lease, changes), kThreads, lease.stream(), changes, weight);
}

void carry_over(const WorkspaceLease& lease, const ElementChanges& all, bool floats) {
  launch(carry_each, blocks_for(lease, all), kThreads, lease.stream(), all, floats);
}

void write_means(const WorkspaceLease& lease, const ElementChanges& all, double total_weight,
                 int128 integer_weight) {
  launch(write_each_mean, blocks_for(lease, all), kThreads, lease.stream(), all, total_weight,
         integer_weight);
}

void clear(const WorkspaceLease& lease, uint64_t* words, uint64_t n) {
  launch(clear_each, blocks_for(lease, n), kThreads, lease.stream(), words, n);
}

}  // namespace resfed::cuda
