// Reads a payload's frame like inspect(): any bytes, with and without a repaired checksum.
#include "harness.hpp"

using namespace fuzz;

static void read(const Bytes& payload) {
  Frame frame;
  if (outcome_of([&] { frame = open_payload(payload.data(), payload.size()).frame; })) return;
  check(frame.slices_offset <= payload.size() - kChecksumBytes, "slices lie in the payload");
  uint64_t sum = 0;
  for (const uint64_t n_bytes : frame.slice_bytes) sum += n_bytes;
  check(frame.slices_offset + sum + kChecksumBytes == payload.size(), "lengths add up");
  check(frame.n_slices() == frame.slice_bytes.size(), "every slice has a length");
  const uint64_t n_lanes = frame.lanes().n_parts + frame.lanes_of_changes().n_parts;
  check(n_lanes <= payload.size() / sizeof(uint32_t), "every lane has a state");
  ByteWriter out;
  write_frame(frame, out);
  check(out.bytes().size() == frame.slices_offset &&
            std::memcmp(out.bytes().data(), payload.data(), frame.slices_offset) == 0,
        "what is read is written the same way");
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t n_bytes) {
  Bytes payload(data, data + n_bytes);
  read(payload);
  if (n_bytes < kFixedHeaderBytes + kChecksumBytes) return 0;
  std::memcpy(payload.data(), kMagic, sizeof kMagic);
  payload[kVersionOffset] = CurrentFormat::kVersion;
  seal(payload);
  read(payload);
  return 0;
}
