// Which tensors have any residual that differs from zero.
#include <algorithm>

#include "cuda/codec.hpp"
#include "cuda/pipeline.cuh"
#include "cuda/workspace.hpp"

namespace resfed::cuda {
namespace {

constexpr unsigned kThreads = 256;

// A block takes every gridDim.x-th chunk, and goes on to the next tensor once one is found.
__global__ void __launch_bounds__(kThreads) find_changed(DeviceGroup group, uint32_t* flags) {
  __shared__ uint32_t known;
  uint64_t t = blockIdx.x;
  while (t < group.n_chunks) {
    const DeviceMember& member = group.member_of_chunk(t);
    uint32_t* const flag = flags + (&member - group.members);
    if (threadIdx.x == 0) known = atomicOr(flag, 0u);
    __syncthreads();
    if (known == 0) {
      const uint64_t first = (t - member.first_chunk) * kChunkElems;
      const uint64_t last = min_of<uint64_t>(first + kChunkElems, member.n_elems);
      bool found = false;
      with_type(member.dtype, [&]<class T>(T) {
        for (uint64_t i = first + threadIdx.x; i < last && !found; i += blockDim.x) {
          found = magnitude_key(residual_at<T>(member, i)) != 0;
        }
      });
      if (found) atomicOr(flag, 1u);
      t += gridDim.x;
    } else {
      const uint64_t left = member.first_chunk + n_chunks(member.n_elems) - t;
      t += (left + gridDim.x - 1) / gridDim.x * gridDim.x;
    }
    __syncthreads();  // the next chunk writes what this one shares
  }
}

}  // namespace

std::vector<bool> changed(const std::vector<Tensor>& tensors, int device, Stream stream) {
  Group group;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& t = tensors[i];
    if ((t.role != Role::kMatrix && t.role != Role::kVector) || t.n_elems == 0) continue;
    group.members.push_back({&t, i, group.n_elems});
    group.n_elems += t.n_elems;
  }
  std::vector<bool> result(tensors.size(), false);
  const size_t n_members = group.members.size();
  if (n_members == 0) return result;

  WorkspaceLease lease(device, stream);
  const size_t member_bytes = n_members * sizeof(DeviceMember);
  const size_t flag_bytes = n_members * sizeof(uint32_t);
  auto* const host = static_cast<uint8_t*>(lease.host_tables(member_bytes + flag_bytes));
  auto* const tables = static_cast<uint8_t*>(lease.tables(member_bytes + flag_bytes));
  const DeviceGroup device_group =
      fill_in(group, kChunkElems, reinterpret_cast<DeviceMember*>(host),
              reinterpret_cast<const DeviceMember*>(tables));
  std::fill_n(host + member_bytes, flag_bytes, uint8_t{0});
  lease.copy_in(tables, host, member_bytes + flag_bytes);
  auto* const flags = reinterpret_cast<uint32_t*>(tables + member_bytes);
  launch(find_changed, lease.n_blocks(), kThreads, stream, device_group, flags);
  auto* const found = static_cast<uint32_t*>(lease.host_results(flag_bytes));
  lease.copy_out(found, flags, flag_bytes);
  lease.wait();
  for (size_t i = 0; i < n_members; ++i) result[group.members[i].ordinal] = found[i] != 0;
  return result;
}

}  // namespace resfed::cuda
