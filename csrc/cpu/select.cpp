#include "cpu/select.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>
#include <numeric>

#include "core/select.hpp"
#include "cpu/threads.hpp"

namespace resfed {
namespace {

// The key of the k-th largest. for_each_key(f) must call f(key) for all keys, every time alike, and
// there must be at least k keys. `ties` receives how many keys equal to the result belong to the k.
template <class ForEachKey>
uint32_t kth_largest_key(uint64_t k, ForEachKey for_each_key, uint64_t* ties) {
  uint32_t found = 0;  // the digits known so far, the others 0 ...
  uint32_t known = 0;  // ... and the bits of a key that they are
  for (unsigned d = 0; d < kDigits; ++d) {
    uint64_t histogram[1u << kDigitBits] = {};
    for_each_key(
        [&](uint32_t key) { histogram[digit_of(key, d)] += (key & known) == found ? 1 : 0; });
    uint32_t digit = (1u << kDigitBits) - 1;
    for (; histogram[digit] < k; --digit) k -= histogram[digit];
    found |= digit << digit_shift(d);
    known = ~0u << digit_shift(d);
  }
  *ties = k;
  return found;
}

// Segments of candidates that one task works on.
constexpr size_t kSegmentsPerTask = 32;

template <class Visit>
void for_each_in_parallel(const Segments& candidates, Visit visit) {
  const size_t n_tasks = (candidates.size() + kSegmentsPerTask - 1) / kSegmentsPerTask;
  parallel_for(
      n_tasks,
      [&](size_t task) {
        const size_t end = std::min((task + 1) * kSegmentsPerTask, candidates.size());
        visit(task * kSegmentsPerTask, end);
      },
      1);
}

// The same among candidates: all are read twice, and then only those of the right high digit.
uint32_t kth_largest_of(const Segments& candidates, uint64_t k, uint64_t* ties) {
  using Histogram = std::array<uint64_t, 1u << kDigitBits>;
  Histogram histogram{};
  std::mutex mutex;
  for_each_in_parallel(candidates, [&](size_t begin, size_t end) {
    // Two in turn: counting the same digit twice in a row would wait for the first time.
    std::array<Histogram, 2> own{};
    for (size_t s = begin; s < end; ++s) {
      const Candidates c = candidates[s];
      for (size_t i = 0; i < c.n; ++i) ++own[i & 1][digit_of(magnitude_key(c.residuals[i]), 0)];
    }
    const std::lock_guard lock(mutex);
    for (size_t d = 0; d < histogram.size(); ++d) histogram[d] += own[0][d] + own[1][d];
  });
  uint32_t digit = (1u << kDigitBits) - 1;
  for (; histogram[digit] < k; --digit) k -= histogram[digit];

  Scratch<uint32_t> keys;
  keys.reserve(histogram[digit]);
  for_each_in_parallel(candidates, [&](size_t begin, size_t end) {
    for (size_t s = begin; s < end; ++s) {
      const Candidates c = candidates[s];
      Scratch<uint32_t> own(c.n + 1);
      size_t n = 0;
      for (size_t i = 0; i < c.n; ++i) {
        own[n] = magnitude_key(c.residuals[i]);
        n += digit_of(own[n], 0) == digit ? 1 : 0;
      }
      const std::lock_guard lock(mutex);
      keys.insert(keys.end(), own.data(), own.data() + n);
    }
  });
  const auto for_each_key = [&](auto visit) { std::for_each(keys.begin(), keys.end(), visit); };
  return kth_largest_key(k, for_each_key, ties);
}

// Moves to the front what is at least the key; returns how many these are and counts the equals.
size_t keep(Candidates c, uint32_t key, uint64_t* n_equal) {
  size_t n = 0;
  for (size_t i = 0; i < c.n; ++i) {
    const uint32_t own = magnitude_key(c.residuals[i]);
    c.residuals[n] = c.residuals[i];
    c.offsets[n] = c.offsets[i];
    n += own >= key ? 1 : 0;
    *n_equal += own == key ? 1 : 0;
  }
  return n;
}

// Drops all but the first `ties` of what equals the key; returns how many candidates are left.
size_t drop_ties(Candidates c, uint32_t key, uint64_t ties) {
  size_t n = 0;
  for (size_t i = 0; i < c.n; ++i) {
    c.residuals[n] = c.residuals[i];
    c.offsets[n] = c.offsets[i];
    if (magnitude_key(c.residuals[i]) != key) {
      ++n;
    } else if (ties > 0) {
      --ties, ++n;
    }
  }
  return n;
}

template <class Visit>
void for_each_key_of_segment(const Group& group, uint64_t segment, Visit visit) {
  for_each_part(group, segment, [&](const Piece& piece, uint64_t first, uint64_t n, uint32_t) {
    with_elements(*piece.tensor, first, [&](const auto& elements) {
      for (uint64_t i = 0; i < n; ++i) visit(magnitude_key(elements.residual_at(i) * piece.scale));
    });
  });
}

// Key that about 1.2 k elements reach, from a sample; 1 if there is no plan for one. Too high a key
// costs another way of selecting, too low a key some candidates.
uint32_t estimate_threshold(const Group& group, uint64_t k) {
  const SamplePlan plan = sample_plan(group.n_elems, k);
  if (plan.n_samples == 0) return 1;
  Scratch<uint32_t> keys(plan.n_samples);
  const uint64_t stretch = group.n_elems / plan.n_samples;
  constexpr uint64_t kPerTask = 1024;
  parallel_for((plan.n_samples + kPerTask - 1) / kPerTask,
               [&](size_t task) {
                 const uint64_t end = std::min<uint64_t>(plan.n_samples, (task + 1) * kPerTask);
                 for (uint64_t j = task * kPerTask; j < end; ++j) {
                   const uint64_t index = sampled_index(stretch, j);
                   const Piece& piece = piece_at(group, index);
                   with_elements(*piece.tensor, index - piece.begin, [&](const auto& elements) {
                     keys[j] = magnitude_key(elements.residual_at(0) * piece.scale);
                   });
                 }
               },
               8);
  const auto nth = keys.begin() + plan.rank;
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
  return collect(group, key, [&](size_t s, Candidates found) {
    const uint64_t left = ties - std::min(ties, ties_before[s]);
    uint64_t n_equal = 0;
    found.n = keep(found, key, &n_equal);
    return n_equal > left ? drop_ties(found, key, left) : found.n;
  });
}

}  // namespace

Segments keep_top(Segments candidates, uint64_t k) {
  if (candidates.count() <= k) return candidates;
  uint64_t ties = 0;
  uint32_t key = kFirstNonFiniteKey;
  if (k > 0) key = kth_largest_of(candidates, k, &ties);
  std::vector<uint64_t> n_equal(candidates.size());
  for_each_in_parallel(candidates, [&](size_t begin, size_t end) {
    for (size_t s = begin; s < end; ++s) {
      candidates.shrink(s, keep(candidates[s], key, &n_equal[s]));
    }
  });
  for (size_t s = 0; s < candidates.size(); ++s) {
    if (n_equal[s] > ties) candidates.shrink(s, drop_ties(candidates[s], key, ties));
    ties -= std::min(ties, n_equal[s]);
  }
  return candidates;
}

Segments select_top(const Group& group, uint64_t k) {
  k = std::min(k, group.n_elems);
  if (k == 0) return collect(group, kFirstNonFiniteKey, [](size_t, auto) { return 0; });
  const uint32_t estimate = estimate_threshold(group, k);
  // Many ties can make the estimate catch far too much; then what is found is let go at once.
  const uint64_t room = 4 * k + kSegment;
  std::atomic<uint64_t> n_found{0};
  Segments candidates = collect(group, estimate, [&](size_t, Candidates found) {
    return n_found.fetch_add(found.n) + found.n > room ? 0 : found.n;
  });
  const bool all_nonzero = estimate == 1;
  if (n_found <= room && (n_found >= k || all_nonzero)) return keep_top(std::move(candidates), k);
  return select_by_histogram(group, k);
}

}  // namespace resfed
