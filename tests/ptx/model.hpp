// Models of the cases, on the host and on the simulated device.
#pragma once

#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>

#include "api.hpp"
#include "cuda/device.hpp"
#include "runtime.hpp"

namespace ptx {

using namespace resfed;
using Bytes = std::vector<uint8_t>;
using Floats = std::vector<float>;
constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat64};

// Numbers
inline std::mt19937_64 generator(1);
inline float uniform() { return static_cast<float>(generator() >> 40) * 0x1p-24f; }
inline float normal() {  // approximately
  float sum = -6.0f;
  for (int i = 0; i < 12; ++i) sum += uniform();
  return sum;
}

inline Bytes stored(const Floats& values, DType dtype) {
  Bytes bytes(values.size() * dtype_size(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    const double whole = values[i] * 1.0000000001;
    const Half half = narrow_to_half(values[i]);
    const BFloat16 short_float = narrow_to_bfloat16(values[i]);
    const void* const from = dtype == DType::kFloat32   ? static_cast<const void*>(&values[i])
                             : dtype == DType::kFloat64 ? static_cast<const void*>(&whole)
                             : dtype == DType::kFloat16 ? static_cast<const void*>(&half)
                                                        : static_cast<const void*>(&short_float);
    std::memcpy(bytes.data() + i * dtype_size(dtype), from, dtype_size(dtype));
  }
  return bytes;
}

// A tensor's memory on the host. The tensor starts after `shift` elements, so it is unaligned on
// the device.
struct Memory {
  Bytes current, reference, older, out;
  Floats feedback;
};
struct Spec {
  size_t n_elems;
  DType dtype = DType::kFloat32;
  Role role = Role::kMatrix;
  bool predicted = false, with_feedback = false, in_place = false;
  size_t shift = 0;
  uint64_t row_length = 0, block = 0;
  uint32_t elem_bytes = 0;  // of integers
};

struct Model {
  std::vector<Spec> specs;
  std::vector<Memory> memory;
  EncodeOptions options;

  void add(const Spec& spec, const std::function<float(size_t)>& residual) {
    const size_t n = spec.n_elems + spec.shift;
    Floats current(n), reference(n), older(n), feedback(n);
    for (size_t i = 0; i < n; ++i) {
      reference[i] = normal();
      older[i] = reference[i] + 0.01f * normal();
      feedback[i] = 0.001f * normal();
      current[i] = reference[i] + residual(i - spec.shift);
    }
    if (spec.role == Role::kLossless) {  // few changes
      for (size_t i = 0; i < n; ++i) current[i] = i % 7 == 0 ? current[i] : reference[i];
    }
    memory.push_back({stored(current, spec.dtype), stored(reference, spec.dtype),
                      stored(older, spec.dtype), Bytes(n * dtype_size(spec.dtype), 0x5a),
                      feedback});
    specs.push_back(spec);
    options.blocks.push_back(spec.block);
  }

  // Integers, and what is added to each of them.
  void add_integers(size_t n, uint32_t elem_bytes, const std::function<int64_t(size_t)>& change) {
    Bytes reference(n * elem_bytes), current(n * elem_bytes);
    for (size_t i = 0; i < n; ++i) {
      const uint64_t before = generator() >> generator() % 64;
      const uint64_t after = before + static_cast<uint64_t>(change(i));
      std::memcpy(reference.data() + i * elem_bytes, &before, elem_bytes);
      std::memcpy(current.data() + i * elem_bytes, &after, elem_bytes);
    }
    memory.push_back({current, reference, reference, Bytes(n * elem_bytes, 0x5a), Floats(n)});
    Spec spec{n, DType::kOther, Role::kLossless};
    spec.elem_bytes = elem_bytes;
    specs.push_back(spec);
    options.blocks.push_back(0);
  }

  // `at` maps a host buffer to the address for reading and writing.
  std::vector<Tensor> tensors(std::vector<Memory>& of,
                              const std::function<void*(void*)>& at) const {
    std::vector<Tensor> tensors;
    for (size_t i = 0; i < specs.size(); ++i) {
      const Spec& spec = specs[i];
      const size_t shift = spec.shift * dtype_size(spec.dtype);
      const auto place = [&](Bytes& bytes) {
        return static_cast<uint8_t*>(at(bytes.data())) + shift;
      };
      Tensor t;
      t.n_elems = spec.n_elems;
      t.dtype = spec.dtype;
      t.elem_bytes =
          spec.elem_bytes > 0 ? spec.elem_bytes : static_cast<uint32_t>(dtype_size(spec.dtype));
      t.role = spec.role;
      t.row_length = spec.row_length;
      t.current = place(of[i].current);
      t.reference = place(of[i].reference);
      t.out = place(spec.in_place ? of[i].reference : of[i].out);
      if (spec.with_feedback) {
        t.feedback = static_cast<float*>(at(of[i].feedback.data())) + spec.shift;
      }
      if (spec.predicted) {
        t.prediction.n_terms = 2;
        t.prediction.terms[0] = t.reference;
        t.prediction.terms[1] = place(of[i].older);
        t.prediction.coefficients[0] = 1.25f;
        t.prediction.coefficients[1] = -0.25f;
      }
      tensors.push_back(t);
    }
    return tensors;
  }
};

// A copy of a model's memory on the device.
class OnDevice {
 public:
  explicit OnDevice(const std::vector<Memory>& memory) : host_(memory) {
    for (Memory& m : host_) {
      for (Bytes* bytes : {&m.current, &m.reference, &m.older, &m.out}) {
        put(bytes->data(), bytes->size());
      }
      put(m.feedback.data(), 4 * m.feedback.size());
    }
  }
  std::vector<Tensor> tensors(const Model& model) {
    return model.tensors(host_, [this](void* host) { return blocks_.at(host)->data(); });
  }
  bool equals(const std::vector<Memory>& memory) {
    for (Memory& m : host_) {
      for (Bytes* bytes : {&m.current, &m.reference, &m.older, &m.out}) {
        get(bytes->data(), bytes->size());
      }
      get(m.feedback.data(), 4 * m.feedback.size());
    }
    for (size_t i = 0; i < memory.size(); ++i) {
      const Memory &a = host_[i], &b = memory[i];
      if (a.current != b.current || a.reference != b.reference || a.older != b.older) return false;
      if (a.out != b.out) return false;
      const size_t n = a.feedback.size();
      if (std::memcmp(a.feedback.data(), b.feedback.data(), 4 * n) != 0) return false;
    }
    return true;
  }

 private:
  void put(void* host, size_t n_bytes) {
    const auto& block = blocks_[host] = std::make_unique<Block>(n_bytes);
    cuda::copy_to_device(block->data(), host, n_bytes, 0, nullptr);
  }
  void get(void* host, size_t n_bytes) {
    cuda::copy_to_host(host, blocks_.at(host)->data(), n_bytes, 0, nullptr);
  }
  std::vector<Memory> host_;
  std::map<void*, std::unique_ptr<Block>> blocks_;
};

inline float usual(size_t) { return 0.01f * normal() * normal(); }

// Four tensors, one of each dtype.
inline Model mixed(Spec spec, size_t n_elems,
                   const std::function<float(size_t)>& residual = usual) {
  Model model;
  for (const DType dtype : kDTypes) {
    spec.dtype = dtype;
    spec.n_elems = n_elems + 100 * static_cast<size_t>(dtype);
    model.add(spec, residual);
  }
  model.options.k_matrix = n_elems / 4;
  model.options.lane_log2 = CurrentFormat::kMinLaneLog2;
  return model;
}

// The host codes some tensors; the payload appends them to the device's.
inline Model all_roles() {
  Model model;
  for (const DType dtype : kDTypes) {
    Spec matrix{600, dtype}, vector{37, dtype, Role::kVector}, dense{9, dtype, Role::kDense};
    matrix.row_length = 30;
    vector.with_feedback = true;
    model.add(matrix, usual);
    model.add(vector, usual);
    model.add(dense, usual);
    model.options.dense.push_back(model.specs.size() - 1);
  }
  model.add({50, DType::kFloat32, Role::kLossless}, usual);
  model.options.exclusions.push_back(model.specs.size() - 1);
  model.options.k_matrix = 200;
  model.options.k_vector = 30;
  model.options.lane_log2 = CurrentFormat::kMinLaneLog2;
  return model;
}

// So many elements that the device codes them.
inline Model lossless_model() {
  Model model;
  model.add({300}, usual);
  for (const DType dtype : kDTypes) model.add({900, dtype, Role::kLossless}, usual);
  // 16-bit patterns as integers, some of which change alike.
  model.add({1200, DType::kOther, Role::kLossless, false, false, true}, usual);
  auto& integers = model.memory.back();
  for (size_t i = 0; i < integers.current.size(); i += 2) {
    integers.current[i] = static_cast<uint8_t>(integers.reference[i] + (i < 900 ? 3 : 0));
  }
  for (uint64_t i = 1; i < model.specs.size() - 1; ++i) model.options.exclusions.push_back(i);
  model.options.k_matrix = 100;
  model.options.lane_log2 = CurrentFormat::kMinLaneLog2;
  return model;
}

}  // namespace ptx
