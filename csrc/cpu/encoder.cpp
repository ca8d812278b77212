// Encode: groups -> select -> quantize -> recover -> slices -> frame.
#include "cpu/encoder.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "cpu/crc32c.hpp"
#include "cpu/float_mode.hpp"
#include "cpu/norm.hpp"
#include "cpu/predict.hpp"
#include "cpu/search.hpp"

namespace resfed {
namespace {

// Vectors and dense tensors live on very different scales (a norm beside a bias): each is divided
// by the power of two below the root mean square of its residual, so they share one quantizer.
std::vector<int8_t> choose_exponents(const Group& group) {
  std::vector<int8_t> exponents;
  for (const Member& member : group.members) {
    ExactSquares squares;
    with_elements(*member.tensor, 0, [&](const auto& elements) {
      for (uint64_t i = 0; i < member.tensor->n_elems; ++i) {
        const float r = elements.residual_at(i);
        if (!is_finite_key(magnitude_key(r))) throw Failure{Code::kNonFinite, member.ordinal, i};
        squares.add(r);
      }
    });
    const double mean = squares.value() / static_cast<double>(member.tensor->n_elems);
    const int exponent = mean > 0 ? std::ilogb(mean) >> 1 : 0;  // floor(log2(mean) / 2)
    exponents.push_back(static_cast<int8_t>(
        std::clamp(exponent, CurrentFormat::kMinExponent, CurrentFormat::kMaxExponent)));
  }
  return exponents;
}

// Whether no element of the state is negative, as in variances.
bool none_negative(const Tensor& tensor) {
  bool none = true;
  with_elements(tensor, 0, [&](const auto& elements) {
    for (uint64_t i = 0; i < tensor.n_elems && none; ++i) none = !(wide(elements.current(i)) < 0);
  });
  return none;
}

// Tensors without a negative element stay without: where recovery would give one, the signed level
// is raised. A prediction may be negative too, so this looks at all elements.
Scratch<SentSymbol> keep_from_negative(const Group& group, SentSymbols sent,
                                       const Quantizer& quantizer) {
  Scratch<SentSymbol> kept;
  kept.reserve(sent.size());
  size_t next = 0;
  for (const Member& member : group.members) {
    const Values values(quantizer, member);
    const bool guarded = none_negative(*member.tensor);
    with_elements(*member.tensor, 0, [&](const auto& elements) {
      for (uint64_t i = 0; i < member.tensor->n_elems; ++i) {
        const uint64_t index = group.base + member.begin + i;
        int32_t level = 0;
        if (next < sent.size() && sent[next].index() == index) level = sent[next++].level();
        if (guarded) {
          const auto before = elements.predicted(i);
          const auto after = [&] {
            return level == 0 ? before : recover(before, values.of(level));
          };
          while (wide(after()) < 0 && level < static_cast<int32_t>(kMaxLevel)) ++level;
        }
        if (level != 0) kept.emplace_back(index, level);
      }
    });
  }
  return kept;
}

// All of the group that a uniform quantizer does not round to nothing. The scale is that of the
// tensor, so the step is the same for all.
EncodedGroup code_dense(const Group& group, unsigned bits) {
  EncodedGroup coded;
  if (group.n_elems == 0) return coded;
  coded.quantizer.step = power_of_two(2 - static_cast<int>(bits));
  coded.quantizer.threshold = coded.quantizer.step / 2;
  const CandidateChunks selected = collect(group, magnitude_key(coded.quantizer.threshold),
                                           [](size_t, Candidates found) { return found.n; });
  coded.sent = quantize_all(group, selected, &coded.quantizer);
  coded.sent = keep_from_negative(group, coded.sent, coded.quantizer);
  coded.k = coded.sent.size();
  coded.recovered = recover_all(group, coded.sent, coded.quantizer, nullptr);
  return coded;
}

// Codes as many elements as fit into max_bytes.
CodedLanes fill_budget(const EncodeOptions& options, EncodeState* state) {
  const Groups& groups = state->groups;
  CachedSelection matrices(groups.matrix), vectors(groups.vector);
  EncodedGroup best_matrix, best_vector;
  CodedLanes best;
  // What is recovered stands in the payload as a check of fixed length, so it can wait.
  const auto size_of = [&](uint64_t k_matrix, uint64_t k_vector, uint64_t limit) {
    state->matrix = quantize_group(groups.matrix, matrices.top(k_matrix), options.step);
    state->vector = quantize_group(groups.vector, vectors.top(k_vector), options.step);
    auto coded = code_nonzeros(*state, limit);
    if (!coded) return kBeyond;
    const uint64_t size = assemble(*state, *coded).size();
    if (size <= options.max_bytes) {
      best_matrix = std::move(state->matrix);
      best_vector = std::move(state->vector);
      best = *std::move(coded);
    }
    return size;
  };
  search_budget(options, groups.matrix.n_elems, groups.vector.n_elems, size_of);
  state->matrix = std::move(best_matrix);
  state->vector = std::move(best_vector);
  recover_group(groups.matrix, &state->matrix, nullptr);
  recover_group(groups.vector, &state->vector, nullptr);
  return best;
}

}  // namespace

EncodedGroup quantize_group(const Group& group, const CandidateChunks& selected,
                            const StepRule& rule) {
  EncodedGroup coded;
  coded.k = selected.count();
  if (coded.k == 0) return coded;
  coded.quantizer = fit_quantizer(selected, rule);
  coded.sent = quantize_all(group, selected, &coded.quantizer);
  return coded;
}

void recover_group(const Group& group, EncodedGroup* coded, ExactSquares* error) {
  if (coded->k > 0) coded->recovered = recover_all(group, coded->sent, coded->quantizer, error);
}

CandidateChunks CachedSelection::top(uint64_t k) {
  if (!cached_ || (k > k_cached_ && candidates_.count() >= k_cached_)) {
    candidates_ = select_top(group_, k);
    k_cached_ = k;
    cached_ = true;
  }
  return keep_top(candidates_, k);
}

std::optional<CodedLanes> code_nonzeros(const EncodeState& state, uint64_t max_bytes) {
  return encode_nonzeros({state.matrix.sent, state.vector.sent, state.dense.sent}, state.matrices,
                         state.frame.lane_log2, max_bytes);
}

std::vector<uint8_t> assemble(const EncodeState& state, const std::vector<uint8_t>& tables,
                              const SliceViews& slices) {
  Frame frame = state.frame;
  frame.k_matrix = state.matrix.k;
  frame.matrix = state.matrix.quantizer;
  frame.k_vector = state.vector.k;
  frame.vector = state.vector.quantizer;
  frame.k_dense = state.dense.k;
  frame.dense = state.dense.quantizer;
  frame.n_changed = state.lossless.n;
  frame.reference_check = state.matrix.recovered.check + state.vector.recovered.check +
                          state.dense.recovered.check + state.lossless.check;

  frame.tables = tables;
  for (const auto& slice : slices) frame.slice_bytes.push_back(slice.size());
  frame.change_tables = state.lossless.coded.tables;
  const std::vector<Slice>& lossless_slices = state.lossless.coded.slices;
  for (const Slice& slice : lossless_slices) frame.slice_bytes.push_back(slice.size());

  ByteWriter out;
  write_frame(frame, out);
  std::vector<uint8_t>& bytes = out.bytes();
  for (const auto& slice : slices) bytes.insert(bytes.end(), slice.begin(), slice.end());
  for (const Slice& slice : lossless_slices) {
    bytes.insert(bytes.end(), slice.begin(), slice.end());
  }
  out.fixed(crc32c(bytes.data(), bytes.size()));
  return std::move(bytes);
}

std::vector<uint8_t> assemble(const EncodeState& state, const CodedLanes& nonzeros) {
  return assemble(state, nonzeros.tables, {nonzeros.slices.begin(), nonzeros.slices.end()});
}

EncodeState begin_encoding(const std::vector<Tensor>& tensors, const EncodeOptions& options) {
  EncodeState state;
  state.groups = make_groups(tensors);
  Groups& groups = state.groups;
  Frame& frame = state.frame;
  frame.lane_log2 = options.lane_log2;
  frame.digest = options.digest;
  frame.link = options.link;
  frame.exclusions.assign(options.exclusions.begin(), options.exclusions.end());
  frame.dense_tensors.assign(options.dense.begin(), options.dense.end());
  frame.n_matrix = groups.matrix.n_elems;
  frame.n_vector = groups.vector.n_elems;
  frame.n_dense = groups.dense.n_elems;
  frame.n_lossless = groups.lossless.n_elems;
  frame.exponents = choose_exponents(groups.vector);
  apply_exponents(groups.vector, frame.exponents);
  frame.dense_exponents = choose_exponents(groups.dense);
  apply_exponents(groups.dense, frame.dense_exponents);

  state.matrices = shapes_of(groups.matrix, options.blocks);
  state.dense = code_dense(groups.dense, options.dense_bits);
  return state;
}

void code_lossless(EncodeState* state) {
  const Group& group = state->groups.lossless;
  state->changes = find_changes(group);
  state->restored = restore_changes(group, state->changes);
  const ChangedElements levels = in_exponent_order(group, levels_of(group, state->changes));
  state->lossless.n = levels.size();
  state->lossless.check = state->restored.check;
  state->lossless.coded = encode_changes(levels, state->frame.lane_log2);
  if (state->lossless.n > 0) {
    state->lossless.first_tensor = member_at(group, state->changes.front().index()).ordinal;
  }
}

EncodedGroup code_top(const Group& group, uint64_t k, const StepRule& rule) {
  EncodedGroup coded = quantize_group(group, select_top(group, k), rule);
  recover_group(group, &coded, nullptr);
  return coded;
}

void prepare_results(EncodeState* state) {
  for (const auto& [group, coded] : {std::pair(&state->groups.matrix, &state->matrix),
                                     std::pair(&state->groups.vector, &state->vector)}) {
    coded->left = left_of_sent(*group, coded->sent, coded->recovered);
  }
}

void write_results(const EncodeState& state) {
  const Groups& groups = state.groups;
  update_feedback(groups.matrix, state.matrix.sent, state.matrix.left);
  update_feedback(groups.vector, state.vector.sent, state.vector.left);
  write_predictions(groups);
  write_recovered(groups.matrix, state.matrix.sent, state.matrix.recovered);
  write_recovered(groups.vector, state.vector.sent, state.vector.recovered);
  write_recovered(groups.dense, state.dense.sent, state.dense.recovered);
  write_changes(groups.lossless, state.changes, state.restored);
}

EncodedGroup code_within_error(const Group& group, StepRule rule, double max_error) {
  rule.automatic = false;  // the step must be free to follow the threshold down
  const ExactSquares all = residual_squares(group);
  CachedSelection selector(group);
  EncodedGroup tried, best;
  const auto remaining = [&](uint64_t k) {
    const CandidateChunks selected = selector.top(k);
    ExactSquares error = all;
    error.subtract(residual_squares(group, selected));
    tried = quantize_group(group, selected, rule);
    recover_group(group, &tried, &error);
    return error;
  };
  search_error(max_error, group.n_elems, all, float64_changes(group), remaining,
               [&] { best = std::move(tried); });
  return best;
}

CodedLanes code_lossy(const EncodeOptions& options, EncodeState* state) {
  const Groups& groups = state->groups;
  std::optional<CodedLanes> coded;
  if (options.max_bytes > 0) {
    coded = fill_budget(options, state);
  } else if (options.max_error >= 0) {
    select_top(groups.matrix, 0);  // finds what is not finite, in the order of the tensors
    state->matrix = code_within_error(groups.matrix, options.step, options.max_error);
    state->vector = code_within_error(groups.vector, options.step, options.max_error);
  } else {
    state->matrix = code_top(groups.matrix, options.k_matrix, options.step);
    state->vector = code_top(groups.vector, options.k_vector, options.step);
  }
  if (options.max_norm > 0 && !limit_norm(state, options.max_norm)) return {};
  return coded ? *std::move(coded) : *code_nonzeros(*state);
}

std::vector<uint8_t> encode(const std::vector<Tensor>& tensors, const EncodeOptions& options,
                            const BeforeWriting& before_writing) {
  const DefaultFloatMode mode;
  EncodeState state = begin_encoding(tensors, options);
  code_lossless(&state);
  const std::vector<uint8_t> payload = assemble(state, code_lossy(options, &state));
  prepare_results(&state);
  if (before_writing) before_writing(payload);
  write_results(state);
  return payload;
}

}  // namespace resfed
