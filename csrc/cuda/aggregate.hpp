// The Aggregator of cpu/aggregate.hpp for tensors on a CUDA device: the same sums, the same means,
// the same refusals. Reference, contributions and sums lie on the device; what decode leaves to the
// host is decoded there, and its new bits are copied to the device. No CUDA headers.
#pragma once

#include "cpu/aggregate.hpp"
#include "cuda/workspace.hpp"

namespace resfed::cuda {

class Aggregator;
struct DecodedUpdate;
struct SumTensor;  // as kernels see it
struct ElementChanges;

// What one model adds, with weight: of a payload the new bits of what it changes, of a model a
// copy.
struct Contribution {
  const Aggregator* owner = nullptr;  // that it may be added to; none once it was used
  double weight = 0.0;
  Bounds bounds;
  std::vector<bool> changes;  // by tensor: whether it adds anything but zeros
  bool is_model = false;
  uint64_t n = 0;                // changed elements of a payload
  std::shared_ptr<void> memory;  // on the device
};

// All calls take turns on the device, and return when the stream has done their work. Besides what
// those of the CPU throw, they throw kDeviceMemory, where nothing has changed, kCuda and
// kCapturing.
class Aggregator {
 public:
  // As on the CPU; the tensors' references are on the device, and written.
  Aggregator(std::vector<Tensor> tensors, std::vector<bool> is_signed, int device, Stream stream);

  std::unique_ptr<Contribution> prepare(const Payload& payload, uint64_t digest, double weight,
                                        Stream stream) const;
  std::unique_ptr<Contribution> prepare(const std::vector<const void*>& model, double weight,
                                        Stream stream) const;
  // All or nothing, but for what the device reports while it adds.
  void add(Contribution* contribution, Contribution* replaced, Stream stream,
           const std::function<void()>& before_adding = nullptr);
  void result(const std::vector<void*>& out, double total_weight, Stream stream) const;

  const std::vector<Tensor>& tensors() const { return tensors_; }
  int device() const { return device_; }

 private:
  // A tensor's sums, on the device; null where nothing was added, or carried over.
  struct SumsOf {
    int128* sums = nullptr;
    int64_t* carries = nullptr;
  };
  void fill_in(const Contribution* contribution, const std::vector<void*>* out,
               SumTensor* tensors) const;
  ElementChanges changes_of(const Contribution* contribution, const SumTensor* tensors) const;
  void find_bounds(WorkspaceLease& lease, const DecodedUpdate* decoded,
                   Contribution* contribution) const;
  template <class T>
  void make_zeros(WorkspaceLease& lease, const std::vector<size_t>& ordinals, T* SumsOf::* field);
  void touch(WorkspaceLease& lease, const Contribution& contribution);
  bool make_room(WorkspaceLease& lease, const MaxMagnitude& largest, const SumBound& bound,
                 bool floats);

  std::vector<Tensor> tensors_;  // with the reference as output: only then decoders keep new bits
  std::vector<bool> is_signed_;
  int device_;
  std::vector<uint64_t> begins_;  // of each tensor among all elements
  std::vector<uint64_t> bytes_;   // of each tensor's first byte in a model's copy, and the end
  uint64_t n_chunks_ = 0;
  std::vector<SumsOf> sums_;
  std::vector<std::shared_ptr<void>> memory_;  // of the sums
  SumBound float_bound_{kFloatLimit}, integer_bound_{kIntegerLimit};
  int128 integer_weight_ = 0;
};

}  // namespace resfed::cuda
