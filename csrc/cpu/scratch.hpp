// Memory for one call that is kept for the next: fresh pages cost more to map than to fill.
//
// Scratch<T> is a std::vector whose memory comes from a common pool, and whose new elements are
// not initialized by resize(). All functions are safe to call from several threads.
#pragma once

#include <cstddef>
#include <new>
#include <utility>
#include <vector>

namespace resfed {

// Uninitialized memory, aligned for any scalar type. What is given back is kept, as far as the
// pool has room; release takes the size that was asked for.
void* take_scratch(size_t n_bytes);
void give_back_scratch(void* memory, size_t n_bytes) noexcept;

template <class T>
struct ScratchAllocator {
  using value_type = T;

  ScratchAllocator() = default;
  template <class U>
  ScratchAllocator(const ScratchAllocator<U>&) {}

  T* allocate(size_t n) {
    if (n > static_cast<size_t>(-1) / sizeof(T)) throw std::bad_array_new_length();
    return static_cast<T*>(take_scratch(n * sizeof(T)));
  }
  void deallocate(T* memory, size_t n) noexcept { give_back_scratch(memory, n * sizeof(T)); }

  template <class U>
  void construct(U* place) {
    ::new (static_cast<void*>(place)) U;
  }
  template <class U, class... Args>
  void construct(U* place, Args&&... args) {
    ::new (static_cast<void*>(place)) U(std::forward<Args>(args)...);
  }

  friend bool operator==(const ScratchAllocator&, const ScratchAllocator&) { return true; }
};

template <class T>
using Scratch = std::vector<T, ScratchAllocator<T>>;

}  // namespace resfed
