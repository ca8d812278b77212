// Division of many numbers by one: by multiplication.
#pragma once

#include "host_device.hpp"

namespace resfed {

// Of numbers below 2^63.
class Divisor {
 public:
  explicit Divisor(uint64_t d) : d_(d), reciprocal_(~uint64_t{0} / d) {}
  struct Result {
    uint64_t quotient, remainder;
  };
  Result divide(uint64_t n) const {
    const auto q = static_cast<uint64_t>(static_cast<Wide>(n) * reciprocal_ >> 64);
    const uint64_t r = n - q * d_;  // the quotient is 1 too low at most
    return r < d_ ? Result{q, r} : Result{q + 1, r - d_};
  }

 private:
  __extension__ using Wide = unsigned __int128;
  uint64_t d_, reciprocal_;
};

}  // namespace resfed
