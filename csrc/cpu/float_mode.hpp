// The caller's floating-point mode must not reach the arithmetic: round to nearest, subnormals
// kept.
#pragma once

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#endif
#include <cstdint>

namespace resfed {

class DefaultFloatMode {
 public:
  DefaultFloatMode() : saved_(get()) { set(kDefault); }
  ~DefaultFloatMode() { set(saved_); }
  DefaultFloatMode(const DefaultFloatMode&) = delete;
  DefaultFloatMode& operator=(const DefaultFloatMode&) = delete;

 private:
#if defined(__x86_64__) || defined(_M_X64)
  using Word = uint32_t;
  static constexpr Word kDefault = 0x1f80;  // MXCSR at reset: all exceptions masked
  static Word get() { return _mm_getcsr(); }
  static void set(Word w) { _mm_setcsr(w); }
#elif defined(__aarch64__)
  using Word = uint64_t;
  static constexpr Word kDefault = 0;
  static Word get() {
    Word w;
    asm volatile("mrs %0, fpcr" : "=r"(w));
    return w;
  }
  static void set(Word w) { asm volatile("msr fpcr, %0" ::"r"(w)); }
#else
#error "say here how this processor is told to round to nearest and to keep subnormals"
#endif
  Word saved_;
};

}  // namespace resfed
