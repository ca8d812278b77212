// Stage 3 on the CPU: from selected residuals to levels, and from levels to recovered values.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <span>

#include "cpu/residual.hpp"
#include "cpu/scan.hpp"
#include "cpu/search.hpp"
#include "numeric/check.hpp"
#include "numeric/exact_sum.hpp"
#include "numeric/quantize.hpp"

namespace resfed {

// Symbols that one task works on.
constexpr size_t kSymbolsPerTask = 4096;
inline size_t n_tasks(SentSymbols sent) {
  return (sent.size() + kSymbolsPerTask - 1) / kSymbolsPerTask;
}

// Threshold and step for a selection that is not empty.
Quantizer fit_quantizer(const CandidateChunks& selected, const StepRule& rule);

// Levels of all selected residuals; completes the quantizer with the means found.
Scratch<SentSymbol> quantize_all(const Group& group, const CandidateChunks& selected,
                                 Quantizer* quantizer);

// The symbols [begin, end) of a task, all in one member: symbol i is its element index - first.
struct SymbolRange {
  const Member& member;
  size_t begin, end;
  uint64_t first;
};

template <class Visit>
void for_each_symbol_range(const Group& group, SentSymbols sent, size_t task, Visit visit) {
  const auto last = sent.begin() + std::min(sent.size(), (task + 1) * kSymbolsPerTask);
  for (auto begin = sent.begin() + task * kSymbolsPerTask; begin != last;) {
    const Member& member = member_at(group, begin->index() - group.base);
    const uint64_t first = group.base + member.begin;
    const auto lies_in = [&](SentSymbol symbol) {
      return symbol.index() - first < member.tensor->n_elems;
    };
    const auto end = lies_in(last[-1]) ? last : std::partition_point(begin, last, lies_in);
    visit(SymbolRange{member, static_cast<size_t>(begin - sent.begin()),
                      static_cast<size_t>(end - sent.begin()), first});
    begin = end;
  }
}

// Values of a member's levels; those of the lowest, which are nearly all, are computed once.
class Values {
 public:
  Values(const Quantizer& quantizer, const Member& member)
      : quantizer_(quantizer), unscale_(member.unscale) {
    for (int32_t level = -kTabled; level <= kTabled; ++level) {
      if (level != 0) table_[level + kTabled] = compute(level);
    }
  }
  float of(int32_t level) const {
    const uint32_t place = static_cast<uint32_t>(level + kTabled);
    return place <= 2 * kTabled ? table_[place] : compute(level);
  }

 private:
  static constexpr int32_t kTabled = kMaxOffsets;
  float compute(int32_t level) const {
    const uint32_t magnitude = static_cast<uint32_t>(std::abs(level));
    const float value = dequantize_magnitude(quantizer_, magnitude) * unscale_;
    return level < 0 ? -value : value;
  }

  const Quantizer& quantizer_;
  float unscale_;
  float table_[2 * kTabled + 1] = {};
};

// Calls visit(which symbol, element, before, after) for a run's elements; returns its part of the
// reference check.
template <class Visit>
uint32_t recover_range(const SymbolRange& range, SentSymbols sent, const Quantizer& quantizer,
                       Visit visit) {
  uint32_t check = 0;
  const Values values(quantizer, range.member);
  const Tensor& tensor = *range.member.tensor;
  const auto recover_from = [&](const auto* read, const auto& predicted) {
    const SentSymbol* const symbols = sent.data();
    const uint64_t first = range.first, begin = range.member.begin;
    for (size_t i = range.begin, end = range.end; i < end; ++i) {
      // Sent elements lie far apart and are touched for a moment: without this each of them would
      // be waited for.
      constexpr size_t kAhead = 32;
      if (i + kAhead < end) __builtin_prefetch(read + (symbols[i + kAhead].index() - first));
      const uint64_t element = symbols[i].index() - first;
      const auto before = predicted(element);
      const auto after = recover(before, values.of(symbols[i].level()));
      check += check_term(begin + element, element_bits(before), element_bits(after));
      visit(i, element, before, after);
    }
  };
  with_elements(tensor, 0, [&]<class T>(const Elements<T>& elements) {
    if (tensor.prediction.n_terms == 0) {
      const T* const reference = static_cast<const T*>(tensor.reference);
      recover_from(reference, [=](uint64_t i) { return reference[i]; });
    } else {
      recover_from(static_cast<const T*>(tensor.prediction.terms[0]),
                   [&](uint64_t i) { return elements.predicted(i); });
    }
  });
  return check;
}

// What the sent elements become, as bit patterns beside the symbols, and the group's term of the
// reference check. All of it is computed before anything is written: `out` may be the reference,
// and tied tensors may share memory. The bits are left out where no tensor has an `out` or
// feedback.
struct Recovered {
  ElementBits bits;
  uint32_t check = 0;
};

// Where `error` is not null it receives the squares of what remains of the sent residuals.
Recovered recover_all(const Group& group, SentSymbols sent, const Quantizer& quantizer,
                      ExactSquares* error);

// Writes to every tensor that has an `out`.
void write_recovered(const Group& group, SentSymbols sent, const Recovered& recovered);

// Squares of what the sent elements change, each rounded up to float32 before it is squared.
ExactSquares change_squares(const Group& group, SentSymbols sent, const Quantizer& quantizer);

// Squares of the unscaled residuals: of the whole group, and of a selection.
ExactSquares residual_squares(const Group& group);
ExactSquares residual_squares(const Group& group, const CandidateChunks& selected);

// What search_error() wants to know of float64 tensors.
Changes float64_changes(const Group& group);

}  // namespace resfed
