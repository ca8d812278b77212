// Decode: frame -> slices -> levels -> recover, check, and only then write.
#include "cpu/decoder.hpp"

#include <algorithm>

#include "cpu/crc32c.hpp"
#include "cpu/float_mode.hpp"
#include "cpu/lanes.hpp"
#include "cpu/predict.hpp"

namespace resfed {
namespace {

// What a frame's lists do to roles: excluded tensors become lossless, others dense; where no matrix
// is left, vectors are treated as matrices. roles_of() in layout.py is the other end's view of this
// rule.
void assign_roles(std::vector<Tensor>& tensors, const Frame& frame) {
  if (frame.exclusions.empty() && frame.dense_tensors.empty()) return;
  for (const auto* ordinals : {&frame.exclusions, &frame.dense_tensors}) {
    if (!ordinals->empty() && ordinals->back() >= tensors.size()) {
      throw Failure{Code::kNoSuchTensor, ordinals->back(), tensors.size()};
    }
  }
  for (uint32_t ordinal : frame.exclusions) tensors[ordinal].role = Role::kLossless;
  for (uint32_t ordinal : frame.dense_tensors) {
    Role& role = tensors[ordinal].role;
    if (role == Role::kLossless) throw Failure{Code::kBadField, frame.counts_offset, ordinal};
    role = Role::kDense;
  }
  if (std::any_of(tensors.begin(), tensors.end(),
                  [](const Tensor& t) { return t.role == Role::kMatrix; })) {
    return;
  }
  for (Tensor& t : tensors) {
    if (t.role == Role::kVector) t.role = Role::kMatrix;
  }
}

// Throws kBadField unless a frame's counts are those of the groups: all that the symbols say is
// relative to them.
void check_counts(const Frame& frame, const Groups& groups) {
  if (frame.n_matrix != groups.matrix.n_elems || frame.n_vector != groups.vector.n_elems ||
      frame.n_dense != groups.dense.n_elems || frame.n_lossless != groups.lossless.n_elems ||
      (frame.k_vector > 0 && frame.exponents.size() != groups.vector.members.size()) ||
      (frame.k_dense > 0 && frame.dense_exponents.size() != groups.dense.members.size())) {
    throw Failure{Code::kBadField, kFixedHeaderBytes, frame.n_matrix};
  }
}

bool lies_in(SentSymbols sent, const Group& group) {
  return sent.empty() ||
         (sent.front().index() >= group.base && sent.back().index() - group.base < group.n_elems);
}

// What must hold before any field is believed; returns the length without the checksum.
size_t check_envelope(const uint8_t* payload, size_t n_bytes) {
  if (n_bytes < kFixedHeaderBytes + kChecksumBytes) throw Failure{Code::kTruncated, n_bytes};
  for (size_t i = 0; i < sizeof kMagic; ++i) {
    if (payload[i] != kMagic[i]) throw Failure{Code::kBadMagic, i};
  }
  const size_t n_checked = n_bytes - kChecksumBytes;
  with_format(payload[kVersionOffset], [](auto) {});
  if (crc32c(payload, n_checked) != load_le<uint32_t>(payload + n_checked)) {
    throw Failure{Code::kBadChecksum, n_checked};
  }
  return n_checked;
}

}  // namespace

Payload open_payload(const uint8_t* data, size_t n_bytes, uint64_t n_tensors,
                     std::optional<uint64_t> layout_digest) {
  const size_t n_checked = check_envelope(data, n_bytes);
  const uint64_t digest = load_le<uint64_t>(data + kDigestOffset);
  if (layout_digest && *layout_digest != digest && (data[kFlagsOffset] & kFlagLink) == 0) {
    throw Failure{Code::kWrongLayout, digest, *layout_digest};
  }
  Payload payload{data, n_bytes, read_frame(data, n_checked, n_tensors), std::nullopt};
  if (!payload.frame.link.empty()) payload.link = read_link(payload.frame.link, n_tensors);
  return payload;
}

void open_update(const Payload& payload, uint64_t digest, const std::vector<Tensor>& tensors,
                 Update* update) {
  Update& u = *update;
  const Frame& frame = payload.frame;
  if (frame.digest != digest) throw Failure{Code::kWrongLayout, frame.digest, digest};
  u.payload = &payload;
  u.tensors = tensors;
  assign_roles(u.tensors, frame);
  u.groups = make_groups(u.tensors);
  Groups& groups = u.groups;
  check_counts(frame, groups);
  if (frame.k_vector > 0) apply_exponents(groups.vector, frame.exponents);
  if (frame.k_dense > 0) apply_exponents(groups.dense, frame.dense_exponents);
}

void read_nonzeros(Update* update) {
  Update& u = *update;
  const Frame& frame = u.payload->frame;
  decode_nonzeros(u.payload->data, frame, shapes_of(u.groups.matrix), &u.symbols);
  const SentSymbols symbols(u.symbols);
  u.sent_matrix = symbols.first(frame.k_matrix);
  u.sent_vector = symbols.subspan(frame.k_matrix, frame.k_vector);
  u.sent_dense = symbols.last(frame.k_dense);
}

void check_nonzeros(const Update& u) {
  if (!lies_in(u.sent_matrix, u.groups.matrix) || !lies_in(u.sent_vector, u.groups.vector) ||
      !lies_in(u.sent_dense, u.groups.dense)) {
    throw Failure{Code::kBadSlice, 0, u.payload->frame.k_matrix};
  }
}

void read_changes(Update* update) {
  Update& u = *update;
  const Group& group = u.groups.lossless;
  u.changes =
      changes_of(group, in_element_order(group, decode_changes(u.payload->data, u.payload->frame)));
  u.restored = restore_changes(group, u.changes);
}

void read_update(const Payload& payload, uint64_t digest, const std::vector<Tensor>& tensors,
                 Update* update) {
  open_update(payload, digest, tensors, update);
  read_nonzeros(update);
  check_nonzeros(*update);
  read_changes(update);
}

void Update::verify(uint32_t recovered_check) const {
  const uint32_t check = recovered_check + restored.check;
  const uint32_t expected = payload->frame.reference_check;
  if (check != expected) {
    throw Failure{Code::kWrongReference, expected, check};
  }
}

void decode(const Payload& payload, uint64_t digest, const std::vector<Tensor>& tensors,
            const std::function<void()>& before_writing) {
  const DefaultFloatMode mode;
  const Frame& frame = payload.frame;
  Update u;
  read_update(payload, digest, tensors, &u);
  const Recovered matrix = recover_all(u.groups.matrix, u.sent_matrix, frame.matrix, nullptr);
  const Recovered vector = recover_all(u.groups.vector, u.sent_vector, frame.vector, nullptr);
  const Recovered dense = recover_all(u.groups.dense, u.sent_dense, frame.dense, nullptr);
  u.verify(matrix.check + vector.check + dense.check);
  if (before_writing) before_writing();
  // From here on nothing can fail.
  write_predictions(u.groups);
  write_recovered(u.groups.matrix, u.sent_matrix, matrix);
  write_recovered(u.groups.vector, u.sent_vector, vector);
  write_recovered(u.groups.dense, u.sent_dense, dense);
  write_changes(u.groups.lossless, u.changes, u.restored);
}

void add_values(const Payload& payload, const std::vector<Tensor>& tensors) {
  const DefaultFloatMode mode;
  const Frame& frame = payload.frame;
  Groups groups = make_groups(tensors);
  check_counts(frame, groups);
  if (frame.k_vector > 0) apply_exponents(groups.vector, frame.exponents);
  Scratch<SentSymbol> symbols;
  decode_nonzeros(payload.data, frame, shapes_of(groups.matrix), &symbols);
  const SentSymbols matrix = SentSymbols(symbols).first(frame.k_matrix);
  const SentSymbols vector = SentSymbols(symbols).subspan(frame.k_matrix, frame.k_vector);
  if (!lies_in(matrix, groups.matrix) || !lies_in(vector, groups.vector)) {
    throw Failure{Code::kBadSlice, 0, frame.k_matrix};
  }
  const auto add = [](const Group& group, const Quantizer& quantizer, SentSymbols sent) {
    for (size_t task = 0; task < n_tasks(sent); ++task) {
      for_each_symbol_range(group, sent, task, [&](const SymbolRange& range) {
        float* const feedback = range.member.tensor->feedback;
        const Values values(quantizer, range.member);
        for (size_t i = range.begin; i < range.end; ++i) {
          feedback[sent[i].index() - range.first] += values.of(sent[i].level());
        }
      });
    }
  };
  add(groups.matrix, frame.matrix, matrix);
  add(groups.vector, frame.vector, vector);
}

}  // namespace resfed
