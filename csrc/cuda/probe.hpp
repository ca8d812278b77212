#pragma once

#include <string>

namespace resfed {

// Why CUDA cannot be used by this build on this machine; empty when it can. Never throws, and works
// on machines without a driver.
std::string cuda_unavailable_reason();

}  // namespace resfed
