// Functions of the simulator's runtime that the cases call in addition to CUDA's.
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

// From now on every access to device memory is checked against the allocations, to the byte, and
// invalid ones are counted. Invalid reads return 0; the kernel continues.
void begin_account();
size_t wild_accesses();

void fill_fresh_memory(int byte);  // the contents of new allocations
void refuse_memory(bool refuse);   // whether allocations fail

// Runs the codec's arithmetic in separate kernels for all probabilities, all 16-bit floats and many
// other values. Returns for how many of them host and device differ.
size_t arithmetic_differences();

}  // namespace ptx
