// The numbers that Python shares with C++, exported once: enumerations, limits and sizes.
#pragma once

#include <pybind11/pybind11.h>

#include "api.hpp"
#include "cpu/keyframe.hpp"
#include "format/link.hpp"
#include "numeric/keyframe.hpp"

namespace resfed {

// An enum.IntEnum: its members are numbers to C++ and have names in Python.
template <class Enum>
pybind11::object bind_enum(pybind11::module_& m, const char* name,
                           std::initializer_list<std::pair<const char*, Enum>> members) {
  pybind11::dict numbers;
  for (const auto& [member, value] : members) numbers[member] = static_cast<uint32_t>(value);
  m.attr(name) = pybind11::module_::import("enum").attr("IntEnum")(
      name, numbers, pybind11::arg("module") = m.attr("__name__"));
  return m.attr(name);
}

// Throws ValueError unless `number` is a member of an enumeration that counts from 0 to `last`.
template <class Enum>
Enum to_enum(uint32_t number, Enum last, const char* name) {
  if (number <= static_cast<uint32_t>(last)) return static_cast<Enum>(number);
  throw pybind11::value_error(std::to_string(number) + " is not a valid " + name);
}

template <class Enum>
std::vector<uint32_t> numbers(const std::vector<Enum>& members) {
  std::vector<uint32_t> result;
  for (const Enum member : members) result.push_back(static_cast<uint32_t>(member));
  return result;
}

inline void bind_constants(pybind11::module_& m) {
  bind_enum<Code>(m, "Code",
                  {{"TRUNCATED", Code::kTruncated},
                   {"BAD_MAGIC", Code::kBadMagic},
                   {"BAD_VERSION", Code::kBadVersion},
                   {"BAD_CHECKSUM", Code::kBadChecksum},
                   {"BAD_FIELD", Code::kBadField},
                   {"BAD_SLICE", Code::kBadSlice},
                   {"BAD_TABLES", Code::kBadTables},
                   {"TRAILING_BYTES", Code::kTrailingBytes},
                   {"BAD_LINK", Code::kBadLink},
                   {"WRONG_LAYOUT", Code::kWrongLayout},
                   {"WRONG_REFERENCE", Code::kWrongReference},
                   {"WRONG_KEYFRAME_LAYOUT", Code::kWrongKeyframeLayout},
                   {"NO_SUCH_TENSOR", Code::kNoSuchTensor},
                   {"NON_FINITE", Code::kNonFinite},
                   {"BUDGET_TOO_SMALL", Code::kBudgetTooSmall},
                   {"ERROR_UNREACHABLE", Code::kErrorUnreachable},
                   {"SUM_TOO_LARGE", Code::kSumTooLarge},
                   {"MODEL_TOO_LARGE", Code::kModelTooLarge},
                   {"CHANGED_DURING_CALL", Code::kChangedDuringCall},
                   {"TOO_SMALL_CHANGE", Code::kTooSmallChange},
                   {"LOSSLESS_CHANGE", Code::kLosslessChange},
                   {"CUDA", Code::kCuda},
                   {"DEVICE_MEMORY", Code::kDeviceMemory},
                   {"CAPTURING", Code::kCapturing}});
  bind_enum<Role>(m, "Role",
                  {{"MATRIX", Role::kMatrix},
                   {"VECTOR", Role::kVector},
                   {"LOSSLESS", Role::kLossless},
                   {"DENSE", Role::kDense}});
  bind_enum<DType>(m, "DType",
                   {{"FLOAT32", DType::kFloat32},
                    {"FLOAT16", DType::kFloat16},
                    {"BFLOAT16", DType::kBFloat16},
                    {"FLOAT64", DType::kFloat64},
                    {"OTHER", DType::kOther}});

  const auto bytes = [](const uint8_t (&magic)[3]) {
    return pybind11::bytes(reinterpret_cast<const char*>(magic), sizeof magic);
  };
  m.attr("MAGIC") = bytes(kMagic);
  m.attr("KEYFRAME_MAGIC") = bytes(kKeyframeMagic);
  m.attr("FIXED_HEADER_BYTES") = kFixedHeaderBytes;
  m.attr("MOST_TENSORS") = kMostTensors;
  m.attr("MAX_DEPTH") = kMaxDepth;
  m.attr("MAX_COEF_LOG2") = kMaxCoefLog2;
  m.attr("MAX_NUMERATOR") = kMaxNumerator;
  m.attr("MAX_MANTISSA_BITS") = kMaxMantissaBits;
}

}  // namespace resfed
