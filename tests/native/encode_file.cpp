// Encodes one matrix from files, for tests on processors that Python does not run on:
//
//   encode_file KERNELS DTYPE N_ELEMS N_SENT DIGEST STATE REFERENCE RECOVERED > PAYLOAD
//
// DTYPE is that of core/residual.hpp as a number. Decodes the payload again, and writes the model
// that comes out to RECOVERED.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <vector>

#include "api.hpp"
#include "cpu/residual.hpp"

namespace {

std::vector<char> read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

int main(int argc, char** argv) {
  using namespace resfed;
  if (argc != 9 || !choose_kernels(argv[1])) return 2;
  const std::vector<char> state = read(argv[6]);
  std::vector<char> reference = read(argv[7]);
  Tensor tensor;
  tensor.current = state.data();
  tensor.reference = reference.data();
  tensor.dtype = static_cast<DType>(std::atoi(argv[2]));
  tensor.elem_bytes = static_cast<uint32_t>(dtype_size(tensor.dtype));
  tensor.n_elems = std::strtoull(argv[3], nullptr, 10);
  EncodeOptions options;
  options.k_matrix = std::strtoull(argv[4], nullptr, 10);
  options.digest = std::strtoull(argv[5], nullptr, 10);
  try {
    const std::vector<uint8_t> payload = encode({tensor}, options);
    std::fwrite(payload.data(), 1, payload.size(), stdout);
    tensor.out = reference.data();
    decode(payload.data(), payload.size(), options.digest, {tensor});
  } catch (const Failure& failure) {
    return 100 + static_cast<int>(failure.code);
  }
  std::ofstream(argv[8], std::ios::binary).write(reference.data(), std::ssize(reference));
}
