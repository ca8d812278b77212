#include "cpu/quantize.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>

#include "cpu/threads.hpp"

namespace resfed {
namespace {

// Least and greatest magnitude, as keys, and the sum of squares but for rounding.
struct MagnitudeRange {
  uint32_t least = kFirstNonFiniteKey, most = 0;
  double squares = 0;

  void add(float residual) {
    least = std::min(least, magnitude_key(residual));
    most = std::max(most, magnitude_key(residual));
    squares += static_cast<double>(residual) * static_cast<double>(residual);
  }
  void add(const MagnitudeRange& other) {
    least = std::min(least, other.least);
    most = std::max(most, other.most);
    squares += other.squares;
  }
};

double exact_squares(const CandidateChunks& selected) {
  ExactSquares squares;
  for (size_t s = 0; s < selected.size(); ++s) {
    const Candidates c = selected[s];
    for (size_t i = 0; i < c.n; ++i) squares.add(c.residuals[i]);
  }
  return squares.value();
}

// A total over tasks, in any order: `add` must be exact, or what it rounds not matter.
template <class Total, class AddTask>
Total sum_over(size_t n, const AddTask& add_task) {
  Total total{};
  std::mutex mutex;
  parallel_for(n, [&](size_t s) {
    Total own{};
    add_task(s, own);
    const std::lock_guard lock(mutex);
    total.add(own);
  });
  return total;
}

// Whether the recovered values are needed.
bool needs_recovered(const Group& group) {
  return std::any_of(group.members.begin(), group.members.end(), [](const Member& member) {
    return member.tensor->out != nullptr || member.tensor->feedback != nullptr;
  });
}

struct CheckAndError {
  uint32_t check = 0;
  ExactSquares error;

  void add(const CheckAndError& other) {
    check += other.check;
    error.add(other.error);
  }
};

}  // namespace

Quantizer fit_quantizer(const CandidateChunks& selected, const StepRule& rule) {
  const auto [least, most, squares] =
      sum_over<MagnitudeRange>(selected.size(), [&](size_t s, MagnitudeRange& own) {
        const Candidates c = selected[s];
        for (size_t i = 0; i < c.n; ++i) own.add(c.residuals[i]);
      });
  const float threshold = float_from_bits(least);
  const uint64_t count = selected.count();
  double finest = 0;
  if (may_be_too_fine(rule, threshold, squares, count)) {
    finest = finest_automatic_step(exact_squares(selected), count);
  }
  return fit_quantizer(rule, threshold, float_from_bits(most), finest);
}

Scratch<SentSymbol> quantize_all(const Group& group, const CandidateChunks& selected,
                                 Quantizer* quantizer) {
  std::vector<size_t> begin(selected.size() + 1, 0);
  for (size_t s = 0; s < selected.size(); ++s) begin[s + 1] = begin[s] + selected[s].n;
  Scratch<SentSymbol> sent(begin.back());
  const auto means = sum_over<LevelMeans>(selected.size(), [&](size_t s, LevelMeans& own) {
    SentSymbol* out = sent.data() + begin[s];
    const Candidates c = selected[s];
    for (size_t i = 0; i < c.n; ++i) {
      const float residual = c.residuals[i];
      const Quantized quantized = quantize(*quantizer, float_from_bits(magnitude_key(residual)));
      own.add(quantized);
      const int32_t magnitude = static_cast<int32_t>(quantized.level);
      *out++ = {group.base + s * kChunkElems + c.offsets[i],
                std::signbit(residual) ? -magnitude : magnitude};
    }
  });
  means.complete(quantizer);
  return sent;
}

Recovered recover_all(const Group& group, SentSymbols sent, const Quantizer& quantizer,
                      ExactSquares* error) {
  Recovered recovered;
  if (needs_recovered(group)) recovered.bits = ElementBits(group, sent.size());
  ElementBits& bits = recovered.bits;
  const bool with_bits = !bits.empty();
  const bool with_error = error != nullptr;
  const auto total = sum_over<CheckAndError>(n_tasks(sent), [&](size_t task, CheckAndError& own) {
    for_each_symbol_range(group, sent, task, [&](const SymbolRange& range) {
      const auto keep = [&bits, with_bits](size_t i, uint64_t, auto, auto after) {
        if (with_bits) std::memcpy(bits.at(i), &after, sizeof after);
      };
      const auto measure = [&](size_t i, uint64_t element, auto before, auto after) {
        keep(i, element, before, after);
        own.error.add(
            Elements<decltype(after)>{*range.member.tensor, element}.residual_to(0, after));
      };
      own.check += with_error ? recover_range(range, sent, quantizer, measure)
                              : recover_range(range, sent, quantizer, keep);
    });
  });
  if (error != nullptr) error->add(total.error);
  recovered.check = total.check;
  return recovered;
}

void write_recovered(const Group& group, SentSymbols sent, const Recovered& recovered) {
  if (recovered.bits.empty()) return;
  parallel_for(n_tasks(sent), [&](size_t task) {
    for_each_symbol_range(group, sent, task, [&](const SymbolRange& range) {
      if (range.member.tensor->out == nullptr) return;
      with_elements(*range.member.tensor, 0, [&]<class T>(const Elements<T>&) {
        T* const out = static_cast<T*>(range.member.tensor->out);
        for (size_t i = range.begin; i < range.end; ++i) {
          std::memcpy(out + (sent[i].index() - range.first), recovered.bits.at(i), sizeof(T));
        }
      });
    });
  });
}

ExactSquares change_squares(const Group& group, SentSymbols sent, const Quantizer& quantizer) {
  return sum_over<ExactSquares>(n_tasks(sent), [&](size_t task, ExactSquares& own) {
    for_each_symbol_range(group, sent, task, [&](const SymbolRange& range) {
      recover_range(range, sent, quantizer, [&](size_t, uint64_t, auto before, auto after) {
        own.add(change_rounded_up(before, after));
      });
    });
  });
}

ExactSquares residual_squares(const Group& group) {
  return sum_over<ExactSquares>(n_chunks(group), [&](size_t s, ExactSquares& own) {
    for_each_member(group, s, [&](const Member& member, uint64_t first, uint64_t n, uint32_t) {
      with_elements(*member.tensor, first, [&](const auto& elements) {
        for (uint64_t i = 0; i < n; ++i) own.add(elements.residual_at(i));
      });
    });
  });
}

ExactSquares residual_squares(const Group& group, const CandidateChunks& selected) {
  return sum_over<ExactSquares>(selected.size(), [&](size_t s, ExactSquares& own) {
    const Candidates c = selected[s];
    size_t i = 0;
    for_each_member(group, s, [&](const Member& member, uint64_t first, uint64_t n, uint32_t at) {
      for (; i < c.n && c.offsets[i] - at < n; ++i) {
        const uint64_t element = first + (c.offsets[i] - at);
        with_elements(*member.tensor, element,
                      [&](const auto& elements) { own.add(elements.residual_at(0)); });
      }
    });
  });
}

Changes float64_changes(const Group& group) {
  return sum_over<Changes>(n_chunks(group), [&](size_t s, Changes& own) {
    for_each_member(group, s, [&](const Member& member, uint64_t first, uint64_t n, uint32_t) {
      if (member.tensor->dtype != DType::kFloat64) return;
      const Elements<double> elements{*member.tensor, first};
      uint64_t count = 0;
      for (uint64_t i = 0; i < n; ++i) {
        count += has_changed(elements.current(i), elements.predicted(i)) ? 1 : 0;
      }
      if (count > 0) own.add({count, member.ordinal});
    });
  });
}

}  // namespace resfed
