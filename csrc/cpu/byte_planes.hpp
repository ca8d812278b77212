// Byte planes of keyframes in interleaved rANS, with the frequencies of the plane's own bytes.
// docs/format.md, section 10.3.
//
//   frequencies   [32 bits] state of each lane   [16 bits] words
//
// Byte i belongs to lane i mod the number of lanes, and all lanes share the words.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "host_device.hpp"

namespace resfed {

// Nothing where coding saves less than 1/64 of the plane. The plane has two different bytes.
std::optional<std::vector<uint8_t>> encode_plane(std::span<const uint8_t> plane);

// False where the slice is damaged.
bool decode_plane(std::span<const uint8_t> slice, std::span<uint8_t> plane);

}  // namespace resfed
