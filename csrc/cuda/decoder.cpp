#include "cuda/decoder.hpp"

#include "cpu/predict.hpp"

namespace resfed::cuda {
namespace {

Update opened(const Payload& payload, uint64_t digest, const std::vector<Tensor>& tensors) {
  Update update;
  open_update(payload, digest, tensors, &update);
  return update;
}

}  // namespace

DecodedUpdate::DecodedUpdate(WorkspaceLease& lease, const Payload& payload, uint64_t digest,
                             const std::vector<Tensor>& tensors)
    : update(opened(payload, digest, tensors)),
      on_device(update.groups),
      staging(lease, &update.tensors, [&](const Tensor& t) { return !on_device(t); }) {
  Update& u = update;
  const Frame& frame = payload.frame;
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
  vector = recover_all(u.groups.vector, u.sent_vector, frame.vector, nullptr);
  dense = recover_all(u.groups.dense, u.sent_dense, frame.dense, nullptr);
  u.verify(check + vector.check + dense.check);
}

void DecodedUpdate::write() {
  Groups& groups = update.groups;
  if (matrices) matrices->write();
  if (lossless) lossless->write();
  if (matrices) groups.matrix = {};  // done
  if (lossless) groups.lossless = {};
  write_predictions(groups);
  write_recovered(groups.vector, update.sent_vector, vector);
  write_recovered(groups.dense, update.sent_dense, dense);
  write_changes(groups.lossless, update.changes, update.restored);
  staging.flush();
}

}  // namespace resfed::cuda
