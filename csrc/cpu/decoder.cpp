// Decode: frame -> slices -> levels -> recover, check, and only then write.
#include "cpu/decoder.hpp"

#include <algorithm>
#include <cstdlib>

#include "cpu/crc32c.hpp"
#include "cpu/float_mode.hpp"
#include "cpu/predict.hpp"
#include "cpu/slice.hpp"

namespace resfed {
namespace {

// The symbols [begin, end) that fall into a group, by segment.
SentSegments split_by_segment(const Group& group, const std::vector<SentSymbol>& symbols,
                              uint64_t begin, uint64_t end, uint64_t base) {
  SentSegments sent(n_segments(group));
  const SentSymbol* next = symbols.data() + begin;
  const SentSymbol* const last = symbols.data() + end;
  for (uint64_t s = 0; next != last; ++s) {
    const uint64_t origin = base + s * kSegment;
    const SentSymbol* const border = std::partition_point(
        next, last, [&](const SentSymbol& symbol) { return symbol.index - origin < kSegment; });
    sent[s].resize(static_cast<size_t>(border - next));
    for (SentElement& element : sent[s]) {
      element = {static_cast<uint32_t>(next->index - origin), next->level};
      ++next;
    }
  }
  return sent;
}

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

Update read_update(const uint8_t* payload, size_t n_bytes, uint64_t digest,
                   std::vector<Tensor> tensors) {
  const Frame frame = open_payload(payload, n_bytes);
  exclude(tensors, frame.exclusions);
  Update u;
  u.tensors = std::move(tensors);
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
  const std::vector<SentSymbol> symbols =
      decode_symbols(slices, frame.slice_bytes.data(), lossy, frame.n_matrix + frame.n_vector);
  u.changes = decode_changes(slices + lossy_bytes, frame.slice_bytes.data() + lossy.n_slices,
                             lossless, frame.n_lossless, lossy.n_slices);

  const bool split_is_right =
      (frame.k_matrix == 0 || symbols[frame.k_matrix - 1].index < frame.n_matrix) &&
      (frame.k_vector == 0 || symbols[frame.k_matrix].index >= frame.n_matrix);
  if (!split_is_right) throw Failure{Code::kBadSlice, 0, frame.k_matrix};

  u.sent_matrix = split_by_segment(groups.matrix, symbols, 0, frame.k_matrix, 0);
  u.sent_vector =
      split_by_segment(groups.vector, symbols, frame.k_matrix, symbols.size(), frame.n_matrix);
  u.matrix = recover_all(groups.matrix, u.sent_matrix, frame.matrix, nullptr);
  u.vector = recover_all(groups.vector, u.sent_vector, frame.vector, nullptr);
  u.restored = restore_changes(groups.lossless, u.changes);
  const uint32_t check = u.matrix.check + u.vector.check + u.restored.check;
  if (check != frame.reference_check) {
    throw Failure{Code::kWrongReference, frame.reference_check, check};
  }
  return u;
}

void decode(const uint8_t* payload, size_t n_bytes, uint64_t digest,
            const std::vector<Tensor>& tensors) {
  const DefaultFloatMode mode;
  const Update u = read_update(payload, n_bytes, digest, tensors);
  write_predictions(u.groups);
  write_recovered(u.groups.matrix, u.sent_matrix, u.matrix);
  write_recovered(u.groups.vector, u.sent_vector, u.vector);
  write_changes(u.groups.lossless, u.changes, u.restored);
}

void add_values(const uint8_t* payload, size_t n_bytes, const std::vector<Tensor>& tensors) {
  const DefaultFloatMode mode;
  const Frame frame = open_payload(payload, n_bytes);
  Groups groups = make_groups(tensors);
  if (frame.k_vector > 0) apply_exponents(groups.vector, frame.exponents);
  const std::vector<SentSymbol> symbols =
      decode_symbols(payload + frame.slices_offset, frame.slice_bytes.data(),
                     frame.lossy_partition(), frame.n_matrix + frame.n_vector);
  const auto add = [](const Group& group, const Quantizer& quantizer, const SentSegments& sent) {
    for (size_t s = 0; s < sent.size(); ++s) {
      for_each_sent(group, s, sent[s], [&](const Piece& piece, uint64_t element, size_t i) {
        const int32_t level = sent[s][i].level;
        const float magnitude =
            dequantize_magnitude(quantizer, static_cast<uint32_t>(std::abs(level))) * piece.unscale;
        piece.tensor->feedback[element] += level < 0 ? -magnitude : magnitude;
      });
    }
  };
  add(groups.matrix, frame.matrix, split_by_segment(groups.matrix, symbols, 0, frame.k_matrix, 0));
  add(groups.vector, frame.vector,
      split_by_segment(groups.vector, symbols, frame.k_matrix, symbols.size(), frame.n_matrix));
}

}  // namespace resfed
