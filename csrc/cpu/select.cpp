#include "cpu/select.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>
#include <numeric>
#include <optional>

#include "cpu/threads.hpp"
#include "numeric/select.hpp"

namespace resfed {
namespace {

// The key of the k-th largest. for_each_key(f) must call f(key) for all keys, of which there must
// be at least k; throws kChangedDuringCall unless it does so every time alike. `ties` receives how
// many keys equal to the result belong to the k.
template <class ForEachKey>
uint32_t kth_largest_key(uint64_t k, ForEachKey for_each_key, uint64_t* ties) {
  uint32_t found = 0;  // the digits known so far, the others 0 ...
  uint32_t known = 0;  // ... and the bits of a key that they are
  for (unsigned d = 0; d < kDigits; ++d) {
    uint64_t histogram[1u << kDigitBits] = {};
    for_each_key(
        [&](uint32_t key) { histogram[digit_of(key, d)] += (key & known) == found ? 1 : 0; });
    uint32_t digit = (1u << kDigitBits) - 1;
    for (; histogram[digit] < k; --digit) {
      if (digit == 0) throw Failure{Code::kChangedDuringCall};
      k -= histogram[digit];
    }
    found |= digit << digit_shift(d);
    known = ~0u << digit_shift(d);
  }
  *ties = k;
  return found;
}

// Chunks of candidates that one task works on.
constexpr size_t kChunksPerTask = 32;

template <class Visit>
void for_each_in_parallel(const CandidateChunks& candidates, Visit visit) {
  const size_t n_tasks = (candidates.size() + kChunksPerTask - 1) / kChunksPerTask;
  parallel_for(
      n_tasks,
      [&](size_t task) {
        const size_t end = std::min((task + 1) * kChunksPerTask, candidates.size());
        visit(task * kChunksPerTask, end);
      },
      1);
}

// The same among candidates: all are read twice, and then only those of the right high digit.
uint32_t kth_largest_of(const CandidateChunks& candidates, uint64_t k, uint64_t* ties) {
  using Histogram = std::array<uint64_t, 1u << kDigitBits>;
  Histogram histogram{};
  std::mutex mutex;
  for_each_in_parallel(candidates, [&](size_t begin, size_t end) {
    // Two, alternating: counting the same digit twice in a row would wait for the first time.
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
void for_each_key_of_chunk(const Group& group, uint64_t chunk, Visit visit) {
  for_each_member(group, chunk, [&](const Member& member, uint64_t first, uint64_t n, uint32_t) {
    with_elements(*member.tensor, first, [&](const auto& elements) {
      for (uint64_t i = 0; i < n; ++i) visit(magnitude_key(elements.residual_at(i) * member.scale));
    });
  });
}

// The keys of a few elements from all over the group, and estimates from them.
class Sample {
 public:
  Sample(const Group& group, uint64_t k)
      : plan_(sample_plan(group.n_elems, k)), n_elems_(group.n_elems), keys_(plan_.n_samples) {
    if (keys_.empty()) return;
    const uint64_t interval = group.n_elems / plan_.n_samples;
    constexpr uint64_t kPerTask = 1024;
    parallel_for((plan_.n_samples + kPerTask - 1) / kPerTask,
                 [&](size_t task) {
                   const uint64_t end = std::min<uint64_t>(plan_.n_samples, (task + 1) * kPerTask);
                   for (uint64_t j = task * kPerTask; j < end;) {
                     const Member& member = member_at(group, sampled_index(interval, j));
                     with_elements(*member.tensor, 0, [&](const auto& elements) {
                       for (; j < end; ++j) {
                         const uint64_t element = sampled_index(interval, j) - member.begin;
                         if (element >= member.tensor->n_elems) break;
                         keys_[j] = magnitude_key(elements.residual_at(element) * member.scale);
                       }
                     });
                   }
                 },
                 8);
  }

  // A key that at least k elements reach, but few more: the planned rank's, or that of a rank
  // `factor` times as far down. 1 if there is no plan. Too high a key costs another way of
  // selecting, too low a key some candidates.
  uint32_t threshold(uint32_t factor) {
    const uint64_t rank = uint64_t{plan_.rank} * factor;
    if (rank >= keys_.size()) return 1;
    const auto nth = keys_.begin() + static_cast<ptrdiff_t>(rank);
    std::nth_element(keys_.begin(), nth, keys_.end(), std::greater<>());
    return std::clamp<uint32_t>(*nth, 1, kFirstNonFiniteKey);
  }
  // How many elements reach a key, about.
  uint64_t count(uint32_t key) const {
    if (keys_.empty()) return 0;
    const auto reached =
        std::count_if(keys_.begin(), keys_.end(), [key](uint32_t own) { return own >= key; });
    return n_elems_ / keys_.size() * static_cast<uint64_t>(reached);
  }

 private:
  SamplePlan plan_;
  uint64_t n_elems_;
  Scratch<uint32_t> keys_;
};

// What a group's candidates may take, whatever the ties.
uint64_t room_for(const Group& group, uint64_t k) {
  return 4 * k + group.n_elems / 1024 + kChunkElems;
}

// All that reach the key, if there is room: then all of it is counted, and only some kept.
struct Collected {
  CandidateChunks candidates;
  uint64_t count;
};
Collected collect_if_room(const Group& group, uint32_t min_key, uint64_t room) {
  std::atomic<uint64_t> n_found{0};
  CandidateChunks candidates = collect(group, min_key, [&](size_t, Candidates found) {
    return n_found.fetch_add(found.n) + found.n > room ? 0 : found.n;
  });
  return {std::move(candidates), n_found};
}

// The k largest if the k-th has this key, or a greater one with not too many above it. The ties are
// looked for from the first chunk on, no further than needed.
std::optional<CandidateChunks> select_with_ties(const Group& group, uint64_t k, uint32_t key) {
  const uint64_t room = room_for(group, k);
  Collected above = collect_if_room(group, std::min(key + 1, kFirstNonFiniteKey), room);
  if (above.count > room) return std::nullopt;
  if (above.count >= k) return keep_top(std::move(above.candidates), k);

  const uint64_t ties = k - above.count;
  uint64_t n_ties = 0;  // in the chunks so far
  CandidateChunks selected(above.candidates.size());
  std::vector<uint64_t> n_equal(selected.size());
  size_t next = 0;
  for (size_t step = 1; n_ties < ties; step = std::min<size_t>(2 * step, 64)) {
    if (next == selected.size()) return std::nullopt;
    const size_t end = std::min(next + step, selected.size());
    const uint64_t left = ties - n_ties;
    collect(
        group, next, end, key,
        [&](size_t s, Candidates found) {
          found.n = keep(found, key, &n_equal[s]);
          if (n_equal[s] <= left) return found.n;
          n_equal[s] = left;
          return drop_ties(found, key, left);
        },
        &selected);
    for (; next < end; ++next) {
      const uint64_t wanted = std::min(n_equal[next], ties - n_ties);
      if (wanted < n_equal[next]) selected.shrink(next, drop_ties(selected[next], key, wanted));
      n_ties += wanted;
    }
  }
  for (size_t s = next; s < selected.size(); ++s) selected.put(s, above.candidates[s]);
  if (selected.count() != k) throw Failure{Code::kChangedDuringCall};
  return selected;
}

// Without an estimate: exact threshold from histograms, then one chunk after another so that
// ties cost no memory.
CandidateChunks select_by_histogram(const Group& group, uint64_t k) {
  uint64_t ties = 0;
  const auto for_each_key = [&](auto visit) {
    for (uint64_t s = 0; s < n_chunks(group); ++s) for_each_key_of_chunk(group, s, visit);
  };
  uint32_t key = kth_largest_key(k, for_each_key, &ties);
  const bool all_nonzero = key == 0;
  if (all_nonzero) key = 1, ties = k;
  std::vector<uint64_t> ties_before(n_chunks(group) + 1, 0);
  parallel_for(n_chunks(group), [&](size_t s) {
    uint64_t n = 0;
    for_each_key_of_chunk(group, s, [&](uint32_t own) { n += own == key; });
    ties_before[s + 1] = n;
  });
  std::partial_sum(ties_before.begin(), ties_before.end(), ties_before.begin());
  CandidateChunks selected = collect(group, key, [&](size_t s, Candidates found) {
    const uint64_t left = ties - std::min(ties, ties_before[s]);
    uint64_t n_equal = 0;
    found.n = keep(found, key, &n_equal);
    return n_equal > left ? drop_ties(found, key, left) : found.n;
  });
  if (all_nonzero ? selected.count() > k : selected.count() != k) {
    throw Failure{Code::kChangedDuringCall};
  }
  return selected;
}

}  // namespace

CandidateChunks keep_top(CandidateChunks candidates, uint64_t k) {
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

CandidateChunks select_top(const Group& group, uint64_t k) {
  k = std::min(k, group.n_elems);
  if (k == 0) return collect(group, kFirstNonFiniteKey, [](size_t, auto) { return 0; });
  const uint64_t room = room_for(group, k);
  Sample sample(group, k);
  for (const uint32_t factor : {1u, 4u}) {
    const uint32_t estimate = sample.threshold(factor);
    bool too_many = sample.count(estimate) > room;
    if (!too_many) {
      Collected found = collect_if_room(group, estimate, room);
      const bool all_nonzero = estimate == 1;
      too_many = found.count > room;
      if (!too_many && (found.count >= k || all_nonzero)) {
        return keep_top(std::move(found.candidates), k);
      }
    }
    if (!too_many) continue;  // too few
    if (auto selected = select_with_ties(group, k, estimate)) return *std::move(selected);
    break;
  }
  return select_by_histogram(group, k);
}

}  // namespace resfed
