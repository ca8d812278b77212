// Tensors that the host codes for the device: copied to the host together, and what became of them
// back. One copy each way, however many tensors there are.
#pragma once

#include <functional>
#include <vector>

#include "api.hpp"
#include "cuda/workspace.hpp"

namespace resfed::cuda {

class Staging {
 public:
  // Replaces the addresses of those tensors that are `chosen` by host addresses; starts to copy
  // what they are read from.
  Staging(WorkspaceLease& lease, std::vector<Tensor>* tensors,
          const std::function<bool(const Tensor&)>& chosen);
  ~Staging();

  void wait();   // until they can be read
  void flush();  // starts to copy what they are written to

 private:
  struct Move {
    const void* from;
    void* to;
    uint64_t n_bytes;
  };
  // Starts to copy; the list goes to the device at this place behind what is staged.
  void move_all(const std::vector<Move>& moves, size_t table_at);

  WorkspaceLease& lease_;
  uint8_t* host_ = nullptr;
  uint8_t* device_ = nullptr;
  size_t n_bytes_ = 0;    // staged
  size_t table_end_ = 0;  // of the last list
  std::vector<Move> writes_;
  void* ready_ = nullptr;  // an event
};

}  // namespace resfed::cuda
