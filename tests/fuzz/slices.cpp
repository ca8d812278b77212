// Sent and changed elements in lanes, without models: encoded, decoded, damaged; and whole payloads
// whose frame fits a model and whose tables are well formed, so that all executions reach the
// decoder of lanes.
#include <algorithm>

#include "cpu/lanes.hpp"
#include "harness.hpp"

using namespace fuzz;

namespace {

uint64_t below(Input& in, uint64_t limit) { return in.number(limit - 1); }
// At most `most`, small more often than not.
uint64_t any_size(Input& in, uint64_t most) {
  return std::min(most, in.number(most) >> in.byte() % 64);
}

// ---- Tables

FittedSet fitted_set(Input& in, Family family) {
  FittedSet set;
  set.base = static_cast<uint8_t>(below(in, kTrainedSets));
  FittedRow row;
  row.n_ratios = static_cast<uint8_t>(in.number(kSymbols));
  for (uint32_t s = 0; s < row.n_ratios; ++s) {
    row.ratios[s] =
        static_cast<int8_t>(static_cast<int>(in.number(2 * kMostHalfOctaves)) - kMostHalfOctaves);
  }
  const uint64_t period = 1 + in.number(3);
  for (uint32_t r = 0; r < kRows[family]; ++r) {
    if (r % period == 0) set.rows[r] = row;
    set.rows[r].source = r % 5 == 0 ? static_cast<uint8_t>(below(in, kTrainedSets)) : set.base;
  }
  return set;
}

bool put_flag(BitWriter& out, bool flag) {
  out.put(flag ? 1 : 0, 1);
  return flag;
}

// A bitmap of n rows or columns; returns how many are kept.
uint64_t put_bitmap(BitWriter& out, Input& in, uint64_t n) {
  if (!put_flag(out, n <= 100 && in.flag())) return n;
  uint64_t kept = 0;
  for (uint64_t i = 0; i < n; ++i) {
    const bool keep = in.byte() % 3 != 0;
    kept += put_flag(out, keep) ? 1 : 0;
  }
  return kept;
}

// The scan order of each matrix of two dimensions, sets and lanes as an encoder may choose them, or
// nearly. Changed elements have no matrices.
Bytes any_tables(Input& in, Part part, const MatrixShapes& matrices, uint64_t n_lanes) {
  BitWriter out;
  for (const MatrixShape& m : matrices) {
    if (m.row_length == 0 || !put_flag(out, in.flag())) continue;
    const bool columns = put_flag(out, in.flag());
    const uint64_t rows = put_bitmap(out, in, m.n_elems / m.row_length);
    const uint64_t cols = put_bitmap(out, in, m.row_length);
    const uint64_t length = columns ? rows : cols;
    if (!put_flag(out, length <= 100 && in.flag())) continue;
    for (uint64_t i = 0; i < length; ++i) put_flag(out, in.flag());
  }
  bool fitted[kFamilies] = {};
  for (uint32_t f = 0; f < kFamilies; ++f) {
    if (!has_family(part, static_cast<Family>(f))) continue;
    fitted[f] = in.flag();
    std::optional<FittedSet> set;
    if (fitted[f]) set = fitted_set(in, static_cast<Family>(f));
    write_set(out, static_cast<Family>(f), set);
  }
  uint32_t size = 0;
  const auto most_shift = static_cast<uint32_t>(in.flag() ? 20 : kMostShift);
  bool named[kFamilies] = {};
  const auto put_set = [&](Family family) {  // the set before is the fitted one at first
    const bool may_repeat = named[family] || fitted[family] || in.byte() == 0;
    if (put_flag(out, may_repeat && in.flag())) return;
    out.put(static_cast<uint32_t>(in.number(15)), 4);
    named[family] = true;
  };
  for (uint64_t l = 0; l < n_lanes; ++l) {
    if (!put_flag(out, in.flag())) {
      const bool blocks = part == Part::kLossy && in.flag();
      size = blocks ? static_cast<uint32_t>(2 + in.number(kMaxBlock - 2)) : 0;
      auto shift = static_cast<uint32_t>(in.number(most_shift));
      if (in.byte() == 0) size = static_cast<uint32_t>(in.number(127));  // any
      if (in.byte() == 0) shift = static_cast<uint32_t>(in.number(63));
      out.put(size, 7);
      out.put(shift, 6);
    }
    const auto most = size > 0 && in.byte() != 0 ? size - 1 : 127u;
    if (size > 0) {
      const unsigned n_bits = floor_log2((size - 1) | 1u) + 1;
      out.put(static_cast<uint32_t>(in.number(most)) & ((1u << n_bits) - 1), n_bits);
    }
    put_set(gap_family(part, size > 0));
    put_set(level_family(part, size > 0));
  }
  Bytes tables = out.finish();
  switch (in.byte()) {
    case 0:
      tables.push_back(in.byte());
      break;
    case 1:
      tables.resize(tables.size() - std::min<size_t>(tables.size(), 1 + in.number(3)));
      break;
    case 2:
      if (!tables.empty()) tables[below(in, tables.size())] ^= in.byte();
  }
  return tables;
}

// ---- Nonzeros alone

struct Coded {
  Frame frame;  // without a quantizer
  Bytes slices;
};
// The frame's fields of each kind of nonzero.
template <class Nonzero>
struct Fields;
template <>
struct Fields<SentSymbol> {
  static constexpr auto kTables = &Frame::tables;
  static constexpr auto kElements = &Frame::n_matrix, kNonzeros = &Frame::k_matrix;
};
template <>
struct Fields<ChangedElement> {
  static constexpr auto kTables = &Frame::change_tables;
  static constexpr auto kElements = &Frame::n_lossless, kNonzeros = &Frame::n_changed;
};

CodedLanes lanes_of(const std::vector<SentSymbol>& sent, const MatrixShapes& matrices,
                    unsigned lane_log2) {
  const auto coded = encode_nonzeros({sent, {}, {}}, matrices, lane_log2, ~0ull);
  check(coded.has_value(), "there is no bound");
  return *coded;
}
CodedLanes lanes_of(const std::vector<ChangedElement>& changes, const MatrixShapes&,
                    unsigned lane_log2) {
  return encode_changes(changes, lane_log2);
}

// Adds slices to what goes before.
template <class Nonzero>
void append(const CodedLanes& lanes, Coded* coded) {
  coded->frame.*Fields<Nonzero>::kTables = lanes.tables;
  for (const Slice& slice : lanes.slices) {
    coded->frame.slice_bytes.push_back(slice.size());
    coded->slices.insert(coded->slices.end(), slice.begin(), slice.end());
  }
}

template <class Nonzero>
Coded encode(const std::vector<Nonzero>& nonzeros, const MatrixShapes& matrices, uint64_t n_elems,
             unsigned lane_log2) {
  Coded coded;
  coded.frame.lane_log2 = lane_log2;
  coded.frame.*Fields<Nonzero>::kElements = n_elems;
  coded.frame.*Fields<Nonzero>::kNonzeros = nonzeros.size();
  append<Nonzero>(lanes_of(nonzeros, matrices, lane_log2), &coded);
  return coded;
}

void decode_into(const Coded& coded, const MatrixShapes& matrices, std::vector<SentSymbol>* out) {
  Scratch<SentSymbol> symbols;
  decode_nonzeros(coded.slices.data(), coded.frame, matrices, &symbols);
  out->assign(symbols.begin(), symbols.end());
}
void decode_into(const Coded& coded, const MatrixShapes&, std::vector<ChangedElement>* out) {
  *out = decode_changes(coded.slices.data(), coded.frame);
}

template <class Nonzero>
bool equal(const std::vector<Nonzero>& these, const std::vector<Nonzero>& those) {
  return std::equal(these.begin(), these.end(), those.begin(), those.end(), [](auto a, auto b) {
    return a.index() == b.index() && a.level() == b.level();
  });
}

// With every kernel and several threads; sound nonzeros, or one error.
template <class Nonzero>
Outcome decode(const Coded& coded, const MatrixShapes& matrices, std::vector<Nonzero>* nonzeros) {
  Outcome first;
  for (int threads = 1; threads <= kThreads; ++threads) {
    use_threads_and_kernels(threads);
    std::vector<Nonzero> own;
    const Outcome outcome = outcome_of([&] { decode_into(coded, matrices, &own); });
    if (threads > 1) check(same(outcome, first), "kernels and threads come to the same");
    if (threads > 1 && !outcome) check(equal(own, *nonzeros), "and decode the same");
    if (threads == 1) first = outcome, *nonzeros = own;
  }
  if (first) {
    check(first->code == Code::kBadTables || first->code == Code::kBadSlice, "a known error");
    return first;
  }
  check(nonzeros->size() == coded.frame.*Fields<Nonzero>::kNonzeros, "as many as were announced");
  uint64_t covered = 0;
  for (const Nonzero& s : *nonzeros) {
    check(s.index() >= covered && s.index() < coded.frame.*Fields<Nonzero>::kElements,
          "ascending and inside");
    check(s.level() != 0 && magnitude(s.level()) <= kMostLevel<Nonzero>, "a level");
    covered = s.index() + 1;
  }
  return first;
}

MatrixShapes shapes_from(Input& in, uint64_t* n_elems) {
  MatrixShapes matrices;
  uint64_t begin = 0;
  for (uint64_t n = 1 + in.number(3); n > 0; --n) {
    const uint64_t rows = 1 + any_size(in, (1ull << 34) - 1);
    const uint64_t most = std::max<uint64_t>((1ull << 36) / rows, 1);
    const uint64_t length = 1 + any_size(in, most - 1);
    matrices.push_back({begin, rows * length, in.byte() % 4 == 0 ? 0 : length, in.number(70)});
    begin += rows * length;
  }
  *n_elems = begin + in.number(1000);  // vectors follow
  return matrices;
}

// Signed levels of any size, of a lane or some of about the same.
template <class Nonzero>
class Levels {
 public:
  explicit Levels(Input& in) : style_(in.byte()) {
    const auto most = floor_log2(kMostLevel<Nonzero>);
    low_ = static_cast<unsigned>(any_size(in, most));
    high_ = low_ + static_cast<unsigned>(any_size(in, most - low_));
  }
  Nonzero at(uint64_t index) const {
    const uint64_t random = mix64(index + style_);
    const uint64_t log2 = low_ + random % (high_ - low_ + 1);
    const uint64_t below = style_ % 4 == 0 ? 0 : mix64(random) & ((1ull << log2) - 1);
    const bool negative = style_ % 3 == 0 ? random >> 63 != 0 : index / (1 + style_) % 2 != 0;
    const uint64_t level =
        std::min((uint64_t{1} << log2) + below, kMostLevel<Nonzero> - (negative ? 0 : 1));
    using Level = decltype(Nonzero().level());
    return {index, static_cast<Level>(negative ? 0 - level : level)};
  }

 private:
  uint64_t style_;
  unsigned low_, high_;
};

template <class Nonzero>
std::vector<Nonzero> nonzeros_from(Input& in, const MatrixShapes& matrices, uint64_t n_elems) {
  std::vector<uint64_t> indices;
  const uint64_t k = 1 + any_size(in, std::min<uint64_t>(2999, n_elems - 1));  // to two slices
  for (const MatrixShape& m : matrices) {
    if (m.row_length == 0 || !in.flag()) continue;  // some rows and columns of a matrix
    const uint64_t n_rows = m.n_elems / m.row_length;
    const uint64_t row = below(in, n_rows), col = below(in, m.row_length);
    const uint64_t by_row = 1 + in.number(2), by_col = 1 + in.number(2);
    for (uint64_t i = 0; i < 20; ++i) {
      for (uint64_t j = 0; j < 20; ++j) {
        indices.push_back(m.begin + (row + i * by_row) % n_rows * m.row_length +
                          (col + j * by_col) % m.row_length);
      }
    }
  }
  uint64_t at = below(in, n_elems);
  const uint64_t seed = in.byte(), spread = any_size(in, n_elems / k);
  while (indices.size() < k) {
    at = (at + 1 + (spread == 0 ? 0 : mix64(seed + indices.size()) % spread)) % n_elems;
    indices.push_back(at);
  }
  std::sort(indices.begin(), indices.end());
  indices.erase(std::unique(indices.begin(), indices.end()), indices.end());
  const Levels<Nonzero> levels(in);
  std::vector<Nonzero> nonzeros;
  for (const uint64_t index : indices) nonzeros.push_back(levels.at(index));
  return nonzeros;
}

template <class Nonzero>
void alone(Input& in, const MatrixShapes& matrices, uint64_t n_elems) {
  const std::vector<Nonzero> sent = nonzeros_from<Nonzero>(in, matrices, n_elems);
  const unsigned lane_log2 = CurrentFormat::kMinLaneLog2 + static_cast<unsigned>(in.number(6));
  constexpr auto kTables = Fields<Nonzero>::kTables;
  Coded coded;
  for (int threads = 1; threads <= kThreads; ++threads) {
    use_threads_and_kernels(threads);
    const Coded own = encode(sent, matrices, n_elems, lane_log2);
    if (threads > 1) {
      check(own.frame.*kTables == coded.frame.*kTables && own.slices == coded.slices,
            "kernels and threads make the same bytes");
    }
    coded = own;
  }
  std::vector<Nonzero> decoded;
  check(!decode(coded, matrices, &decoded), "what was encoded is decoded");
  check(equal(decoded, sent), "all nonzeros come back");

  const auto refused = [&](const Coded& damaged, const char* what) {
    check(decode(damaged, matrices, &decoded).has_value(), what);
  };
  Coded damaged = coded;
  (damaged.frame.*kTables).resize(below(in, (damaged.frame.*kTables).size()));
  refused(damaged, "tables that end too early");
  damaged = coded;
  (damaged.frame.*kTables).push_back(0);
  refused(damaged, "tables that end too late");
  damaged = coded;
  const uint64_t cut = 1 + below(in, damaged.frame.slice_bytes.back());
  damaged.frame.slice_bytes.back() -= cut;
  damaged.slices.resize(damaged.slices.size() - cut);
  refused(damaged, "a slice that ends too early");
  damaged = coded;
  damaged.frame.slice_bytes.back() += 2;
  damaged.slices.resize(damaged.slices.size() + 2);
  refused(damaged, "a slice that ends too late");
  damaged = coded;
  for (uint64_t n = 1 + in.number(2); n > 0; --n) {
    Bytes& bytes = in.flag() ? (damaged.frame.*kTables) : damaged.slices;
    bytes[below(in, bytes.size())] ^= static_cast<uint8_t>(1u << in.number(7));
  }
  decode(damaged, matrices, &decoded);
  damaged = coded;
  damaged.frame.*kTables =
      any_tables(in, part_of<Nonzero>, matrices, partition(sent.size(), lane_log2).n_parts);
  decode(damaged, matrices, &decoded);
}

// ---- Payloads

Quantizer quantizer_from(Input& in) {
  Quantizer q;
  q.threshold = float_from_bits(1 + static_cast<uint32_t>(in.number(kFloatMaxBits - 1)));
  q.step = float_from_bits(1 + static_cast<uint32_t>(in.number(kFloatMaxBits - 1)));
  q.n_offsets = static_cast<uint32_t>(in.number(kMaxOffsets));
  for (uint32_t i = 0; i < q.n_offsets; ++i) q.offsets[i] = in.byte();
  return q;
}

// Tables and slices of any bytes for the lanes.
template <class Nonzero>
void append_any(Input& in, const MatrixShapes& matrices, uint64_t n_lanes, Coded* coded) {
  CodedLanes lanes;
  lanes.tables = any_tables(in, part_of<Nonzero>, matrices, n_lanes);
  for (uint64_t first = 0; first < n_lanes; first += kLanesOfSlice) {
    const size_t n_states = std::min<uint64_t>(kLanesOfSlice, n_lanes - first);
    Slice& slice = lanes.slices.emplace_back(4 * n_states + 2 * in.number(1023));
    for (size_t i = 0; i < slice.size(); ++i) {
      // States are large enough, so that the lanes are decoded.
      slice[i] = static_cast<uint8_t>(in.byte() | (i < 4 * n_states && i % 4 == 2 ? 1 : 0));
    }
  }
  append<Nonzero>(lanes, coded);
}

void payload(Input& in) {
  const size_t which = in.byte() % layouts().size();
  const Layout& layout = layouts()[which];
  Coded coded;
  Frame& f = coded.frame;
  f.lane_log2 = CurrentFormat::kMinLaneLog2 + static_cast<unsigned>(in.number(2));
  size_t n_vectors = 0;
  MatrixShapes matrices;
  for (const Shape& shape : layout) {
    uint64_t& n = shape.role == Role::kMatrix   ? f.n_matrix
                  : shape.role == Role::kVector ? f.n_vector
                                                : f.n_lossless;
    if (shape.role == Role::kMatrix && shape.n_elems() > 0) {
      matrices.push_back({n, shape.n_elems(), tensor_of(shape).row_length, 0});
    }
    n += shape.n_elems();
    n_vectors += shape.role == Role::kVector && shape.n_elems() > 0 ? 1 : 0;
  }
  if (f.n_lossy() > 0 && in.flag()) {  // nonzeros of any levels
    const auto sent = nonzeros_from<SentSymbol>(in, matrices, f.n_lossy());
    f.k_vector = static_cast<uint64_t>(std::count_if(
        sent.begin(), sent.end(), [&](SentSymbol s) { return s.index() >= f.n_matrix; }));
    f.k_matrix = sent.size() - f.k_vector;
    append<SentSymbol>(lanes_of(sent, matrices, f.lane_log2), &coded);
  } else {
    f.k_matrix = in.number(f.n_matrix);
    f.k_vector = in.number(f.n_vector);
    append_any<SentSymbol>(in, matrices, f.lanes().n_parts, &coded);
  }
  if (f.n_lossless > 0 && in.flag()) {  // changes that their elements may be too narrow for
    const auto changes = nonzeros_from<ChangedElement>(in, {}, f.n_lossless);
    f.n_changed = changes.size();
    append<ChangedElement>(lanes_of(changes, {}, f.lane_log2), &coded);
  } else {
    f.n_changed = in.number(f.n_lossless);
    append_any<ChangedElement>(in, {}, f.lanes_of_changes().n_parts, &coded);
  }
  f.matrix = quantizer_from(in);
  f.vector = quantizer_from(in);
  for (size_t i = 0; f.k_vector > 0 && i < n_vectors; ++i) {
    f.exponents.push_back(static_cast<int8_t>(static_cast<int>(in.number(240)) - 120));
  }
  ByteWriter out;
  write_frame(f, out);
  Bytes bytes = out.bytes();
  bytes.insert(bytes.end(), coded.slices.begin(), coded.slices.end());
  bytes.resize(bytes.size() + kChecksumBytes);
  seal(bytes);
  decode_for(which, bytes, f.digest);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t n_bytes) {
  Input in(data, n_bytes);
  uint64_t n_elems = 0;
  switch (in.number(2)) {
    case 0: {
      const MatrixShapes matrices = shapes_from(in, &n_elems);
      alone<SentSymbol>(in, matrices, n_elems);
      break;
    }
    case 1:
      alone<ChangedElement>(in, {}, 1 + any_size(in, (1ull << 61) - 2));
      break;
    default:
      payload(in);
  }
  return 0;
}
