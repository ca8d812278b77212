// Bit fields, the least significant bit of each byte first.
#pragma once

#include <vector>

#include "host_device.hpp"
#include "status.hpp"

namespace resfed {

class BitWriter {
 public:
  void put(uint32_t value, unsigned n_bits) {  // value < 2^n_bits, n_bits <= 32
    pending_ |= static_cast<uint64_t>(value) << n_pending_;
    for (n_pending_ += n_bits; n_pending_ >= 8; n_pending_ -= 8, pending_ >>= 8) {
      bytes_.push_back(static_cast<uint8_t>(pending_));
    }
  }
  // Elias gamma: the number of bits below the leading one in unary, then those bits. value >= 1.
  void put_gamma(uint32_t value) {
    const unsigned log2 = floor_log2(value);
    put((1u << log2) - 1, log2 + 1);
    put(value ^ 1u << log2, log2);
  }
  // Zeros fill the last byte.
  std::vector<uint8_t> finish() {
    if (n_pending_ > 0) put(0, 8 - n_pending_);
    return std::move(bytes_);
  }

 private:
  std::vector<uint8_t> bytes_;
  uint64_t pending_ = 0;
  unsigned n_pending_ = 0;
};

// Throws kBadTables where a field goes beyond the end.
class BitReader {
 public:
  BitReader(const uint8_t* bytes, size_t n_bytes) : bytes_(bytes), n_bits_(8 * uint64_t{n_bytes}) {}

  uint32_t get(unsigned n_bits) {  // n_bits <= 32
    if (n_bits > n_bits_ - position_) throw bad();
    uint32_t value = 0;
    for (unsigned i = 0; i < n_bits; ++i, ++position_) {
      value |= (bytes_[position_ / 8] >> position_ % 8 & 1u) << i;
    }
    return value;
  }
  uint32_t get_gamma(uint32_t limit) {
    unsigned log2 = 0;
    while (get(1) != 0) {
      if (limit >> ++log2 == 0) throw bad();
    }
    const uint32_t value = 1u << log2 | get(log2);
    if (value > limit) throw bad();
    return value;
  }
  // Goes on to the next byte, over zeros; returns how many bytes lie behind.
  size_t align() {
    if (get(static_cast<unsigned>(-position_ % 8)) != 0) throw bad();
    return position_ / 8;
  }
  // All but the zeros of the last byte must have been read.
  void finish() {
    if (8 * uint64_t{align()} != n_bits_) throw bad();
  }
  Failure bad() const { return {Code::kBadTables, position_ / 8}; }

 private:
  const uint8_t* bytes_;
  uint64_t n_bits_;
  uint64_t position_ = 0;
};

}  // namespace resfed
