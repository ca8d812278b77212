#include "cpu/slice.hpp"

#include <algorithm>
#include <atomic>
#include <numeric>

#include "cpu/threads.hpp"

namespace resfed {
namespace {

// Decoding a slice of 2048 nonzeros takes about as long as making a thread, which on a busy machine
// may take much longer.
constexpr size_t kSlicesPerThread = 8;

// Slices that one task encodes: each step of the backward pass waits for the one before it, so
// several of them keep the processor busy.
constexpr size_t kInterleaved = 4;

// Decisions of a slice. It grows once per symbol. The recorder keeps the write position, so that it
// stays in a register.
class DecisionBuffer {
 public:
  explicit DecisionBuffer(size_t expected) : memory_(expected + kMaxPerSymbol) {}
  Decision* data() { return memory_.data(); }
  const Decision* data() const { return memory_.data(); }
  size_t size() const { return memory_.size(); }

  Decision* with_room(Decision* next) {
    const size_t n = static_cast<size_t>(next - memory_.data());
    if (memory_.size() - n < kMaxPerSymbol) memory_.resize(2 * memory_.size());
    return memory_.data() + n;
  }
  void end_at(const Decision* next) { memory_.resize(static_cast<size_t>(next - memory_.data())); }

 private:
  static constexpr size_t kMaxPerSymbol = CurrentFormat::kMaxDecisionsPerSymbol;
  Scratch<Decision> memory_;
};

struct NextDecision {
  Decision* next;
  void put(Decision d) { *next++ = d; }
};

struct Recorder : RecordingCoder<NextDecision> {
  DecisionBuffer& buffer;
  void begin_symbol() { sink.next = buffer.with_room(sink.next); }
};

// How each kind of symbol is coded: contexts, history, number <-> decisions. `with_code` codes what
// comes before the symbols and calls body(code) with a code for all of them. Those of the slice
// before the one that is coded must stand in front of it, with indices from any common origin.
template <class Format>
struct LossyCode {
  using Symbol = SentSymbol;
  using Parameter = SlicePattern;
  static constexpr uint32_t kContexts = Format::Contexts::kSlice;
  static constexpr auto initial = Format::initial_slice_state;

  static Parameter choose(const Symbol* begin, const Symbol* end, const RowLengths& rows) {
    return choose_pattern<Format>(begin, end, rows.data(), rows.size());
  }
  template <class Coder, class Body>
  static void with_code(Coder& coder, const Symbol* first, Parameter pattern, Body body) {
    with_nonzero_code<Format>(coder, first, pattern, body);
  }
};

template <class Format>
struct LosslessCode {
  using Symbol = ChangedElement;
  struct Parameter {};
  static constexpr uint32_t kContexts = Format::Contexts::kLossless;
  static constexpr auto initial = Format::initial_lossless_state;
  LosslessHistory history;

  static Parameter choose(const Symbol*, const Symbol*, const RowLengths&) { return {}; }
  template <class Coder, class Body>
  static void with_code(Coder&, const Symbol*, Parameter, Body body) {
    body(LosslessCode());
  }
  template <class Coder>
  void encode(Coder& coder, uint64_t gap, const Symbol& symbol) {
    Change change{gap, symbol.change};
    code_change<Format>(coder, history, change);
  }
  template <class Coder>
  bool decode(Coder& coder, uint64_t before, uint64_t n_elems, Symbol* symbol) {
    Change change{};
    if (!code_change<Format>(coder, history, change) || change.gap > n_elems - before) return false;
    *symbol = {before + change.gap - 1, change.change};
    return true;
  }
};

// Where every slice starts, ready to be copied.
template <class Code>
struct Contexts {
  Probability of[Code::kContexts];
  constexpr Contexts() : of() {
    for (uint32_t i = 0; i < Code::kContexts; ++i) of[i] = initial_probability(Code::initial(i));
  }
};
template <class Code>
constexpr Contexts<Code> kInitialContexts;

uint64_t index_of(const SentSymbol& symbol) { return symbol.index(); }
uint64_t index_of(const ChangedElement& change) { return change.index; }

// Several lists as one.
struct Concatenation {
  SentSymbols lists[3];
  size_t size() const { return lists[0].size() + lists[1].size() + lists[2].size(); }
  const SentSymbol& operator[](size_t i) const {
    const SentSymbols* list = lists;
    while (i >= list->size()) i -= (list++)->size();
    return (*list)[i];
  }
};

// The symbols [begin, end) as one array; `copy` holds them if they come from several lists.
const SentSymbol* contiguous(const Concatenation& symbols, uint64_t begin, uint64_t end,
                             Scratch<SentSymbol>* copy) {
  uint64_t first = 0;  // of the list, among all
  for (const SentSymbols list : symbols.lists) {
    if (begin >= first && end <= first + list.size()) return list.data() + (begin - first);
    first += list.size();
  }
  for (uint64_t i = begin; i < end; ++i) copy->push_back(symbols[i]);
  return copy->data();
}
const ChangedElement* contiguous(const std::vector<ChangedElement>& changes, uint64_t begin,
                                 uint64_t, Scratch<SentSymbol>*) {
  return changes.data() + begin;
}

// The symbols [begin, end) through a coder; the gap of the first is counted from the symbol before.
template <class Code, class Symbols, class Coder>
void encode_symbols(const Symbols& symbols, const RowLengths& rows, uint64_t begin, uint64_t end,
                    Coder& coder) {
  Scratch<SentSymbol> copy;
  const auto* const first = contiguous(symbols, begin, end, &copy);
  const auto* const last = first + (end - begin);
  const uint64_t before = begin == 0 ? 0 : index_of(symbols[begin - 1]) + 1;
  Code::with_code(coder, first, Code::choose(first, last, rows), [&](auto code) {
    uint64_t covered = before;
    for (const auto* symbol = first; symbol != last; ++symbol) {
      const uint64_t next = index_of(*symbol) + 1;
      coder.begin_symbol();
      code.encode(coder, next - covered, *symbol);
      covered = next;
    }
  });
}

template <class Code, class Symbols>
DecisionBuffer record(const Symbols& symbols, const RowLengths& rows, uint64_t begin,
                      uint64_t end) {
  DecisionBuffer buffer(16 * (end - begin));
  Contexts<Code> contexts = kInitialContexts<Code>;
  NextDecision sink{buffer.data()};
  Recorder coder{{contexts.of, sink}, buffer};
  encode_symbols<Code>(symbols, rows, begin, end, coder);
  buffer.end_at(sink.next);
  return buffer;
}

// The backward passes of up to kInterleaved slices, interleaved as long as all have decisions left.
void write_slices(const std::vector<DecisionBuffer>& decisions, Slice* slices) {
  Scratch<uint8_t> bytes[kInterleaved];
  SliceWriter writers[kInterleaved];
  for (size_t i = 0; i < decisions.size(); ++i) {
    bytes[i].resize(2 * decisions[i].size() + kSliceStateBytes);
    writers[i] = {decisions[i].data(), decisions[i].size(), bytes[i].data() + bytes[i].size()};
  }
  if (decisions.size() == kInterleaved) step_together(writers);
  for (size_t i = 0; i < decisions.size(); ++i) {
    slices[i].assign(writers[i].finish(), bytes[i].data() + bytes[i].size());
  }
}

template <class Code, class Symbols>
std::optional<std::vector<Slice>> encode_all(const Symbols& symbols, const RowLengths& rows,
                                             unsigned slice_log2, uint64_t max_bytes) {
  const Partition p = partition(symbols.size(), slice_log2);
  std::vector<Slice> slices(p.n_slices);
  std::atomic<uint64_t> n_bytes{0};
  parallel_for((p.n_slices + kInterleaved - 1) / kInterleaved,
               [&](size_t task) {
                 const uint64_t first = task * kInterleaved;
                 const size_t n = std::min<uint64_t>(kInterleaved, p.n_slices - first);
                 if (n_bytes.load(std::memory_order_relaxed) > max_bytes) return;
                 std::vector<DecisionBuffer> decisions;
                 for (uint64_t s = first; s < first + n; ++s) {
                   decisions.push_back(
                       record<Code>(symbols, rows, slice_begin(p, s), slice_begin(p, s + 1)));
                 }
                 write_slices(decisions, slices.data() + first);
                 uint64_t written = 0;
                 for (uint64_t s = first; s < first + n; ++s) written += slices[s].size();
                 n_bytes.fetch_add(written, std::memory_order_relaxed);
               },
               kSlicesPerThread / kInterleaved);
  if (n_bytes > max_bytes) return std::nullopt;
  return slices;
}

void move_up(SentSymbol& symbol, uint64_t distance) { symbol.move_up(distance); }
void move_up(ChangedElement& change, uint64_t distance) { change.index += distance; }

// Slices decode to gaps and know only where they start relative to the slice before, so positions
// are relative first and made absolute once all slices are through.
// `slices` is the concatenation of all slices, `lengths` theirs in bytes; `first_slice` only
// numbers errors.
template <class Code, class Symbols>
void decode_all(const uint8_t* slices, const uint64_t* lengths, Partition p, uint64_t n_elems,
                uint64_t first_slice, Symbols* result) {
  std::vector<uint64_t> offsets(p.n_slices + 1, 0), bases(p.n_slices + 1, 0);
  for (uint64_t s = 0; s < p.n_slices; ++s) offsets[s + 1] = offsets[s] + lengths[s];
  result->resize(p.n_symbols);
  auto* const symbols = result->data();
  parallel_for(
      p.n_slices,
      [&](size_t s) {
        const Failure bad{resfed::Code::kBadSlice, first_slice + s};
        Contexts<Code> contexts = kInitialContexts<Code>;
        DecodingCoder coder;
        if (!open_slice(slices + offsets[s], lengths[s], contexts.of, &coder)) throw bad;
        auto* const first = symbols + slice_begin(p, s);
        auto* const last = symbols + slice_begin(p, s + 1);
        Code::with_code(coder, first, {}, [&, n_elems](auto code) {
          DecodingCoder mine = coder;  // in registers
          uint64_t covered = 0;        // index + 1, relative to the end of the slice before
          for (auto* symbol = first; symbol != last; ++symbol) {
            if (!code.decode(mine, covered, n_elems, symbol) || mine.underrun) throw bad;
            covered = index_of(*symbol) + 1;
          }
          if (!mine.finished()) throw bad;
          bases[s + 1] = covered;
        });
      },
      kSlicesPerThread);
  for (uint64_t s = 0; s < p.n_slices; ++s) {
    if (bases[s + 1] > n_elems - bases[s]) throw Failure{resfed::Code::kBadSlice, first_slice + s};
    bases[s + 1] += bases[s];
  }
  parallel_for(
      p.n_slices,
      [&](size_t s) {
        for (uint64_t i = slice_begin(p, s); i < slice_begin(p, s + 1); ++i) {
          move_up(symbols[i], bases[s]);
        }
      },
      kSlicesPerThread);
}

}  // namespace

std::optional<std::vector<Slice>> encode_slices(SentSymbols matrix, SentSymbols vector,
                                                SentSymbols dense, const RowLengths& rows,
                                                unsigned slice_log2, uint64_t max_bytes) {
  return encode_all<LossyCode<CurrentFormat>>(Concatenation{{matrix, vector, dense}}, rows,
                                              slice_log2, max_bytes);
}

std::vector<Slice> encode_slices(const std::vector<ChangedElement>& changes, unsigned slice_log2) {
  return *encode_all<LosslessCode<CurrentFormat>>(changes, {}, slice_log2, ~uint64_t{0});
}

void decode_symbols(const uint8_t* payload, const Frame& frame, Scratch<SentSymbol>* symbols) {
  with_format(frame.version, [&]<class Format>(Format) {
    decode_all<LossyCode<Format>>(payload + frame.slices_offset, frame.slice_bytes.data(),
                                  frame.lossy_partition(), frame.n_lossy(), 0, symbols);
  });
}

std::vector<ChangedElement> decode_changes(const uint8_t* payload, const Frame& frame) {
  std::vector<ChangedElement> changes;
  const uint64_t n_lossy = frame.lossy_partition().n_slices;
  const uint64_t* const lengths = frame.slice_bytes.data();
  const uint8_t* const slices =
      payload + frame.slices_offset + std::accumulate(lengths, lengths + n_lossy, uint64_t{0});
  with_format(frame.version, [&]<class Format>(Format) {
    decode_all<LosslessCode<Format>>(slices, lengths + n_lossy, frame.lossless_partition(),
                                     frame.n_lossless, n_lossy, &changes);
  });
  return changes;
}

std::vector<uint16_t> trace_decisions(SentSymbols symbols, const RowLengths& rows,
                                      unsigned slice_log2, std::vector<uint64_t>* ends) {
  struct Tracer {
    std::vector<uint16_t>& decisions;
    void begin_symbol() {}
    bool code_bit(uint32_t context, bool bit) { return code_bit_branchless(context, bit) != 0; }
    uint32_t code_bit_branchless(uint32_t context, uint32_t bit) {
      decisions.push_back(static_cast<uint16_t>(context << 1 | bit));
      return bit;
    }
    uint32_t code_bypass(uint32_t number, unsigned) { return number; }
  };
  std::vector<uint16_t> decisions;
  Tracer tracer{decisions};
  const Partition p = partition(symbols.size(), slice_log2);
  for (uint64_t s = 0; s < p.n_slices; ++s) {
    const Concatenation all{symbols, {}};
    encode_symbols<LossyCode<CurrentFormat>>(all, rows, slice_begin(p, s), slice_begin(p, s + 1),
                                             tracer);
    ends->push_back(decisions.size());
  }
  return decisions;
}

}  // namespace resfed
