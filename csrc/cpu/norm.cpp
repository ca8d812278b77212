#include "cpu/norm.hpp"

#include <algorithm>
#include <cmath>

namespace resfed {
namespace {

// A factor below 1 makes every value smaller or leaves it, and rounding keeps that order; so every
// element's change becomes smaller, too, or stays. Elements of few bits may round up again all the
// same, and the next attempt leaves more room.
constexpr int kAttempts = 20;
constexpr double kRoom = 0x1p-20;  // of the first attempt, doubled with each

// Squares are rounded up, their sum may be rounded down.
constexpr double kRounding = 0x1p-39;

void lower(Quantizer* quantizer, const Quantizer& whole, double factor) {
  constexpr float kSmallest = 0x1p-149f;
  quantizer->threshold = std::max(static_cast<float>(whole.threshold * factor), kSmallest);
  quantizer->step = std::max(static_cast<float>(whole.step * factor), kSmallest);
}

SentGroup sent_on_host(const Group& group, EncodedGroup* coded) {
  return {coded, [&group, coded] { return change_squares(group, coded->sent, coded->quantizer); },
          [&group, coded] { recover_group(group, coded, nullptr); }};
}

}  // namespace

bool limit_norm(EncodeState* state, double max_norm, const SentGroup& matrices) {
  if (state->lossless.n > 0) throw Failure{Code::kLosslessChange, state->lossless.first_tensor};
  std::vector<SentGroup> groups;
  std::vector<Quantizer> whole;
  for (const SentGroup& group : {matrices, sent_on_host(state->groups.vector, &state->vector),
                                 sent_on_host(state->groups.dense, &state->dense)}) {
    if (group.coded->k == 0) continue;
    groups.push_back(group);
    whole.push_back(group.coded->quantizer);
  }
  const double limit = max_norm * max_norm * (1 - kRounding);
  double factor = 1;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    ExactSquares squares;
    for (const SentGroup& group : groups) squares.add(group.change_squares());
    const double sum = squares.value();
    if (sum <= limit) {
      for (size_t i = 0; i < groups.size() && attempt > 0; ++i) groups[i].recover();
      return true;
    }
    factor *= std::sqrt(limit / sum) * (1 - std::ldexp(kRoom, attempt));
    for (size_t i = 0; i < groups.size(); ++i) {
      lower(&groups[i].coded->quantizer, whole[i], factor);
    }
  }
  for (const SentGroup& group : groups) *group.coded = {};
  return false;
}

bool limit_norm(EncodeState* state, double max_norm) {
  return limit_norm(state, max_norm, sent_on_host(state->groups.matrix, &state->matrix));
}

}  // namespace resfed
