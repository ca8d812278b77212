// Contexts of slices without a pattern, and of those with a period: as a rule, a row of the matrix.
//
// Rows resemble each other where the same inputs move all outputs: the output layer and the
// embedding of a language model move the rows of all tokens that did not occur alike. A slice
// signals its period, 0 for none, so a decoder needs neither where it begins nor any shapes.
#pragma once

#include "entropy/context.hpp"
#include "host_device.hpp"

namespace resfed {

// A pattern predicts gaps and levels from the slice so far, and chooses the contexts of gaps. This
// one, of slices without a period and blocks, predicts nothing.
template <class F>
struct NoPattern {
  using Format = F;
  using Contexts = typename Format::Contexts;

  // The symbols before this one are known.
  template <class Symbol>
  RESFED_HD void advance_to(const Symbol*) {}
  // The gap that is likely to follow; 0: no prediction.
  RESFED_HD uint64_t likely_gap() { return 0; }
  // Level of the nonzero one period before the element that is `gap` after the last nonzero; 0:
  // there is none.
  RESFED_HD int32_t level_above(uint64_t) { return 0; }
  RESFED_HD uint32_t repeat_context(uint64_t) const { return Contexts::Repeat::kBegin; }
  RESFED_HD uint32_t agree_context() const { return Contexts::Agree::kBegin; }
  RESFED_HD void update_repeats(bool) {}
  RESFED_HD void update_agreed(bool) {}

  // Contexts of the gap's size class, in unary: the first, and that of `position` after `context`.
  RESFED_HD uint32_t first_gap_context(const History& h) const {
    using Gap = typename Contexts::Gap;
    return Gap::at(Gap::template clamp<0>(h.gap_class), h.activity_class(), 0u);
  }
  RESFED_HD uint32_t next_gap_context(uint32_t context, uint32_t position) const {
    return context + (position < Contexts::Gap::size(2) ? 1 : 0);
  }
  RESFED_HD void update_position(uint64_t) {}
};

// Symbols have index() and level(), with the residual's sign; [begin, end) are those of the slice
// so far. Both predictions together read them once in all.
template <class F, class Symbol>
struct PeriodPattern : NoPattern<F> {
  using Contexts = typename F::Contexts;

  const Symbol* begin;
  const Symbol* next;  // the first that can still matter
  const Symbol* end;
  uint64_t period;
  uint32_t repeats = 0;  // up on a gap as predicted, halved on any other
  uint32_t agreed = 0;   // signs in sequence that were like those above, up to 3

  RESFED_HD PeriodPattern(const Symbol* first, uint64_t length)
      : begin(first), next(first), end(first), period(length) {}

  RESFED_HD void advance_to(const Symbol* symbol) { end = symbol; }

  // The gap to the element below the next nonzero above; 0 if that lies before the slice.
  RESFED_HD uint64_t likely_gap() {
    if (begin == end || end[-1].index() + 1 < begin->index() + period) return 0;
    while (next->index() + period <= end[-1].index()) ++next;
    return next->index() + period - end[-1].index();
  }
  RESFED_HD int32_t level_above(uint64_t gap) {
    if (begin == end) return 0;
    const uint64_t element = end[-1].index() + gap;
    while (next != end && next->index() + period < element) ++next;
    return next != end && next->index() + period == element ? next->level() : 0;
  }

  RESFED_HD uint32_t repeat_context(uint64_t gap) const {
    using Repeat = typename Contexts::Repeat;
    const uint32_t often = (repeats >= 1) + (repeats >= 3) + (repeats >= 8);
    return Repeat::at(often, Repeat::template clamp<1>(floor_log2(gap)), agreed);
  }
  RESFED_HD uint32_t agree_context() const { return Contexts::Agree::at(agreed); }
  RESFED_HD void update_repeats(bool repeat) {
    repeats = repeat ? min_of(repeats + 1, 15u) : repeats / 2;
  }
  RESFED_HD void update_agreed(bool agrees) { agreed = agrees ? min_of(agreed + 1, 3u) : 0; }
};

// Whether an encoder signals this period for a slice: if signs follow those one period before more
// often than those of the nonzero before.
template <class Symbol>
RESFED_HD bool period_pays(const Symbol* begin, const Symbol* end, uint64_t period) {
  int64_t advantage = 0;
  bool any = false, agreed = false;
  const Symbol* above = begin;
  for (const Symbol* s = begin; s != end; ++s) {
    while (above != s && above->index() + period < s->index()) ++above;
    if (above == s || above->index() + period != s->index()) continue;
    const bool positive = s->level() > 0, agrees = positive == (above->level() > 0);
    advantage += any && agrees == agreed ? 1 : 0;
    advantage -= positive == (s[-1].level() > 0) ? 1 : 0;
    any = true;
    agreed = agrees;
  }
  return 64 * advantage > end - begin;
}

}  // namespace resfed
