#include "cpu/crc32c.hpp"

#include <array>

#include "host_device.hpp"

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

// CRC of n_words times eight bytes behind what gave `crc`.
using CrcOfWords = uint32_t (*)(uint32_t crc, const uint8_t* data, size_t n_words);

uint32_t crc_by_tables(uint32_t crc, const uint8_t* data, size_t n_words) {
  for (; n_words > 0; data += 8, --n_words) {
    const uint64_t x = load_le<uint64_t>(data) ^ crc;
    crc = 0;
    for (unsigned k = 0; k < 8; ++k) crc ^= kTables[7 - k][(x >> (8 * k)) & 0xffu];
  }
  return crc;
}

#if defined(RESFED_X86)
// The processor's own instruction, where there is one.
__attribute__((target("sse4.2"))) uint32_t crc_by_instruction(uint32_t crc, const uint8_t* data,
                                                              size_t n_words) {
  uint64_t wide = crc;
  for (; n_words > 0; data += 8, --n_words) {
    wide = __builtin_ia32_crc32di(wide, load_le<uint64_t>(data));
  }
  return static_cast<uint32_t>(wide);
}
#endif

CrcOfWords best_crc() {
#if defined(RESFED_X86)
  if (__builtin_cpu_supports("sse4.2")) return crc_by_instruction;
#endif
  return crc_by_tables;
}

}  // namespace

uint32_t crc32c(const uint8_t* data, size_t n_bytes) {
  static const CrcOfWords crc_of_words = best_crc();
  uint32_t crc = crc_of_words(0xffffffffu, data, n_bytes / 8);
  data += n_bytes / 8 * 8;
  n_bytes %= 8;
  for (; n_bytes > 0; ++data, --n_bytes) crc = (crc >> 8) ^ kTables[0][(crc ^ *data) & 0xffu];
  return ~crc;
}

}  // namespace resfed
