#include "cpu/crc32c.hpp"

#include <array>

#include "core/hd.hpp"

namespace resfed {
namespace {

// tables[k][b]: the CRC of byte b followed by k zero bytes; eight bytes are then one step
// ("slicing by 8", Kounavis and Berry 2005).
constexpr auto make_tables() {
  std::array<std::array<uint32_t, 256>, 8> tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1u) ? 0x82f63b78u : 0u);
    tables[0][byte] = crc;
  }
  for (size_t k = 1; k < 8; ++k) {
    for (size_t byte = 0; byte < 256; ++byte) {
      const uint32_t crc = tables[k - 1][byte];
      tables[k][byte] = (crc >> 8) ^ tables[0][crc & 0xffu];
    }
  }
  return tables;
}
constexpr auto kTables = make_tables();

}  // namespace

uint32_t crc32c(const uint8_t* data, size_t n_bytes) {
  uint32_t crc = 0xffffffffu;
  for (; n_bytes >= 8; data += 8, n_bytes -= 8) {
    const uint64_t x = load_le<uint64_t>(data) ^ crc;
    crc = 0;
    for (unsigned k = 0; k < 8; ++k) crc ^= kTables[7 - k][(x >> (8 * k)) & 0xffu];
  }
  for (; n_bytes > 0; ++data, --n_bytes) crc = (crc >> 8) ^ kTables[0][(crc ^ *data) & 0xffu];
  return ~crc;
}

}  // namespace resfed
