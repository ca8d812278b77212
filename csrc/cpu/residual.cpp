#include "cpu/residual.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>

#include "core/select.hpp"
#include "cpu/predict.hpp"
#include "cpu/threads.hpp"

namespace resfed {
namespace {

template <class T>
size_t collect_scalar(const void* current, const void* reference, size_t n, float scale,
                      uint32_t base, uint32_t min_key, Candidate* out) {
  const T* const x = static_cast<const T*>(current);
  const T* const p = static_cast<const T*>(reference);
  size_t n_out = 0;
  for (size_t i = 0; i < n; ++i) {
    const float r = residual(x[i], p[i]) * scale;
    out[n_out] = {base + static_cast<uint32_t>(i), r};
    n_out += magnitude_key(r) >= min_key ? 1 : 0;
  }
  return n_out;
}

// The same for tensors with terms or feedback: their residuals are computed a stretch at a time and
// then collected as differences from zero.
size_t collect_predicted(const CollectKernels& kernels, const Piece& piece, uint64_t first,
                         uint64_t count, uint32_t at, uint32_t min_key, Candidate* out) {
  static const float zeros[kStretch] = {};
  float residuals[kStretch];
  const CollectKernel kernel = kernels.by_dtype[static_cast<size_t>(DType::kFloat32)];
  size_t n = 0;
  for (uint64_t done = 0; done < count; done += kStretch) {
    const size_t now = std::min<uint64_t>(kStretch, count - done);
    residual_stretch(*piece.tensor, first + done, now, residuals);
    n += kernel(residuals, zeros, now, piece.scale, at + static_cast<uint32_t>(done), min_key,
                out + n);
  }
  return n;
}

const CollectKernels* best_kernels() {
#if defined(RESFED_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) return &kCollectAvx2;
#endif
  return &kCollectScalar;
}

std::atomic<const CollectKernels*> chosen_kernels{nullptr};

}  // namespace

const CollectKernels kCollectScalar = {
    "scalar",
    {collect_scalar<float>, collect_scalar<Half>, collect_scalar<BFloat16>, collect_scalar<double>},
};

const CollectKernels& collect_kernels() {
  const CollectKernels* kernels = chosen_kernels.load();
  return kernels != nullptr ? *kernels : *best_kernels();
}

bool choose_kernels(const char* name) {
  for (const CollectKernels* kernels : {&kCollectScalar, best_kernels()}) {
    if (std::strcmp(kernels->name, name) == 0) {
      chosen_kernels.store(kernels);
      return true;
    }
  }
  return false;
}

Segments collect(const Group& group, uint32_t min_key, const Refine& refine) {
  const CollectKernels& kernels = collect_kernels();
  Segments segments(n_segments(group));
  parallel_for(segments.size(), [&](size_t s) {
    static thread_local std::unique_ptr<Candidate[]> buffer;
    if (!buffer) buffer = std::make_unique_for_overwrite<Candidate[]>(kSegment + 1);
    size_t n = 0;
    for_each_part(group, s, [&](const Piece& piece, uint64_t first, uint64_t count, uint32_t at) {
      const Tensor& t = *piece.tensor;
      const size_t begin = n;
      if (t.plain()) {
        const CollectKernel kernel = kernels.by_dtype[static_cast<size_t>(t.dtype)];
        n += kernel(static_cast<const uint8_t*>(t.current) + first * t.elem_bytes,
                    static_cast<const uint8_t*>(t.reference) + first * t.elem_bytes, count,
                    piece.scale, at, min_key, buffer.get() + n);
      } else {
        n += collect_predicted(kernels, piece, first, count, at, min_key, buffer.get() + n);
      }
      for (size_t i = begin; i < n; ++i) {
        if (!is_finite_key(magnitude_key(buffer[i].residual))) {
          throw Failure{Code::kNonFinite, piece.ordinal, first + (buffer[i].offset - at)};
        }
      }
    });
    segments[s].assign(buffer.get(), buffer.get() + n);
    refine(s, segments[s]);
  });
  return segments;
}

}  // namespace resfed
