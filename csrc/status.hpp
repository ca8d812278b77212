// Everything that can go wrong inside the native code, by number. Kernels write a number; host
// code throws a Failure; one place in Python (errors.py) turns it into an exception with a text.
#pragma once

#include <cstdint>

namespace resfed {

enum class Code : uint32_t {
  kOk = 0,
  // What is wrong with a payload. `where` is a byte offset, unless said otherwise.
  kTruncated = 1,
  kBadMagic = 2,
  kBadVersion = 3,  // detail: the version found
  kBadChecksum = 4,
  kBadField = 5,  // detail: the value found
  kBadSlice = 6,  // where: number of the slice
  kTrailingBytes = 7,
  kBadTables = 9,  // where: byte of the tables
  kBadLink = 8,    // where: byte of the link, detail: one of the codes above
  // A payload that does not belong to this reference.
  kWrongLayout = 20,
  kWrongReference = 21,
  kWrongKeyframeLayout = 22,
  kNoSuchTensor = 23,  // where: the tensor named, detail: how many there are
  // What is wrong with the caller's data or wishes.
  kNonFinite = 40,          // where: tensor, detail: element
  kBudgetTooSmall = 41,     // detail: bytes of the smallest payload
  kErrorUnreachable = 42,   // detail: bits of the float64 relative error that was reached
  kSumTooLarge = 43,        // where: tensor
  kModelTooLarge = 44,      // detail: elements of its lossy tensors
  kChangedDuringCall = 45,  // the caller's arrays, by another thread
  kTooSmallChange = 46,     // where: tensor; float32 residuals cannot keep the error bound
  kLosslessChange = 47,     // where: tensor; its change has no bound
  // What went wrong on a device.
  kCuda = 60,          // where: the run time's number, see cuda::error_text
  kDeviceMemory = 61,  // where: device, detail: bytes asked for
  kCapturing = 62,     // where: device
};

struct Failure {
  Code code;
  uint64_t where = 0;
  uint64_t detail = 0;
};

}  // namespace resfed
