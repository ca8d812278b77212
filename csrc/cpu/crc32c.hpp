#pragma once

#include <cstddef>
#include <cstdint>

namespace resfed {

// CRC-32C (Castagnoli; RFC 3720 appendix B.4) of n_bytes.
uint32_t crc32c(const uint8_t* data, size_t n_bytes);

}  // namespace resfed
