// Runs recorded calls of encode(), for builds without Python:
//
//   encode_calls KERNELS FILE...
//
// Each FILE has options and tensors, see tests/native/test_builds.py. The program writes the length
// of the payload (8 bytes), the payload and the decoded model to FILE.out.
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "api.hpp"
#include "cpu/residual.hpp"

namespace {

using namespace resfed;

struct Reader {
  std::vector<char> bytes;
  size_t at = 0;

  explicit Reader(const char* path) {
    std::ifstream file(path, std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(file), {});
  }
  const char* take(size_t n_bytes) {
    at += n_bytes;
    return bytes.data() + (at - n_bytes);
  }
  uint64_t number() {
    uint64_t value;
    std::memcpy(&value, take(8), 8);
    return value;
  }
  double real() {
    double value;
    std::memcpy(&value, take(8), 8);
    return value;
  }
  std::vector<uint64_t> numbers() {
    std::vector<uint64_t> values(number());
    for (uint64_t& value : values) value = number();
    return values;
  }
};

void make_call(const std::string& path) {
  Reader in(path.c_str());
  EncodeOptions options;
  options.digest = in.number();
  options.k_matrix = in.number();
  options.k_vector = in.number();
  options.max_bytes = in.number();
  options.max_error = in.real();
  options.vector_share = in.number();
  options.step.ratio = in.real();
  options.step.bits = static_cast<unsigned>(in.number());
  options.step.automatic = in.number() != 0;
  options.lane_log2 = static_cast<unsigned>(in.number());
  options.dense_bits = static_cast<unsigned>(in.number());
  options.exclusions = in.numbers();
  options.dense = in.numbers();
  options.blocks = in.numbers();
  std::vector<Tensor> tensors(in.number());
  std::vector<Role> roles_to_decode;
  std::vector<std::vector<char>> data;  // states and references, in aligned memory
  for (Tensor& t : tensors) {
    t.n_elems = in.number();
    t.row_length = in.number();
    t.elem_bytes = static_cast<uint32_t>(in.number());
    t.dtype = static_cast<DType>(in.number());
    t.role = static_cast<Role>(in.number());
    roles_to_decode.push_back(static_cast<Role>(in.number()));
    const size_t n_bytes = t.n_elems * t.elem_bytes;
    for (int which = 0; which < 2; ++which) {
      const char* const begin = in.take(n_bytes);
      data.emplace_back(begin, begin + n_bytes);
    }
    t.current = data[data.size() - 2].data();
    t.reference = data.back().data();
  }
  const std::vector<uint8_t> payload = encode(tensors, options);
  for (size_t i = 0; i < tensors.size(); ++i) {
    tensors[i].role = roles_to_decode[i];
    tensors[i].out = const_cast<void*>(tensors[i].reference);
  }
  decode(open_payload(payload.data(), payload.size()), options.digest, tensors);
  std::ofstream out(path + ".out", std::ios::binary);
  const uint64_t n_bytes = payload.size();
  out.write(reinterpret_cast<const char*>(&n_bytes), 8);
  out.write(reinterpret_cast<const char*>(payload.data()), std::ssize(payload));
  for (const Tensor& t : tensors) {
    out.write(static_cast<const char*>(t.out),
              static_cast<std::streamsize>(t.n_elems * t.elem_bytes));
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || !choose_kernels(argv[1])) return 2;
  try {
    for (int i = 2; i < argc; ++i) make_call(argv[i]);
  } catch (const Failure& failure) {
    return 100 + static_cast<int>(failure.code);
  }
}
