// The reference check: a 32-bit sum that both ends compute over what a payload touches.
//
// Each touched element contributes a hash of its index, its bits before and its bits after. The
// sum modulo 2^32 does not depend on the order, so it takes time in proportion to what changed
// and runs in parallel. It detects a wrong reference and any difference in arithmetic. It does not
// protect against an adversary who chooses the bits.
#pragma once

#include "host_device.hpp"

namespace resfed {

// Finalizer of SplitMix64 (Steele, Lea, Flood 2014).
RESFED_HD uint64_t mix64(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

RESFED_HD uint32_t check_term(uint64_t index, uint64_t before, uint64_t after) {
  const uint64_t z = (index + 1) * 0x9e3779b97f4a7c15ull + before * 0xd1b54a32d192ed03ull +
                     after * 0x8cb92ba72f3d8dd7ull;
  return static_cast<uint32_t>(mix64(z) >> 32);
}

}  // namespace resfed
