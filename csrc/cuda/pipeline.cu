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
  AllSquares* squares = nullptr;
  // Of a selection.
  uint64_t k = 0, n_sent = 0;
  SamplePlan samples_plan;
  bool exactly = false;
  // Of an encoder.
  bool wants_feedback = false, wants_bits = false;
  uint64_t most_others = 0;
  bool sums_squares = false;
  bool searches = false;        // candidates are kept for smaller selections
  bool has_candidates = false;  // of the largest selection so far
  uint64_t most_k = 0, n_candidates = 0;
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
                             const EncodeOptions& options, uint64_t most_others)
    : lease_(lease), group_(group), rule_(options.step), plan_(new MatrixPlan) {
  MatrixPlan& plan = *plan_;
  plan.searches = options.max_bytes > 0 || options.max_error >= 0;
  plan.sums_squares = options.max_error >= 0 || options.max_norm > 0;
  if (options.max_error >= 0) rule_.automatic = false;  // it follows the threshold down
  plan.most_others = most_others;
  plan.wants_feedback = cuda::wants_feedback(group);
  plan.wants_bits = cuda::wants_bits(group);
  plan.scans.emplace(lease, group);
  plan.lanes.emplace(lease, options.lane_log2);

  DeviceMember* members = nullptr;
  const size_t n_members = group.members.size();
  const auto carve = [&](void* memory) {
    BumpAllocator allocator(memory);
    members = allocator.take<DeviceMember>(n_members);
    plan.squares = allocator.take<AllSquares>(plan.sums_squares ? 1 : 0);
    return allocator.n_bytes();
  };
  const size_t n_bytes = n_members * sizeof(DeviceMember);
  void* const host = lease.host_tables(n_bytes + sizeof(Progress));
  carve(lease.tables(carve(nullptr)));
  plan.stage.group = fill_in(group, kChunkElems, static_cast<DeviceMember*>(host), members);
  lease.copy_in(members, host, n_bytes);
  plan.stage.n_blocks = lease.n_blocks();
  plan.stage.stream = lease.stream();
}
MatrixEncoder::~MatrixEncoder() = default;

void MatrixEncoder::start(uint64_t k) {
  MatrixPlan& plan = *plan_;
  plan.k = std::min(k, group_.n_elems);
  const bool has_all = plan.n_candidates < plan.most_k;  // that differ from zero
  if (plan.has_candidates && (plan.k <= plan.most_k || has_all)) {
    select_again();
  } else {
    plan.most_k = plan.k;
    plan.samples_plan = sample_plan(group_.n_elems, plan.k);
    plan.exactly = false;
    select();
  }
  recover_symbols(plan.stage, plan.symbols, plan.bits, plan.left);
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
    const uint64_t mark = allocator.mark();
    plan.samples = allocator.take<uint32_t>(plan.samples_plan.n_samples);
    plan.candidates = {allocator.take<uint16_t>(n_candidates), allocator.take<float>(n_candidates),
                       n_candidates};
    if (!plan.searches) allocator.rewind(mark);  // what comes now is not needed at the same time
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
  select_top(plan.stage, plan.candidates, rule_, plan.chunks, plan.sums);
  quantize_candidates(plan.stage, plan.candidates, plan.chunks, plan.sums, plan.symbols);
}

// Among the candidates of a larger selection.
void MatrixEncoder::select_again() {
  MatrixPlan& plan = *plan_;
  Progress progress;
  progress.n_found = plan.n_candidates;
  progress.choose(plan.k);
  begin(progress);
  count_again(plan.stage, plan.candidates);
  select_top(plan.stage, plan.candidates, rule_, plan.chunks, plan.sums);
  quantize_candidates(plan.stage, plan.candidates, plan.chunks, plan.sums, plan.symbols);
}

MatrixEncoder::Selected MatrixEncoder::finish() {
  MatrixPlan& plan = *plan_;
  for (;;) {
    auto* const progress = static_cast<Progress*>(lease_.host_results(sizeof(Progress)));
    lease_.copy_out(progress, plan.progress, sizeof(Progress));
    lease_.wait();
    if (const uint64_t found = progress->first_not_finite; found != kNone) {
      const Member& member = member_at(group_, found);
      throw Failure{Code::kNonFinite, member.ordinal, found - member.begin};
    }
    if (progress->lacks_room == 0) {
      plan.n_sent = progress->n_sent;
      plan.n_candidates = progress->n_found;
      plan.has_candidates = plan.searches;
      return {progress->n_sent, progress->quantizer, progress->check};
    }
    plan.exactly = true;
    select();
    recover_symbols(plan.stage, plan.symbols, plan.bits, plan.left);
  }
}

ExactSquares MatrixEncoder::residual_squares(Changes* float64_changes) {
  const MatrixPlan& plan = *plan_;
  const AllSquares none;
  void* const host = lease_.host_tables(sizeof none);
  std::memcpy(host, &none, sizeof none);
  lease_.copy_in(plan.squares, host, sizeof none);
  sum_squares(plan.stage, plan.squares);
  auto* const sums = static_cast<AllSquares*>(lease_.host_results(sizeof(AllSquares)));
  lease_.copy_out(sums, plan.squares, sizeof(AllSquares));
  lease_.wait();
  if (sums->n_float64 > 0) {
    *float64_changes = {sums->n_float64, member_at(group_, sums->first_float64).ordinal};
  }
  return sums->squares;
}

// `from`, and what `add` adds to it on the device.
template <class Add>
ExactSquares MatrixEncoder::sum_from(const ExactSquares& from, Add add) {
  ExactSquares* const squares = &plan_->squares->squares;
  void* const host = lease_.host_tables(sizeof from);
  std::memcpy(host, &from, sizeof from);
  lease_.copy_in(squares, host, sizeof from);
  add(squares);
  auto* const sums = static_cast<ExactSquares*>(lease_.host_results(sizeof from));
  lease_.copy_out(sums, squares, sizeof from);
  lease_.wait();
  return *sums;
}

ExactSquares MatrixEncoder::remaining(const ExactSquares& all) {
  return sum_from(
      all, [this](ExactSquares* squares) { add_remaining(plan_->stage, plan_->symbols, squares); });
}

ExactSquares MatrixEncoder::change_squares(const Quantizer& quantizer) {
  return sum_from({}, [&](ExactSquares* squares) {
    add_changes(plan_->stage, plan_->symbols, plan_->n_sent, quantizer, squares);
  });
}

uint32_t MatrixEncoder::recover(const Quantizer& quantizer) {
  const MatrixPlan& plan = *plan_;
  Progress progress;
  progress.n_sent = plan.n_sent;
  progress.quantizer = quantizer;
  begin(progress);
  recover_symbols(plan.stage, plan.symbols, plan.bits, plan.left);
  auto* const check = static_cast<uint32_t*>(lease_.host_results(sizeof(uint32_t)));
  lease_.copy_out(check, &plan.progress->check, sizeof(uint32_t));
  lease_.wait();
  return *check;
}

CodedNonzeros MatrixEncoder::code(SentSymbols vector, SentSymbols dense,
                                  const MatrixShapes& matrices) {
  MatrixPlan& plan = *plan_;
  const uint64_t n = plan.n_sent + vector.size() + dense.size();
  if (n == 0) return {};
  static_assert(sizeof(SentSymbol) == sizeof(uint64_t));
  plan.scans->order(plan.stage, plan.symbols, plan.n_sent, vector, dense, matrices,
                    static_cast<SentSymbol*>(plan.lanes->room()));
  return plan.lanes->encode(plan.stage, plan.scans->sent(), n, &*plan.scans);
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

NewElements MatrixDecoder::recovered() const {
  const MatrixPlan& plan = *plan_;
  return {plan.stage.group, plan.symbols, nullptr, plan.bits, payload_.frame.k_matrix};
}

void MatrixDecoder::write() { cuda::write(*plan_, group_); }

}  // namespace resfed::cuda
