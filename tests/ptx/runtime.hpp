// What the cases ask of the run time that the simulator gives them, beside CUDA's own calls.
#pragma once

#include <cstddef>

namespace ptx {

// Device memory, freed with the object.
class Block {
 public:
  explicit Block(size_t n_bytes);
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

// From now on every access to device memory is held against what is allocated: how many were
// outside, to the byte. What is read there is 0, and nothing stops.
void begin_account();
size_t wild_accesses();

void fill_fresh_memory(int byte);  // with what allocations come
void refuse_memory(bool refuse);   // to allocate any

// Runs the codec's arithmetic in kernels of its own, all probabilities and 16-bit floats and many
// other values; says for how many of them host and device differ.
size_t arithmetic_differences();

}  // namespace ptx
