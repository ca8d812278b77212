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
  SentSymbol* others = nullptr;
  RowLength* rows = nullptr;
  uint32_t* samples = nullptr;
  Candidates candidates{};
  DecisionBuffers buffers{};
  Bytes coded{};
  SliceTable table{};
  uint8_t* packed = nullptr;
  uint64_t* bits = nullptr;
  float* left = nullptr;
  // Of an attempt.
  uint64_t k = 0, n_others = 0;
  SamplePlan samples_plan;
  bool exactly = false;
  uint64_t decisions_per_symbol = 0;
  uint64_t coded_room = 0;
  uint64_t most_slices = 0;
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

uint64_t bytes_of(const Group& group) {
  uint64_t n_bytes = 0;
  for (const Member& member : group.members)
    n_bytes += member.tensor->n_elems * member.tensor->elem_bytes;
  return n_bytes;
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

// Where a result stands in host_results: the progress first, then what the stage returns.
constexpr size_t kProgressRoom = (sizeof(Progress) + 255) / 256 * 256;

}  // namespace

MatrixEncoder::MatrixEncoder(WorkspaceLease& lease, const Group& group,
                             const EncodeOptions& options)
    : lease_(lease), group_(group), options_(options), plan_(new MatrixPlan) {}
MatrixEncoder::~MatrixEncoder() = default;

void MatrixEncoder::start(uint64_t n_others) {
  MatrixPlan& plan = *plan_;
  plan.k = std::min(options_.k_matrix, group_.n_elems);
  plan.n_others = n_others;
  plan.samples_plan = sample_plan(group_.n_elems, plan.k);
  plan.wants_feedback = cuda::wants_feedback(group_);
  plan.wants_bits = cuda::wants_bits(group_);
  plan.most_slices = partition(plan.k + n_others, options_.slice_log2).n_slices + 1;
  plan.decisions_per_symbol = lease_.slice_need().decisions;
  plan.coded_room = lease_.slice_need().room(plan.k + n_others, plan.most_slices);
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

// Takes the memory of an attempt; what needs it has ended. What comes before the slices lies at the
// same places for any room.
void MatrixEncoder::prepare(bool keeps_symbols) {
  MatrixPlan& plan = *plan_;
  const uint64_t n_symbols = plan.k + plan.n_others;
  const uint64_t n_candidates =
      plan.exactly ? plan.k : candidate_room(group_.n_elems, plan.samples_plan);
  plan.buffers.n_entries =
      decision_buffer_entries(n_symbols, options_.slice_log2, plan.decisions_per_symbol);
  plan.buffers.n = static_cast<unsigned>(
      n_decision_buffers(plan.most_slices, plan.buffers.n_entries, bytes_of(group_)));
  uint64_t n_kept = 0;
  const auto carve = [&](void* memory) {
    BumpAllocator allocator(memory);
    plan.progress = allocator.take<Progress>(1);
    plan.chunks = allocator.take<Chunk>(plan.stage.group.n_chunks);
    plan.symbols = allocator.take<SentSymbol>(n_symbols);
    plan.others = allocator.take<SentSymbol>(plan.n_others);
    plan.rows = allocator.take<RowLength>(group_.members.size() + 1);
    n_kept = allocator.n_bytes();
    plan.table = {allocator.take<uint64_t>(plan.most_slices),
                  allocator.take<uint64_t>(plan.most_slices),
                  allocator.take<uint64_t>(plan.most_slices)};
    plan.packed = allocator.take<uint8_t>(plan.coded_room);
    const uint64_t mark = allocator.mark();  // what comes now is not needed at the same time
    plan.samples = allocator.take<uint32_t>(plan.samples_plan.n_samples);
    plan.candidates = {allocator.take<uint16_t>(n_candidates), allocator.take<float>(n_candidates),
                       n_candidates};
    allocator.rewind(mark);
    plan.buffers.entries = allocator.take<uint16_t>(plan.buffers.n * plan.buffers.n_entries);
    plan.coded = {allocator.take<uint8_t>(plan.coded_room), plan.coded_room};
    allocator.rewind(mark);
    plan.bits = plan.wants_bits ? allocator.take<uint64_t>(plan.k) : nullptr;
    plan.left = plan.wants_feedback ? allocator.take<float>(plan.k) : nullptr;
    return allocator.n_bytes();
  };
  const uint64_t n_bytes = carve(nullptr);
  carve(lease_.scratch(n_bytes, keeps_symbols ? n_kept : 0));
  plan.stage.progress = plan.progress;
}

void MatrixEncoder::begin(const Progress& progress) {
  auto* const host =
      static_cast<uint8_t*>(lease_.host_tables(0)) + group_.members.size() * sizeof(DeviceMember);
  std::memcpy(host, &progress, sizeof progress);
  lease_.copy_in(plan_->progress, host, sizeof progress);
}

void MatrixEncoder::select() {
  prepare(false);
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

MatrixEncoder::Result MatrixEncoder::finish(std::span<const SentSymbol> vector,
                                            std::span<const SentSymbol> dense,
                                            std::span<const RowLength> rows) {
  MatrixPlan& plan = *plan_;
  const uint64_t n_others = vector.size() + dense.size();
  for (;;) {
    const size_t others_bytes = n_others * sizeof(SentSymbol);
    const size_t table_bytes = plan.most_slices * sizeof(uint64_t);
    uint8_t* const host = static_cast<uint8_t*>(lease_.host_results(
        kProgressRoom + table_bytes + others_bytes + rows.size_bytes() + plan.coded_room));
    auto* const progress = reinterpret_cast<Progress*>(host);
    auto* const lengths = reinterpret_cast<uint64_t*>(host + kProgressRoom);
    auto* const others = reinterpret_cast<SentSymbol*>(lengths + plan.most_slices);
    auto* const row_lengths = reinterpret_cast<RowLength*>(others + n_others);
    auto* const bytes = reinterpret_cast<uint8_t*>(row_lengths + rows.size());

    std::copy(dense.begin(), dense.end(), std::copy(vector.begin(), vector.end(), others));
    std::copy(rows.begin(), rows.end(), row_lengths);
    if (n_others > 0) lease_.copy_in(plan.others, others, others_bytes);
    if (!rows.empty()) lease_.copy_in(plan.rows, row_lengths, rows.size_bytes());
    encode_slices(plan.stage, plan.symbols, plan.others, n_others, {plan.rows, rows.size()},
                  options_.slice_log2, lease_.initial_contexts(), plan.buffers, plan.coded,
                  plan.table, plan.packed);
    lease_.copy_out(bytes, plan.packed, plan.coded_room);
    recover_symbols(plan.stage, plan.symbols, plan.bits, plan.left);
    lease_.copy_out(progress, plan.progress, sizeof(Progress));
    lease_.copy_out(lengths, plan.table.n_bytes, table_bytes);
    lease_.wait();

    if (progress->first_not_finite != kNone) {
      const Member& member = member_at(group_, progress->first_not_finite);
      throw Failure{Code::kNonFinite, member.ordinal, progress->first_not_finite - member.begin};
    }
    if (progress->problems == 0) {
      lease_.slice_need().remember(progress->most_decisions, progress->n_slice_bytes,
                                   progress->n_sent + n_others, progress->n_slices,
                                   options_.slice_log2);
      Result result{progress->n_sent, progress->quantizer, progress->check, {}};
      uint64_t at = 0;
      for (uint64_t s = 0; s < progress->n_slices; ++s) {
        result.slices.push_back({bytes + at, lengths[s]});
        at += lengths[s];
      }
      return result;
    }
    if (progress->problems & kCandidatesLackRoom) {
      plan.exactly = true;
      select();
    } else {
      make_room(*progress);
    }
  }
}

// For the same symbols, to be coded once more.
void MatrixEncoder::make_room(const Progress& found) {
  MatrixPlan& plan = *plan_;
  if (found.problems & kDecisionsOverflow) {  // and the bytes of some slices are unknown
    plan.decisions_per_symbol = CurrentFormat::kMaxDecisionsPerSymbol;
    plan.coded_room *= 2;
  }
  plan.coded_room = std::max(plan.coded_room, found.n_slice_bytes);
  Progress progress = found;
  progress.n_slice_bytes = 0;
  progress.problems = 0;
  progress.check = 0;
  prepare(true);
  begin(progress);
}

void MatrixEncoder::write() { cuda::write(*plan_, group_); }

MatrixDecoder::MatrixDecoder(WorkspaceLease& lease, const Group& group, const Frame& frame,
                             const uint8_t* slices)
    : lease_(lease), group_(group), frame_(frame), slices_(slices), plan_(new MatrixPlan) {}
MatrixDecoder::~MatrixDecoder() = default;

void MatrixDecoder::start() {
  MatrixPlan& plan = *plan_;
  const Partition p = frame_.lossy_partition();
  uint64_t n_bytes = 0;
  for (uint64_t s = 0; s < p.n_slices; ++s) n_bytes += frame_.slice_bytes[s];

  // Everything that goes in, together: members, progress, where slices begin, slices.
  DeviceMember* members = nullptr;
  uint64_t* offsets = nullptr;
  uint8_t* slices = nullptr;
  const auto carve = [&](void* memory) {
    BumpAllocator allocator(memory);
    members = allocator.take<DeviceMember>(group_.members.size());
    plan.progress = allocator.take<Progress>(1);
    offsets = allocator.take<uint64_t>(p.n_slices + 1);
    slices = allocator.take<uint8_t>(n_bytes);
    return allocator.n_bytes();
  };
  const size_t tables_bytes = carve(nullptr);
  void* const host = lease_.host_tables(tables_bytes);
  void* const tables = lease_.tables(tables_bytes);
  carve(host);
  Progress begin;
  begin.n_sent = frame_.k_matrix;
  begin.quantizer = frame_.matrix;
  std::memcpy(plan.progress, &begin, sizeof begin);
  offsets[0] = 0;
  for (uint64_t s = 0; s < p.n_slices; ++s) offsets[s + 1] = offsets[s] + frame_.slice_bytes[s];
  std::memcpy(slices, slices_, n_bytes);
  DeviceMember* const host_members = members;
  carve(tables);
  plan.stage.group = fill_in(group_, host_members, members);
  lease_.copy_in(tables, host, tables_bytes);
  plan.stage.progress = plan.progress;
  plan.stage.n_blocks = lease_.n_blocks();
  plan.stage.stream = lease_.stream();

  uint64_t* bases = nullptr;
  const auto carve_scratch = [&](void* memory) {
    BumpAllocator allocator(memory);
    plan.symbols = allocator.take<SentSymbol>(p.n_symbols);
    bases = allocator.take<uint64_t>(p.n_slices + 1);
    plan.bits = wants_bits(group_) ? allocator.take<uint64_t>(frame_.k_matrix) : nullptr;
    return allocator.n_bytes();
  };
  carve_scratch(lease_.scratch(carve_scratch(nullptr)));
  decode_slices(plan.stage, frame_.version, slices, offsets, p, frame_.n_lossy(),
                lease_.initial_contexts(), bases, plan.symbols);
  recover_symbols(plan.stage, plan.symbols, plan.bits, nullptr);
}

MatrixDecoder::Result MatrixDecoder::finish() {
  MatrixPlan& plan = *plan_;
  const uint64_t n_others = frame_.k_vector + frame_.k_dense;
  auto* const host =
      static_cast<uint8_t*>(lease_.host_results(kProgressRoom + n_others * sizeof(SentSymbol)));
  auto* const progress = reinterpret_cast<Progress*>(host);
  auto* const others = reinterpret_cast<SentSymbol*>(host + kProgressRoom);
  lease_.copy_out(progress, plan.progress, sizeof(Progress));
  if (n_others > 0) {
    lease_.copy_out(others, plan.symbols + frame_.k_matrix, n_others * sizeof(SentSymbol));
  }
  lease_.wait();
  if (progress->bad_slice != kNone) throw Failure{Code::kBadSlice, progress->bad_slice};
  if (progress->bad_base != kNone) throw Failure{Code::kBadSlice, progress->bad_base};
  if (progress->outside != 0) throw Failure{Code::kBadSlice, 0, frame_.k_matrix};
  return {progress->check, {others, n_others}};
}

void MatrixDecoder::write() { cuda::write(*plan_, group_); }

}  // namespace resfed::cuda
