// Decode: frame -> slices -> levels -> recover, check, and only then write.
#include "cpu/decoder.hpp"

#include <algorithm>

#include "cpu/crc32c.hpp"
#include "cpu/float_mode.hpp"
#include "cpu/predict.hpp"
#include "cpu/slice.hpp"

namespace resfed {
namespace {

// What exclusions do to roles: excluded tensors become lossless; where no matrix is left, vectors
// are treated as matrices. roles_of() in layout.py is the other end's view of this rule.
void exclude(std::vector<Tensor>& tensors, const std::vector<uint64_t>& exclusions) {
  if (exclusions.empty()) return;
  if (exclusions.back() >= tensors.size()) {
    throw Failure{Code::kNoSuchTensor, exclusions.back(), tensors.size()};
  }
  for (uint64_t ordinal : exclusions) tensors[ordinal].role = Role::kLossless;
  if (std::any_of(tensors.begin(), tensors.end(),
                  [](const Tensor& t) { return t.role == Role::kMatrix; })) {
    return;
  }
  for (Tensor& t : tensors) {
    if (t.role == Role::kVector) t.role = Role::kMatrix;
  }
}

}  // namespace

Frame open_payload(const uint8_t* payload, size_t n_bytes) {
  if (n_bytes < kFixedHeaderBytes + kChecksumBytes) throw Failure{Code::kTruncated, n_bytes};
  for (size_t i = 0; i < sizeof kMagic; ++i) {
    if (payload[i] != kMagic[i]) throw Failure{Code::kBadMagic, i};
  }
  const size_t n_checked = n_bytes - kChecksumBytes;
  if (payload[3] == kFormatVersion &&
      crc32c(payload, n_checked) != load_le<uint32_t>(payload + n_checked)) {
    throw Failure{Code::kBadChecksum, n_checked};
  }
  return read_frame(payload, n_checked);
}

void read_update(const uint8_t* payload, size_t n_bytes, uint64_t digest,
                 const std::vector<Tensor>& tensors, Update* update) {
  Update& u = *update;
  u.frame = open_payload(payload, n_bytes);
  const Frame& frame = u.frame;
  u.tensors = tensors;
  exclude(u.tensors, frame.exclusions);
  u.groups = make_groups(u.tensors);
  Groups& groups = u.groups;
  if (frame.digest != digest) {
    throw Failure{Code::kWrongLayout, frame.digest, digest};
  }
  if (frame.n_matrix != groups.matrix.n_elems || frame.n_vector != groups.vector.n_elems ||
      frame.n_lossless != groups.lossless.n_elems ||
      (frame.k_vector > 0 && frame.exponents.size() != groups.vector.pieces.size())) {
    throw Failure{Code::kBadField, kFixedHeaderBytes, frame.n_matrix};
  }
  if (frame.k_vector > 0) apply_exponents(groups.vector, frame.exponents);

  const uint8_t* const slices = payload + frame.slices_offset;
  const Partition lossy = frame.lossy_partition(), lossless = frame.lossless_partition();
  uint64_t lossy_bytes = 0;
  for (uint64_t s = 0; s < lossy.n_slices; ++s) lossy_bytes += frame.slice_bytes[s];
  decode_symbols(slices, frame.slice_bytes.data(), lossy, frame.n_matrix + frame.n_vector,
                 &u.symbols);
  u.changes = decode_changes(slices + lossy_bytes, frame.slice_bytes.data() + lossy.n_slices,
                             lossless, frame.n_lossless, lossy.n_slices);

  u.sent_matrix = SentSymbols(u.symbols).first(frame.k_matrix);
  u.sent_vector = SentSymbols(u.symbols).subspan(frame.k_matrix);
  const bool split_is_right =
      (u.sent_matrix.empty() || u.sent_matrix.back().index() < frame.n_matrix) &&
      (u.sent_vector.empty() || u.sent_vector.front().index() >= frame.n_matrix);
  if (!split_is_right) throw Failure{Code::kBadSlice, 0, frame.k_matrix};

  u.restored = restore_changes(groups.lossless, u.changes);
}

void Update::verify(uint32_t recovered_check) const {
  const uint32_t check = recovered_check + restored.check;
  if (check != frame.reference_check) {
    throw Failure{Code::kWrongReference, frame.reference_check, check};
  }
}

void decode(const uint8_t* payload, size_t n_bytes, uint64_t digest,
            const std::vector<Tensor>& tensors) {
  const DefaultFloatMode mode;
  Update u;
  read_update(payload, n_bytes, digest, tensors, &u);
  const Recovered matrix = recover_all(u.groups.matrix, u.sent_matrix, u.frame.matrix, nullptr);
  const Recovered vector = recover_all(u.groups.vector, u.sent_vector, u.frame.vector, nullptr);
  u.verify(matrix.check + vector.check);
  write_predictions(u.groups);
  write_recovered(u.groups.matrix, u.sent_matrix, matrix);
  write_recovered(u.groups.vector, u.sent_vector, vector);
  write_changes(u.groups.lossless, u.changes, u.restored);
}

void add_values(const uint8_t* payload, size_t n_bytes, const std::vector<Tensor>& tensors) {
  const DefaultFloatMode mode;
  const Frame frame = open_payload(payload, n_bytes);
  Groups groups = make_groups(tensors);
  if (frame.k_vector > 0) apply_exponents(groups.vector, frame.exponents);
  Scratch<SentSymbol> symbols;
  decode_symbols(payload + frame.slices_offset, frame.slice_bytes.data(), frame.lossy_partition(),
                 frame.n_matrix + frame.n_vector, &symbols);
  const auto add = [](const Group& group, const Quantizer& quantizer, SentSymbols sent) {
    for (size_t task = 0; task < n_tasks(sent); ++task) {
      for_each_run(group, sent, task, [&](const Run& run) {
        float* const feedback = run.piece.tensor->feedback;
        const Values values(quantizer, run.piece);
        for (size_t i = run.begin; i < run.end; ++i) {
          feedback[sent[i].index() - run.first] += values.of(sent[i].level());
        }
      });
    }
  };
  add(groups.matrix, frame.matrix, SentSymbols(symbols).first(frame.k_matrix));
  add(groups.vector, frame.vector, SentSymbols(symbols).subspan(frame.k_matrix));
}

}  // namespace resfed
