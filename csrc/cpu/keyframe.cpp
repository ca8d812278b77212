#include "cpu/keyframe.hpp"

#include <algorithm>
#include <cstring>
#include <memory>

#include "cpu/byte_planes.hpp"
#include "cpu/crc32c.hpp"
#include "cpu/lossless.hpp"
#include "cpu/threads.hpp"
#include "format/frame.hpp"
#include "numeric/keyframe.hpp"

namespace resfed {
namespace {

static_assert(std::endian::native == std::endian::little, "elements are copied as they lie");

constexpr size_t kHeaderBytes = 12;

// A mode of the table: one of these, or else its length in bytes when coded.
constexpr uint64_t kRaw = 0;
constexpr uint64_t kConstant = 1;

struct Chunk {
  const Tensor* tensor;
  uint64_t first;
  uint32_t n_elems;

  bool is_float() const { return tensor->role != Role::kLossless; }
  unsigned mantissa_bits() const { return mantissa_bits_of(tensor->dtype); }
};

std::vector<Chunk> chunks_of(const std::vector<Tensor>& tensors) {
  std::vector<Chunk> chunks;
  for (const Tensor& t : tensors) {
    for (uint64_t first = 0; first < t.n_elems; first += kKeyframeChunkElems) {
      chunks.push_back(
          {&t, first, static_cast<uint32_t>(min_of(kKeyframeChunkElems, t.n_elems - first))});
    }
  }
  return chunks;
}

// Chunks that make a full chunk's work, on average: a model may have many small tensors.
size_t chunks_per_thread(const std::vector<Chunk>& chunks) {
  uint64_t n_elems = 0;
  for (const Chunk& chunk : chunks) n_elems += chunk.n_elems;
  const uint64_t n_full = max_of<uint64_t>(n_elems / kKeyframeChunkElems, 1);
  return max_of<size_t>(chunks.size() / n_full, 1);
}

struct BytePlane {
  uint64_t mode;
  std::vector<uint8_t> bytes;  // as the mode says
};

BytePlane make_plane(std::vector<uint8_t> bytes) {
  const uint8_t first = bytes[0];
  if (std::all_of(bytes.begin(), bytes.end(), [first](uint8_t byte) { return byte == first; }))
    return {kConstant, {first}};
  if (auto slice = encode_plane(bytes)) return {slice->size(), *std::move(slice)};
  return {kRaw, std::move(bytes)};
}

template <class UInt>
void append_planes(const Chunk& chunk, unsigned keep, std::vector<BytePlane>* planes) {
  const uint32_t n = chunk.n_elems;
  const auto elems = std::make_unique_for_overwrite<UInt[]>(n);
  std::memcpy(elems.get(),
              static_cast<const uint8_t*>(chunk.tensor->current) + chunk.first * sizeof(UInt),
              n * sizeof(UInt));
  if (chunk.is_float()) {
    const unsigned mantissa_bits = chunk.mantissa_bits();
    for (uint32_t i = 0; i < n; ++i)
      elems[i] = exponent_first(round_mantissa(elems[i], mantissa_bits, keep), mantissa_bits);
  }
  for (unsigned shift = kWidth<UInt>; shift > 0;) {
    shift -= 8;
    std::vector<uint8_t> bytes(n);
    for (uint32_t i = 0; i < n; ++i) bytes[i] = static_cast<uint8_t>(elems[i] >> shift);
    planes->push_back(make_plane(std::move(bytes)));
  }
}

// Where a byte plane lies in the payload, and its mode.
struct BytePlaneSource {
  uint64_t mode;
  uint64_t offset;
};

uint64_t plane_bytes(uint64_t mode, uint32_t n) {
  return mode == kRaw ? n : mode == kConstant ? 1 : mode;
}

void read_plane(const uint8_t* payload, BytePlaneSource source, uint32_t n, Failure bad,
                uint8_t* plane) {
  const uint8_t* const bytes = payload + source.offset;
  if (source.mode == kRaw) {
    std::memcpy(plane, bytes, n);
    return;
  }
  if (source.mode == kConstant) {
    std::memset(plane, *bytes, n);
    return;
  }
  if (!decode_plane({bytes, source.mode}, {plane, n})) throw bad;
}

// `sources` are the chunk's byte planes; `first_plane` only numbers errors.
template <class UInt>
void decode_chunk(const Chunk& chunk, const uint8_t* payload, const BytePlaneSource* sources,
                  uint64_t first_plane) {
  const uint32_t n = chunk.n_elems;
  const auto elems = std::make_unique<UInt[]>(n);
  const auto plane = std::make_unique_for_overwrite<uint8_t[]>(n);
  for (unsigned p = 0; p < sizeof(UInt); ++p) {
    read_plane(payload, sources[p], n, {Code::kBadSlice, first_plane + p}, plane.get());
    const unsigned shift = kWidth<UInt> - 8 * (p + 1);
    for (uint32_t i = 0; i < n; ++i)
      elems[i] = static_cast<UInt>(elems[i] | static_cast<UInt>(UInt{plane[i]} << shift));
  }
  if (chunk.is_float()) {
    const unsigned mantissa_bits = chunk.mantissa_bits();
    for (uint32_t i = 0; i < n; ++i) elems[i] = sign_first(elems[i], mantissa_bits);
  }
  std::memcpy(static_cast<uint8_t*>(chunk.tensor->out) + chunk.first * sizeof(UInt), elems.get(),
              n * sizeof(UInt));
}

// Verifies what is neither header nor inside a byte plane. `payload` without its checksum.
std::vector<BytePlaneSource> read_table(const uint8_t* payload, size_t n_bytes,
                                        const std::vector<Chunk>& chunks) {
  ByteReader in(payload, n_bytes);
  in.fixed<uint32_t>();  // magic and version
  in.fixed<uint64_t>();  // digest
  std::vector<BytePlaneSource> sources;
  uint64_t sum = 0;
  for (const Chunk& chunk : chunks) {
    // A slice that is no shorter than the raw byte plane is not legal.
    const uint64_t limit = max_of<uint64_t>(chunk.n_elems - 1, kConstant);
    for (uint32_t p = 0; p < chunk.tensor->elem_bytes; ++p) {
      sources.push_back({in.varint(limit), sum});
      sum += plane_bytes(sources.back().mode, chunk.n_elems);
    }
  }
  if (sum > in.left()) throw Failure{Code::kTruncated, n_bytes};
  if (sum < in.left()) throw Failure{Code::kTrailingBytes, in.offset() + sum};
  for (BytePlaneSource& source : sources) source.offset += in.offset();
  return sources;
}

// Everything before the table; returns the length without the checksum.
size_t check_header(const uint8_t* payload, size_t n_bytes, uint64_t layout_digest) {
  if (n_bytes < kHeaderBytes + kChecksumBytes) throw Failure{Code::kTruncated, n_bytes};
  for (size_t i = 0; i < sizeof kKeyframeMagic; ++i) {
    if (payload[i] != kKeyframeMagic[i]) throw Failure{Code::kBadMagic, i};
  }
  if (payload[3] != kKeyframeVersion) throw Failure{Code::kBadVersion, 3, payload[3]};
  const size_t n_checked = n_bytes - kChecksumBytes;
  if (crc32c(payload, n_checked) != load_le<uint32_t>(payload + n_checked)) {
    throw Failure{Code::kBadChecksum, n_checked};
  }
  const uint64_t digest = load_le<uint64_t>(payload + 4);
  if (digest != layout_digest) throw Failure{Code::kWrongKeyframeLayout, digest, layout_digest};
  return n_checked;
}

}  // namespace

std::vector<uint8_t> encode_keyframe(const std::vector<Tensor>& tensors, uint64_t layout_digest,
                                     unsigned mantissa_bits) {
  const std::vector<Chunk> chunks = chunks_of(tensors);
  std::vector<std::vector<BytePlane>> planes_of_chunks(chunks.size());
  parallel_for(
      chunks.size(),
      [&](size_t c) {
        with_width(chunks[c].tensor->elem_bytes, [&](auto width) {
          append_planes<decltype(width)>(chunks[c], mantissa_bits, &planes_of_chunks[c]);
        });
      },
      chunks_per_thread(chunks));

  ByteWriter out;
  for (const uint8_t byte : kKeyframeMagic) out.fixed(byte);
  out.fixed(kKeyframeVersion);
  out.fixed(layout_digest);
  size_t n_bytes = kChecksumBytes;
  for (const auto& planes : planes_of_chunks) {
    for (const BytePlane& plane : planes) out.varint(plane.mode), n_bytes += plane.bytes.size();
  }
  std::vector<uint8_t>& bytes = out.bytes();
  bytes.reserve(bytes.size() + n_bytes);
  for (const auto& planes : planes_of_chunks) {
    for (const BytePlane& plane : planes)
      bytes.insert(bytes.end(), plane.bytes.begin(), plane.bytes.end());
  }
  out.fixed(crc32c(bytes.data(), bytes.size()));
  return std::move(bytes);
}

void decode_keyframe(const uint8_t* payload, size_t n_bytes, uint64_t layout_digest,
                     const std::vector<Tensor>& tensors) {
  const size_t n_checked = check_header(payload, n_bytes, layout_digest);
  const std::vector<Chunk> chunks = chunks_of(tensors);
  const std::vector<BytePlaneSource> sources = read_table(payload, n_checked, chunks);
  std::vector<uint64_t> first_planes;
  uint64_t n_planes = 0;
  for (const Chunk& chunk : chunks) {
    first_planes.push_back(n_planes);
    n_planes += chunk.tensor->elem_bytes;
  }
  parallel_for(
      chunks.size(),
      [&](size_t c) {
        with_width(chunks[c].tensor->elem_bytes, [&](auto width) {
          decode_chunk<decltype(width)>(chunks[c], payload, sources.data() + first_planes[c],
                                        first_planes[c]);
        });
      },
      chunks_per_thread(chunks));
}

}  // namespace resfed
