// Slices: consecutive symbols, a bounded number of them, coded with fresh contexts and an rANS
// state of their own, so that each slice can be coded by another thread. A slice in a payload is
//
//   [32 bits] final encoder state (low word first), then 16-bit words in the order of reading.
//
// Memory contract: the coders below never allocate. A decoder reads only inside [next, end) and
// reports underrun instead of reading past it.
#pragma once

#include "entropy/partition.hpp"
#include "entropy/probability.hpp"
#include "entropy/rans.hpp"
#include "host_device.hpp"

namespace resfed {

constexpr unsigned kChangesLog2 = 11;  // changes of a slice, nominally

// A decision as the encoder keeps it between the forward and the backward pass.
using Decision = Slots;

template <class Sink>
struct RecordingCoder {
  Probability* contexts;
  Sink& sink;

  RESFED_HD bool code_bit(uint32_t context, bool bit) {
    Probability& p = contexts[context];
    if (bit) {  // as in DecodingCoder
      sink.put(slots_of_bit(true, prob_of_one(p)));
      update(p, true);
    } else {
      sink.put(slots_of_bit(false, prob_of_one(p)));
      update(p, false);
    }
    return bit;
  }
  RESFED_HD uint32_t code_bypass(uint32_t number, unsigned n_bits) {
    sink.put(slots_of_bypass(number, n_bits));
    return number;
  }
};

struct DecodingCoder {
  Probability* contexts;
  uint32_t state;
  const uint8_t* next;
  const uint8_t* end;
  bool underrun = false;

  RESFED_HD bool code_bit(uint32_t context, bool) {
    Probability& p = contexts[context];
    const bool bit = rans_take(state, prob_of_one(p));
    if (bit) {  // all that follows on either side; else compilers branch, and select once more
      refill();
      update(p, true);
    } else {
      refill();
      update(p, false);
    }
    return bit;
  }
  RESFED_HD uint32_t code_bypass(uint32_t, unsigned n_bits) {
    const uint32_t number = rans_take_bypass(state, n_bits);
    refill();
    return number;
  }

  // True when the stream ended exactly where its encoder began.
  RESFED_HD bool finished() const { return !underrun && next == end && state == kRansLow; }

 private:
  RESFED_HD void refill() {
    if (!rans_needs_word(state)) return;
    if (end - next < 2) {
      underrun = true;
      state = kRansLow;
    } else {
      state = rans_refilled(state, load_le<uint16_t>(next));
      next += 2;
    }
  }
};

constexpr size_t kSliceStateBytes = 4;

// The backward pass over recorded decisions, one at a time. `end` is one past the buffer, which
// must hold 2 * left + kSliceStateBytes bytes.
struct SliceWriter {
  const Decision* decisions = nullptr;
  size_t left = 0;
  uint8_t* end = nullptr;
  uint32_t state = kRansLow;

  RESFED_HD void step() {
    uint16_t word;
    if (rans_put(state, decisions[--left], &word)) {
      end -= 2;
      store_le(end, word);
    }
  }
  // The rest of the decisions and the state; returns the first byte of the slice.
  RESFED_HD uint8_t* finish() {
    while (left > 0) step();
    end -= kSliceStateBytes;
    store_le(end, state);
    return end;
  }
};

// Interleaves the steps of independent writers, as long as all of them have some left.
template <size_t kWriters>
RESFED_HD void step_together(SliceWriter (&writers)[kWriters]) {
  size_t n = writers[0].left;
  for (const SliceWriter& writer : writers) n = min_of(n, writer.left);
  for (; n > 0; --n) {
    for (SliceWriter& writer : writers) writer.step();
  }
}

// Opens a slice of n_bytes. False when it cannot hold a state, or holds half a word.
RESFED_HD bool open_slice(const uint8_t* slice, size_t n_bytes, Probability* contexts,
                          DecodingCoder* coder) {
  if (n_bytes < kSliceStateBytes || n_bytes % 2 != 0) return false;
  *coder = {contexts, load_le<uint32_t>(slice), slice + kSliceStateBytes, slice + n_bytes};
  return coder->state >= kRansLow;
}

}  // namespace resfed
