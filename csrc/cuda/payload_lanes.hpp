// The lanes of a payload on their way to the device: slices, and how each lane is coded.
#pragma once

#include "api.hpp"
#include "cuda/pipeline.cuh"

namespace resfed::cuda {

class PayloadLanes {
 public:
  // `in` has what is left of the part's tables. Throws kBadTables.
  PayloadLanes(const Payload& payload, Part part, BitReader& in);

  const Partition& partition() const { return partition_; }
  uint64_t first_slice() const { return first_slice_; }  // among all of the payload

  // Takes memory: first of the host, for fill_in(), then of the device, for what follows.
  void take(BumpAllocator& allocator);
  void fill_in() const;
  const uint8_t* slices() const { return slices_; }
  const uint64_t* offsets() const { return offsets_; }
  LaneTables tables(const DeviceTrained* trained) const {
    return {partition_, lanes_, {trained, starts_}};
  }

 private:
  Partition partition_;
  uint64_t first_slice_ = 0;
  std::vector<uint64_t> own_offsets_;  // of the slices, and where the last one ends
  const uint8_t* own_slices_ = nullptr;
  std::vector<Lane> own_lanes_;
  FittedTables fitted_;
  // Where they are to lie.
  uint64_t* offsets_ = nullptr;
  Lane* lanes_ = nullptr;
  TableStarts* starts_ = nullptr;
  uint8_t* slices_ = nullptr;
};

}  // namespace resfed::cuda
