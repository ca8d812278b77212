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

}  // namespace

bool limit_norm(EncodeState* state, double max_norm) {
  const Groups& groups = state->groups;
  if (!state->changes.empty()) {
    const uint64_t element = state->changes.front().index();
    throw Failure{Code::kLosslessChange, member_at(groups.lossless, element).ordinal};
  }
  struct Limited {
    const Group& group;
    EncodedGroup* coded;
    Quantizer whole;
  };
  std::vector<Limited> groups_sent;
  for (const auto& [group, coded] :
       {std::pair(&groups.matrix, &state->matrix), std::pair(&groups.vector, &state->vector),
        std::pair(&groups.dense, &state->dense)}) {
    if (coded->k > 0) groups_sent.push_back({*group, coded, coded->quantizer});
  }
  const double limit = max_norm * max_norm * (1 - kRounding);
  double factor = 1;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    ExactSquares squares;
    for (const Limited& limited : groups_sent) {
      squares.add(change_squares(limited.group, limited.coded->sent, limited.coded->quantizer));
    }
    const double sum = squares.value();
    if (sum <= limit) {
      if (attempt == 0) return true;
      for (const Limited& limited : groups_sent) {
        limited.coded->recovered =
            recover_all(limited.group, limited.coded->sent, limited.coded->quantizer, nullptr);
      }
      return true;
    }
    factor *= std::sqrt(limit / sum) * (1 - std::ldexp(kRoom, attempt));
    for (const Limited& limited : groups_sent)
      lower(&limited.coded->quantizer, limited.whole, factor);
  }
  for (const Limited& limited : groups_sent) *limited.coded = {};
  return false;
}

}  // namespace resfed
