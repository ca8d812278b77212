// Decodes slices of any bytes after a frame that fits the model, so that all executions reach the
// entropy decoder.
#include "harness.hpp"

using namespace fuzz;

static Quantizer quantizer_from(Input& in) {
  Quantizer q;
  q.threshold = float_from_bits(1 + static_cast<uint32_t>(in.number(kFloatMaxBits - 1)));
  q.step = float_from_bits(1 + static_cast<uint32_t>(in.number(kFloatMaxBits - 1)));
  q.n_offsets = static_cast<uint32_t>(in.number(kMaxOffsets));
  for (uint32_t i = 0; i < q.n_offsets; ++i) q.offsets[i] = in.byte();
  return q;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t n_bytes) {
  Input in(data, n_bytes);
  const size_t which = in.byte() % layouts().size();
  const Layout& layout = layouts()[which];
  Frame f;
  f.slice_log2 = CurrentFormat::kMinSliceLog2 + static_cast<unsigned>(in.number(2));
  size_t n_vectors = 0;
  for (const Shape& shape : layout) {
    uint64_t& n = shape.role == Role::kMatrix   ? f.n_matrix
                  : shape.role == Role::kVector ? f.n_vector
                                                : f.n_lossless;
    n += shape.n_elems();
    n_vectors += shape.role == Role::kVector && shape.n_elems() > 0 ? 1 : 0;
  }
  f.k_matrix = in.number(f.n_matrix);
  f.k_vector = in.number(f.n_vector);
  f.n_changed = in.number(f.n_lossless);
  f.matrix = quantizer_from(in);
  f.vector = quantizer_from(in);
  for (size_t i = 0; f.k_vector > 0 && i < n_vectors; ++i) {
    f.exponents.push_back(static_cast<int8_t>(static_cast<int>(in.number(240)) - 120));
  }
  const uint64_t n_slices = f.lossy_partition().n_slices + f.lossless_partition().n_slices;
  uint64_t most = in.left() / 2 * 2;
  for (uint64_t s = 0; s < n_slices; ++s) {
    const bool last = s + 1 == n_slices;
    f.slice_bytes.push_back(last ? most : 2 * in.number(std::min<uint64_t>(most / 2, 255)));
    most -= std::min(most, f.slice_bytes.back());
  }
  ByteWriter out;
  write_frame(f, out);
  Bytes payload = out.bytes();
  const Bytes slices = in.rest();
  payload.insert(payload.end(), slices.begin(), slices.end());
  payload.resize(payload.size() + kChecksumBytes);
  seal(payload);
  decode_for(which, payload, f.digest);
  return 0;
}
