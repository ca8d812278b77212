// The plain functions that say how large things are and who works on what on a CUDA device.
#include "cuda/geometry.hpp"

#include <cstring>
#include <memory>
#include <vector>

#include "cuda/lanes.hpp"
#include "entropy/lane_symbols.hpp"
#include "expect.hpp"

using namespace resfed;
using namespace resfed::cuda;

static void chunks() {
  EXPECT(n_chunks(1) == 1 && n_chunks(kChunkElems) == 1 && n_chunks(kChunkElems + 1) == 2);
  EXPECT(n_chunks(uint64_t{1} << 39) == (uint64_t{1} << 39) / kChunkElems);
  const std::vector<uint64_t> begins = {0, 1, 5, 6, 100};
  for (uint64_t wanted = 0; wanted < 120; ++wanted) {
    uint64_t expected = 0;
    while (expected + 1 < begins.size() && begins[expected + 1] <= wanted) ++expected;
    EXPECT(last_at_most(begins.size(), wanted, [&](uint64_t i) { return begins[i]; }) == expected);
  }
}

static void samples() {
  EXPECT(sample_plan(1000, 10).n_samples == 0);               // small
  EXPECT(sample_plan(10'000'000, 0).n_samples == 0);          // nothing to select
  EXPECT(sample_plan(10'000'000, 9'999'999).n_samples == 0);  // all of it
  for (uint64_t n = 16384; n < uint64_t{1} << 38; n *= 3) {
    for (uint64_t k = 1; k < n; k *= 7) {
      const SamplePlan plan = sample_plan(n, k);
      if (plan.n_samples == 0) continue;
      EXPECT(plan.n_samples >= 2048 && plan.n_samples <= 16384 && plan.n_samples <= n / 8);
      EXPECT(plan.rank < plan.n_samples);
      EXPECT(candidate_room(n, plan) > min_of(n - 1, k));
      EXPECT(candidate_room(n, plan) <= n);
    }
  }
}

static void carving() {
  const auto carve = [](BumpAllocator& allocator) {
    std::vector<void*> parts;
    parts.push_back(allocator.take<uint8_t>(3));
    parts.push_back(allocator.take<uint64_t>(5));
    const uint64_t mark = allocator.mark();
    parts.push_back(allocator.take<uint16_t>(1000));
    allocator.rewind(mark);
    parts.push_back(allocator.take<float>(7));
    return parts;
  };
  BumpAllocator counting(nullptr);
  carve(counting);
  std::vector<uint8_t> memory(counting.n_bytes());
  BumpAllocator allocator(memory.data());
  const std::vector<void*> parts = carve(allocator);
  EXPECT(allocator.n_bytes() == counting.n_bytes());
  for (const void* part : parts) {
    const auto offset = static_cast<const uint8_t*>(part) - memory.data();
    EXPECT(offset >= 0 && offset % 256 == 0 && static_cast<size_t>(offset) < memory.size());
  }
  EXPECT(parts[2] == parts[3] && parts[1] != parts[2] && parts[0] != parts[1]);
  EXPECT(static_cast<uint8_t*>(parts[2]) + 2000 <= memory.data() + memory.size());
}

// Random symbols and raw bits on one state: the words never exceed the room for them.
static void words() {
  uint64_t random = 1;
  const auto below = [&](uint64_t n) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    return (random >> 33) % n;
  };
  for (int lane = 0; lane < 2000; ++lane) {
    const uint64_t n_nonzeros = 1 + below(200);
    const uint32_t kind = static_cast<uint32_t>(below(5));
    const auto most_bits = static_cast<unsigned>(below(kMostGapLog2 + 2));
    uint32_t state = kLaneStart;
    uint64_t n_words = 2, cost = 0, raw_bits = 0;
    const auto put_raw = [&](uint32_t value, unsigned n_bits) {
      if (static_cast<uint64_t>(state) << n_bits >> 32 != 0) ++n_words, state >>= 16;
      state = state << n_bits | value;
      raw_bits += n_bits;
    };
    for (uint64_t i = 0; i < 2 * n_nonzeros; ++i) {
      const uint32_t most = kFrequencyOne - kSymbols + 1;
      const auto freq = static_cast<uint32_t>(kind == 0   ? 1
                                              : kind == 1 ? most
                                                          : 1 + below(kind == 2 ? 8 : most));
      const auto start =
          static_cast<uint32_t>(kind == 3 ? kFrequencyOne - freq : below(kFrequencyOne - freq + 1));
      if (state >= lane_limit(freq)) ++n_words, state >>= 16;
      state = with_symbol(state, {static_cast<uint16_t>(start), static_cast<uint16_t>(freq)});
      cost += kCodeLengths.of[freq];
      for_each_piece_backwards(below(~0u) << 31 | below(~0u), most_bits, put_raw);
    }
    EXPECT(n_words <= most_words_of_lane(n_nonzeros, cost, raw_bits));
  }
}

// Whatever lies behind a table's rows, where nobody writes.
static void tables() {
  const auto table = std::make_unique<Table>();
  const auto on_device = std::make_unique<TableStarts>();
  for (const Family family : {kGaps, kBlockGaps, kLevels, kBlockLevels}) {
    std::memset(table.get(), 0xa5, sizeof(Table));
    std::memset(on_device.get(), 0xa5, sizeof(TableStarts));
    for (uint32_t r = 0; r < kRows[family]; ++r) {
      for (uint32_t s = 0; s < kSymbols; ++s) {
        table->starts[r][s] = static_cast<uint16_t>(s * (r + 1));
      }
    }
    on_device->fill(*table, family);
    for (uint32_t code = 0; code < kRows[family] * kSymbols; ++code) {
      const uint32_t r = code / kSymbols, s = code % kSymbols;
      const Slots slots = on_device->slots_of(code);
      EXPECT(slots.start == s * (r + 1));
      EXPECT(slots.freq == (s + 1 < kSymbols ? r + 1 : kFrequencyOne - s * (r + 1)));
      EXPECT(on_device->row(r)[s / kGroup] == s / kGroup * kGroup * (r + 1));
    }
  }
}

int main() {
  tables();
  words();
  chunks();
  samples();
  carving();
}
