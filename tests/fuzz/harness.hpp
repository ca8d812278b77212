// Helpers of the fuzz targets: numbers from the fuzzer's bytes, models, and decoding of a payload
// in every available way.
//
// A failed check aborts, and the fuzzer reports a crash.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "api.hpp"
#include "cpu/crc32c.hpp"
#include "cpu/residual.hpp"
#include "numeric/check.hpp"

namespace fuzz {

using namespace resfed;

using Bytes = std::vector<uint8_t>;

inline void check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", what);
  std::abort();
}

// Numbers from the fuzzer's bytes; zeros after the last one.
class Input {
 public:
  Input(const uint8_t* data, size_t n_bytes) : data_(data), left_(n_bytes) {}

  size_t left() const { return left_; }
  uint8_t byte() {
    if (left_ == 0) return 0;
    --left_;
    return *data_++;
  }
  // At most `most`; takes no byte if it is 0.
  uint64_t number(uint64_t most) {
    uint64_t value = 0;
    for (uint64_t rest = most; rest > 0; rest >>= 8) value = value << 8 | byte();
    return most == ~0ull ? value : value % (most + 1);
  }
  bool flag() { return (byte() & 1) != 0; }
  Bytes rest() {
    Bytes bytes(data_, data_ + left_);
    data_ += left_;
    left_ = 0;
    return bytes;
  }

 private:
  const uint8_t* data_;
  size_t left_;
};

struct Shape {
  uint64_t n_rows, row_length;  // a vector has one row
  uint32_t elem_bytes;
  DType dtype;
  Role role;
  bool has_rows = false;  // two dimensions
  uint64_t n_elems() const { return n_rows * row_length; }
};

inline Shape matrix(uint64_t n_rows, uint64_t row_length, DType dtype = DType::kFloat32) {
  return {n_rows, row_length, static_cast<uint32_t>(dtype_size(dtype)), dtype, Role::kMatrix, true};
}
inline Shape vector(uint64_t n_elems, DType dtype = DType::kFloat32) {
  return {1, n_elems, static_cast<uint32_t>(dtype_size(dtype)), dtype, Role::kVector};
}
inline Shape integers(uint64_t n_elems, uint32_t elem_bytes) {
  return {1, n_elems, elem_bytes, DType::kOther, Role::kLossless};
}
// As the real and imaginary parts of a complex tensor.
inline Shape lossless(uint64_t n_elems, DType dtype) {
  return {1, n_elems, static_cast<uint32_t>(dtype_size(dtype)), dtype, Role::kLossless};
}

using Layout = std::vector<Shape>;

// Without matrices, vectors are treated as matrices.
inline void settle_roles(Layout& layout) {
  for (const Shape& shape : layout) {
    if (shape.role == Role::kMatrix) return;
  }
  for (Shape& shape : layout) {
    if (shape.role == Role::kVector) shape.role = Role::kMatrix;
  }
}

// Small models with tensors of all kinds, for arbitrary payloads.
inline const std::vector<Layout>& layouts() {
  static const std::vector<Layout> all = [] {
    std::vector<Layout> made = {
        {matrix(40, 32), vector(10), matrix(4, 9), vector(16), integers(5, 1), integers(3, 8)},
        {matrix(20, 30, DType::kFloat16), vector(12, DType::kBFloat16),
         matrix(7, 9, DType::kFloat64), integers(9, 2), vector(0), vector(8, DType::kFloat64)},
        {vector(300)},
        {},
        {matrix(64, 64)},
        {integers(40, 4), vector(33, DType::kFloat16), integers(0, 2)},
        {lossless(300, DType::kBFloat16), integers(90, 8), lossless(70, DType::kFloat64)},
    };
    for (Layout& layout : made) settle_roles(layout);
    return made;
  }();
  return all;
}

// One memory block per tensor.
using Memory = std::vector<Bytes>;

// Bits of finite floats, including zeros; with `wild` also any other bits.
inline uint64_t float_of(DType dtype, uint64_t random, bool wild) {
  const unsigned kind = random & 15;
  if (kind == 0) return 0;
  if (wild && kind == 1) return random >> 4;
  const double sign = (random & 16) != 0 ? -1.0 : 1.0;
  const double value = sign * static_cast<double>(random >> 40) * 0x1p-22;
  const float single = static_cast<float>(value);
  switch (dtype) {
    case DType::kFloat16:
      return narrow_to_half(single).bits;
    case DType::kBFloat16:
      return narrow_to_bfloat16(single).bits;
    case DType::kFloat32:
      return float_bits(single);
    default:
      return double_bits(value);
  }
}

inline Bytes random_tensor(const Shape& shape, uint64_t seed, bool wild) {
  Bytes memory(shape.n_elems() * shape.elem_bytes);
  for (uint64_t i = 0; i < shape.n_elems(); ++i) {
    uint64_t bits = mix64(seed + i * 0x9e3779b97f4a7c15ull);
    if (shape.role != Role::kLossless) {
      bits = float_of(shape.dtype, bits, wild);
    }
    std::memcpy(memory.data() + i * shape.elem_bytes, &bits, shape.elem_bytes);
  }
  return memory;
}

inline Memory random_model(const Layout& layout, uint64_t seed, bool wild) {
  Memory model;
  for (const Shape& shape : layout) model.push_back(random_tensor(shape, mix64(++seed), wild));
  return model;
}

inline Tensor tensor_of(const Shape& shape) {
  Tensor t;
  t.n_elems = shape.n_elems();
  t.elem_bytes = shape.elem_bytes;
  t.dtype = shape.dtype;
  t.role = shape.role;
  t.row_length = shape.has_rows ? shape.row_length : 0;
  return t;
}

inline std::vector<Tensor> tensors_of(const Layout& layout, const Memory& reference, Memory* out) {
  std::vector<Tensor> tensors;
  for (size_t i = 0; i < layout.size(); ++i) {
    Tensor& t = tensors.emplace_back(tensor_of(layout[i]));
    t.current = t.reference = reference[i].data();
    t.out = out == nullptr ? nullptr : (*out)[i].data();
  }
  return tensors;
}

inline Memory filled_like(const Memory& model, uint8_t byte) {
  Memory filled;
  for (const Bytes& tensor : model) filled.emplace_back(tensor.size(), byte);
  return filled;
}

inline void seal(Bytes& payload) {
  if (payload.size() < 4) return;
  const size_t n = payload.size() - 4;
  store_le(payload.data() + n, crc32c(payload.data(), n));
}

// The outcome of a call: nothing, or its error.
using Outcome = std::optional<Failure>;

inline bool same(const Outcome& a, const Outcome& b) {
  if (a.has_value() != b.has_value()) return false;
  return !a || (a->code == b->code && a->where == b->where && a->detail == b->detail);
}

template <class Call>
Outcome outcome_of(const Call& call) {
  try {
    call();
  } catch (const Failure& failure) {
    return failure;
  }
  return std::nullopt;
}

constexpr size_t kCheckOffset = 14;  // in a payload

// By number of threads, from 1 on. Where a processor has none of these, those before stay in use.
constexpr const char* kKernels[] = {"scalar", "avx2", "avx512", "neon"};
constexpr int kThreads = 4;
inline void use_threads_and_kernels(int threads) {
  set_num_threads(threads);
  choose_kernels(kKernels[threads - 1]);
}

// Decodes into new memory and in place, with one to four threads and all kernels. All must agree,
// and a failed call must write nothing. `tensors(out)` makes the call's tensors.
template <class Tensors>
Outcome decode_everywhere(const Bytes& payload, uint64_t digest, const Memory& like,
                          const Tensors& tensors, Memory* result) {
  const Memory before = filled_like(like, 0xa5);
  Outcome first;
  for (int threads = 1; threads <= kThreads; ++threads) {
    use_threads_and_kernels(threads);
    Memory out = before;
    const Outcome outcome = outcome_of(
        [&] { decode(open_payload(payload.data(), payload.size()), digest, tensors(&out)); });
    if (outcome) check(out == before, "a refused payload leaves the output untouched");
    if (threads == 1) {
      first = outcome;
      *result = std::move(out);
      if (first && first->code != Code::kWrongReference) break;  // one check of it is enough
    } else {
      check(same(outcome, first), "any number of threads comes to the same");
      check(out == *result, "any number of threads recovers the same");
    }
  }
  return first;
}

// The same with a repaired reference check, so that every payload that fits is decoded.
template <class Tensors>
Outcome decode_whatever_fits(Bytes payload, uint64_t digest, const Memory& like,
                             const Tensors& tensors, Memory* result) {
  const Outcome outcome = decode_everywhere(payload, digest, like, tensors, result);
  if (!outcome || outcome->code != Code::kWrongReference) return outcome;
  store_le(payload.data() + kCheckOffset, static_cast<uint32_t>(outcome->detail));
  seal(payload);
  const Outcome again = decode_everywhere(payload, digest, like, tensors, result);
  check(!again, "a payload whose only fault was the reference check is decoded");
  return again;
}

// For a fixed layout; the reference has a fixed seed.
inline Outcome decode_for(size_t which, const Bytes& payload, uint64_t digest) {
  const Layout& layout = layouts()[which];
  static const std::vector<Memory> references = [] {
    std::vector<Memory> made;
    for (size_t i = 0; i < layouts().size(); ++i) {
      made.push_back(random_model(layouts()[i], i, i % 2 == 1));
    }
    return made;
  }();
  const Memory& reference = references[which];
  Memory result;
  const Outcome outcome = decode_whatever_fits(
      payload, digest, reference, [&](Memory* out) { return tensors_of(layout, reference, out); },
      &result);
  if (outcome) return outcome;
  // In place, without a copy.
  Bytes sealed = payload;
  Memory in_place = reference;
  const auto decode_in_place = [&] {
    decode(open_payload(sealed.data(), sealed.size()), digest,
           tensors_of(layout, in_place, &in_place));
  };
  Outcome again = outcome_of(decode_in_place);
  if (again && again->code == Code::kWrongReference) {
    check(in_place == reference, "a refused payload leaves the reference untouched");
    store_le(sealed.data() + kCheckOffset, static_cast<uint32_t>(again->detail));
    seal(sealed);
    again = outcome_of(decode_in_place);
  }
  check(!again && in_place == result, "decoding in place recovers the same");
  return outcome;
}

}  // namespace fuzz
