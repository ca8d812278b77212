// Zeroed memory straight from the system, which gets it back at once; what free() is given may stay
// with the process. Pages take no memory before they are written to.
#pragma once

#include <cstdlib>
#include <new>

#if __has_include(<sys/mman.h>)
#include <sys/mman.h>
#endif

namespace resfed {

inline void* take_pages(size_t n_bytes) {
#if defined(MAP_ANONYMOUS)
  void* const pages =
      mmap(nullptr, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
#else
  void* const pages = std::calloc(n_bytes, 1);
  if (pages == nullptr) throw std::bad_alloc();
#endif
  return pages;
}

inline void give_back_pages(void* pages, [[maybe_unused]] size_t n_bytes) {
#if defined(MAP_ANONYMOUS)
  munmap(pages, n_bytes);
#else
  std::free(pages);
#endif
}

}  // namespace resfed
