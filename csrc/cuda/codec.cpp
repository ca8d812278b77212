#include "cuda/codec.hpp"

#include <optional>

#include "cpu/encoder.hpp"
#include "cpu/float_mode.hpp"
#include "cpu/norm.hpp"
#include "cpu/search.hpp"
#include "cuda/decoder.hpp"

namespace resfed::cuda {
namespace {

bool searches(const EncodeOptions& options) {
  return options.max_bytes > 0 || options.max_error >= 0;
}

// How many nonzeros the groups that the host selects can have.
uint64_t most_others(const Groups& groups, const EncodeOptions& options) {
  const uint64_t n_vector = groups.vector.n_elems;
  return (searches(options) ? n_vector : std::min(options.k_vector, n_vector)) +
         groups.dense.n_elems;
}

// What has been selected of the matrices; starts nothing.
void take(const MatrixEncoder::Selected& selected, EncodeState* state) {
  state->matrix.k = selected.k;
  state->matrix.quantizer = selected.quantizer;
  state->matrix.recovered.check = selected.check;
}

// A search's last selection but those that did not hold.
void select_best(uint64_t k, uint64_t tried, MatrixEncoder& matrices, EncodeState* state) {
  if (k != tried) {
    matrices.start(k);
    take(matrices.finish(), state);
  }
}

void code_within_error(const EncodeOptions& options, MatrixEncoder& matrices, EncodeState* state) {
  Changes float64_changes;
  const ExactSquares all = matrices.residual_squares(&float64_changes);
  uint64_t tried = 0, best = 0;
  const auto remaining = [&](uint64_t k) {
    tried = k;
    matrices.start(k);
    take(matrices.finish(), state);
    return matrices.remaining(all);
  };
  search_error(options.max_error, state->groups.matrix.n_elems, all, float64_changes, remaining,
               [&] { best = tried; });
  select_best(best, tried, matrices, state);
}

CodedLanes fill_budget(const EncodeOptions& options, MatrixEncoder& matrices, EncodeState* state) {
  const Groups& groups = state->groups;
  CachedSelection vectors(groups.vector);
  uint64_t tried = 0, best = 0;
  EncodedGroup best_vector;
  CodedLanes coded;
  const auto size_of = [&](uint64_t k_matrix, uint64_t k_vector, uint64_t limit) {
    tried = k_matrix;
    matrices.start(k_matrix);
    state->vector = quantize_group(groups.vector, vectors.top(k_vector), options.step);
    take(matrices.finish(), state);
    const auto now = matrices.code(state->vector.sent, state->dense.sent, state->matrices);
    uint64_t n_bytes = now.tables.size();
    for (const auto& slice : now.slices) n_bytes += slice.size();
    if (n_bytes > limit) return kBeyond;
    const uint64_t size = assemble(*state, now.tables, now.slices).size();
    if (size <= options.max_bytes) {
      best = tried;
      best_vector = std::move(state->vector);
      coded = {now.tables, {}};
      for (const auto& slice : now.slices) coded.slices.emplace_back(slice.begin(), slice.end());
    }
    return size;
  };
  search_budget(options, groups.matrix.n_elems, groups.vector.n_elems, size_of);
  select_best(best, tried, matrices, state);
  state->vector = std::move(best_vector);
  recover_group(groups.vector, &state->vector, nullptr);
  return coded;
}

// Returns false if nothing is sent any more.
bool keep_to_norm(const EncodeOptions& options, MatrixEncoder& matrices, EncodeState* state) {
  if (options.max_norm <= 0) return true;
  EncodedGroup& coded = state->matrix;
  const SentGroup sent{&coded, [&] { return matrices.change_squares(coded.quantizer); },
                       [&] { coded.recovered.check = matrices.recover(coded.quantizer); }};
  if (limit_norm(state, options.max_norm, sent)) return true;
  matrices.start(0);
  take(matrices.finish(), state);
  return false;
}

// The payload.
std::vector<uint8_t> code_with(const EncodeOptions& options, MatrixEncoder& matrices,
                               EncodeState* state) {
  if (searches(options)) take(matrices.finish(), state);  // finds what is not finite
  if (options.max_bytes > 0) {
    CodedLanes coded = fill_budget(options, matrices, state);
    if (!keep_to_norm(options, matrices, state)) coded = {};
    return assemble(*state, coded);
  }
  const Group& vectors = state->groups.vector;
  if (options.max_error >= 0) {
    code_within_error(options, matrices, state);
    state->vector = resfed::code_within_error(vectors, options.step, options.max_error);
  } else {
    state->vector = code_top(vectors, options.k_vector, options.step);
    take(matrices.finish(), state);
  }
  keep_to_norm(options, matrices, state);
  const auto coded = matrices.code(state->vector.sent, state->dense.sent, state->matrices);
  return assemble(*state, coded.tables, coded.slices);
}

}  // namespace

std::vector<uint8_t> encode(const std::vector<Tensor>& tensors, const EncodeOptions& options,
                            int device, Stream stream, const BeforeWriting& before_writing) {
  const DefaultFloatMode mode;
  WorkspaceLease lease(device, stream);
  std::vector<Tensor> staged = tensors;
  const Groups groups = make_groups(staged);
  const OnDevice on_device(groups);
  Staging staging(lease, &staged, [&](const Tensor& t) { return !on_device(t); });
  std::optional<LosslessEncoder> lossless;
  std::optional<MatrixEncoder> matrices;
  EncodedChanges changes;
  if (on_device.lossless) {
    lossless.emplace(lease, groups.lossless, options.lane_log2);
    changes = lossless->encode();
  }
  if (on_device.matrices) {
    matrices.emplace(lease, groups.matrix, options, most_others(groups, options));
    matrices->start(searches(options) ? 0 : options.k_matrix);
  }
  staging.wait();
  EncodeState state = begin_encoding(staged, options);
  if (lossless) {
    state.lossless = std::move(changes);
    state.groups.lossless = {};  // what follows leaves it to the device
  } else {
    code_lossless(&state);
  }
  std::vector<uint8_t> payload;
  if (matrices) {
    payload = code_with(options, *matrices, &state);
    state.groups.matrix = {};
  } else {
    payload = assemble(state, code_lossy(options, &state));
  }
  prepare_results(&state);
  if (before_writing) before_writing(payload);
  if (matrices) matrices->write();
  if (lossless) lossless->write();
  write_results(state);
  staging.flush();
  return payload;
}

void decode(const Payload& payload, uint64_t digest, const std::vector<Tensor>& tensors, int device,
            Stream stream, const std::function<void()>& before_writing) {
  const DefaultFloatMode mode;
  WorkspaceLease lease(device, stream);
  DecodedUpdate decoded(lease, payload, digest, tensors);
  if (before_writing) before_writing();
  decoded.write();
}

}  // namespace resfed::cuda
