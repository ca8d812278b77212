#include "cpu/scan.hpp"

#include <algorithm>
#include <atomic>

#include "cpu/threads.hpp"
#include "entropy/scan_order.hpp"

namespace resfed {
namespace {

// Division of many numbers by one: by multiplication, where they are below 2^32.
class Divisor {
 public:
  explicit Divisor(uint64_t d) : d_(d), reciprocal_(d == 1 ? 0 : ~uint64_t{0} / d + 1) {}
  struct Result {
    uint64_t quotient, remainder;
  };
  Result divide(uint64_t n) const {
    const bool small = (n | d_) >> 32 == 0 && d_ > 1;
    const uint64_t q =
        small ? static_cast<uint64_t>(static_cast<Wide>(n) * reciprocal_ >> 64) : n / d_;
    return {q, n - q * d_};
  }

 private:
  __extension__ using Wide = unsigned __int128;
  uint64_t d_, reciprocal_;
};

// Of the matrix that is left.
uint64_t n_rows_of(const MatrixScan& scan, const MatrixShape& m) {
  return scan.rows.empty() ? m.n_elems / m.row_length : scan.rows.size();
}
uint64_t n_cols_of(const MatrixScan& scan, const MatrixShape& m) {
  return scan.cols.empty() ? m.row_length : scan.cols.size();
}
uint64_t line_length(const MatrixScan& scan, const MatrixShape& m) {
  return scan.columns ? n_rows_of(scan, m) : n_cols_of(scan, m);
}
bool plain(const MatrixScan& scan) {
  return !scan.columns && scan.rows.empty() && scan.cols.empty() && scan.flips.empty();
}

// The numbers that occur, if leaving the others out pays.
std::vector<uint32_t> kept_numbers(const std::vector<bool>& occurs, uint64_t k) {
  std::vector<uint32_t> kept;
  for (size_t i = 0; i < occurs.size(); ++i) {
    if (occurs[i]) kept.push_back(static_cast<uint32_t>(i));
  }
  if (!kept.empty() && !leaving_out_pays(occurs.size(), kept.size(), k)) kept.clear();
  return kept;
}

// Moves nonzeros from the matrix to the rows and columns that are kept.
void compact(std::span<SentSymbol> sent, const MatrixShape& m, const MatrixScan& scan) {
  if (scan.rows.empty() && scan.cols.empty()) return;
  const uint64_t width = n_cols_of(scan, m);
  const Divisor row_length(m.row_length);
  std::vector<uint32_t> place(scan.cols.empty() ? 0 : m.row_length);
  for (size_t i = 0; i < scan.cols.size(); ++i) place[scan.cols[i]] = static_cast<uint32_t>(i);
  size_t row = 0;
  for (SentSymbol& s : sent) {
    const auto [r, c] = row_length.divide(s.index() - m.begin);
    while (!scan.rows.empty() && scan.rows[row] < r) ++row;
    s = {m.begin + (scan.rows.empty() ? r : row) * width + (scan.cols.empty() ? c : place[c]),
         s.level()};
  }
}

// Whether a nonzero resembles the one above it more often than the one to its left.
bool scan_columns(SentSymbols sent, uint64_t begin, uint64_t width) {
  int64_t left = 0, above = 0;
  const Divisor line(width);
  const SentSymbol* up = sent.data();
  for (const SentSymbol& s : sent) {
    const bool positive = s.level() > 0;
    if (&s != sent.data() && (&s)[-1].index() + 1 == s.index() &&
        line.divide(s.index() - begin).remainder != 0) {
      left += ((&s)[-1].level() > 0) == positive ? 1 : 0;
    }
    while (up->index() + width < s.index()) ++up;
    if (up->index() + width == s.index()) above += (up->level() > 0) == positive ? 1 : 0;
  }
  return columns_pay(above - left, sent.size());
}

// Sorts nonzeros of a matrix of n_rows x n_cols as those of its transpose.
void transpose(std::span<SentSymbol> sent, uint64_t begin, uint64_t n_rows, uint64_t n_cols) {
  if (n_rows == 1 || n_cols == 1) return;
  const Divisor width(n_cols);
  const auto transposed = [&](SentSymbol s) {
    const auto [r, c] = width.divide(s.index() - begin);
    return SentSymbol{begin + c * n_rows + r, s.level()};
  };
  if (sent.size() < n_cols) {  // memory is in proportion to the nonzeros
    std::transform(sent.begin(), sent.end(), sent.begin(), transposed);
    std::sort(sent.begin(), sent.end(),
              [](SentSymbol a, SentSymbol b) { return a.index() < b.index(); });
    return;
  }
  const Scratch<SentSymbol> copy(sent.begin(), sent.end());
  std::vector<uint64_t> places(n_cols + 1, 0);
  for (const SentSymbol& s : copy) ++places[width.divide(s.index() - begin).remainder + 1];
  for (uint64_t c = 0; c < n_cols; ++c) places[c + 1] += places[c];
  for (const SentSymbol& s : copy) {
    sent[places[width.divide(s.index() - begin).remainder]++] = transposed(s);
  }
}

// By place in a line, whether flipping the sign there makes neighbours agree; none if that does
// not pay.
std::vector<bool> choose_flips(SentSymbols sent, uint64_t begin, uint64_t length) {
  if (2 * sent.size() <= length) return {};  // too few to pay
  std::vector<int32_t> agree(length, 0);
  const Divisor line(length);
  for (size_t i = 1; i < sent.size(); ++i) {
    if (sent[i].index() != sent[i - 1].index() + 1) continue;
    const uint64_t place = line.divide(sent[i].index() - begin).remainder;
    const bool same = (sent[i].level() > 0) == (sent[i - 1].level() > 0);
    if (place != 0) agree[place] += same ? 1 : -1;
  }
  std::vector<bool> flips(length, false);
  uint64_t saved = 0;
  for (uint64_t i = 1; i < length; ++i) {
    flips[i] = flips[i - 1] != (agree[i] < 0);
    saved += agree[i] < 0 ? static_cast<uint64_t>(-agree[i]) : 0;
  }
  return flips_pay(saved, length) ? flips : std::vector<bool>();
}
void flip(std::span<SentSymbol> sent, uint64_t begin, const std::vector<bool>& flips) {
  if (flips.empty()) return;
  const Divisor line(flips.size());
  for (SentSymbol& s : sent) {
    if (flips[line.divide(s.index() - begin).remainder]) s = {s.index(), -s.level()};
  }
}

MatrixScan choose_scan(std::span<SentSymbol> sent, const MatrixShape& m) {
  MatrixScan scan;
  if (sent.empty()) return scan;
  // Only where it may pay: there may be far more rows or columns than nonzeros.
  const auto flags = [&](uint64_t n) {
    return std::vector<bool>(leaving_out_pays(n, 1, sent.size()) ? n : 0);
  };
  std::vector<bool> rows = flags(m.n_elems / m.row_length), cols = flags(m.row_length);
  if (!rows.empty() || !cols.empty()) {
    const Divisor row_length(m.row_length);
    for (const SentSymbol& s : sent) {
      const auto [r, c] = row_length.divide(s.index() - m.begin);
      if (!rows.empty()) rows[r] = true;
      if (!cols.empty()) cols[c] = true;
    }
  }
  scan.rows = kept_numbers(rows, sent.size());
  scan.cols = kept_numbers(cols, sent.size());
  compact(sent, m, scan);
  scan.columns = scan_columns(sent, m.begin, n_cols_of(scan, m));
  if (scan.columns) transpose(sent, m.begin, n_rows_of(scan, m), n_cols_of(scan, m));
  scan.flips = choose_flips(sent, m.begin, line_length(scan, m));
  flip(sent, m.begin, scan.flips);
  return scan;
}

bool undo_scan(std::span<SentSymbol> sent, const MatrixShape& m, const MatrixScan& scan) {
  const uint64_t n_rows = n_rows_of(scan, m), n_cols = n_cols_of(scan, m);
  if (!sent.empty() && sent.back().index() - m.begin >= n_rows * n_cols) return false;
  flip(sent, m.begin, scan.flips);
  if (scan.columns) transpose(sent, m.begin, n_cols, n_rows);
  if (scan.rows.empty() && scan.cols.empty()) return true;
  const Divisor width(n_cols);
  for (SentSymbol& s : sent) {
    const auto [r, c] = width.divide(s.index() - m.begin);
    s = {m.begin + (scan.rows.empty() ? r : scan.rows[r]) * m.row_length +
             (scan.cols.empty() ? c : scan.cols[c]),
         s.level()};
  }
  return true;
}

void write_bitmap(BitWriter& out, const std::vector<uint32_t>& kept, uint64_t n) {
  out.put(kept.empty() ? 0 : 1, 1);
  if (kept.empty()) return;
  auto next = kept.begin();
  for (uint64_t i = 0; i < n; ++i) {
    const bool here = next != kept.end() && *next == i;
    out.put(here ? 1 : 0, 1);
    if (here) ++next;
  }
}
std::vector<uint32_t> read_bitmap(BitReader& in, uint64_t n) {
  std::vector<uint32_t> kept;
  if (in.get(1) == 0) return kept;
  if (n > kMostLines) throw in.bad();
  for (uint64_t i = 0; i < n; ++i) {
    if (in.get(1) != 0) kept.push_back(static_cast<uint32_t>(i));
  }
  if (kept.empty()) throw in.bad();
  return kept;
}
MatrixScan read_scan(BitReader& in, const MatrixShape& m) {
  MatrixScan scan;
  if (in.get(1) == 0) return scan;
  scan.columns = in.get(1) != 0;
  scan.rows = read_bitmap(in, m.n_elems / m.row_length);
  scan.cols = read_bitmap(in, m.row_length);
  if (in.get(1) != 0) {
    for (uint64_t i = 0, n = line_length(scan, m); i < n; ++i) scan.flips.push_back(in.get(1) != 0);
  }
  return scan;
}

// Nonzeros that are worth a thread.
constexpr size_t kSymbolsPerThread = 1 << 15;

// Calls visit(number, matrix, its nonzeros) for every matrix of two dimensions, numbered from 0 on,
// in any order.
template <class Visit>
void for_each_matrix(std::span<SentSymbol> sent, const MatrixShapes& matrices, Visit visit) {
  struct Part {
    const MatrixShape* matrix;
    std::span<SentSymbol> sent;
  };
  std::vector<Part> parts;
  auto begin = sent.begin();
  for (const MatrixShape& m : matrices) {
    const auto before = [](SentSymbol s, uint64_t index) { return s.index() < index; };
    begin = std::lower_bound(begin, sent.end(), m.begin, before);
    const auto end = std::lower_bound(begin, sent.end(), m.begin + m.n_elems, before);
    if (m.row_length > 0) parts.push_back({&m, std::span<SentSymbol>(begin, end)});
    begin = end;
  }
  parallel_for(
      parts.size(), [&](size_t i) { visit(i, *parts[i].matrix, parts[i].sent); },
      1 + parts.size() / (1 + sent.size() / kSymbolsPerThread));
}

}  // namespace

MatrixShapes shapes_of(const Group& matrices, const std::vector<uint64_t>& blocks) {
  MatrixShapes shapes;
  for (const Member& member : matrices.members) {
    const uint64_t block = blocks.empty() ? 0 : blocks.at(member.ordinal);
    shapes.push_back({member.begin, member.tensor->n_elems, member.tensor->row_length, block});
  }
  return shapes;
}

void write_scan(BitWriter& out, const MatrixShape& m, const MatrixScan& scan) {
  out.put(plain(scan) ? 0 : 1, 1);
  if (plain(scan)) return;
  out.put(scan.columns ? 1 : 0, 1);
  write_bitmap(out, scan.rows, m.n_elems / m.row_length);
  write_bitmap(out, scan.cols, m.row_length);
  out.put(scan.flips.empty() ? 0 : 1, 1);
  for (const bool flip : scan.flips) out.put(flip ? 1 : 0, 1);
}

void scan(std::span<SentSymbol> symbols, MatrixShapes* matrices, BitWriter* out) {
  std::vector<MatrixScan> scans(matrices->size());
  for_each_matrix(symbols, *matrices,
                  [&](size_t i, const MatrixShape& m, std::span<SentSymbol> sent) {
                    scans[i] = choose_scan(sent, m);
                  });
  auto scan = scans.begin();
  for (MatrixShape& m : *matrices) {
    if (m.row_length == 0) continue;
    write_scan(*out, m, *scan);
    if (scan->columns || !scan->cols.empty()) m.block = 0;
    ++scan;
  }
}

std::vector<MatrixScan> read_scans(BitReader& in, const MatrixShapes& matrices) {
  std::vector<MatrixScan> scans;
  for (const MatrixShape& m : matrices) {
    if (m.row_length > 0) scans.push_back(read_scan(in, m));
  }
  return scans;
}

bool undo_scans(std::span<SentSymbol> symbols, const MatrixShapes& matrices,
                const std::vector<MatrixScan>& scans) {
  std::atomic<bool> inside{true};
  for_each_matrix(symbols, matrices,
                  [&](size_t i, const MatrixShape& m, std::span<SentSymbol> sent) {
                    if (!undo_scan(sent, m, scans[i])) inside = false;
                  });
  return inside;
}

}  // namespace resfed
