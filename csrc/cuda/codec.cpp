#include "cuda/codec.hpp"

#include <optional>

#include "cpu/decoder.hpp"
#include "cpu/encoder.hpp"
#include "cpu/float_mode.hpp"
#include "cpu/predict.hpp"
#include "cuda/lossless.hpp"
#include "cuda/pipeline.hpp"
#include "cuda/staging.hpp"

namespace resfed::cuda {
namespace {

bool any(const Tensor&) { return true; }

// Which tensors the device codes.
struct OnDevice {
  bool matrices, lossless;

  explicit OnDevice(const Groups& groups)
      : matrices(groups.matrix.n_elems > 0),
        lossless(groups.lossless.n_elems >= kLeastLosslessElems) {}
  bool operator()(const Tensor& t) const {
    return (matrices && t.role == Role::kMatrix) || (lossless && t.role == Role::kLossless);
  }
};

// How many nonzeros the groups that the host selects can have.
uint64_t most_others(const Groups& groups, const EncodeOptions& options) {
  return std::min(options.k_vector, groups.vector.n_elems) + groups.dense.n_elems;
}

}  // namespace

std::vector<uint8_t> encode(const std::vector<Tensor>& tensors, const EncodeOptions& options,
                            int device, Stream stream, const BeforeWriting& before_writing) {
  const DefaultFloatMode mode;
  WorkspaceLease lease(device, stream);
  std::vector<Tensor> staged = tensors;
  if (options.max_bytes > 0 || options.max_error >= 0 || options.max_norm > 0) {
    Staging staging(lease, &staged, any);
    staging.wait();
    std::vector<uint8_t> payload = resfed::encode(staged, options, before_writing);
    staging.flush();
    return payload;
  }
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
    matrices.emplace(lease, groups.matrix, options);
    matrices->start(most_others(groups, options));
  }
  staging.wait();
  EncodeState state = begin_encoding(staged, options);
  if (lossless) {
    state.lossless = std::move(changes);
    state.groups.lossless = {};  // what follows leaves it to the device
  } else {
    code_lossless(&state);
  }
  state.vector = code_top(state.groups.vector, options.k_vector, options.step);
  std::vector<uint8_t> payload;
  if (matrices) {
    const auto coded = matrices->finish(state.vector.sent, state.dense.sent, state.matrices);
    state.matrix.k = coded.k;
    state.matrix.quantizer = coded.quantizer;
    state.matrix.recovered.check = coded.check;
    state.groups.matrix = {};
    payload = assemble(state, coded.tables, coded.slices);
  } else {
    payload = assemble(state, *code_nonzeros(state));
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
  const Frame& frame = payload.frame;
  Update u;
  open_update(payload, digest, tensors, &u);
  WorkspaceLease lease(device, stream);
  const OnDevice on_device(u.groups);
  Staging staging(lease, &u.tensors, [&](const Tensor& t) { return !on_device(t); });
  std::optional<MatrixDecoder> matrices;
  std::optional<LosslessDecoder> lossless;
  uint32_t check = 0;
  if (on_device.matrices) {
    matrices.emplace(lease, u.groups.matrix, payload);
    matrices->start();
    const auto decoded = matrices->finish();
    check = decoded.check;
    u.symbols.assign(decoded.others.begin(), decoded.others.end());
    u.sent_vector = SentSymbols(u.symbols).first(frame.k_vector);
    u.sent_dense = SentSymbols(u.symbols).last(frame.k_dense);
  } else {
    read_nonzeros(&u);
  }
  check_nonzeros(u);
  staging.wait();
  if (on_device.lossless) {
    lossless.emplace(lease, u.groups.lossless, payload);
    u.restored.check = lossless->decode();
  } else {
    read_changes(&u);
  }
  const Recovered vector = recover_all(u.groups.vector, u.sent_vector, frame.vector, nullptr);
  const Recovered dense = recover_all(u.groups.dense, u.sent_dense, frame.dense, nullptr);
  u.verify(check + vector.check + dense.check);
  if (before_writing) before_writing();
  if (matrices) matrices->write();
  if (lossless) lossless->write();
  if (matrices) u.groups.matrix = {};  // done
  if (lossless) u.groups.lossless = {};
  write_predictions(u.groups);
  write_recovered(u.groups.vector, u.sent_vector, vector);
  write_recovered(u.groups.dense, u.sent_dense, dense);
  write_changes(u.groups.lossless, u.changes, u.restored);
  staging.flush();
}

}  // namespace resfed::cuda
