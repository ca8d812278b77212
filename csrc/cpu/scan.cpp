#include "cpu/scan.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdlib>
#include <numeric>

#include "cpu/divisor.hpp"
#include "cpu/threads.hpp"
#include "entropy/scan_order.hpp"

namespace resfed {
namespace {

// Nonzeros of a matrix, each in one word: from the top its line, its place in the line, its sign
// and its magnitude - 1. So they are in ascending order.
using Cells = std::span<uint64_t>;
constexpr unsigned kMagnitudeBits = 23, kLevelBits = 24;
static_assert(kMaxLevel == 1u << kMagnitudeBits);
static_assert(kMaxLossyElements <= 1ull << (64 - kLevelBits - 1));  // both round up to a power of 2

struct Lines {
  uint64_t n, length;
  unsigned place_bits;

  Lines(uint64_t n_lines, uint64_t n_places)
      : n(n_lines),
        length(n_places),
        place_bits(static_cast<unsigned>(std::bit_width(n_places - 1))) {}
  uint64_t cell(uint64_t line, uint64_t place, uint64_t level) const {
    return (line << place_bits | place) << kLevelBits | level;
  }
  uint64_t line(uint64_t cell) const { return cell >> (place_bits + kLevelBits); }
  uint64_t place(uint64_t cell) const {
    return cell >> kLevelBits & ((uint64_t{1} << place_bits) - 1);
  }
};
int32_t negative(uint64_t cell) { return static_cast<int32_t>(cell >> kMagnitudeBits & 1); }
uint64_t level_bits(uint64_t cell) { return cell & ((1u << kLevelBits) - 1); }

// In the memory of the nonzeros themselves.
Cells to_cells(std::span<SentSymbol> sent, uint64_t begin, const Lines& lines) {
  const Cells cells(reinterpret_cast<uint64_t*>(sent.data()), sent.size());
  const Divisor length(lines.length);
  for (size_t i = 0; i < sent.size(); ++i) {
    const auto [line, place] = length.divide(sent[i].index() - begin);
    const int32_t level = sent[i].level();
    const uint32_t sign = level < 0 ? 1u << kMagnitudeBits : 0;
    cells[i] = lines.cell(line, place, sign | (magnitude(level) - 1));
  }
  return cells;
}
// With the index that index_of(line, place) gives each.
template <class IndexOf>
void to_nonzeros(Cells cells, const Lines& lines, std::span<SentSymbol> sent, IndexOf index_of) {
  for (size_t i = 0; i < cells.size(); ++i) {
    const uint64_t cell = cells[i];
    const auto size = static_cast<int32_t>(cell & ((1u << kMagnitudeBits) - 1)) + 1;
    const int32_t sign = negative(cell);
    sent[i] = {index_of(lines.line(cell), lines.place(cell)), (size ^ -sign) + sign};
  }
}

// Lines become places, and places lines: sorts by place, digit by digit.
Lines transpose(Cells cells, const Lines& lines) {
  const unsigned most = std::min(12u, 2 + floor_log2(cells.size()));
  const unsigned n_digits = lines.n == 1 ? 0 : (lines.place_bits + most - 1) / most;
  const unsigned digit_bits = n_digits == 0 ? 0 : (lines.place_bits + n_digits - 1) / n_digits;
  std::vector<uint64_t> ends(size_t{1} << digit_bits);
  for (unsigned d = 0; d < n_digits; ++d) {
    const auto digit = [&](uint64_t cell) {
      return lines.place(cell) >> d * digit_bits & (ends.size() - 1);
    };
    const Scratch<uint64_t> from(cells.begin(), cells.end());
    std::fill(ends.begin(), ends.end(), uint64_t{0});
    for (const uint64_t cell : from) ++ends[digit(cell)];
    std::exclusive_scan(ends.begin(), ends.end(), ends.begin(), uint64_t{0});
    for (const uint64_t cell : from) cells[ends[digit(cell)]++] = cell;
  }
  const Lines transposed(lines.length, lines.n);
  for (uint64_t& cell : cells) {
    cell = transposed.cell(lines.place(cell), lines.line(cell), level_bits(cell));
  }
  return transposed;
}

// The lines that have nonzeros, if leaving out the others pays.
std::vector<uint32_t> lines_to_keep(Cells cells, const Lines& lines) {
  uint64_t n_kept = 1;
  for (size_t i = 1; i < cells.size(); ++i) {
    n_kept += uint64_t{lines.line(cells[i]) != lines.line(cells[i - 1])};
  }
  if (!leaving_out_pays(lines.n, n_kept, cells.size())) return {};
  std::vector<uint32_t> kept;
  kept.reserve(n_kept);
  for (const uint64_t cell : cells) {
    const auto line = static_cast<uint32_t>(lines.line(cell));
    if (kept.empty() || kept.back() != line) kept.push_back(line);
  }
  return kept;
}

// Lines and places among those that are kept.
std::vector<uint32_t> new_numbers(const std::vector<uint32_t>& kept, uint64_t n) {
  std::vector<uint32_t> numbers(n);
  for (size_t i = 0; i < kept.size(); ++i) numbers[kept[i]] = static_cast<uint32_t>(i);
  return numbers;
}
Lines leave_out_lines(Cells cells, const Lines& lines, const std::vector<uint32_t>& kept) {
  if (kept.empty()) return lines;
  const std::vector<uint32_t> numbers = new_numbers(kept, lines.n);
  for (uint64_t& cell : cells) {
    cell = lines.cell(numbers[lines.line(cell)], lines.place(cell), level_bits(cell));
  }
  return Lines(kept.size(), lines.length);
}
Lines take_back_lines(Cells cells, const Lines& lines, const std::vector<uint32_t>& kept,
                      uint64_t n) {
  for (uint64_t& cell : cells) {
    cell = lines.cell(kept[lines.line(cell)], lines.place(cell), level_bits(cell));
  }
  return Lines(n, lines.length);
}
Lines leave_out_places(Cells cells, const Lines& lines, const std::vector<uint32_t>& kept) {
  const std::vector<uint32_t> numbers = new_numbers(kept, lines.length);
  const Lines left(lines.n, kept.size());
  for (uint64_t& cell : cells) {
    cell = left.cell(lines.line(cell), numbers[lines.place(cell)], level_bits(cell));
  }
  return left;
}

// The sum of log2 of the gaps along lines.
uint64_t gap_bits(Cells cells, const Lines& lines) {
  const auto index_of = [&](uint64_t cell) {
    return lines.line(cell) * lines.length + lines.place(cell);
  };
  uint64_t n_bits = 0;
  for (size_t i = 1; i < cells.size(); ++i) {
    n_bits += floor_log2(index_of(cells[i]) - index_of(cells[i - 1]));
  }
  return n_bits;
}

// How many nonzeros follow one of their sign directly.
int64_t agreements(Cells cells, const Lines& lines) {
  int64_t n = 0;
  for (size_t i = 1; i < cells.size(); ++i) {
    const uint64_t step = (cells[i] >> kMagnitudeBits) - (cells[i - 1] >> kMagnitudeBits);
    n += int64_t{step == 2} & int64_t{lines.place(cells[i]) != 0};
  }
  return n;
}

// By place in a line, whether flipping the sign there makes neighbours agree; none if that does
// not pay.
std::vector<bool> choose_flips(Cells cells, const Lines& lines) {
  if (2 * cells.size() <= lines.length) return {};  // too few to pay
  std::vector<int32_t> agree(lines.length, 0);
  uint64_t n_pairs = 0;
  for (size_t i = 1; i < cells.size(); ++i) {
    const uint64_t step = (cells[i] >> kLevelBits) - (cells[i - 1] >> kLevelBits);
    const int32_t changed = negative(cells[i] ^ cells[i - 1]);
    const uint64_t place = lines.place(cells[i]);
    const bool pair = step == 1 && place != 0;  // place 0 is in another line than the one before
    agree[place] += int32_t{pair} * (1 - 2 * changed);
    n_pairs += uint64_t{pair};
  }
  uint64_t n_more = 0, n_less = 0;
  for (const int32_t a : agree) (a < 0 ? n_less : n_more) += static_cast<uint64_t>(std::abs(a));
  if (!flips_pay(n_more, n_less, n_pairs, lines.length)) return {};
  std::vector<bool> flips(lines.length);
  bool flipped = false;
  for (uint64_t i = 0; i < lines.length; ++i) flips[i] = flipped ^= agree[i] < 0;
  return flips;
}
void flip(Cells cells, const Lines& lines, const std::vector<bool>& flips) {
  if (flips.empty()) return;
  for (uint64_t& cell : cells) cell ^= uint64_t{flips[lines.place(cell)]} << kMagnitudeBits;
}

MatrixScan choose_scan(std::span<SentSymbol> sent, const MatrixShape& m) {
  MatrixScan scan;
  if (sent.empty()) return scan;
  Lines rows(m.n_elems / m.row_length, m.row_length);
  const Cells by_row = to_cells(sent, m.begin, rows);
  const uint64_t n_rows = rows.n, bits_of_all = gap_bits(by_row, rows);
  scan.rows = lines_to_keep(by_row, rows);
  rows = leave_out_lines(by_row, rows, scan.rows);
  const uint64_t bits_of_rows = gap_bits(by_row, rows);
  Scratch<uint64_t> by_col(by_row.begin(), by_row.end());
  Lines cols = transpose(by_col, rows);
  scan.cols = lines_to_keep(by_col, cols);
  if (!scan.cols.empty()) {
    Scratch<uint64_t> left(by_row.begin(), by_row.end());
    const Lines lines_left = leave_out_places(left, rows, scan.cols);
    if (leaving_out_shortens_gaps(bits_of_rows, gap_bits(left, lines_left), cols.n)) {
      cols = leave_out_lines(by_col, cols, scan.cols);
      rows = lines_left;
      std::copy(left.begin(), left.end(), by_row.begin());
    } else {
      scan.cols = {};
    }
  }
  scan.columns = columns_pay(agreements(by_col, cols) - agreements(by_row, rows), sent.size());
  if (!scan.rows.empty() && !scan.columns &&
      !leaving_out_shortens_gaps(bits_of_all, bits_of_rows, n_rows)) {
    rows = take_back_lines(by_row, rows, scan.rows, n_rows);
    scan.rows = {};
  }
  const Cells cells = scan.columns ? Cells(by_col) : by_row;
  const Lines& lines = scan.columns ? cols : rows;
  scan.flips = choose_flips(cells, lines);
  flip(cells, lines, scan.flips);
  to_nonzeros(cells, lines, sent,
              [&](uint64_t line, uint64_t place) { return m.begin + line * lines.length + place; });
  return scan;
}

// Of the matrix that is left.
Lines lines_of(const MatrixScan& scan, const MatrixShape& m) {
  const uint64_t n_rows = scan.rows.empty() ? m.n_elems / m.row_length : scan.rows.size();
  const uint64_t n_cols = scan.cols.empty() ? m.row_length : scan.cols.size();
  return scan.columns ? Lines(n_cols, n_rows) : Lines(n_rows, n_cols);
}
bool plain(const MatrixScan& scan) {
  return !scan.columns && scan.rows.empty() && scan.cols.empty() && scan.flips.empty();
}

bool undo_scan(std::span<SentSymbol> sent, const MatrixShape& m, const MatrixScan& scan) {
  if (sent.empty() || plain(scan)) return true;
  Lines lines = lines_of(scan, m);
  if (sent.back().index() - m.begin >= lines.n * lines.length) return false;
  const Cells cells = to_cells(sent, m.begin, lines);
  flip(cells, lines, scan.flips);
  if (scan.columns) lines = transpose(cells, lines);
  to_nonzeros(cells, lines, sent, [&](uint64_t row, uint64_t col) {
    return m.begin + (scan.rows.empty() ? row : scan.rows[row]) * m.row_length +
           (scan.cols.empty() ? col : scan.cols[col]);
  });
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
    for (uint64_t i = 0, n = lines_of(scan, m).length; i < n; ++i)
      scan.flips.push_back(in.get(1) != 0);
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
