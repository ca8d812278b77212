#include "cpu/slice.hpp"

#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "core/initial_states.hpp"
#include "cpu/threads.hpp"

namespace resfed {
namespace {

// Decoding a slice of 2048 nonzeros takes about as long as making a thread, which on a busy machine
// may wait for its turn much longer.
constexpr size_t kSlicesPerThread = 8;

constexpr bool all_stay_uncertain() {
  for (const InitialState state : kInitialSliceStates) {
    if (!stays_uncertain(state)) return false;
  }
  return stays_uncertain(kInitialLosslessState);
}
static_assert(all_stay_uncertain());

struct DecisionBuffer {
  std::vector<Decision> decisions;
  void put(Decision d) { decisions.push_back(d); }
};

Nonzero to_nonzero(const SentSymbol& s, uint64_t gap) {
  return {gap, static_cast<uint32_t>(std::abs(s.level)), s.level > 0};
}

uint64_t row_length_at(const RowLengths& rows, uint64_t index) {
  const auto after = std::upper_bound(rows.begin(), rows.end(), index,
                                      [](uint64_t i, const RowLength& r) { return i < r.begin; });
  return after == rows.begin() ? 0 : after[-1].length;
}

// The period that a slice tells: the row length where its middle nonzero lies, if that pays.
uint64_t choose_period(const SentSymbol* begin, const SentSymbol* end, const RowLengths& rows) {
  const uint64_t length = row_length_at(rows, begin[(end - begin) / 2].index);
  return length >= 2 && length >> 32 == 0 && rows_resemble(begin, end, length) ? length : 0;
}

// How each kind of symbol is coded: contexts, history, number <-> decisions. `begin` comes once,
// with the place of the slice's first symbol; of `code`'s symbols all before it must stand there,
// with indices from any common origin.
struct LossyCode {
  using Symbol = SentSymbol;
  static constexpr uint32_t kContexts = kSliceContexts;
  static InitialState initial(uint32_t context) { return kInitialSliceStates[context]; }
  using Parameter = uint64_t;  // the period
  History history;
  Above<Symbol> above;

  static Parameter choose(const Symbol* begin, const Symbol* end, const RowLengths& rows) {
    return choose_period(begin, end, rows);
  }
  template <class Coder>
  void begin(Coder& coder, const Symbol* first, Parameter period) {
    above = {first, first, first, code_period(coder, period)};
  }
  template <class Coder>
  bool code(Coder& coder, uint64_t* gap, Symbol* symbol, const Symbol* place) {
    Nonzero nonzero = to_nonzero(*symbol, *gap);
    NoAbove none;
    above.end = place;
    const bool good = above.period != 0 ? code_nonzero(coder, history, above, nonzero)
                                        : code_nonzero(coder, history, none, nonzero);
    if (!good || nonzero.level > kMaxLevel) return false;
    *gap = nonzero.gap;
    const int32_t level = static_cast<int32_t>(nonzero.level);
    symbol->level = nonzero.positive ? level : -level;
    return true;
  }
};

struct LosslessCode {
  using Symbol = ChangedElement;
  static constexpr uint32_t kContexts = kLosslessContexts;
  static InitialState initial(uint32_t) { return kInitialLosslessState; }
  struct Parameter {};
  LosslessHistory history;

  static Parameter choose(const Symbol*, const Symbol*, const RowLengths&) { return {}; }
  template <class Coder>
  void begin(Coder&, const Symbol*, Parameter) {}
  template <class Coder>
  bool code(Coder& coder, uint64_t* gap, Symbol* symbol, const Symbol*) {
    Change change{*gap, symbol->change};
    if (!code_change(coder, history, change)) return false;
    *gap = change.gap;
    symbol->change = change.change;
    return true;
  }
};

template <class Code>
void reset(Probability* contexts) {
  for (uint32_t i = 0; i < Code::kContexts; ++i)
    contexts[i] = initial_probability(Code::initial(i));
}

// The symbols [begin, end) through a coder; the gap of the first is counted from the symbol before.
template <class Code, class Coder>
void encode_symbols(const std::vector<typename Code::Symbol>& symbols, const RowLengths& rows,
                    uint64_t begin, uint64_t end, Coder& coder) {
  const auto* const first = symbols.data();
  Code code;
  code.begin(coder, first + begin, Code::choose(first + begin, first + end, rows));
  for (uint64_t i = begin; i < end; ++i) {
    typename Code::Symbol symbol = symbols[i];
    uint64_t gap = i == 0 ? symbol.index + 1 : symbol.index - symbols[i - 1].index;
    code.code(coder, &gap, &symbol, first + i);
  }
}

template <class Code>
std::vector<Slice> encode_all(const std::vector<typename Code::Symbol>& symbols,
                              const RowLengths& rows, unsigned slice_log2) {
  const Partition p = partition(symbols.size(), slice_log2);
  std::vector<Slice> slices(p.n_slices);
  parallel_for(
      slices.size(),
      [&](size_t s) {
        DecisionBuffer buffer;
        buffer.decisions.reserve(8 * (slice_begin(p, s + 1) - slice_begin(p, s)));
        Probability contexts[Code::kContexts];
        reset<Code>(contexts);
        RecordingCoder<DecisionBuffer> coder{contexts, buffer};
        encode_symbols<Code>(symbols, rows, slice_begin(p, s), slice_begin(p, s + 1), coder);
        const auto& decisions = buffer.decisions;
        Slice bytes(2 * decisions.size() + kSliceStateBytes);
        uint8_t* const end = bytes.data() + bytes.size();
        const uint8_t* const begin = encode_decisions(decisions.data(), decisions.size(), end);
        slices[s].assign(begin, static_cast<const uint8_t*>(end));
      },
      kSlicesPerThread);
  return slices;
}

// Slices decode to gaps and know only where they start relative to the slice before, so positions
// are relative first and made absolute once all slices are through.
template <class Code>
void decode_all(const uint8_t* slices, const uint64_t* lengths, Partition p, uint64_t n_elems,
                uint64_t first_slice, std::vector<typename Code::Symbol>* result) {
  std::vector<uint64_t> offsets(p.n_slices + 1, 0), bases(p.n_slices + 1, 0);
  for (uint64_t s = 0; s < p.n_slices; ++s) offsets[s + 1] = offsets[s] + lengths[s];
  result->resize(p.n_symbols);
  auto* const symbols = result->data();
  parallel_for(
      p.n_slices,
      [&](size_t s) {
        const Failure bad{resfed::Code::kBadSlice, first_slice + s};
        Probability contexts[Code::kContexts];
        reset<Code>(contexts);
        DecodingCoder coder;
        if (!open_slice(slices + offsets[s], lengths[s], contexts, &coder)) throw bad;
        Code code;
        code.begin(coder, symbols + slice_begin(p, s), {});
        uint64_t covered = 0;  // index + 1, relative to the end of the slice before
        for (uint64_t i = slice_begin(p, s); i < slice_begin(p, s + 1); ++i) {
          uint64_t gap = 1;
          if (!code.code(coder, &gap, &symbols[i], &symbols[i]) || coder.underrun ||
              gap > n_elems - covered)
            throw bad;
          covered += gap;
          symbols[i].index = covered - 1;
        }
        if (!coder.finished()) throw bad;
        bases[s + 1] = covered;
      },
      kSlicesPerThread);
  for (uint64_t s = 0; s < p.n_slices; ++s) {
    if (bases[s + 1] > n_elems - bases[s]) throw Failure{resfed::Code::kBadSlice, first_slice + s};
    bases[s + 1] += bases[s];
  }
  parallel_for(p.n_slices, [&](size_t s) {
    for (uint64_t i = slice_begin(p, s); i < slice_begin(p, s + 1); ++i)
      symbols[i].index += bases[s];
  });
}

}  // namespace

std::vector<Slice> encode_slices(const std::vector<SentSymbol>& symbols, const RowLengths& rows,
                                 unsigned slice_log2) {
  return encode_all<LossyCode>(symbols, rows, slice_log2);
}

std::vector<Slice> encode_slices(const std::vector<ChangedElement>& changes, unsigned slice_log2) {
  return encode_all<LosslessCode>(changes, {}, slice_log2);
}

void decode_symbols(const uint8_t* slices, const uint64_t* lengths, Partition p, uint64_t n_elems,
                    std::vector<SentSymbol>* symbols) {
  decode_all<LossyCode>(slices, lengths, p, n_elems, 0, symbols);
}

std::vector<ChangedElement> decode_changes(const uint8_t* slices, const uint64_t* lengths,
                                           Partition p, uint64_t n_elems, uint64_t first_slice) {
  std::vector<ChangedElement> changes;
  decode_all<LosslessCode>(slices, lengths, p, n_elems, first_slice, &changes);
  return changes;
}

std::vector<uint16_t> trace_decisions(const std::vector<SentSymbol>& symbols,
                                      const RowLengths& rows, unsigned slice_log2,
                                      std::vector<uint64_t>* ends) {
  struct Tracer {
    std::vector<uint16_t>& decisions;
    bool decide(uint32_t context, bool bit) {
      decisions.push_back(static_cast<uint16_t>(context << 1 | (bit ? 1u : 0u)));
      return bit;
    }
    bool decide_raw(bool bit) { return bit; }
  };
  std::vector<uint16_t> decisions;
  Tracer tracer{decisions};
  const Partition p = partition(symbols.size(), slice_log2);
  for (uint64_t s = 0; s < p.n_slices; ++s) {
    encode_symbols<LossyCode>(symbols, rows, slice_begin(p, s), slice_begin(p, s + 1), tracer);
    ends->push_back(decisions.size());
  }
  return decisions;
}

}  // namespace resfed
