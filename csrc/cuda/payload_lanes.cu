#include <algorithm>
#include <cstring>

#include "cuda/payload_lanes.hpp"

namespace resfed::cuda {

PayloadLanes::PayloadLanes(const Payload& payload, Part part, BitReader& in) {
  const Frame& frame = payload.frame;
  const bool lossy = part == Part::kLossy;
  partition_ = lossy ? frame.lanes() : frame.lanes_of_changes();
  first_slice_ = lossy ? 0 : frame.n_lossy_slices();
  own_slices_ = payload.slices();
  for (uint64_t s = 0; s < first_slice_; ++s) own_slices_ += frame.slice_bytes[s];
  own_offsets_.push_back(0);
  for (uint64_t s = 0; s < slices_of(partition_.n_parts); ++s) {
    own_offsets_.push_back(own_offsets_.back() + frame.slice_bytes[first_slice_ + s]);
  }
  if (partition_.n_symbols > 0) own_lanes_ = read_tables(part, in, partition_.n_parts, &fitted_);
}

void PayloadLanes::take(BumpAllocator& allocator) {
  offsets_ = allocator.take<uint64_t>(own_offsets_.size());
  lanes_ = allocator.take<Lane>(own_lanes_.size());
  starts_ = allocator.take<TableStarts>(partition_.n_symbols > 0 ? kFamilies : 0);
  slices_ = allocator.take<uint8_t>(own_offsets_.back());
}

void PayloadLanes::fill_in() const {
  std::copy(own_offsets_.begin(), own_offsets_.end(), offsets_);
  std::copy(own_lanes_.begin(), own_lanes_.end(), lanes_);
  for (uint32_t f = 0; f < kFamilies; ++f) {
    if (fitted_[f] != nullptr) starts_[f].fill(*fitted_[f], static_cast<Family>(f));
  }
  std::memcpy(slices_, own_slices_, own_offsets_.back());
}

}  // namespace resfed::cuda
