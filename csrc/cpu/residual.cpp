#include "cpu/residual.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "cpu/collect.hpp"
#include "cpu/predict.hpp"
#include "cpu/threads.hpp"
#include "numeric/select.hpp"

namespace resfed {
namespace {

template <class T>
size_t collect_scalar(const void* current, const void* reference, size_t n, float scale,
                      uint32_t base, uint32_t min_key, Candidates out) {
  const T* const x = static_cast<const T*>(current);
  const T* const p = static_cast<const T*>(reference);
  return collect_one_by_one(x, p, 0, n, scale, base, min_key, out);
}

// The same for tensors with terms or feedback: their residuals are computed a batch at a time and
// then collected as differences from zero.
size_t collect_predicted(const CollectKernels& kernels, const Member& member, uint64_t first,
                         uint64_t count, uint32_t at, uint32_t min_key, Candidates out) {
  static const float zeros[kBatch] = {};
  float residuals[kBatch];
  const CollectKernel kernel = kernels.by_dtype[static_cast<size_t>(DType::kFloat32)];
  size_t n = 0;
  for (uint64_t done = 0; done < count; done += kBatch) {
    const size_t now = std::min<uint64_t>(kBatch, count - done);
    residual_batch(*member.tensor, first + done, now, residuals);
    n += kernel(residuals, zeros, now, member.scale, at + static_cast<uint32_t>(done), min_key,
                out.from(n));
  }
  return n;
}

// Takes out what is not finite and yet did not change: an infinity or a NaN that both ends hold.
// Returns how many are left; throws kNonFinite for the first that did change.
size_t without_unchanged(const Member& member, uint64_t first, uint32_t at, Candidates c) {
  size_t n = 0;
  while (n < c.n && is_finite_key(magnitude_key(c.residuals[n]))) ++n;
  if (n == c.n) return n;  // nearly always
  with_elements(*member.tensor, first, [&](const auto& elements) {
    for (size_t i = n; i < c.n; ++i) {
      const uint64_t element = c.offsets[i] - at;
      if (!is_finite_key(magnitude_key(c.residuals[i]))) {
        if (magnitude_key(elements.residual_at(element)) == 0) continue;
        throw Failure{Code::kNonFinite, member.ordinal, first + element};
      }
      c.offsets[n] = c.offsets[i];
      c.residuals[n++] = c.residuals[i];
    }
  });
  return n;
}

// What this processor runs, the best first.
std::vector<const CollectKernels*> supported_kernels() {
  std::vector<const CollectKernels*> kernels;
#if defined(RESFED_X86)
  if (__builtin_cpu_supports("avx512f")) kernels.push_back(&kCollectAvx512);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) {
    kernels.push_back(&kCollectAvx2);
  }
#elif defined(RESFED_NEON)
  kernels.push_back(&kCollectNeon);
#endif
  kernels.push_back(&kCollectScalar);
  return kernels;
}

std::atomic<const CollectKernels*> chosen_kernels{nullptr};

}  // namespace

const CollectKernels kCollectScalar = {
    "scalar",
    {collect_scalar<float>, collect_scalar<Half>, collect_scalar<BFloat16>, collect_scalar<double>},
};

const CollectKernels& collect_kernels() {
  static const CollectKernels* const best = supported_kernels().front();
  const CollectKernels* kernels = chosen_kernels.load();
  return kernels != nullptr ? *kernels : *best;
}

bool choose_kernels(const char* name) {
  for (const CollectKernels* kernels : supported_kernels()) {
    if (std::strcmp(kernels->name, name) == 0) {
      chosen_kernels.store(kernels);
      return true;
    }
  }
  return false;
}

CandidateChunks::CandidateChunks(const CandidateChunks& other) : chunks_(other.size()) {
  for (size_t s = 0; s < size(); ++s) put(s, other[s]);
}

uint64_t CandidateChunks::count() const {
  uint64_t n = 0;
  for (const Candidates& chunk : chunks_) n += chunk.n;
  return n;
}

void CandidateChunks::put(size_t s, Candidates candidates) {
  const size_t n = candidates.n;
  if (n == 0) return;
  Candidates place;
  {
    const std::lock_guard lock(*mutex_);
    if (n > left_) {
      const size_t room = std::max(kBlock, n);
      blocks_.push_back({Scratch<uint16_t>(room), Scratch<float>(room)});
      left_ = room;
    }
    Block& block = blocks_.back();
    const size_t used = block.offsets.size() - left_;
    place = {block.offsets.data() + used, block.residuals.data() + used, n};
    left_ -= n;
  }
  std::copy_n(candidates.offsets, n, place.offsets);
  std::copy_n(candidates.residuals, n, place.residuals);
  chunks_[s] = place;
}

CandidateChunks collect(const Group& group, uint32_t min_key, const Refine& refine) {
  CandidateChunks chunks(n_chunks(group));
  collect(group, 0, chunks.size(), min_key, refine, &chunks);
  return chunks;
}

void collect(const Group& group, size_t first_chunk, size_t last_chunk, uint32_t min_key,
             const Refine& refine, CandidateChunks* chunks) {
  const CollectKernels& kernels = collect_kernels();
  parallel_for(last_chunk - first_chunk, [&](size_t which) {
    const size_t s = first_chunk + which;
    Scratch<uint16_t> offsets(kChunkElems + kKernelSlack);
    Scratch<float> residuals(kChunkElems + kKernelSlack);
    Candidates found{offsets.data(), residuals.data(), 0};
    size_t& n = found.n;
    for_each_member(
        group, s, [&](const Member& member, uint64_t first, uint64_t count, uint32_t at) {
          const Tensor& t = *member.tensor;
          const Candidates here = found.from(n);
          size_t n_here;
          if (t.plain()) {
            const CollectKernel kernel = kernels.by_dtype[static_cast<size_t>(t.dtype)];
            n_here = kernel(static_cast<const uint8_t*>(t.current) + first * t.elem_bytes,
                            static_cast<const uint8_t*>(t.reference) + first * t.elem_bytes, count,
                            member.scale, at, min_key, here);
          } else {
            n_here = collect_predicted(kernels, member, first, count, at, min_key, here);
          }
          n += without_unchanged(member, first, at, {here.offsets, here.residuals, n_here});
        });
    n = refine(s, found);
    chunks->put(s, found);
  });
}

}  // namespace resfed
