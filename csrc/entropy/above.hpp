// What the nonzeros of a slice were one period earlier, as a rule one row of the matrix above.
//
// Rows resemble each other where the same inputs move all outputs: the output layer and the
// embedding of a language model move the rows of all tokens that did not occur alike. A slice says
// its period, 0 for none, so it needs to know neither where it begins nor any shapes.
#pragma once

#include "entropy/context.hpp"
#include "host_device.hpp"

namespace resfed {

// For slices without a period: contexts of gaps as they are, nothing above.
struct NoAbove {
  template <class Symbol>
  RESFED_HD void up_to(const Symbol*) {}
  RESFED_HD uint64_t gap() const { return 0; }
  RESFED_HD int32_t level(uint64_t) { return 0; }
  RESFED_HD uint32_t repeat_context(uint64_t) const { return kRepeatBase; }
  RESFED_HD uint32_t agree_context() const { return kAgreeBase; }
  RESFED_HD void remember_repeat(bool) {}
  RESFED_HD void remember_agreement(bool) {}

  RESFED_HD uint32_t first_context(const History& h) const { return gap_row(h); }
  RESFED_HD uint32_t next_context(uint32_t context, uint32_t position) const {
    return next_gap_context(context, position);
  }
  RESFED_HD void follow(uint64_t) {}
};

// Symbols have index() and level(), with the residual's sign; [begin, end) are those of the slice
// so far. Both questions together go over them once in all.
template <class Symbol>
struct Above : NoAbove {
  const Symbol* begin;
  const Symbol* next;  // the first that can still matter
  const Symbol* end;
  uint64_t period;
  uint32_t repeats = 0;  // up on a gap like the one above, halved on any other
  uint32_t agreed = 0;   // signs in sequence that were like those above, up to 3

  RESFED_HD Above(const Symbol* first, uint64_t length)
      : begin(first), next(first), end(first), period(length) {}

  RESFED_HD void up_to(const Symbol* place) { end = place; }

  // The gap to the element below the next nonzero above; 0 if that lies before the slice.
  RESFED_HD uint64_t gap() {
    if (begin == end || end[-1].index() + 1 < begin->index() + period) return 0;
    while (next->index() + period <= end[-1].index()) ++next;
    return next->index() + period - end[-1].index();
  }
  // Level above the element that is `gap` after the last nonzero; 0 if that was not sent.
  RESFED_HD int32_t level(uint64_t gap) {
    if (begin == end) return 0;
    const uint64_t element = end[-1].index() + gap;
    while (next != end && next->index() + period < element) ++next;
    return next != end && next->index() + period == element ? next->level() : 0;
  }

  RESFED_HD uint32_t repeat_context(uint64_t gap) const {
    const uint32_t often = (repeats >= 1) + (repeats >= 3) + (repeats >= 8);
    return kRepeatBase + (often * 6 + min_of<uint32_t>(floor_log2(gap), 5)) * 4 + agreed;
  }
  RESFED_HD uint32_t agree_context() const { return kAgreeBase + agreed; }
  RESFED_HD void remember_repeat(bool repeat) {
    repeats = repeat ? min_of(repeats + 1, 15u) : repeats / 2;
  }
  RESFED_HD void remember_agreement(bool agrees) { agreed = agrees ? min_of(agreed + 1, 3u) : 0; }
};

// Whether it pays to tell a slice's period: signs follow those of the period before more often than
// those of the nonzero before.
template <class Symbol>
RESFED_HD bool rows_resemble(const Symbol* begin, const Symbol* end, uint64_t period) {
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
