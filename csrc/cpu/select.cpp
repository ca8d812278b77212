#include "cpu/select.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>

#include "core/check.hpp"
#include "core/select.hpp"
#include "cpu/threads.hpp"

namespace resfed {
namespace {

using Histogram = std::vector<uint64_t>;

// The largest digit d such that at least k keys have digits >= d; k becomes the number still
// wanted from digit d itself.
uint32_t cut(const Histogram& histogram, uint64_t* k) {
  size_t digit = histogram.size() - 1;
  for (; histogram[digit] < *k; --digit) *k -= histogram[digit];
  return static_cast<uint32_t>(digit);
}

// The key of the k-th largest. for_each_key(f) must call f(key) for all keys, twice alike, and
// there must be at least k keys. `ties` receives how many keys equal to the result belong to the k.
template <class ForEachKey>
uint32_t kth_largest_key(uint64_t k, ForEachKey for_each_key, uint64_t* ties) {
  Histogram histogram(size_t{1} << kHighDigitBits);
  for_each_key([&](uint32_t key) { ++histogram[high_digit(key)]; });
  const uint32_t high = cut(histogram, &k);
  histogram.assign(size_t{1} << kLowDigitBits, 0);
  for_each_key([&](uint32_t key) {
    if (high_digit(key) == high) ++histogram[low_digit(key)];
  });
  const uint32_t low = cut(histogram, &k);
  *ties = k;
  return (high << kLowDigitBits) | low;
}

// Drops what is below the key, and all but the first `ties` of what equals it.
void keep(std::vector<Candidate>& candidates, uint32_t key, uint64_t* ties) {
  std::erase_if(candidates, [&](const Candidate& c) {
    const uint32_t own = magnitude_key(c.residual);
    if (own != key) return own < key;
    if (*ties == 0) return true;
    --*ties;
    return false;
  });
}

template <class Visit>
void for_each_key_of_segment(const Group& group, uint64_t segment, Visit visit) {
  for_each_part(group, segment, [&](const Piece& piece, uint64_t first, uint64_t n, uint32_t) {
    with_elements(*piece.tensor, first, [&](const auto& elements) {
      for (uint64_t i = 0; i < n; ++i) visit(magnitude_key(elements.residual_at(i) * piece.scale));
    });
  });
}

// Key that about 1.2 k elements reach, from a sample drawn by a counter-based generator: one
// element from each of m equal stretches. 1 if the group is too small to be worth a sample.
uint32_t estimate_threshold(const Group& group, uint64_t k) {
  const uint64_t n = group.n_elems;
  const uint64_t m = std::clamp<uint64_t>(n / 256, 2048, 32768);
  if (n < 8 * m) return 1;
  std::vector<uint32_t> keys;
  keys.reserve(m);
  size_t at = 0;
  for (uint64_t j = 0; j < m; ++j) {
    const uint64_t stretch = n / m;
    const uint64_t index = j * stretch + mix64(j) % stretch;
    while (index - group.pieces[at].begin >= group.pieces[at].tensor->n_elems) ++at;
    const Piece& piece = group.pieces[at];
    with_elements(*piece.tensor, index - piece.begin, [&](const auto& elements) {
      keys.push_back(magnitude_key(elements.residual_at(0) * piece.scale));
    });
  }
  const double expected = static_cast<double>(k) / static_cast<double>(n) * static_cast<double>(m);
  const double rank = expected + 3.0 * std::sqrt(expected) + 4.0;
  if (rank >= static_cast<double>(m)) return 1;
  const auto nth = keys.begin() + static_cast<std::ptrdiff_t>(rank);
  std::nth_element(keys.begin(), nth, keys.end(), std::greater<>());
  return std::clamp<uint32_t>(*nth, 1, kFirstNonFiniteKey);
}

// Without an estimate: exact threshold from histograms, then one segment after another so that
// ties cost no memory.
Segments select_by_histogram(const Group& group, uint64_t k) {
  uint64_t ties = 0;
  const auto for_each_key = [&](auto visit) {
    for (uint64_t s = 0; s < n_segments(group); ++s) for_each_key_of_segment(group, s, visit);
  };
  uint32_t key = kth_largest_key(k, for_each_key, &ties);
  if (key == 0) key = 1, ties = k;  // all that differ from zero
  std::vector<uint64_t> ties_before(n_segments(group) + 1, 0);
  parallel_for(n_segments(group), [&](size_t s) {
    uint64_t n = 0;
    for_each_key_of_segment(group, s, [&](uint32_t own) { n += own == key; });
    ties_before[s + 1] = n;
  });
  std::partial_sum(ties_before.begin(), ties_before.end(), ties_before.begin());
  return collect(group, key, [&](size_t s, std::vector<Candidate>& found) {
    uint64_t left = ties - std::min(ties, ties_before[s]);
    keep(found, key, &left);
  });
}

}  // namespace

uint64_t count(const Segments& segments) {
  return std::accumulate(segments.begin(), segments.end(), uint64_t{0},
                         [](uint64_t n, const auto& s) { return n + s.size(); });
}

Segments keep_top(Segments candidates, uint64_t k) {
  if (count(candidates) <= k) return candidates;
  if (k == 0) return Segments(candidates.size());
  uint64_t ties = 0;
  const uint32_t key = kth_largest_key(
      k,
      [&](auto visit) {
        for (const auto& segment : candidates) {
          for (const Candidate& c : segment) visit(magnitude_key(c.residual));
        }
      },
      &ties);
  for (auto& segment : candidates) keep(segment, key, &ties);
  return candidates;
}

Segments select_top(const Group& group, uint64_t k) {
  k = std::min(k, group.n_elems);
  if (k == 0) return collect(group, kFirstNonFiniteKey, [](size_t, auto&) {});
  const uint32_t estimate = estimate_threshold(group, k);
  // Many ties can make the estimate catch far too much; then what is found is let go at once.
  const uint64_t room = 4 * k + kSegment;
  std::atomic<uint64_t> n_found{0};
  Segments candidates = collect(group, estimate, [&](size_t, std::vector<Candidate>& found) {
    if (n_found.fetch_add(found.size()) + found.size() > room) std::vector<Candidate>().swap(found);
  });
  const bool all_nonzero = estimate == 1;
  if (n_found <= room && (n_found >= k || all_nonzero)) return keep_top(std::move(candidates), k);
  candidates.clear();
  return select_by_histogram(group, k);
}

}  // namespace resfed
