#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/staging.hpp"

namespace resfed::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr uint64_t kMoveBytes = 1u << 16;  // bytes that a block moves at a time
constexpr size_t kAlign = 16;

struct DeviceMove {
  const uint8_t* from;
  uint8_t* to;
  uint64_t n_bytes;  // at most kMoveBytes
};

__global__ void __launch_bounds__(kThreads) move_bytes(const DeviceMove* moves, uint64_t n_moves) {
  for (uint64_t m = blockIdx.x; m < n_moves; m += gridDim.x) {
    const DeviceMove move = moves[m];
    uint64_t done = 0;
    if ((reinterpret_cast<uintptr_t>(move.from) | reinterpret_cast<uintptr_t>(move.to)) % 4 == 0) {
      const uint64_t n_words = move.n_bytes / 4;
      const auto* const from = reinterpret_cast<const uint32_t*>(move.from);
      auto* const to = reinterpret_cast<uint32_t*>(move.to);
      for (uint64_t i = threadIdx.x; i < n_words; i += blockDim.x) to[i] = from[i];
      done = 4 * n_words;
    }
    for (uint64_t i = done + threadIdx.x; i < move.n_bytes; i += blockDim.x) {
      move.to[i] = move.from[i];
    }
  }
}

size_t aligned(size_t n_bytes) { return (n_bytes + kAlign - 1) / kAlign * kAlign; }

uint64_t n_moves_of(uint64_t n_bytes) { return (n_bytes + kMoveBytes - 1) / kMoveBytes; }

}  // namespace

Staging::Staging(WorkspaceLease& lease, std::vector<Tensor>* tensors,
                 const std::function<bool(const Tensor&)>& chosen)
    : lease_(lease) {
  // Fields that hold an address to be replaced: first what is read, then what is written.
  struct Field {
    const void** reads;
    void** writes;
    uint64_t n_bytes;
  };
  std::vector<Field> fields;
  for (Tensor& t : *tensors) {
    if (!chosen(t) || t.n_elems == 0) continue;
    const uint64_t n_bytes = t.n_elems * t.elem_bytes;
    if (t.current != nullptr) fields.push_back({&t.current, nullptr, n_bytes});
    if (t.reference != nullptr) fields.push_back({&t.reference, nullptr, n_bytes});
    for (unsigned j = 0; j < t.prediction.n_terms; ++j) {
      fields.push_back({&t.prediction.terms[j], nullptr, n_bytes});
    }
    if (t.out != nullptr) fields.push_back({nullptr, &t.out, n_bytes});
  }
  std::vector<void*> feedbacks;
  feedbacks.reserve(tensors->size());  // addresses of these are kept
  std::vector<Tensor*> with_feedback;
  for (Tensor& t : *tensors) {
    if (!chosen(t) || t.n_elems == 0 || t.feedback == nullptr) continue;
    feedbacks.push_back(t.feedback);
    with_feedback.push_back(&t);
    fields.push_back({nullptr, &feedbacks.back(), t.n_elems * sizeof(float)});
  }
  const size_t first_feedback = fields.size() - feedbacks.size();

  // What is written is read, too: feedback is both, and of an output every byte is replaced.
  size_t n_bytes = 0;
  uint64_t n_moves = 0;
  for (const Field& field : fields) {
    n_bytes += aligned(field.n_bytes);
    n_moves += n_moves_of(field.n_bytes);
  }
  const size_t n_all = n_bytes + 2 * n_moves * sizeof(DeviceMove) + kAlign;  // and two lists
  auto* const host = static_cast<uint8_t*>(lease.host_staged(n_all));
  auto* const device = static_cast<uint8_t*>(lease.staged(n_all));
  host_ = host;
  device_ = device;
  n_bytes_ = n_bytes;
  std::vector<Move> reads;
  size_t at = 0;
  for (size_t i = 0; i < fields.size(); ++i) {
    const Field& field = fields[i];
    if (field.reads != nullptr) {
      reads.push_back({*field.reads, device + at, field.n_bytes});
      *field.reads = host + at;
    } else {
      if (i >= first_feedback) reads.push_back({*field.writes, device + at, field.n_bytes});
      writes_.push_back({device + at, *field.writes, field.n_bytes});
      *field.writes = host + at;
    }
    at += aligned(field.n_bytes);
  }
  for (size_t i = 0; i < feedbacks.size(); ++i) {
    with_feedback[i]->feedback = static_cast<float*>(feedbacks[i]);
  }
  move_all(reads, n_bytes);
  if (n_bytes > 0) lease.copy_out(host, device, n_bytes);
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  ready_ = event;
  check(cudaEventRecord(event, native(lease.stream())));
}

Staging::~Staging() { cudaEventDestroy(static_cast<cudaEvent_t>(ready_)); }

void Staging::move_all(const std::vector<Move>& moves, size_t table_at) {
  auto* const table = reinterpret_cast<DeviceMove*>(host_ + table_at);
  size_t n = 0;
  for (const Move& move : moves) {
    for (uint64_t done = 0; done < move.n_bytes; done += kMoveBytes) {
      table[n++] = {static_cast<const uint8_t*>(move.from) + done,
                    static_cast<uint8_t*>(move.to) + done,
                    std::min(kMoveBytes, move.n_bytes - done)};
    }
  }
  if (n == 0) return;
  lease_.copy_in(device_ + table_at, table, n * sizeof(DeviceMove));
  launch(move_bytes, static_cast<unsigned>(std::min<uint64_t>(n, lease_.n_blocks())), kThreads,
         lease_.stream(), reinterpret_cast<const DeviceMove*>(device_ + table_at), n);
  table_end_ = table_at + n * sizeof(DeviceMove);
}

void Staging::wait() { check(cudaEventSynchronize(static_cast<cudaEvent_t>(ready_))); }

void Staging::flush() {
  if (writes_.empty()) return;
  lease_.copy_in(device_, host_, n_bytes_);
  move_all(writes_, aligned(std::max(table_end_, n_bytes_)));
}

}  // namespace resfed::cuda
