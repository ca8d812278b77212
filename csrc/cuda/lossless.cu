#include <algorithm>
#include <cstring>

#include "cuda/changes.cuh"
#include "cuda/lane_coder.cuh"
#include "cuda/lossless.hpp"
#include "cuda/payload_lanes.hpp"

namespace resfed::cuda {

struct LosslessPlan {
  Stage stage{};
  // On the device.
  ExponentOrder order{};
  ChangeList changes{};
  ChangeRuns runs{};
  uint64_t* bits = nullptr;  // new ones of the changed elements
};

namespace {

template <class Holds>
bool any_tensor(const Group& group, Holds holds) {
  return std::any_of(group.members.begin(), group.members.end(),
                     [&](const Member& member) { return holds(*member.tensor); });
}

uint64_t n_tiles_of(const Group& group) {
  uint64_t n = 0;
  for (const Member& member : group.members) n += n_blocks_of(member.tensor->n_elems, kTileElems);
  return n;
}

// Copies the tensors, a fresh record and a decoder's lanes to the device.
void begin(WorkspaceLease& lease, const Group& group, PayloadLanes* lanes, LosslessPlan* plan) {
  const size_t n_members = group.members.size();
  const uint64_t n_tiles = n_tiles_of(group);
  DeviceMember* members = nullptr;
  size_t n_copied = 0;
  const auto carve = [&](void* memory) {
    BumpAllocator allocator(memory);
    members = allocator.take<DeviceMember>(n_members);
    plan->stage.progress = allocator.take<Progress>(1);
    if (lanes != nullptr) lanes->take(allocator);
    n_copied = allocator.n_bytes();
    plan->order.elements.take(allocator, n_tiles);
    if (lanes == nullptr) plan->order.changes.take(allocator, n_tiles);
    return allocator.n_bytes();
  };
  const size_t n_bytes = carve(nullptr);
  void* const host = lease.host_tables(n_copied);
  void* const device = lease.lossless(n_bytes);
  carve(host);
  DeviceMember* const host_members = members;
  const Progress fresh;
  std::memcpy(plan->stage.progress, &fresh, sizeof fresh);
  if (lanes != nullptr) lanes->fill_in();
  carve(device);
  plan->stage.group = fill_in(group, kTileElems, host_members, members);
  lease.copy_in(device, host, n_copied);
  plan->stage.n_blocks = lease.n_blocks();
  plan->stage.stream = lease.stream();
}

// Takes the memory for n changes.
void take(BumpAllocator& allocator, const Group& group, uint64_t n, LosslessPlan* plan) {
  const bool integers = any_tensor(group, [](const Tensor& t) { return t.dtype == DType::kOther; });
  const uint64_t n_runs = integers ? n_blocks_of(n, kRunOfChanges) : 0;
  plan->changes = {allocator.take<ChangedElement>(n), allocator.take<uint64_t>(n), n};
  plan->runs = {allocator.take<LastChange>(n_runs), allocator.take<int64_t>(n_runs), n_runs};
  plan->bits = allocator.take<uint64_t>(n);
}

// The stage's record, when all so far is done.
const Progress& wait(WorkspaceLease& lease, const LosslessPlan& plan) {
  auto* const progress = static_cast<Progress*>(lease.host_results(sizeof(Progress)));
  lease.copy_out(progress, plan.stage.progress, sizeof(Progress));
  lease.wait();
  if (progress->unsteady != 0) throw Failure{Code::kChangedDuringCall};
  return *progress;
}

void write(const LosslessPlan& plan, const Group& group) {
  if (any_tensor(group, writes_prediction)) write_unchanged(plan.stage);
  if (any_tensor(group, [](const Tensor& t) { return t.out != nullptr; })) {
    write_changed(plan.stage, plan.changes, plan.bits);
  }
}

}  // namespace

LosslessEncoder::LosslessEncoder(WorkspaceLease& lease, const Group& group, unsigned lane_log2)
    : lease_(lease), group_(group), lane_log2_(lane_log2), plan_(new LosslessPlan) {}
LosslessEncoder::~LosslessEncoder() = default;

EncodedChanges LosslessEncoder::encode() {
  LosslessPlan& plan = *plan_;
  begin(lease_, group_, nullptr, &plan);
  count_changes(plan.stage, plan.order);
  auto* const n_changes = static_cast<uint64_t*>(lease_.host_results(sizeof(uint64_t)));
  lease_.copy_out(n_changes, plan.order.changes.of_class + kClasses, sizeof(uint64_t));
  lease_.wait();
  EncodedChanges encoded;
  encoded.n = *n_changes;
  if (encoded.n == 0) return encoded;

  LaneCoder<ChangedElement> lanes(lease_, lane_log2_);
  const auto carve = [&](void* memory) {
    BumpAllocator allocator(memory);
    take(allocator, group_, encoded.n, &plan);
    lanes.take(allocator, encoded.n);
    return allocator.n_bytes();
  };
  carve(lease_.changes(carve(nullptr)));
  order_changes(plan.stage, plan.order, plan.changes);
  restore_elements(plan.stage, plan.changes, {}, false, plan.bits);
  change_integers(plan.stage, plan.order, plan.changes, plan.runs, false);
  const Progress& progress = wait(lease_, plan);
  encoded.check = progress.check;
  encoded.first_tensor = member_at(group_, progress.first_changed).ordinal;
  const CodedNonzeros coded = lanes.encode(plan.stage, plan.changes.of, encoded.n, nullptr);
  encoded.coded.tables = coded.tables;
  for (const auto& slice : coded.slices)
    encoded.coded.slices.emplace_back(slice.begin(), slice.end());
  return encoded;
}

void LosslessEncoder::write() { cuda::write(*plan_, group_); }

LosslessDecoder::LosslessDecoder(WorkspaceLease& lease, const Group& group, const Payload& payload)
    : lease_(lease), group_(group), payload_(payload), plan_(new LosslessPlan) {}
LosslessDecoder::~LosslessDecoder() = default;

uint32_t LosslessDecoder::decode() {
  LosslessPlan& plan = *plan_;
  const Frame& frame = payload_.frame;
  BitReader in(frame.change_tables.data(), frame.change_tables.size());
  PayloadLanes lanes(payload_, Part::kLossless, in);
  begin(lease_, group_, &lanes, &plan);
  if (frame.n_changed == 0) return 0;
  const Partition& p = lanes.partition();
  uint64_t* begins = nullptr;
  const auto carve = [&](void* memory) {
    BumpAllocator allocator(memory);
    take(allocator, group_, p.n_symbols, &plan);
    begins = allocator.take<uint64_t>(p.n_parts);
    return allocator.n_bytes();
  };
  carve(lease_.changes(carve(nullptr)));
  decode_lanes(plan.stage, lanes.slices(), lanes.offsets(), lanes.tables(lease_.trained_tables()),
               nullptr, frame.n_lossless, begins, plan.changes.of);
  count_elements(plan.stage, plan.order);
  find_elements(plan.stage, plan.order, plan.changes);
  change_integers(plan.stage, plan.order, plan.changes, plan.runs, true);
  restore_elements(plan.stage, plan.changes, p, true, plan.bits);
  const Progress& progress = wait(lease_, plan);
  if (progress.bad_slice != kNone) {
    throw Failure{Code::kBadSlice, lanes.first_slice() + progress.bad_slice};
  }
  return progress.check;
}

NewElements LosslessDecoder::restored() const {
  const LosslessPlan& plan = *plan_;
  return {plan.stage.group, nullptr, plan.changes.elements, plan.bits, plan.changes.n};
}

void LosslessDecoder::write() { cuda::write(*plan_, group_); }

}  // namespace resfed::cuda
