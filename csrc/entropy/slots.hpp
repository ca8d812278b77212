// Slots of an rANS (Duda, arXiv 1311.2540): a decision owns `freq` of them from `start` on.
#pragma once

#include "host_device.hpp"

namespace resfed {

struct Slots {
  uint16_t start;
  uint16_t freq;
};

}  // namespace resfed
