#include <algorithm>

#include "cuda/scan_coder.hpp"

namespace resfed::cuda {
namespace {

constexpr uint64_t kWordBits = 32;
uint64_t whole_words(uint64_t n_bits) { return (n_bits + kWordBits - 1) / kWordBits * kWordBits; }

// What bitmaps and flips say of a matrix.
MatrixScan scan_of(const LinePlan& plan, const ScanChoice& choice, const uint32_t* occurs,
                   const uint8_t* flips) {
  const auto kept = [&](uint64_t first, uint64_t n, bool keeps) {
    std::vector<uint32_t> numbers;
    for (uint64_t i = 0; keeps && i < n; ++i) {
      const uint64_t line = first + i;
      if (occurs[line / kWordBits] >> line % kWordBits & 1u) {
        numbers.push_back(static_cast<uint32_t>(i));
      }
    }
    return numbers;
  };
  MatrixScan scan;
  scan.columns = choice.columns;
  scan.rows = kept(plan.first_row, plan.n_rows, choice.keeps_rows);
  scan.cols = kept(plan.first_col, plan.n_cols, choice.keeps_cols);
  const uint64_t length = choice.columns ? choice.n_rows : choice.n_cols;
  for (uint64_t i = 0; choice.flips && i < length; ++i) {
    scan.flips.push_back(flips[plan.first_row + i] != 0);
  }
  return scan;
}

}  // namespace

ScanCoder::ScanCoder(WorkspaceLease& lease, const Group& matrices) : lease_(lease) {
  uint64_t first = 0;
  for (const MatrixShape& m : shapes_of(matrices)) {
    plans_.push_back({});
    if (m.row_length == 0) continue;
    const uint64_t n_rows = m.n_elems / m.row_length, first_col = first + whole_words(n_rows);
    plans_.back() = {first, first_col, n_rows, m.row_length};
    first = first_col + whole_words(m.row_length);
  }
  buffers_.n_matrices = plans_.size();
  buffers_.n_lines = first;
}

void ScanCoder::take(BumpAllocator& allocator, uint64_t most_symbols) {
  ScanBuffers& b = buffers_;
  sent_ = allocator.take<SentSymbol>(most_symbols);
  b.matrices = allocator.take<MatrixShape>(b.n_matrices);
  b.plans = allocator.take<LinePlan>(b.n_matrices);
  b.choices = allocator.take<ScanChoice>(b.n_matrices);
  b.occurs = allocator.take<uint32_t>(b.n_lines / kWordBits);
  b.before = allocator.take<uint32_t>(b.n_lines / kWordBits);
  b.agree = allocator.take<unsigned long long>(b.n_lines);
  b.flips = allocator.take<uint8_t>(b.n_lines);
  b.any_columns = allocator.take<uint32_t>(1);
  const uint64_t n_counts = b.n_lines > 0 ? n_sort_tiles(most_symbols) << kMostDigitBits : 0;
  b.histograms = allocator.take<uint32_t>(n_counts);
  b.digit_counts = allocator.take<uint32_t>(1u << kMostDigitBits);
}

void ScanCoder::order(const Stage& stage, const SentSymbol* symbols, uint64_t n, SentSymbols vector,
                      SentSymbols dense, const MatrixShapes& matrices, SentSymbol* other) {
  shapes_ = matrices;
  const uint64_t n_others = vector.size() + dense.size();
  SentSymbol* others = nullptr;
  MatrixShape* shapes = nullptr;
  LinePlan* plans = nullptr;
  const auto carve = [&](void* memory) {
    BumpAllocator allocator(memory);
    others = allocator.take<SentSymbol>(n_others);
    shapes = allocator.take<MatrixShape>(matrices.size());
    plans = allocator.take<LinePlan>(matrices.size());
    return allocator.n_bytes();
  };
  carve(lease_.host_tables(carve(nullptr)));
  std::copy(dense.begin(), dense.end(), std::copy(vector.begin(), vector.end(), others));
  std::copy(matrices.begin(), matrices.end(), shapes);
  std::copy(plans_.begin(), plans_.end(), plans);
  if (n_others > 0) lease_.copy_in(sent_ + n, others, n_others * sizeof(SentSymbol));
  lease_.copy_in(buffers_.matrices, shapes, matrices.size() * sizeof(MatrixShape));
  lease_.copy_in(buffers_.plans, plans, matrices.size() * sizeof(LinePlan));
  if (buffers_.n_lines > 0) {
    scan_symbols(stage, symbols, n, buffers_, sent_, other);
  } else if (n > 0) {
    lease_.copy(sent_, symbols, n * sizeof(SentSymbol));
  }
}

void ScanCoder::take_results(BumpAllocator& pinned) {
  choices_ = pinned.take<ScanChoice>(buffers_.n_lines > 0 ? plans_.size() : 0);
  occurs_ = pinned.take<uint32_t>(buffers_.n_lines / kWordBits);
  flips_ = pinned.take<uint8_t>(buffers_.n_lines);
}

void ScanCoder::copy_out() {
  const uint64_t n_lines = buffers_.n_lines;
  if (n_lines == 0) return;
  lease_.copy_out(choices_, buffers_.choices, plans_.size() * sizeof(ScanChoice));
  lease_.copy_out(occurs_, buffers_.occurs, n_lines / kWordBits * sizeof(uint32_t));
  lease_.copy_out(flips_, buffers_.flips, n_lines);
}

void ScanCoder::write(BitWriter* tables) const {
  for (size_t i = 0; i < shapes_.size(); ++i) {
    if (shapes_[i].row_length == 0) continue;
    write_scan(*tables, shapes_[i], scan_of(plans_[i], choices_[i], occurs_, flips_));
  }
}

}  // namespace resfed::cuda
