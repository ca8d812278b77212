// How symbols are divided into parts that are coded independently: lanes of nonzeros, slices of
// changes.
#pragma once

#include "host_device.hpp"

namespace resfed {

// Into the number of parts that comes nearest to the nominal size, of sizes that differ by one at
// most, the longer ones first.
struct Partition {
  uint64_t n_symbols;
  uint64_t n_parts;
};

RESFED_HD Partition partition(uint64_t n_symbols, unsigned part_log2) {
  if (n_symbols == 0) return {0, 0};
  return {n_symbols,
          max_of<uint64_t>((n_symbols >> part_log2) + ((n_symbols >> (part_log2 - 1)) & 1u), 1)};
}
RESFED_HD uint64_t part_begin(const Partition& p, uint64_t part) {
  return part * (p.n_symbols / p.n_parts) + min_of(part, p.n_symbols % p.n_parts);
}

}  // namespace resfed
