// What decode and aggregation share: a payload as symbols that fit the tensors.
#pragma once

#include "cpu/lossless.hpp"
#include "cpu/quantize.hpp"
#include "format/groups.hpp"

namespace resfed {

struct Update {
  Frame frame;
  std::vector<Tensor> tensors;  // with the roles that the payload gives them
  Groups groups;                // point into `tensors`
  Scratch<SentSymbol> symbols;
  SentSymbols sent_matrix, sent_vector, sent_dense;  // parts of `symbols`
  std::vector<ChangedElement> changes;
  RestoredElements restored;

  // Throws kWrongReference unless the recovered lossy groups have this check together.
  void verify(uint32_t recovered_check) const;
};

// `tensors` have the roles of a payload without exclusions and dense tensors. Throws Failure. What
// `update` held is gone; its memory is used again.
void read_update(const uint8_t* payload, size_t n_bytes, uint64_t digest,
                 const std::vector<Tensor>& tensors, Update* update);

// The same in two parts: frame, tensors and groups; and, once the lossy symbols stand in the sent_
// members, everything else.
void open_update(const uint8_t* payload, size_t n_bytes, uint64_t digest,
                 const std::vector<Tensor>& tensors, Update* update);
void finish_update(const uint8_t* payload, Update* update);

}  // namespace resfed
