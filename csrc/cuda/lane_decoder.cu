// Stage 4 on the device, decoding: a warp decodes a slice, each of its threads a lane.
#include "cuda/pipeline.cuh"
#include "entropy/interleaved_rans.hpp"

namespace resfed::cuda {
namespace {

constexpr unsigned kScanThreads = 1024;
constexpr unsigned kThreads = 128;
static_assert(kLanesOfSlice == kWarp);

// The words of a slice, with zeros behind them. All functions are called by the whole warp,
// make_ready() before a step or pieces. The next words lie in shared memory, those behind them are
// on their way.
class WordReader {
 public:
  __device__ WordReader(const uint16_t* words, uint32_t n, uint16_t* ring)
      : words_(words), ring_(ring), n_(n) {
    fetch();
    make_ready();
  }

  // Sees to it that more words lie ready than a step takes without pieces, or a lane's pieces.
  __device__ void make_ready() {
    static_assert(kAtOnce >= 4 * kWarp);
    while (ready_ < at_ + kAtOnce) {
      __syncwarp();
      RESFED_UNROLL
      for (uint32_t i = 0; i < kEach; ++i) {
        ring_[(ready_ + i * kWarp + lane_of_thread()) % kRing] = fetched_[i];
      }
      ready_ += kAtOnce;
      __syncwarp();
      fetch();
    }
  }
  // Lanes whose state is short take the next words, in the order of the lanes.
  __device__ uint32_t refilled(uint32_t state) {
    const unsigned takers = __ballot_sync(kAllLanes, state < kLaneStart);
    const uint32_t word = word_at(at_ + static_cast<unsigned>(__popc(takers & lanes_below())));
    at_ += static_cast<unsigned>(__popc(takers));
    return state < kLaneStart ? state << 16 | word : state;
  }
  __device__ uint32_t take_raw(uint32_t& state, unsigned n_bits) {
    const uint32_t value = state & ((1u << n_bits) - 1);
    state = refilled(state >> n_bits);
    return value;
  }
  // n_bits more of a value, of the lanes that have any, one after the other.
  __device__ uint64_t take_pieces(uint32_t& state, uint64_t value, unsigned n_bits) {
    for (unsigned left = __ballot_sync(kAllLanes, n_bits > 0); left != 0; left &= left - 1) {
      const unsigned lane = static_cast<unsigned>(__popc((left & (0u - left)) - 1));
      make_ready();
      if (lane == lane_of_thread()) {
        for (unsigned bits = n_bits; bits > 0;) {
          const unsigned n = min_of(kPieceBits, bits);
          value = value << n | (state & ((1u << n) - 1));
          state >>= n;
          if (state < kLaneStart) state = state << 16 | word_at(at_++);
          bits -= n;
        }
      }
      at_ = __shfl_sync(kAllLanes, at_, static_cast<int>(lane));
    }
    make_ready();
    return value;
  }
  __device__ bool at_end() const { return at_ == n_; }

  static constexpr uint32_t kEach = 8, kAtOnce = kEach * kWarp, kRing = 2 * kAtOnce;

 private:
  __device__ uint32_t word_at(uint32_t at) const { return ring_[at % kRing]; }
  __device__ void fetch() {
    RESFED_UNROLL
    for (uint32_t i = 0; i < kEach; ++i) {
      const uint32_t at = ready_ + i * kWarp + lane_of_thread();
      fetched_[i] = at < n_ ? words_[at] : uint16_t{0};
    }
  }
  const uint16_t* words_;
  uint16_t* ring_;
  uint32_t n_, at_ = 0, ready_ = 0;
  uint16_t fetched_[kEach];
};

// Takes a symbol off the state, which is not refilled: first its group of symbols is found, then
// its place in the group, two starts in a number at a time.
__device__ uint32_t take_symbol(uint32_t& state, const uint16_t* row) {
  struct alignas(16) Firsts {
    uint32_t of[kGroups / 2];
  };
  constexpr uint32_t kReached = 0x80008000u;  // no start is greater than the slot with this bit
  const uint32_t slot = state & (kFrequencyOne - 1), slots = slot * 0x10001u | kReached;
  const Firsts firsts = *reinterpret_cast<const Firsts*>(row);
  uint32_t reached = 0;
  RESFED_UNROLL
  for (uint32_t i = 0; i < kGroups / 2; ++i) reached |= ((slots - firsts.of[i]) & kReached) >> i;
  const auto group = static_cast<uint32_t>(__popc(reached)) - 1;
  row += kGroups + kGroup * group;
  const uint64_t all = *reinterpret_cast<const uint64_t*>(row), end = row[kGroup];
  static_assert(kGroup * sizeof(uint16_t) == sizeof all);
  const uint32_t low = slots - static_cast<uint32_t>(all);
  const uint32_t high = slots - static_cast<uint32_t>(all >> 32);
  const uint32_t place = (low >> 31) + (high >> 15 & 1u) + (high >> 31);
  const uint32_t start = static_cast<uint32_t>(all >> 16 * place) & 0xffffu;
  const uint32_t next = static_cast<uint32_t>((all >> 16 | end << 48) >> 16 * place) & 0xffffu;
  state = ((next - start) & (kFrequencyOne - 1)) * (state >> kFrequencyBits) + slot - start;
  return kGroup * group + place;
}

// Copies of tables in shared memory. Most lanes of a slice share theirs.
class StagedTables {
 public:
  struct alignas(16) Piece {
    uint32_t of[4];
  };
  static constexpr uint32_t kPieces = 2560;

  __device__ explicit StagedTables(Piece* memory) : memory_(memory) {}

  // The copy of a lane's table, or the table itself if there is no room left. By the whole warp.
  __device__ const TableStarts& staged(const TableStarts& table, Family family) {
    const auto place = reinterpret_cast<uintptr_t>(&table);
    const TableStarts* own = &table;
    for (unsigned left = kAllLanes; left != 0;) {
      const auto lane = static_cast<int>(floor_log2(left));
      const uintptr_t wanted = __shfl_sync(kAllLanes, place, lane);
      const uint32_t n = __shfl_sync(kAllLanes, table_bytes(family), lane) / sizeof(Piece);
      const bool fits = n_ + n <= kPieces;
      for (uint32_t i = lane_of_thread(); fits && i < n; i += kWarp) {
        memory_[n_ + i] = reinterpret_cast<const Piece*>(wanted)[i];
      }
      if (fits && place == wanted) own = reinterpret_cast<const TableStarts*>(memory_ + n_);
      if (fits) n_ += n;
      left &= ~__ballot_sync(kAllLanes, place == wanted);
    }
    __syncwarp();
    return *own;
  }

 private:
  Piece* memory_;
  uint32_t n_ = 0;
};

// Values of a class, for all symbols of gaps: in shared memory, as each thread wants another one.
struct GapClasses {
  uint16_t first[kSymbols], n_bits[kSymbols];

  __device__ void fill() {
    const uint32_t symbol = lane_of_thread();
    const bool escape = symbol == kGapEscape;
    const ValueClass values = escape ? ValueClass{0, kExponentBits} : gap_class(symbol);
    first[symbol] = static_cast<uint16_t>(values.first);
    n_bits[symbol] = static_cast<uint16_t>(values.n_bits);
    static_assert(kSymbols == kWarp);
  }
};

// The lane of this thread, in a slice of a warp. Lanes that have ended take part with a state that
// is never short. Damage shows at the end: until then whatever is decoded stays in bounds.
template <bool kBlocks, class Nonzero>
__device__ bool decode_steps(uint32_t state, const Lane& lane, const TableStarts& gaps,
                             const TableStarts& levels, const GapClasses& gap_classes,
                             WordReader& words, uint32_t length, uint32_t longest, uint64_t n_elems,
                             Nonzero* out, uint64_t* covered_by_lane) {
  auto contexts = contexts_of<kBlocks, Nonzero>(lane.block);
  bool negative = false, bad = false;
  uint64_t covered = 0;
  for (uint32_t step = 0; step < longest; ++step) {
    const bool active = step < length;
    words.make_ready();
    uint32_t before = state;
    uint32_t symbol = take_symbol(state, gaps.row(contexts.gap_row()));
    if (!active) state = before, symbol = 0;
    state = words.refilled(state);
    const bool escaped = symbol == kGapEscape;
    uint64_t gap = gap_classes.first[symbol] + words.take_raw(state, gap_classes.n_bits[symbol]);
    if (__ballot_sync(kAllLanes, escaped) != 0) {
      const uint64_t value = words.take_pieces(state, 1, escaped ? static_cast<unsigned>(gap) : 0);
      if (escaped) {
        bad |= gap < kEscapedGapLog2 || value > n_elems;
        gap = value > n_elems ? 1 : value;
      }
    }
    if (active) covered += gap;
    contexts.add_gap(gap, floor_log2(gap));

    before = state;
    symbol = take_symbol(state, levels.row(contexts.level_row()));
    if (!active) state = before, symbol = 0;
    state = words.refilled(state);
    contexts.add_level(symbol);
    negative = negative != (symbol >= kSignChanged);
    symbol %= kSignChanged;
    uint64_t level = symbol + 1;
    const unsigned n_bits = active ? level_raw_bits(symbol, lane.shift) : 0;
    if (__ballot_sync(kAllLanes, n_bits > 0) != 0) {
      const bool is_escape = symbol == kLevelEscape;
      const unsigned n_first = min_of(n_bits, kPieceBits);
      const uint32_t raw = words.take_raw(state, n_first);
      const unsigned n_left = is_escape ? raw : n_bits - n_first;
      level = is_escape ? 1 : raw;
      if (__ballot_sync(kAllLanes, n_left > 0) != 0) {
        level = words.take_pieces(state, level, n_left);
      }
      if (!is_escape) level += first_level(symbol, lane.shift);
      // Levels have one symbol each.
      bad |= level > kMostLevel<Nonzero> || level_symbol(level, lane.shift) != symbol;
      bad |= !negative && level >> 63 != 0;  // 2^63 is legal as -2^63 alone
      level = min_of<uint64_t>(level, kMostLevel<Nonzero>);
    }
    if (active) {
      using Level = decltype(out->level());
      *out++ = {covered - 1, static_cast<Level>(negative ? 0 - level : level)};
    }
  }
  if (length > 0) {
    *covered_by_lane = covered;
    bad |= covered > n_elems;
  }
  return words.at_end() && __ballot_sync(kAllLanes, bad || state != kLaneStart) == 0;
}

// Indices relative to the end of the lane before.
template <class Nonzero>
__device__ bool decode_slice(const uint16_t* slice, uint64_t n_bytes, const LaneTables& lanes,
                             uint64_t first, uint64_t n_elems, Nonzero* nonzeros,
                             uint64_t* covered) {
  const Partition& p = lanes.partition;
  const uint64_t n_lanes = min_of<uint64_t>(p.n_parts - first, kLanesOfSlice);
  if (n_bytes < 4 * n_lanes || n_bytes % 2 != 0 || n_bytes >> 32 != 0) return false;
  const bool there = lane_of_thread() < n_lanes;
  const uint64_t l = first + (there ? lane_of_thread() : 0);
  const Lane lane = lanes.of[l];
  uint32_t state = kLaneStart;
  if (there) {
    state = slice[2 * lane_of_thread()] | static_cast<uint32_t>(slice[2 * lane_of_thread() + 1])
                                              << 16;
  }
  if (__ballot_sync(kAllLanes, state < kLaneStart) != 0) return false;
  const bool blocks = lane.block.size > 0;
  constexpr Part kPart = part_of<Nonzero>;
  const Family of_gaps = gap_family(kPart, blocks), of_levels = level_family(kPart, blocks);
  __shared__ StagedTables::Piece table_memory[StagedTables::kPieces];
  __shared__ uint16_t ring[WordReader::kRing];
  StagedTables tables(table_memory);
  const TableStarts& gaps = tables.staged(lanes.tables.at(of_gaps, lane.gap_set), of_gaps);
  const TableStarts& levels = tables.staged(lanes.tables.at(of_levels, lane.level_set), of_levels);
  __shared__ GapClasses gap_classes;
  gap_classes.fill();
  WordReader words(slice + 2 * n_lanes, static_cast<uint32_t>(n_bytes / 2 - 2 * n_lanes), ring);
  const uint64_t begin = part_begin(p, l);
  const auto length = static_cast<uint32_t>(there ? part_begin(p, l + 1) - begin : 0);
  const auto longest = static_cast<uint32_t>(part_begin(p, first + 1) - part_begin(p, first));
  const auto decode = [&](auto with_blocks) {
    return decode_steps<with_blocks.value>(state, lane, gaps, levels, gap_classes, words, length,
                                           longest, n_elems, nonzeros + begin, &covered[l]);
  };
  if constexpr (kPart == Part::kLossless) return decode(std::false_type());
  return __ballot_sync(kAllLanes, there && blocks) != 0 ? decode(std::true_type())
                                                        : decode(std::false_type());
}

template <class Nonzero>
__global__ void __launch_bounds__(kWarp)
    decode_each(const uint8_t* slices, const uint64_t* offsets, LaneTables lanes, uint64_t n_elems,
                Nonzero* nonzeros, uint64_t* covered, Progress* progress) {
  const uint64_t n_slices = slices_of(lanes.partition.n_parts);
  for (uint64_t s = blockIdx.x; s < n_slices; s += gridDim.x) {
    const auto* const slice = reinterpret_cast<const uint16_t*>(slices + offsets[s]);
    const bool sound = decode_slice(slice, offsets[s + 1] - offsets[s], lanes, s * kLanesOfSlice,
                                    n_elems, nonzeros, covered);
    if (!sound && lane_of_thread() == 0) lower_atomically(&progress->bad_slice, s);
    __syncwarp();  // the next slice writes where this one reads
  }
}

// From how much each lane covers to where it begins; by one block.
__global__ void __launch_bounds__(kScanThreads)
    place_lanes(uint64_t n, uint64_t n_elems, uint64_t* covered, Progress* progress) {
  if (progress->is_damaged()) return;
  const auto [begin, end] = range_of_thread(n);
  uint64_t mine = 0, total = 0;
  for (uint64_t l = begin; l < end; ++l) mine += covered[l];
  uint64_t place = sum_of_threads_below(mine, &total);
  for (uint64_t l = begin; l < end; ++l) {
    const uint64_t of_lane = covered[l];
    covered[l] = place;
    place += of_lane;
    if (place > n_elems) lower_atomically(&progress->bad_slice, l / kLanesOfSlice);
  }
}

// To indices among all elements, and out of the scan order.
template <class Nonzero>
__global__ void __launch_bounds__(kThreads)
    place_symbols(DeviceGroup group, Partition p, const uint64_t* begins, const DeviceScan* scans,
                  Nonzero* nonzeros, Progress* progress) {
  if (progress->is_damaged()) return;
  for (uint64_t l = blockIdx.x; l < p.n_parts; l += gridDim.x) {
    const uint64_t end = part_begin(p, l + 1);
    for (uint64_t i = part_begin(p, l) + threadIdx.x; i < end; i += blockDim.x) {
      Nonzero nonzero = nonzeros[i];
      nonzero.move_up(begins[l]);
      if constexpr (part_of<Nonzero> == Part::kLossy) {
        if (nonzero.index() < group.n_elems) {
          const DeviceMember& member = group.member_at(nonzero.index());
          const DeviceScan& scan = scans[&member - group.members];
          if (scan.row_length > 0 && !scan.undo(member.begin, &nonzero)) progress->outside = 1;
        }
      }
      nonzeros[i] = nonzero;
    }
  }
}

}  // namespace

template <class Nonzero>
void decode_lanes(const Stage& stage, const uint8_t* slices, const uint64_t* offsets,
                  const LaneTables& lanes, const DeviceScan* scans, uint64_t n_elems,
                  uint64_t* begins, Nonzero* nonzeros) {
  const auto& [group, progress, n_blocks, stream] = stage;
  const uint64_t n_lanes = lanes.partition.n_parts;
  const auto n_slices = static_cast<unsigned>(min_of<uint64_t>(slices_of(n_lanes), 1u << 20));
  launch(decode_each<Nonzero>, n_slices, kWarp, stream, slices, offsets, lanes, n_elems, nonzeros,
         begins, progress);
  launch(place_lanes, 1, kScanThreads, stream, n_lanes, n_elems, begins, progress);
  launch(place_symbols<Nonzero>, static_cast<unsigned>(min_of<uint64_t>(n_lanes, n_blocks)),
         kThreads, stream, group, lanes.partition, begins, scans, nonzeros, progress);
}

#define RESFED_INSTANTIATE(Nonzero)                                                            \
  template void decode_lanes(const Stage&, const uint8_t*, const uint64_t*, const LaneTables&, \
                             const DeviceScan*, uint64_t, uint64_t*, Nonzero*);
RESFED_INSTANTIATE(SentSymbol)
RESFED_INSTANTIATE(ChangedElement)
#undef RESFED_INSTANTIATE

}  // namespace resfed::cuda
