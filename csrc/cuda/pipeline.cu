#include <algorithm>
#include <cstring>

#include "cuda/pipeline.cuh"
#include "cuda/pipeline.hpp"

namespace resfed::cuda {

struct MatrixPlan {
  Stage stage{};
  // On the device.
  Progress* progress = nullptr;
  Chunk* chunks = nullptr;
  SentSymbol* symbols = nullptr;
  uint32_t* samples = nullptr;
  Candidates candidates{};
  uint64_t* bits = nullptr;
  float* left = nullptr;
  // Of an attempt.
  uint64_t k = 0;
  SamplePlan samples_plan;
  bool exactly = false;
  bool wants_feedback = false, wants_bits = false;
};

namespace {

// A multiple of the largest type's size, as Four in residual.cu is aligned.
bool is_aligned(const void* address, size_t elem_bytes) {
  return reinterpret_cast<uintptr_t>(address) % std::min<size_t>(16, 4 * elem_bytes) == 0;
}

bool writes_prediction(const Tensor& t) {
  return t.out != nullptr && (t.prediction.n_terms > 0 || t.out != t.reference);
}

// The group as kernels see it, when what is filled in at `members` has been copied to `device`.
DeviceGroup fill_in(const Group& group, DeviceMember* members, const DeviceMember* device) {
  uint64_t n = 0, chunk = 0;
  for (const Member& member : group.members) {
    const Tensor& t = *member.tensor;
    members[n++] = {t.current,
                    t.reference,
                    t.out,
                    t.feedback,
                    t.prediction,
                    member.begin,
                    t.n_elems,
                    chunk,
                    t.dtype,
                    t.plain(),
                    is_aligned(t.current, t.elem_bytes) && is_aligned(t.reference, t.elem_bytes),
                    writes_prediction(t)};
    chunk += n_chunks(t.n_elems);
  }
  return {device, n, group.n_elems, chunk};
}

template <class Predicate>
bool any_tensor(const Group& group, Predicate predicate) {
  return std::any_of(group.members.begin(), group.members.end(),
                     [&](const Member& member) { return predicate(*member.tensor); });
}

bool wants_feedback(const Group& group) {
  return any_tensor(group, [](const Tensor& t) { return t.feedback != nullptr; });
}
bool wants_bits(const Group& group) {
  return any_tensor(group,
                    [](const Tensor& t) { return t.out != nullptr || t.feedback != nullptr; });
}

// An update in place without feedback touches only what is sent.
void write(const MatrixPlan& plan, const Group& group) {
  if (any_tensor(group,
                 [](const Tensor& t) { return t.feedback != nullptr || writes_prediction(t); })) {
    write_elements(plan.stage);
  }
  if (plan.bits != nullptr) write_sent(plan.stage, plan.symbols, plan.bits, plan.left);
}

}  // namespace

MatrixEncoder::MatrixEncoder(WorkspaceLease& lease, const Group& group,
                             const EncodeOptions& options)
    : lease_(lease), group_(group), options_(options), plan_(new MatrixPlan) {}
MatrixEncoder::~MatrixEncoder() = default;

void MatrixEncoder::start() {
  MatrixPlan& plan = *plan_;
  plan.k = std::min(options_.k_matrix, group_.n_elems);
  plan.samples_plan = sample_plan(group_.n_elems, plan.k);
  plan.wants_feedback = cuda::wants_feedback(group_);
  plan.wants_bits = cuda::wants_bits(group_);
  const size_t n_bytes = group_.members.size() * sizeof(DeviceMember);
  void* const host = lease_.host_tables(n_bytes + sizeof(Progress));
  void* const tables = lease_.tables(n_bytes);
  plan.stage.group =
      fill_in(group_, static_cast<DeviceMember*>(host), static_cast<const DeviceMember*>(tables));
  lease_.copy_in(tables, host, n_bytes);
  plan.stage.n_blocks = lease_.n_blocks();
  plan.stage.stream = lease_.stream();
  select();
}

// Takes the memory of an attempt; what needs it has ended.
void MatrixEncoder::prepare() {
  MatrixPlan& plan = *plan_;
  const uint64_t n_candidates =
      plan.exactly ? plan.k : candidate_room(group_.n_elems, plan.samples_plan);
  const auto carve = [&](void* memory) {
    BumpAllocator allocator(memory);
    plan.progress = allocator.take<Progress>(1);
    plan.chunks = allocator.take<Chunk>(plan.stage.group.n_chunks);
    plan.symbols = allocator.take<SentSymbol>(plan.k);
    const uint64_t mark = allocator.mark();  // what comes now is not needed at the same time
    plan.samples = allocator.take<uint32_t>(plan.samples_plan.n_samples);
    plan.candidates = {allocator.take<uint16_t>(n_candidates), allocator.take<float>(n_candidates),
                       n_candidates};
    allocator.rewind(mark);
    plan.bits = plan.wants_bits ? allocator.take<uint64_t>(plan.k) : nullptr;
    plan.left = plan.wants_feedback ? allocator.take<float>(plan.k) : nullptr;
    return allocator.n_bytes();
  };
  carve(lease_.scratch(carve(nullptr)));
  plan.stage.progress = plan.progress;
}

void MatrixEncoder::begin(const Progress& progress) {
  auto* const host =
      static_cast<uint8_t*>(lease_.host_tables(0)) + group_.members.size() * sizeof(DeviceMember);
  std::memcpy(host, &progress, sizeof progress);
  lease_.copy_in(plan_->progress, host, sizeof progress);
}

void MatrixEncoder::select() {
  prepare();
  MatrixPlan& plan = *plan_;
  const bool all_nonzero = plan.samples_plan.n_samples == 0;
  Progress progress;
  progress.ties = plan.k;
  progress.min_key = plan.k > 0 ? 1 : kFirstNonFiniteKey;
  begin(progress);
  if (plan.exactly) {
    find_threshold(plan.stage, plan.k, plan.chunks);
  } else {
    estimate_threshold(plan.stage, plan.samples_plan, plan.samples);
  }
  collect(plan.stage, plan.candidates, plan.exactly, plan.chunks);
  select_top(plan.stage, plan.candidates, plan.k, all_nonzero, plan.exactly, options_.step,
             plan.chunks);
  quantize_candidates(plan.stage, plan.candidates, plan.chunks, plan.symbols);
}

MatrixEncoder::Result MatrixEncoder::finish() {
  MatrixPlan& plan = *plan_;
  Progress progress;
  for (;;) {
    recover_symbols(plan.stage, plan.symbols, plan.bits, plan.left);
    void* const host = lease_.host_results(sizeof(Progress));
    lease_.copy_out(host, plan.progress, sizeof(Progress));
    lease_.wait();
    std::memcpy(&progress, host, sizeof progress);
    if (progress.first_not_finite != kNone) {
      const Member& member = member_at(group_, progress.first_not_finite);
      throw Failure{Code::kNonFinite, member.ordinal, progress.first_not_finite - member.begin};
    }
    if (progress.lacks_room == 0) break;
    plan.exactly = true;
    select();
  }
  const size_t n_bytes = progress.n_sent * sizeof(SentSymbol);
  auto* const symbols = static_cast<SentSymbol*>(lease_.host_results(n_bytes));
  if (n_bytes > 0) {
    lease_.copy_out(symbols, plan.symbols, n_bytes);
    lease_.wait();
  }
  return {progress.quantizer, progress.check, {symbols, progress.n_sent}};
}

void MatrixEncoder::write() { cuda::write(*plan_, group_); }

MatrixDecoder::MatrixDecoder(WorkspaceLease& lease, const Group& group, const Frame& frame)
    : lease_(lease), group_(group), frame_(frame), plan_(new MatrixPlan) {}
MatrixDecoder::~MatrixDecoder() = default;

void MatrixDecoder::start(SentSymbols sent) {
  MatrixPlan& plan = *plan_;
  // Everything that goes in, together: members, progress, symbols.
  DeviceMember* members = nullptr;
  const auto carve = [&](void* memory) {
    BumpAllocator allocator(memory);
    members = allocator.take<DeviceMember>(group_.members.size());
    plan.progress = allocator.take<Progress>(1);
    plan.symbols = allocator.take<SentSymbol>(sent.size());
    return allocator.n_bytes();
  };
  const size_t tables_bytes = carve(nullptr);
  void* const host = lease_.host_tables(tables_bytes);
  void* const tables = lease_.tables(tables_bytes);
  carve(host);
  Progress begin;
  begin.n_sent = sent.size();
  begin.quantizer = frame_.matrix;
  std::memcpy(plan.progress, &begin, sizeof begin);
  std::copy(sent.begin(), sent.end(), plan.symbols);
  DeviceMember* const host_members = members;
  carve(tables);
  plan.stage.group = fill_in(group_, host_members, members);
  lease_.copy_in(tables, host, tables_bytes);
  plan.stage.progress = plan.progress;
  plan.stage.n_blocks = lease_.n_blocks();
  plan.stage.stream = lease_.stream();

  const size_t bits_bytes = wants_bits(group_) ? sent.size() * sizeof(uint64_t) : 0;
  if (bits_bytes > 0) plan.bits = static_cast<uint64_t*>(lease_.scratch(bits_bytes));
  recover_symbols(plan.stage, plan.symbols, plan.bits, nullptr);
}

uint32_t MatrixDecoder::finish() {
  auto* const progress = static_cast<Progress*>(lease_.host_results(sizeof(Progress)));
  lease_.copy_out(progress, plan_->progress, sizeof(Progress));
  lease_.wait();
  if (progress->outside != 0) throw Failure{Code::kBadSlice, 0, frame_.k_matrix};
  return progress->check;
}

void MatrixDecoder::write() { cuda::write(*plan_, group_); }

}  // namespace resfed::cuda
