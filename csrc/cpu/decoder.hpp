// What decode and aggregation share: a payload as symbols that fit the tensors.
#pragma once

#include "cpu/lossless.hpp"
#include "cpu/quantize.hpp"
#include "format/groups.hpp"

namespace resfed {

struct Update {
  const Payload* payload = nullptr;  // borrowed, until the update is read
  std::vector<Tensor> tensors;       // with the roles that the payload gives them
  Groups groups;                     // point into `tensors`
  Scratch<SentSymbol> symbols;
  SentSymbols sent_matrix, sent_vector, sent_dense;  // parts of `symbols`
  ChangedElements changes;
  RestoredElements restored;

  // Throws kWrongReference unless the recovered lossy groups have this check together.
  void verify(uint32_t recovered_check) const;
};

// `tensors` have the roles of a payload without exclusions and dense tensors. Throws Failure. What
// `update` held is gone; its memory is used again.
void read_update(const Payload& payload, uint64_t digest, const std::vector<Tensor>& tensors,
                 Update* update);

// The same in steps: tensors and groups; nonzeros of the lossy groups, to the sent_ members; and
// when these are known, the changes of the lossless one.
void open_update(const Payload& payload, uint64_t digest, const std::vector<Tensor>& tensors,
                 Update* update);
void read_nonzeros(Update* update);
void check_nonzeros(const Update& update);
void read_changes(Update* update);

}  // namespace resfed
