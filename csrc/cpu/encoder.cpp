// Encode: groups -> select -> quantize -> recover -> slices -> frame.
//
// With a byte budget or an error bound the first stages run several times; the candidates of the
// largest selection tried so far serve all smaller ones.
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "api.hpp"
#include "cpu/crc32c.hpp"
#include "cpu/float_mode.hpp"
#include "cpu/groups.hpp"
#include "cpu/lossless.hpp"
#include "cpu/predict.hpp"
#include "cpu/quantize.hpp"
#include "cpu/select.hpp"
#include "cpu/slice.hpp"

namespace resfed {
namespace {

// One group on its way into the payload.
struct Coded {
  uint64_t k = 0;  // really sent
  Quantizer quantizer;
  Scratch<SentSymbol> sent;
  Recovered recovered;
};

Coded code_group(const Group& group, const Segments& selected, const StepRule& rule,
                 ExactSquares* error) {
  Coded coded;
  coded.k = selected.count();
  if (coded.k == 0) return coded;
  coded.quantizer = fit_quantizer(selected, rule);
  coded.sent = quantize_all(group, selected, &coded.quantizer);
  coded.recovered = recover_all(group, coded.sent, coded.quantizer, error);
  return coded;
}

// Vectors and dense tensors live on very different scales (a norm beside a bias): each is divided
// by the power of two below the root mean square of its residual, so they share one quantizer.
std::vector<int8_t> choose_exponents(const Group& group) {
  std::vector<int8_t> exponents;
  for (const Piece& piece : group.pieces) {
    ExactSquares squares;
    with_elements(*piece.tensor, 0, [&](const auto& elements) {
      for (uint64_t i = 0; i < piece.tensor->n_elems; ++i) {
        const float r = elements.residual_at(i);
        if (!is_finite_key(magnitude_key(r))) throw Failure{Code::kNonFinite, piece.ordinal, i};
        squares.add(r);
      }
    });
    const double mean = squares.value() / static_cast<double>(piece.tensor->n_elems);
    const int exponent = mean > 0 ? std::ilogb(mean) >> 1 : 0;  // floor(log2(mean) / 2)
    exponents.push_back(static_cast<int8_t>(std::clamp(exponent, kMinExponent, kMaxExponent)));
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
  for (const Piece& piece : group.pieces) {
    const Values values(quantizer, piece);
    const bool guarded = none_negative(*piece.tensor);
    with_elements(*piece.tensor, 0, [&](const auto& elements) {
      for (uint64_t i = 0; i < piece.tensor->n_elems; ++i) {
        const uint64_t index = group.base + piece.begin + i;
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
Coded code_dense(const Group& group, unsigned bits) {
  Coded coded;
  if (group.n_elems == 0) return coded;
  coded.quantizer.step = power_of_two(2 - static_cast<int>(bits));
  coded.quantizer.threshold = coded.quantizer.step / 2;
  const Segments selected = collect(group, magnitude_key(coded.quantizer.threshold),
                                    [](size_t, Candidates found) { return found.n; });
  coded.sent = quantize_all(group, selected, &coded.quantizer);
  coded.sent = keep_from_negative(group, coded.sent, coded.quantizer);
  coded.k = coded.sent.size();
  coded.recovered = recover_all(group, coded.sent, coded.quantizer, nullptr);
  return coded;
}

// The group's best k elements for any k, asking the model again only when k grows past what is
// held.
class Selector {
 public:
  explicit Selector(const Group& group) : group_(group) {}

  Segments top(uint64_t k) {
    if (!held_ || (k > k_held_ && candidates_.count() >= k_held_)) {
      candidates_ = select_top(group_, k);
      k_held_ = k;
      held_ = true;
    }
    return keep_top(candidates_, k);
  }

 private:
  const Group& group_;
  Segments candidates_{0};
  uint64_t k_held_ = 0;
  bool held_ = false;
};

// Smallest x in [low, high] for which holds(x), assuming it holds from some x on; `high` is known
// to hold.
template <class Holds>
uint64_t first_that_holds(uint64_t low, uint64_t high, Holds holds) {
  while (low < high) {
    const uint64_t middle = low + (high - low) / 2;
    if (holds(middle)) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return high;
}

// The smallest selection found whose relative error is within the bound.
Coded code_within_error(const Group& group, StepRule rule, double max_error, double* reached) {
  rule.automatic = false;  // the step must be free to follow the threshold down
  const ExactSquares all = residual_squares(group);
  const double limit = max_error * max_error * (1 - 1e-6) * all.value();
  Selector selector(group);
  Coded best;
  const auto holds = [&](uint64_t k) {
    const Segments selected = selector.top(k);
    ExactSquares error = all;
    error.subtract(residual_squares(group, selected));
    Coded coded = code_group(group, selected, rule, &error);
    *reached = std::sqrt(error.value() / all.value());
    if (error.value() > limit) return false;
    best = std::move(coded);
    return true;
  };
  if (all.value() == 0 || holds(0)) return best;
  uint64_t low = 0, high = std::min<uint64_t>(group.n_elems, 1 + group.n_elems / 256);
  while (!holds(high)) {
    if (high == group.n_elems) throw Failure{Code::kErrorUnreachable, 0, double_bits(*reached)};
    low = high + 1;
    high = std::min(group.n_elems, 4 * high);
  }
  first_that_holds(low, high, holds);
  return best;
}

RowLengths rows_of(const Group& matrix, const std::vector<uint64_t>& row_lengths) {
  RowLengths rows;
  if (row_lengths.empty()) return rows;
  for (const Piece& piece : matrix.pieces)
    rows.push_back({piece.begin, row_lengths.at(piece.ordinal)});
  rows.push_back({matrix.n_elems, 0});
  return rows;
}

std::vector<uint8_t> assemble(Frame frame, const RowLengths& rows, const Coded& matrix,
                              const Coded& vector, const Coded& dense,
                              const std::vector<Slice>& lossless_slices, uint32_t lossless_check) {
  frame.k_matrix = matrix.k;
  frame.matrix = matrix.quantizer;
  frame.k_vector = vector.k;
  frame.vector = vector.quantizer;
  frame.k_dense = dense.k;
  frame.dense = dense.quantizer;
  frame.reference_check =
      matrix.recovered.check + vector.recovered.check + dense.recovered.check + lossless_check;

  const std::vector<Slice> lossy_slices =
      encode_slices(matrix.sent, vector.sent, dense.sent, rows, frame.slice_log2);
  for (const Slice& slice : lossy_slices) frame.slice_bytes.push_back(slice.size());
  for (const Slice& slice : lossless_slices) frame.slice_bytes.push_back(slice.size());

  ByteWriter out;
  write_frame(frame, out);
  std::vector<uint8_t>& bytes = out.bytes();
  for (const Slice& slice : lossy_slices) bytes.insert(bytes.end(), slice.begin(), slice.end());
  for (const Slice& slice : lossless_slices) bytes.insert(bytes.end(), slice.begin(), slice.end());
  out.fixed(crc32c(bytes.data(), bytes.size()));
  return std::move(bytes);
}

__extension__ using WideUint = unsigned __int128;

// How many of a group's elements are sent when `t` of `total` are, at `share` times that density.
uint64_t proportional(uint64_t n_elems, uint64_t t, uint64_t total, uint64_t share) {
  if (n_elems == 0) return 0;
  const auto wanted = (static_cast<WideUint>(n_elems) * t * share + total - 1) / total;
  return wanted < n_elems ? static_cast<uint64_t>(wanted) : n_elems;
}

}  // namespace

std::vector<uint8_t> encode(const std::vector<Tensor>& tensors, const EncodeOptions& options,
                            const BeforeWriting& before_writing) {
  const DefaultFloatMode mode;
  Groups groups = make_groups(tensors);
  Frame frame;
  frame.slice_log2 = options.slice_log2;
  frame.digest = options.digest;
  frame.link = options.link;
  frame.exclusions = options.exclusions;
  frame.dense_tensors = options.dense;
  frame.n_matrix = groups.matrix.n_elems;
  frame.n_vector = groups.vector.n_elems;
  frame.n_dense = groups.dense.n_elems;
  frame.n_lossless = groups.lossless.n_elems;
  frame.exponents = choose_exponents(groups.vector);
  apply_exponents(groups.vector, frame.exponents);
  frame.dense_exponents = choose_exponents(groups.dense);
  apply_exponents(groups.dense, frame.dense_exponents);

  const std::vector<ChangedElement> changes = find_changes(groups.lossless);
  const RestoredElements restored = restore_changes(groups.lossless, changes);
  const std::vector<Slice> lossless_slices = encode_slices(changes, frame.slice_log2);
  frame.n_changed = changes.size();

  const RowLengths rows = rows_of(groups.matrix, options.row_lengths);
  const Coded dense = code_dense(groups.dense, options.dense_bits);
  Coded matrix, vector;
  std::vector<uint8_t> payload;
  const auto finish = [&] {
    payload = assemble(frame, rows, matrix, vector, dense, lossless_slices, restored.check);
  };

  if (options.max_error >= 0) {
    double reached = 0;
    select_top(groups.matrix, 0);  // finds what is not finite, in the order of the tensors
    matrix = code_within_error(groups.matrix, options.step, options.max_error, &reached);
    vector = code_within_error(groups.vector, options.step, options.max_error, &reached);
    finish();
  } else if (options.max_bytes > 0) {
    Selector matrices(groups.matrix), vectors(groups.vector);
    const uint64_t total = frame.n_matrix + frame.n_vector;
    uint64_t best_t = 0;
    std::vector<uint8_t> best;
    const auto too_big = [&](uint64_t t) {
      const auto selected = matrices.top(proportional(frame.n_matrix, t, total, 1));
      matrix = code_group(groups.matrix, selected, options.step, nullptr);
      vector = code_group(groups.vector,
                          vectors.top(proportional(frame.n_vector, t, total, options.vector_share)),
                          options.step, nullptr);
      finish();
      return payload.size() > options.max_bytes;
    };
    // A nonzero takes about 2 bits; look from there.
    if (too_big(0)) throw Failure{Code::kBudgetTooSmall, 0, payload.size()};
    uint64_t low = 1, high = std::min(total, 4 * options.max_bytes);
    while (high > 0 && !too_big(high)) {
      low = high + 1;
      if (high == total) break;
      high = std::min(total, 2 * high);
    }
    best_t = low > total ? total : first_that_holds(low, high, too_big) - 1;
    too_big(best_t);
  } else {
    matrix = code_group(groups.matrix, select_top(groups.matrix, options.k_matrix), options.step,
                        nullptr);
    vector = code_group(groups.vector, select_top(groups.vector, options.k_vector), options.step,
                        nullptr);
    finish();
  }

  const auto left_of_matrix = left_of_sent(groups.matrix, matrix.sent, matrix.recovered);
  const auto left_of_vector = left_of_sent(groups.vector, vector.sent, vector.recovered);
  if (before_writing) before_writing(payload);
  // From here on nothing can fail.
  update_feedback(groups.matrix, matrix.sent, left_of_matrix);
  update_feedback(groups.vector, vector.sent, left_of_vector);
  write_predictions(groups);
  write_recovered(groups.matrix, matrix.sent, matrix.recovered);
  write_recovered(groups.vector, vector.sent, vector.recovered);
  write_recovered(groups.dense, dense.sent, dense.recovered);
  write_changes(groups.lossless, changes, restored);
  return payload;
}

}  // namespace resfed
