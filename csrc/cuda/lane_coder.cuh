// The host's side of encoding lanes: it fits tables and chooses sets with the functions that the
// CPU uses, and sizes the room for words. Kernels do the rest.
#pragma once

#include "cuda/pipeline.hpp"
#include "cuda/scan_coder.hpp"

namespace resfed::cuda {

template <class Nonzero>
class LaneCoder {
 public:
  LaneCoder(WorkspaceLease& lease, unsigned lane_log2) : lease_(lease), lane_log2_(lane_log2) {}

  // Takes its memory on the device.
  void take(BumpAllocator& allocator, uint64_t most_nonzeros);
  // Some of it, for that many words of 64 bits; encode() writes there.
  void* room() const { return codes_; }

  // Codes n nonzeros, which lie on the device in coding order. `scans` is what brought them there;
  // null for changes. What uses the lease's pinned memory must have ended.
  CodedNonzeros encode(const Stage& stage, const Nonzero* sent, uint64_t n, ScanCoder* scans);

 private:
  static constexpr Part kPart = part_of<Nonzero>;
  struct Found {
    std::vector<Lane> lanes;
    std::vector<LaneCosts> costs;
    std::vector<uint32_t> raw_bits;
    std::array<Counts, kFamilies> counts;
  };
  // Writes the scan orders, too.
  Found find(const Stage& stage, const Nonzero* sent, const Partition& p, ScanCoder* scans,
             BitWriter* tables);
  void add_fitted_costs(const Stage& stage, const Partition& p, const FittedTables& fitted,
                        std::vector<LaneCosts>* costs);
  SliceViews write(const Stage& stage, const Nonzero* sent, const Partition& p,
                   const std::vector<Lane>& lanes, const std::vector<uint64_t>& rooms);

  WorkspaceLease& lease_;
  unsigned lane_log2_;
  // On the device.
  NonzeroCode* codes_ = nullptr;
  FoundLane* found_ = nullptr;
  uint32_t* counts_ = nullptr;
  DeviceFitted* fitted_ = nullptr;
  FittedCosts* fitted_costs_ = nullptr;
  Lane* lanes_ = nullptr;
  uint64_t* rooms_ = nullptr;   // where the words of each slice may begin, and where all end
  uint64_t* places_ = nullptr;  // and where they do begin
};

}  // namespace resfed::cuda
