// The frame: everything in a payload that is not a slice. docs/format.md is its specification. Host
// code that every backend shares.
//
//   [4 bytes] magic "RFD" and version   [1] flags   [1] lane_log2   [8] digest
//   [4] reference check   link   [varints] counts, quantizers, exponents, exclusions, dense
//   tensors, tables, slice lengths   slices   [4] CRC-32C of all before
//
// Hostile input: read_frame() checks every count against the bytes that are there, and those of
// tensors against the receiver's layout, before it allocates anything. What it allocates is a small
// multiple of the payload.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "format/lanes.hpp"
#include "format/version.hpp"
#include "host_device.hpp"
#include "numeric/quantize.hpp"
#include "status.hpp"

namespace resfed {

constexpr uint8_t kMagic[3] = {'R', 'F', 'D'};
constexpr uint8_t kFlagExclusions = 1;
constexpr uint8_t kFlagLink = 2;
constexpr uint8_t kFlagDense = 4;
constexpr uint8_t kKnownFlags = kFlagExclusions | kFlagLink | kFlagDense;
constexpr size_t kFixedHeaderBytes = 18;
constexpr size_t kVersionOffset = 3, kFlagsOffset = 4, kDigestOffset = 6;
constexpr size_t kChecksumBytes = 4;
constexpr uint64_t kMostTensors = 1ull << 32;  // of any model

struct Frame {
  uint8_t version = CurrentFormat::kVersion;
  unsigned lane_log2 = kDefaultLaneLog2;
  uint64_t digest = 0;
  uint32_t reference_check = 0;
  std::string link;  // its bytes, see link.hpp; empty if there are none
  uint64_t n_matrix = 0, n_vector = 0, n_dense = 0, n_lossless = 0;  // elements by role
  uint64_t k_matrix = 0, k_vector = 0, k_dense = 0, n_changed = 0;   // of them, sent
  Quantizer matrix, vector, dense;
  // One per non-empty tensor of the role, when one of its elements is sent.
  std::vector<int8_t> exponents, dense_exponents;
  std::vector<uint32_t> exclusions;     // ordinals of float tensors that are carried losslessly
  std::vector<uint32_t> dense_tensors;  // ordinals
  std::vector<uint8_t> tables;          // of the lossy slices
  std::vector<uint8_t> change_tables;   // of the lossless slices
  std::vector<uint64_t> slice_bytes;    // all slices, lossy ones first
  size_t slices_offset = 0;             // set by read_frame
  size_t counts_offset = 0, quantizer_offset = 0, table_offset = 0;  // section borders, for inspect

  uint64_t n_lossy() const { return n_matrix + n_vector + n_dense; }
  uint64_t n_nonzeros() const { return k_matrix + k_vector + k_dense; }
  Partition lanes() const { return partition(n_nonzeros(), lane_log2); }
  uint64_t n_lossy_slices() const { return slices_of(lanes().n_parts); }
  Partition lanes_of_changes() const { return partition(n_changed, lane_log2); }
  uint64_t n_slices() const { return n_lossy_slices() + slices_of(lanes_of_changes().n_parts); }
};

constexpr uint64_t kMaxVarint = (1ull << 63) - 1;

class ByteWriter {
 public:
  template <class UInt>
  void fixed(UInt value) {
    bytes_.resize(bytes_.size() + sizeof(UInt));
    store_le(bytes_.data() + bytes_.size() - sizeof(UInt), value);
  }
  void varint(uint64_t value) {  // LEB128
    for (; value >= 0x80; value >>= 7) bytes_.push_back(static_cast<uint8_t>(value | 0x80));
    bytes_.push_back(static_cast<uint8_t>(value));
  }
  std::vector<uint8_t>& bytes() { return bytes_; }

 private:
  std::vector<uint8_t> bytes_;
};

class ByteReader {
 public:
  ByteReader(const uint8_t* data, size_t n_bytes) : data_(data), n_bytes_(n_bytes) {}
  size_t offset() const { return offset_; }
  size_t left() const { return n_bytes_ - offset_; }
  const uint8_t* here() const { return data_ + offset_; }
  void skip(uint64_t n_bytes) {
    if (n_bytes > left()) throw Failure{Code::kTruncated, offset_};
    offset_ += n_bytes;
  }

  template <class UInt>
  UInt fixed() {
    if (left() < sizeof(UInt)) throw Failure{Code::kTruncated, offset_};
    const UInt value = load_le<UInt>(data_ + offset_);
    offset_ += sizeof(UInt);
    return value;
  }
  // Shortest form only, at most 63 bits, at most `limit`.
  uint64_t varint(uint64_t limit) {
    const size_t begin = offset_;
    uint64_t value = 0;
    for (unsigned shift = 0;; shift += 7) {
      const uint8_t byte = fixed<uint8_t>();
      if (shift >= 63 || (byte == 0 && shift > 0)) throw Failure{Code::kBadField, begin, value};
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) break;
    }
    if (value > limit) throw Failure{Code::kBadField, begin, value};
    return value;
  }

 private:
  const uint8_t* data_;
  size_t n_bytes_;
  size_t offset_ = 0;
};

inline void write_quantizer(ByteWriter& out, const Quantizer& q) {
  out.fixed(float_bits(q.threshold));
  out.fixed(float_bits(q.step));
  out.fixed(static_cast<uint8_t>(q.n_offsets));
  for (uint32_t i = 0; i < q.n_offsets; ++i) out.fixed(q.offsets[i]);
}

template <class Format>
Quantizer read_quantizer(ByteReader& in) {
  const size_t begin = in.offset();
  Quantizer q;
  const uint32_t threshold = in.fixed<uint32_t>();
  const uint32_t step = in.fixed<uint32_t>();
  if (threshold == 0 || threshold >= kFirstNonFiniteKey)
    throw Failure{Code::kBadField, begin, threshold};
  if (step == 0 || step >= kFirstNonFiniteKey) throw Failure{Code::kBadField, begin + 4, step};
  q.threshold = float_from_bits(threshold);
  q.step = float_from_bits(step);
  q.n_offsets = in.fixed<uint8_t>();
  if (q.n_offsets > Format::kMaxOffsets) throw Failure{Code::kBadField, begin + 8, q.n_offsets};
  for (uint32_t i = 0; i < q.n_offsets; ++i) q.offsets[i] = in.fixed<uint8_t>();
  return q;
}

inline void write_exponents(ByteWriter& out, const std::vector<int8_t>& exponents) {
  out.varint(exponents.size());
  for (int8_t exponent : exponents) out.fixed(static_cast<uint8_t>(exponent));
}

// The layout of a payload with a link is not verified yet: more exponents than n_tensors may mean
// another layout. Without a link they mean a damaged field.
template <class Format>
std::vector<int8_t> read_exponents(ByteReader& in, uint64_t n_elems, uint64_t n_tensors,
                                   bool has_link) {
  const uint64_t limit = has_link ? n_elems : min_of(n_elems, n_tensors);
  const uint64_t n_exponents = in.varint(min_of<uint64_t>(limit, in.left()));
  if (n_exponents > n_tensors) throw Failure{Code::kNoSuchTensor, n_exponents - 1, n_tensors};
  std::vector<int8_t> exponents(n_exponents);
  for (int8_t& exponent : exponents) {
    exponent = static_cast<int8_t>(in.fixed<uint8_t>());
    if (exponent < Format::kMinExponent || exponent > Format::kMaxExponent) {
      throw Failure{Code::kBadField, in.offset() - 1, static_cast<uint8_t>(exponent)};
    }
  }
  return exponents;
}

// Ascending, at least one.
inline void write_ordinals(ByteWriter& out, const std::vector<uint32_t>& ordinals) {
  out.varint(ordinals.size());
  uint64_t previous = 0;
  for (const uint64_t ordinal : ordinals) out.varint(ordinal - previous), previous = ordinal + 1;
}

inline std::vector<uint32_t> read_ordinals(ByteReader& in, uint64_t n_tensors) {
  const uint64_t n_ordinals = in.varint(in.left());
  if (n_ordinals == 0) throw Failure{Code::kBadField, in.offset() - 1, 0};
  if (n_ordinals > n_tensors) throw Failure{Code::kNoSuchTensor, n_ordinals - 1, n_tensors};
  std::vector<uint32_t> ordinals(n_ordinals);
  uint64_t next = 0;
  for (uint32_t& ordinal : ordinals) {
    next += in.varint(kMostTensors);
    if (next >= kMostTensors) throw Failure{Code::kBadField, in.offset() - 1, next};
    if (next >= n_tensors) throw Failure{Code::kNoSuchTensor, next, n_tensors};
    ordinal = static_cast<uint32_t>(next++);
  }
  return ordinals;
}

inline void write_bytes(ByteWriter& out, const std::vector<uint8_t>& bytes) {
  out.varint(bytes.size());
  for (uint8_t byte : bytes) out.fixed(byte);
}
inline std::vector<uint8_t> read_bytes(ByteReader& in) {
  const uint64_t n_bytes = in.varint(in.left());
  std::vector<uint8_t> bytes(in.here(), in.here() + n_bytes);
  in.skip(n_bytes);
  return bytes;
}

// Everything before the slices.
inline void write_frame(const Frame& f, ByteWriter& out) {
  for (uint8_t byte : kMagic) out.fixed(byte);
  out.fixed(f.version);
  out.fixed(static_cast<uint8_t>((f.exclusions.empty() ? 0 : kFlagExclusions) |
                                 (f.link.empty() ? 0 : kFlagLink) |
                                 (f.dense_tensors.empty() ? 0 : kFlagDense)));
  out.fixed(static_cast<uint8_t>(f.lane_log2));
  out.fixed(f.digest);
  out.fixed(f.reference_check);
  if (!f.link.empty()) {
    out.varint(f.link.size());
    for (char byte : f.link) out.fixed(static_cast<uint8_t>(byte));
  }
  out.varint(f.n_matrix);
  out.varint(f.n_vector);
  if (!f.dense_tensors.empty()) out.varint(f.n_dense);
  out.varint(f.n_lossless);
  if (f.n_matrix > 0) out.varint(f.k_matrix);
  if (f.k_matrix > 0) write_quantizer(out, f.matrix);
  if (f.n_vector > 0) out.varint(f.k_vector);
  if (f.k_vector > 0) {
    write_quantizer(out, f.vector);
    write_exponents(out, f.exponents);
  }
  if (f.n_dense > 0) out.varint(f.k_dense);
  if (f.k_dense > 0) {
    write_quantizer(out, f.dense);
    write_exponents(out, f.dense_exponents);
  }
  if (f.n_lossless > 0) out.varint(f.n_changed);
  if (!f.exclusions.empty()) write_ordinals(out, f.exclusions);
  if (!f.dense_tensors.empty()) write_ordinals(out, f.dense_tensors);
  if (f.n_nonzeros() > 0) write_bytes(out, f.tables);
  if (f.n_changed > 0) write_bytes(out, f.change_tables);
  for (size_t i = 0; i + 1 < f.slice_bytes.size(); ++i) out.varint(f.slice_bytes[i] / 2);
}

template <class Format>
Frame read_frame_of(const uint8_t* payload, size_t n_bytes, uint64_t n_tensors) {
  ByteReader in(payload, n_bytes);
  Frame f;
  f.version = Format::kVersion;
  in.skip(kFlagsOffset);
  const uint8_t flags = in.fixed<uint8_t>();
  if (flags & ~kKnownFlags) throw Failure{Code::kBadField, 4, flags};
  f.lane_log2 = in.fixed<uint8_t>();
  if (f.lane_log2 < Format::kMinLaneLog2 || f.lane_log2 > Format::kMaxLaneLog2) {
    throw Failure{Code::kBadField, 5, f.lane_log2};
  }
  f.digest = in.fixed<uint64_t>();
  f.reference_check = in.fixed<uint32_t>();
  if (flags & kFlagLink) {
    const uint64_t n_bytes = in.varint(in.left());
    if (n_bytes == 0) throw Failure{Code::kBadField, in.offset() - 1, 0};
    f.link.assign(reinterpret_cast<const char*>(in.here()), n_bytes);
    in.skip(n_bytes);
  }
  f.counts_offset = in.offset();
  constexpr uint64_t kMaxElems = (1ull << 61) - 1;
  f.n_matrix = in.varint(kMaxElems);
  f.n_vector = in.varint(kMaxElems);
  if (flags & kFlagDense) f.n_dense = in.varint(kMaxElems);
  f.n_lossless = in.varint(kMaxElems);
  f.quantizer_offset = in.offset();
  if (f.n_matrix > 0) f.k_matrix = in.varint(f.n_matrix);
  if (f.k_matrix > 0) f.matrix = read_quantizer<Format>(in);
  if (f.n_vector > 0) f.k_vector = in.varint(f.n_vector);
  if (f.k_vector > 0) {
    f.vector = read_quantizer<Format>(in);
    f.exponents = read_exponents<Format>(in, f.n_vector, n_tensors, !f.link.empty());
  }
  if (f.n_dense > 0) f.k_dense = in.varint(f.n_dense);
  if (f.k_dense > 0) {
    f.dense = read_quantizer<Format>(in);
    f.dense_exponents = read_exponents<Format>(in, f.n_dense, n_tensors, !f.link.empty());
  }
  if (f.n_lossless > 0) f.n_changed = in.varint(f.n_lossless);
  if (flags & kFlagExclusions) f.exclusions = read_ordinals(in, n_tensors);
  if (flags & kFlagDense) {
    const size_t begin = in.offset();
    f.dense_tensors = read_ordinals(in, n_tensors);
    for (uint32_t ordinal : f.dense_tensors) {
      if (std::binary_search(f.exclusions.begin(), f.exclusions.end(), ordinal)) {
        throw Failure{Code::kBadField, begin, ordinal};
      }
    }
  }
  f.table_offset = in.offset();
  if (f.n_nonzeros() > 0) f.tables = read_bytes(in);
  if (f.n_changed > 0) f.change_tables = read_bytes(in);
  const uint64_t n_states = f.lanes().n_parts + f.lanes_of_changes().n_parts;
  if (n_states > in.left() / sizeof(uint32_t)) throw Failure{Code::kTruncated, in.offset()};
  const uint64_t n_slices = f.n_slices();
  f.slice_bytes.reserve(n_slices);
  uint64_t sum = 0;
  for (uint64_t i = 0; i + 1 < n_slices; ++i) {
    f.slice_bytes.push_back(2 * in.varint(in.left()));
    sum += f.slice_bytes.back();
    if (sum > in.left()) throw Failure{Code::kTruncated, in.offset()};
  }
  f.slices_offset = in.offset();
  if (n_slices > 0) {
    if (sum > in.left()) throw Failure{Code::kTruncated, in.offset()};
    f.slice_bytes.push_back(in.left() - sum);
  } else if (in.left() > 0) {
    throw Failure{Code::kTrailingBytes, in.offset()};
  }
  return f;
}

// `payload` without its checksum; the caller has verified magic and checksum. Throws Failure:
// kBadVersion where the version is unknown, kNoSuchTensor where a list names a tensor that a layout
// of n_tensors does not have.
inline Frame read_frame(const uint8_t* payload, size_t n_bytes, uint64_t n_tensors) {
  return with_format(payload[kVersionOffset], [&]<class Format>(Format) {
    return read_frame_of<Format>(payload, n_bytes, n_tensors);
  });
}

}  // namespace resfed
