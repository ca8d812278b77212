#include "cuda/codec.hpp"

#include "cpu/decoder.hpp"
#include "cpu/encoder.hpp"
#include "cpu/float_mode.hpp"
#include "cpu/predict.hpp"
#include "cuda/pipeline.hpp"
#include "cuda/staging.hpp"

namespace resfed::cuda {
namespace {

bool any(const Tensor&) { return true; }
bool no_matrix(const Tensor& tensor) { return tensor.role != Role::kMatrix; }

bool has_matrix_elements(const std::vector<Tensor>& tensors) {
  for (const Tensor& t : tensors) {
    if (t.role == Role::kMatrix && t.n_elems > 0) return true;
  }
  return false;
}

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
  if (options.max_bytes > 0 || options.max_error >= 0 || options.max_norm > 0 ||
      !has_matrix_elements(tensors)) {
    Staging staging(lease, &staged, any);
    staging.wait();
    std::vector<uint8_t> payload = resfed::encode(staged, options, before_writing);
    staging.flush();
    return payload;
  }
  Staging staging(lease, &staged, no_matrix);
  const Groups groups = make_groups(staged);
  MatrixEncoder matrices(lease, groups.matrix, options);
  matrices.start(most_others(groups, options));
  staging.wait();
  EncodeState state = begin_encoding(staged, options);
  state.vector = code_top(state.groups.vector, options.k_vector, options.step);
  const auto coded = matrices.finish(state.vector.sent, state.dense.sent, state.matrices);
  state.matrix.k = coded.k;
  state.matrix.quantizer = coded.quantizer;
  state.matrix.recovered.check = coded.check;
  std::vector<uint8_t> payload = assemble(state, coded.tables, coded.slices);
  state.groups.matrix = {};  // what follows leaves it to the device
  prepare_results(&state);
  if (before_writing) before_writing(payload);
  matrices.write();
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
  if (u.groups.matrix.n_elems == 0) {
    std::vector<Tensor> staged = tensors;
    Staging staging(lease, &staged, any);
    staging.wait();
    resfed::decode(payload, digest, staged, before_writing);
    staging.flush();
    return;
  }
  Staging staging(lease, &u.tensors, no_matrix);
  MatrixDecoder matrices(lease, u.groups.matrix, payload);
  matrices.start();
  const auto decoded = matrices.finish();
  u.symbols.assign(decoded.others.begin(), decoded.others.end());
  u.sent_vector = SentSymbols(u.symbols).first(frame.k_vector);
  u.sent_dense = SentSymbols(u.symbols).last(frame.k_dense);
  finish_update(&u);
  const Recovered vector = recover_all(u.groups.vector, u.sent_vector, frame.vector, nullptr);
  const Recovered dense = recover_all(u.groups.dense, u.sent_dense, frame.dense, nullptr);
  u.verify(decoded.check + vector.check + dense.check);
  if (before_writing) before_writing();
  matrices.write();
  u.groups.matrix = {};  // done
  write_predictions(u.groups);
  write_recovered(u.groups.vector, u.sent_vector, vector);
  write_recovered(u.groups.dense, u.sent_dense, dense);
  write_changes(u.groups.lossless, u.changes, u.restored);
  staging.flush();
}

}  // namespace resfed::cuda
