// What every header of numeric/ and entropy/ needs: the host/device marker and little-endian
// access.
//
// These two are the codec's arithmetic. The C++ compiler compiles them for the CPU and nvcc for
// both sides. So they may use neither allocation, nor threads, nor the CUDA run time, and every
// floating-point expression in them must round the same way everywhere: single IEEE operations,
// built without contraction (-ffp-contract=off, --fmad=false).
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__) || defined(RESFED_CUDA_EMULATED)
#define RESFED_HD __host__ __device__ __forceinline__
#else
#define RESFED_HD inline
#endif

namespace resfed {

using std::int32_t;
using std::int64_t;
using std::size_t;
using std::uint16_t;
using std::uint32_t;
using std::uint64_t;
using std::uint8_t;

static_assert(sizeof(float) == 4 && sizeof(double) == 8);

// Bit casts that exist on both sides (std::bit_cast is constexpr, hence callable from kernels
// under --expt-relaxed-constexpr, which the build sets).
RESFED_HD uint32_t float_bits(float value) { return std::bit_cast<uint32_t>(value); }
RESFED_HD float float_from_bits(uint32_t bits) { return std::bit_cast<float>(bits); }
RESFED_HD uint64_t double_bits(double value) { return std::bit_cast<uint64_t>(value); }
RESFED_HD double double_from_bits(uint64_t bits) { return std::bit_cast<double>(bits); }

// floor(log2(value)); value must not be 0.
RESFED_HD unsigned floor_log2(uint64_t value) {
#if defined(__CUDA_ARCH__)
  return 63u - static_cast<unsigned>(__clzll(static_cast<long long>(value)));
#else
  return 63u - static_cast<unsigned>(std::countl_zero(value));
#endif
}

// Byte-wise, so that alignment and the machine's byte order do not matter.
template <class UInt>
RESFED_HD void store_le(uint8_t* out, UInt value) {
  for (size_t i = 0; i < sizeof(UInt); ++i) out[i] = static_cast<uint8_t>(value >> (8 * i));
}

template <class UInt>
RESFED_HD UInt load_le(const uint8_t* in) {
  UInt value = 0;
  for (size_t i = 0; i < sizeof(UInt); ++i) {
    value = static_cast<UInt>(value | (static_cast<UInt>(in[i]) << (8 * i)));
  }
  return value;
}

template <class T>
RESFED_HD T min_of(T a, T b) {
  return b < a ? b : a;
}
template <class T>
RESFED_HD T max_of(T a, T b) {
  return a < b ? b : a;
}

}  // namespace resfed
