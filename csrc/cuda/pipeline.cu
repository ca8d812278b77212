#include <algorithm>
#include <cstring>

#include "cuda/lane_coder.cuh"
#include "cuda/payload_lanes.hpp"
#include "cuda/pipeline.hpp"

namespace resfed::cuda {

struct MatrixPlan {
  Stage stage{};
  // On the device.
  Progress* progress = nullptr;
  Chunk* chunks = nullptr;
  ChunkSums* sums = nullptr;
  SentSymbol* symbols = nullptr;
  uint32_t* samples = nullptr;
  Candidates candidates{};
  uint64_t* bits = nullptr;
  float* left = nullptr;
  // Of an attempt.
  uint64_t k = 0, most_others = 0;
  SamplePlan samples_plan;
  bool exactly = false;
  bool wants_feedback = false, wants_bits = false;
  // Of an encoder.
  std::optional<ScanCoder> scans;
  std::optional<LaneCoder<SentSymbol>> lanes;
};

namespace {

// What a scan order lists, on the device; null where it lists nothing.
struct ScanArrays {
  uint32_t *rows, *cols;
  uint8_t* flips;
};
uint32_t* take_if_any(BumpAllocator& allocator, const std::vector<uint32_t>& numbers) {
  return numbers.empty() ? nullptr : allocator.take<uint32_t>(numbers.size());
}

// Scan orders as kernels see them; `scans` and `arrays` are those of matrices of two dimensions.
void fill_in(const MatrixShapes& matrices, const std::vector<MatrixScan>& scans,
             const std::vector<ScanArrays>& arrays, DeviceScan* to) {
  size_t i = 0;
  for (const MatrixShape& m : matrices) {
    *to = {};
    if (m.row_length > 0 && i < scans.size()) {
      const MatrixScan& scan = scans[i];
      const uint64_t n_rows = m.n_elems / m.row_length;
      *to = {scan.rows.empty() ? n_rows : scan.rows.size(),
             scan.cols.empty() ? m.row_length : scan.cols.size(),
             m.row_length,
             arrays[i].rows,
             arrays[i].cols,
             arrays[i].flips,
             scan.columns};
      ++i;
    }
    ++to;
  }
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
    : lease_(lease), group_(group), options_(options), plan_(new MatrixPlan) {
  plan_->scans.emplace(lease, group);
  plan_->lanes.emplace(lease, options.lane_log2);
}
MatrixEncoder::~MatrixEncoder() = default;

void MatrixEncoder::start(uint64_t most_others) {
  MatrixPlan& plan = *plan_;
  plan.most_others = most_others;
  plan.k = std::min(options_.k_matrix, group_.n_elems);
  plan.samples_plan = sample_plan(group_.n_elems, plan.k);
  plan.wants_feedback = cuda::wants_feedback(group_);
  plan.wants_bits = cuda::wants_bits(group_);
  const size_t n_bytes = group_.members.size() * sizeof(DeviceMember);
  void* const host = lease_.host_tables(n_bytes + sizeof(Progress));
  void* const tables = lease_.tables(n_bytes);
  plan.stage.group = fill_in(group_, kChunkElems, static_cast<DeviceMember*>(host),
                             static_cast<const DeviceMember*>(tables));
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
    plan.sums = allocator.take<ChunkSums>(plan.stage.n_blocks);
    plan.symbols = allocator.take<SentSymbol>(plan.k);
    const uint64_t mark = allocator.mark();  // what comes now is not needed at the same time
    plan.samples = allocator.take<uint32_t>(plan.samples_plan.n_samples);
    plan.candidates = {allocator.take<uint16_t>(n_candidates), allocator.take<float>(n_candidates),
                       n_candidates};
    allocator.rewind(mark);
    plan.bits = plan.wants_bits ? allocator.take<uint64_t>(plan.k) : nullptr;
    plan.left = plan.wants_feedback ? allocator.take<float>(plan.k) : nullptr;
    plan.scans->take(allocator, plan.k + plan.most_others);
    plan.lanes->take(allocator, plan.k + plan.most_others);
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
  collect(plan.stage, plan.candidates, {plan.k, all_nonzero, plan.exactly}, plan.chunks);
  select_top(plan.stage, plan.candidates, options_.step, plan.chunks, plan.sums);
  quantize_candidates(plan.stage, plan.candidates, plan.chunks, plan.sums, plan.symbols);
}

MatrixEncoder::Result MatrixEncoder::finish(SentSymbols vector, SentSymbols dense,
                                            const MatrixShapes& matrices) {
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
  const uint64_t n = progress.n_sent + vector.size() + dense.size();
  CodedNonzeros coded;
  if (n > 0) {
    static_assert(sizeof(SentSymbol) == sizeof(uint64_t));
    plan.scans->order(plan.stage, plan.symbols, progress.n_sent, vector, dense, matrices,
                      static_cast<SentSymbol*>(plan.lanes->room()));
    coded = plan.lanes->encode(plan.stage, plan.scans->sent(), n, &*plan.scans);
  }
  return {progress.n_sent, progress.quantizer, progress.check, std::move(coded.tables),
          std::move(coded.slices)};
}

void MatrixEncoder::write() { cuda::write(*plan_, group_); }

MatrixDecoder::MatrixDecoder(WorkspaceLease& lease, const Group& group, const Payload& payload)
    : lease_(lease), group_(group), payload_(payload), plan_(new MatrixPlan) {}
MatrixDecoder::~MatrixDecoder() = default;

void MatrixDecoder::start() {
  MatrixPlan& plan = *plan_;
  const Frame& frame = payload_.frame;
  const MatrixShapes matrices = shapes_of(group_);
  std::vector<MatrixScan> scans;
  BitReader in(frame.tables.data(), frame.tables.size());
  if (frame.n_nonzeros() > 0) scans = read_scans(in, matrices);
  PayloadLanes lanes(payload_, Part::kLossy, in);

  // Everything that goes in, together. First addresses are found, then what they hold is filled in.
  DeviceMember* members = nullptr;
  DeviceScan* device_scans = nullptr;
  std::vector<ScanArrays> arrays(scans.size());
  const auto carve = [&](void* memory) {
    BumpAllocator allocator(memory);
    members = allocator.take<DeviceMember>(group_.members.size());
    plan.progress = allocator.take<Progress>(1);
    device_scans = allocator.take<DeviceScan>(matrices.size());
    for (size_t i = 0; i < scans.size(); ++i) {
      arrays[i] = {
          take_if_any(allocator, scans[i].rows), take_if_any(allocator, scans[i].cols),
          scans[i].flips.empty() ? nullptr : allocator.take<uint8_t>(scans[i].flips.size())};
    }
    lanes.take(allocator);
    return allocator.n_bytes();
  };
  const size_t tables_bytes = carve(nullptr);
  void* const host = lease_.host_tables(tables_bytes);
  void* const tables = lease_.tables(tables_bytes);
  carve(host);
  Progress begin;
  begin.n_sent = frame.k_matrix;
  begin.quantizer = frame.matrix;
  std::memcpy(plan.progress, &begin, sizeof begin);
  for (size_t i = 0; i < scans.size(); ++i) {
    std::copy(scans[i].rows.begin(), scans[i].rows.end(), arrays[i].rows);
    std::copy(scans[i].cols.begin(), scans[i].cols.end(), arrays[i].cols);
    std::copy(scans[i].flips.begin(), scans[i].flips.end(), arrays[i].flips);
  }
  lanes.fill_in();
  DeviceMember* const host_members = members;
  DeviceScan* const host_scans = device_scans;
  carve(tables);
  plan.stage.group = fill_in(group_, kChunkElems, host_members, members);
  fill_in(matrices, scans, arrays, host_scans);
  lease_.copy_in(tables, host, tables_bytes);
  plan.stage.progress = plan.progress;
  plan.stage.n_blocks = lease_.n_blocks();
  plan.stage.stream = lease_.stream();

  uint64_t* begins = nullptr;
  const Partition& p = lanes.partition();
  const auto carve_scratch = [&](void* memory) {
    BumpAllocator allocator(memory);
    plan.symbols = allocator.take<SentSymbol>(p.n_symbols);
    begins = allocator.take<uint64_t>(p.n_parts);
    plan.bits = wants_bits(group_) ? allocator.take<uint64_t>(frame.k_matrix) : nullptr;
    return allocator.n_bytes();
  };
  carve_scratch(lease_.scratch(carve_scratch(nullptr)));
  decode_lanes(plan.stage, lanes.slices(), lanes.offsets(), lanes.tables(lease_.trained_tables()),
               device_scans, frame.n_lossy(), begins, plan.symbols);
  recover_symbols(plan.stage, plan.symbols, plan.bits, nullptr);
}

MatrixDecoder::Result MatrixDecoder::finish() {
  MatrixPlan& plan = *plan_;
  const Frame& frame = payload_.frame;
  const uint64_t n_others = frame.k_vector + frame.k_dense;
  Progress* progress = nullptr;
  SentSymbol* others = nullptr;
  const auto carve = [&](void* memory) {
    BumpAllocator allocator(memory);
    progress = allocator.take<Progress>(1);
    others = allocator.take<SentSymbol>(n_others);
    return allocator.n_bytes();
  };
  carve(lease_.host_results(carve(nullptr)));
  lease_.copy_out(progress, plan.progress, sizeof(Progress));
  if (n_others > 0) {
    lease_.copy_out(others, plan.symbols + frame.k_matrix, n_others * sizeof(SentSymbol));
  }
  lease_.wait();
  if (progress->bad_slice != kNone) throw Failure{Code::kBadSlice, progress->bad_slice};
  if (progress->outside != 0) throw Failure{Code::kBadSlice, 0, frame.k_matrix};
  return {progress->check, {others, n_others}};
}

void MatrixDecoder::write() { cuda::write(*plan_, group_); }

}  // namespace resfed::cuda
