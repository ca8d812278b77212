// What a version of the payload format fixes for its slices and header: limits. One type a version;
// coders take it as a template parameter.
//
// A new version is one more type and one more case in with_format(); what differs beyond these
// constants is chosen by `if constexpr` or a specialization.
#pragma once

#include "host_device.hpp"
#include "status.hpp"

namespace resfed {

struct FormatV1 {
  static constexpr uint8_t kVersion = 1;

  static constexpr unsigned kMinLaneLog2 = 6;
  static constexpr unsigned kMaxLaneLog2 = 12;  // bounds the time that few bytes can cost a thread
  static constexpr uint32_t kMaxLevel = 1u << 23;

  static constexpr unsigned kMaxOffsets = 4;
  static constexpr int kMinExponent = -120;
  static constexpr int kMaxExponent = 120;
};

// The version that encoders write.
using CurrentFormat = FormatV1;

// Calls use() with the type of a version. Throws kBadVersion if it is unknown.
template <class Use>
decltype(auto) with_format(uint8_t version, Use use) {
  switch (version) {
    case FormatV1::kVersion:
      return use(FormatV1{});
  }
  throw Failure{Code::kBadVersion, 3, version};
}

}  // namespace resfed
