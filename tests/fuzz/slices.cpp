// Nonzeros in lanes, without models: encoded, decoded, damaged; and whole payloads whose frame fits
// a model and whose tables are well formed, so that all executions reach the decoder of lanes.
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
// nearly.
Bytes any_tables(Input& in, const MatrixShapes& matrices, uint64_t n_lanes) {
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
    fitted[f] = in.flag();
    std::optional<FittedSet> set;
    if (fitted[f]) set = fitted_set(in, static_cast<Family>(f));
    write_set(out, static_cast<Family>(f), set);
  }
  uint32_t size = 0;
  bool named[kFamilies] = {};
  const auto put_set = [&](Family family) {  // the set before is the fitted one at first
    const bool may_repeat = named[family] || fitted[family] || in.byte() == 0;
    if (put_flag(out, may_repeat && in.flag())) return;
    out.put(static_cast<uint32_t>(in.number(15)), 4);
    named[family] = true;
  };
  for (uint64_t l = 0; l < n_lanes; ++l) {
    if (!put_flag(out, in.flag())) {
      size = in.flag() ? static_cast<uint32_t>(2 + in.number(kMaxBlock - 2)) : 0;
      if (in.byte() == 0) size = static_cast<uint32_t>(in.number(127));  // any
      out.put(size, 7);
    }
    const auto most = size > 0 && in.byte() != 0 ? size - 1 : 127u;
    if (size > 0) {
      const unsigned n_bits = floor_log2((size - 1) | 1u) + 1;
      out.put(static_cast<uint32_t>(in.number(most)) & ((1u << n_bits) - 1), n_bits);
    }
    put_set(gap_family(size > 0));
    put_set(level_family(size > 0));
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

constexpr const char* kVectors = "avx512";

struct Coded {
  Frame frame;  // without a quantizer
  Bytes slices;
};

Coded encode(const std::vector<SentSymbol>& sent, const MatrixShapes& matrices, uint64_t n_elems,
             unsigned lane_log2) {
  const auto coded = encode_nonzeros({sent, {}, {}}, matrices, lane_log2, ~0ull);
  check(coded.has_value(), "there is no bound");
  Coded result;
  result.frame.lane_log2 = lane_log2;
  result.frame.n_matrix = n_elems;
  result.frame.k_matrix = sent.size();
  result.frame.tables = coded->tables;
  for (const Slice& slice : coded->slices) {
    result.frame.slice_bytes.push_back(slice.size());
    result.slices.insert(result.slices.end(), slice.begin(), slice.end());
  }
  return result;
}

// With every kernel and several threads; sound symbols, or one error.
Outcome decode(const Coded& coded, const MatrixShapes& matrices, Scratch<SentSymbol>* symbols) {
  Outcome first;
  for (int threads = 1; threads <= 3; ++threads) {
    set_num_threads(threads);
    choose_kernels(threads == 2 ? kVectors : "scalar");
    Scratch<SentSymbol> own;
    const Outcome outcome =
        outcome_of([&] { decode_nonzeros(coded.slices.data(), coded.frame, matrices, &own); });
    if (threads > 1) check(same(outcome, first), "kernels and threads come to the same");
    const auto equal = [](SentSymbol a, SentSymbol b) {
      return a.index() == b.index() && a.level() == b.level();
    };
    if (threads > 1 && !outcome) {
      check(std::equal(own.begin(), own.end(), symbols->begin(), symbols->end(), equal),
            "kernels and threads decode the same");
    }
    if (threads == 1) first = outcome, *symbols = own;
  }
  if (first) {
    check(first->code == Code::kBadTables || first->code == Code::kBadSlice, "a known error");
    return first;
  }
  check(symbols->size() == coded.frame.k_matrix, "as many as were announced");
  uint64_t covered = 0;
  for (const SentSymbol& s : *symbols) {
    check(s.index() >= covered && s.index() < coded.frame.n_matrix, "ascending and inside");
    const auto level = static_cast<int32_t>(kMaxLevel);
    check(s.level() != 0 && s.level() >= -level && s.level() <= level, "a level");
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

std::vector<SentSymbol> symbols_from(Input& in, const MatrixShapes& matrices, uint64_t n_elems) {
  std::vector<uint64_t> indices;
  const uint64_t k = 1 + any_size(in, 2999);  // up to two slices
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
  std::vector<SentSymbol> sent;
  const uint64_t style = in.byte();
  const uint64_t most = style % 4 == 0 ? kMaxLevel : 1 + style % 32 * (style / 64 + 1);
  for (const uint64_t index : indices) {
    const uint64_t random = mix64(index + style);
    const auto level = static_cast<int32_t>(
        std::min<uint64_t>(1 + (random % most >> random / most % 24), kMaxLevel));
    const bool negative = style % 3 == 0 ? random >> 63 != 0 : index / (1 + style) % 2 != 0;
    sent.emplace_back(index, negative ? -level : level);
  }
  return sent;
}

void nonzeros(Input& in) {
  uint64_t n_elems = 0;
  const MatrixShapes matrices = shapes_from(in, &n_elems);
  const std::vector<SentSymbol> sent = symbols_from(in, matrices, n_elems);
  const unsigned lane_log2 = CurrentFormat::kMinLaneLog2 + static_cast<unsigned>(in.number(6));
  Coded coded;
  for (int threads = 1; threads <= 2; ++threads) {
    set_num_threads(threads);
    choose_kernels(threads == 2 ? kVectors : "scalar");
    const Coded own = encode(sent, matrices, n_elems, lane_log2);
    if (threads == 2) {
      check(own.frame.tables == coded.frame.tables && own.slices == coded.slices,
            "kernels and threads make the same bytes");
    }
    coded = own;
  }
  Scratch<SentSymbol> symbols;
  check(!decode(coded, matrices, &symbols), "what was encoded is decoded");
  check(std::equal(symbols.begin(), symbols.end(), sent.begin(), sent.end(),
                   [](SentSymbol a, SentSymbol b) {
                     return a.index() == b.index() && a.level() == b.level();
                   }),
        "all nonzeros come back");

  const auto refused = [&](const Coded& damaged, const char* what) {
    check(decode(damaged, matrices, &symbols).has_value(), what);
  };
  Coded damaged = coded;
  damaged.frame.tables.resize(below(in, damaged.frame.tables.size()));
  refused(damaged, "tables that end too early");
  damaged = coded;
  damaged.frame.tables.push_back(0);
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
    Bytes& bytes = in.flag() ? damaged.frame.tables : damaged.slices;
    bytes[below(in, bytes.size())] ^= static_cast<uint8_t>(1u << in.number(7));
  }
  decode(damaged, matrices, &symbols);
  damaged = coded;
  damaged.frame.tables = any_tables(in, matrices, damaged.frame.lanes().n_parts);
  decode(damaged, matrices, &symbols);
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

void payload(Input& in) {
  const size_t which = in.byte() % layouts().size();
  const Layout& layout = layouts()[which];
  Frame f;
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
  f.k_matrix = in.number(f.n_matrix);
  f.k_vector = in.number(f.n_vector);
  f.n_changed = in.number(f.n_lossless);
  f.matrix = quantizer_from(in);
  f.vector = quantizer_from(in);
  for (size_t i = 0; f.k_vector > 0 && i < n_vectors; ++i) {
    f.exponents.push_back(static_cast<int8_t>(static_cast<int>(in.number(240)) - 120));
  }
  const uint64_t n_lanes = f.lanes().n_parts;
  f.tables = any_tables(in, matrices, n_lanes);
  const uint64_t n_slices = f.n_lossy_slices() + f.lanes_of_changes().n_parts;
  Bytes slices;
  for (uint64_t s = 0; s < n_slices; ++s) {
    const bool lossy = s < f.n_lossy_slices();
    const uint64_t n_states = lossy ? std::min<uint64_t>(kLanesOfSlice, n_lanes) : 1;
    const uint64_t n_bytes = 4 * n_states + 2 * in.number(1023);
    f.slice_bytes.push_back(n_bytes);
    for (uint64_t i = 0; i < n_bytes; ++i) {
      // States are large enough, so that the lanes are decoded.
      slices.push_back(static_cast<uint8_t>(in.byte() | (i < 4 * n_states && i % 4 == 2 ? 1 : 0)));
    }
  }
  ByteWriter out;
  write_frame(f, out);
  Bytes bytes = out.bytes();
  bytes.insert(bytes.end(), slices.begin(), slices.end());
  bytes.resize(bytes.size() + kChecksumBytes);
  seal(bytes);
  decode_for(which, bytes, f.digest);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t n_bytes) {
  Input in(data, n_bytes);
  in.flag() ? payload(in) : nonzeros(in);
  return 0;
}
