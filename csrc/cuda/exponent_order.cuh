// The order of exponents on a device: a stable counting sort of all elements of the lossless group
// by the class of their exponent in the reference. Only changed elements are moved.
//
// A block takes a tile, elements of one tensor. Elements are counted by class and tile; sums of
// these counts say where those of a class and tile begin in the order. Within a tile each warp
// counts its own, consecutive elements.
#pragma once

#include "cuda/pipeline.cuh"

namespace resfed::cuda {

constexpr uint32_t kClasses = kExponentClasses;
constexpr uint32_t kTileElems = 1u << 15;

// How many elements lie before those of a class, and before those of a class and tile among the
// class.
struct ClassBegins {
  uint64_t* of_class;  // and how many there are in all
  uint64_t* of_tile;   // class * n_tiles + tile

  void take(BumpAllocator& allocator, uint64_t n_tiles) {
    of_class = allocator.take<uint64_t>(kClasses + 1);
    of_tile = allocator.take<uint64_t>(kClasses * n_tiles);
  }
  __device__ uint64_t begin(uint32_t c, uint64_t tile, uint64_t n_tiles) const {
    return of_class[c] + of_tile[c * n_tiles + tile];
  }
  __device__ uint64_t end(uint32_t c, uint64_t tile, uint64_t n_tiles) const {
    return tile + 1 < n_tiles ? begin(c, tile + 1, n_tiles) : of_class[c + 1];
  }
};
struct ExponentOrder {
  ClassBegins elements;
  ClassBegins changes;  // of an encoder
};

// A changed element: where it is in the order, and what happened to it; and which one it is.
struct ChangeList {
  ChangedElement* of;
  uint64_t* elements;
  uint64_t n;
};

// The stage's chunks are tiles.
void count_elements(const Stage& stage, const ExponentOrder& order);
// The changes too; `changes.of_class` has their number then.
void count_changes(const Stage& stage, const ExponentOrder& order);
// Changes in the order of exponents, and the first tensor that has one. Where the model was written
// to since, some are missing.
void order_changes(const Stage& stage, const ExponentOrder& order, ChangeList changes);
// The elements of such changes.
void find_elements(const Stage& stage, const ExponentOrder& order, ChangeList changes);

}  // namespace resfed::cuda
