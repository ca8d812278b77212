#include "cpu/byte_planes.hpp"

#include <algorithm>
#include <memory>

#include "entropy/interleaved_rans.hpp"
#include "format/bits.hpp"

namespace resfed {
namespace {

constexpr uint32_t kBytes = 256;
constexpr size_t kMostLanes = 32;

size_t lanes_of(size_t n) { return std::clamp<size_t>(n >> 11, 1, kMostLanes); }

struct ByteFrequencies {
  uint16_t of[kBytes] = {};
};

// In proportion to how often each byte occurs, 1 at least where it does.
ByteFrequencies frequencies_of(const uint32_t (&counts)[kBytes], size_t n) {
  const auto occurs = [](uint32_t count) { return count > 0; };
  const auto n_different =
      static_cast<uint32_t>(std::count_if(std::begin(counts), std::end(counts), occurs));
  ByteFrequencies frequencies;
  uint32_t left = kFrequencyOne, most = 0;
  for (uint32_t byte = 0; byte < kBytes; ++byte) {
    if (counts[byte] == 0) continue;
    const uint64_t share = uint64_t{counts[byte]} * (kFrequencyOne - n_different) / n;
    frequencies.of[byte] = static_cast<uint16_t>(1 + share);
    left -= frequencies.of[byte];
    if (frequencies.of[byte] > frequencies.of[most]) most = byte;
  }
  frequencies.of[most] = static_cast<uint16_t>(frequencies.of[most] + left);
  return frequencies;
}

// The first and the last byte that occur, and the frequencies from one to the other.
std::vector<uint8_t> written(const ByteFrequencies& frequencies) {
  uint32_t first = 0, last = kBytes - 1;
  while (frequencies.of[first] == 0) ++first;
  while (frequencies.of[last] == 0) --last;
  BitWriter out;
  out.put(first, 8);
  out.put(last, 8);
  for (uint32_t byte = first; byte <= last; ++byte) out.put_gamma(frequencies.of[byte] + 1u);
  return out.finish();
}

// Returns how many bytes they took; 0 where they are damaged.
size_t read_frequencies(std::span<const uint8_t> slice, ByteFrequencies* frequencies) {
  BitReader in(slice.data(), slice.size());
  try {
    const uint32_t first = in.get(8), last = in.get(8);
    if (last <= first) return 0;
    uint32_t sum = 0;
    for (uint32_t byte = first; byte <= last; ++byte) {
      const uint32_t frequency = in.get_gamma(kFrequencyOne) - 1;
      frequencies->of[byte] = static_cast<uint16_t>(frequency);
      sum += frequency;
    }
    if (sum != kFrequencyOne || frequencies->of[first] == 0 || frequencies->of[last] == 0) return 0;
    return in.align();
  } catch (const Failure&) {
    return 0;
  }
}

// What a slot of the frequencies says.
struct Owner {
  uint16_t frequency;
  uint16_t offset;  // of the slot in the byte's slots
  uint8_t byte;
};
struct Owners {
  Owner of[kFrequencyOne];
};
void fill(const ByteFrequencies& frequencies, Owners* owners) {
  uint32_t slot = 0;
  for (uint32_t byte = 0; byte < kBytes; ++byte) {
    for (uint16_t i = 0; i < frequencies.of[byte]; ++i, ++slot) {
      owners->of[slot] = {frequencies.of[byte], i, static_cast<uint8_t>(byte)};
    }
  }
}

}  // namespace

std::optional<std::vector<uint8_t>> encode_plane(std::span<const uint8_t> plane) {
  const size_t n = plane.size(), n_lanes = lanes_of(n);
  uint32_t counts[kBytes] = {};
  for (const uint8_t byte : plane) ++counts[byte];
  const ByteFrequencies frequencies = frequencies_of(counts, n);
  const std::vector<uint8_t> table = written(frequencies);
  uint64_t cost = 32 * 8 * (table.size() + 4 * n_lanes);  // in 1/32 bit
  for (uint32_t byte = 0; byte < kBytes; ++byte) {
    if (counts[byte] > 0) cost += uint64_t{counts[byte]} * kCodeLengths.of[frequencies.of[byte]];
  }
  if (64 * cost >= 63 * 32 * 8 * uint64_t{n}) return std::nullopt;

  Slots slots[kBytes] = {};
  uint32_t start = 0;
  for (uint32_t byte = 0; byte < kBytes; ++byte) {
    slots[byte] = {static_cast<uint16_t>(start), frequencies.of[byte]};
    start += frequencies.of[byte];
  }
  const auto words = std::make_unique_for_overwrite<uint16_t[]>(n + 1);
  uint16_t* next = words.get() + n + 1;
  uint32_t states[kMostLanes];
  std::fill_n(states, n_lanes, kLaneStart);
  size_t lane = n % n_lanes;  // behind the last byte's
  for (size_t i = n; i-- > 0;) {
    lane = (lane == 0 ? n_lanes : lane) - 1;
    const Slots s = slots[plane[i]];
    uint32_t state = states[lane];
    const bool full = state >= lane_limit(s.freq);
    next[-1] = static_cast<uint16_t>(state);
    next -= full ? 1 : 0;
    states[lane] = with_symbol(state >> (full ? 16 : 0), s);
  }
  const size_t n_words = static_cast<size_t>(words.get() + n + 1 - next);
  std::vector<uint8_t> slice(table.size() + 4 * n_lanes + 2 * n_words);
  if (slice.size() >= n) return std::nullopt;
  std::copy(table.begin(), table.end(), slice.begin());
  uint8_t* out = slice.data() + table.size();
  for (size_t l = 0; l < n_lanes; ++l, out += 4) store_le(out, states[l]);
  for (size_t w = 0; w < n_words; ++w, out += 2) store_le(out, next[w]);
  return slice;
}

bool decode_plane(std::span<const uint8_t> slice, std::span<uint8_t> plane) {
  ByteFrequencies frequencies;
  const size_t n_table = read_frequencies(slice, &frequencies);
  const size_t n_lanes = lanes_of(plane.size());
  if (n_table == 0 || slice.size() < n_table + 4 * n_lanes) return false;
  const auto owners = std::make_unique_for_overwrite<Owners>();
  fill(frequencies, owners.get());
  const uint8_t* const first_state = slice.data() + n_table;
  const uint8_t* const first_word = first_state + 4 * n_lanes;
  uint32_t states[kMostLanes];
  for (size_t l = 0; l < n_lanes; ++l) {
    states[l] = load_le<uint32_t>(first_state + 4 * l);
    if (states[l] < kLaneStart) return false;
  }
  const size_t n_bytes = slice.size() - n_table - 4 * n_lanes;
  if (n_bytes % 2 != 0) return false;
  // Zeros behind the words, so that all lanes may read one too many.
  std::vector<uint16_t> words(n_bytes / 2 + kMostLanes + 1);
  for (size_t w = 0; w < n_bytes / 2; ++w) words[w] = load_le<uint16_t>(first_word + 2 * w);
  const uint16_t* next = words.data();
  const uint16_t* const end = next + n_bytes / 2;
  for (size_t first = 0; first < plane.size(); first += n_lanes) {
    const size_t n = std::min(n_lanes, plane.size() - first);
    for (size_t l = 0; l < n; ++l) {
      const uint32_t slot = states[l] % kFrequencyOne;
      const Owner owner = owners->of[slot];
      plane[first + l] = owner.byte;
      const uint32_t state = owner.frequency * (states[l] >> kFrequencyBits) + owner.offset;
      const bool full = state >= kLaneStart;
      const uint32_t with_word = state << 16 | *next;
      next += full ? 0 : 1;
      states[l] = full ? state : with_word;
    }
    if (next > end) return false;
  }
  const auto ended = [](uint32_t state) { return state == kLaneStart; };
  return next == end && std::all_of(states, states + n_lanes, ended);
}

}  // namespace resfed
