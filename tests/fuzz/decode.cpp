// Decodes payloads: [1 byte] the model, then the payload. The target repairs magic, version, digest
// and checksum.
#include "harness.hpp"

using namespace fuzz;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t n_bytes) {
  Input in(data, n_bytes);
  const size_t which = in.byte() % layouts().size();
  Bytes payload = in.rest();
  constexpr uint64_t kDigest = 0x0123456789abcdef;
  if (payload.size() >= kFixedHeaderBytes + kChecksumBytes) {
    std::memcpy(payload.data(), kMagic, sizeof kMagic);
    payload[kVersionOffset] = CurrentFormat::kVersion;
    store_le(payload.data() + kDigestOffset, kDigest);
    seal(payload);
  }
  decode_for(which, payload, kDigest);
  return 0;
}
