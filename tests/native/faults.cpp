// Makes every allocation of every call fail, once alone and once with all later ones. The call must
// throw std::bad_alloc and leave the caller's data unchanged, or succeed.
//
// Link with --wrap=malloc --wrap=calloc, to count allocations that do not use operator new.
#include <atomic>
#include <functional>
#include <new>

#include "../fuzz/harness.hpp"
#include "cpu/aggregate.hpp"
#include "cpu/keyframe.hpp"

namespace {

std::atomic<long> n_allocations{0};
std::atomic<long> first_to_fail{-1};  // -1: none
std::atomic<bool> all_that_follow{false};

bool may_allocate() {
  const long n = n_allocations.fetch_add(1);
  const long first = first_to_fail.load();
  return first < 0 || n < first || (n > first && !all_that_follow.load());
}

}  // namespace

extern "C" {
void* __real_malloc(size_t n_bytes);
void* __real_calloc(size_t n, size_t n_bytes);
void* __wrap_malloc(size_t n_bytes) { return may_allocate() ? __real_malloc(n_bytes) : nullptr; }
void* __wrap_calloc(size_t n, size_t n_bytes) {
  return may_allocate() ? __real_calloc(n, n_bytes) : nullptr;
}
}

void* operator new(size_t n_bytes) {
  void* const memory = may_allocate() ? __real_malloc(n_bytes) : nullptr;
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void* operator new(size_t n_bytes, std::align_val_t alignment) {
  const auto n = static_cast<size_t>(alignment);
  void* const memory = may_allocate() ? std::aligned_alloc(n, (n_bytes + n - 1) / n * n) : nullptr;
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

using namespace fuzz;

namespace {

// `call` changes the data that `state` copies; `prepare` restores it. With a stride only every
// stride-th allocation fails, because a search encodes many times.
template <class State>
void fail_each(const char* name, const std::function<void()>& prepare,
               const std::function<void()>& call, const std::function<State()>& state,
               long stride = 1) {
  long n_calls = 0, most = 0;
  for (const int threads : {1, 3}) {
    for (const bool all : {false, true}) {
      set_num_threads(threads);
      prepare();
      const State before = state();
      call();
      const State after = state();
      for (long n = 0;; n += stride) {
        prepare();
        all_that_follow = all;
        n_allocations = 0;
        first_to_fail = n;
        bool refused = false;
        try {
          call();
        } catch (const std::bad_alloc&) {
          refused = true;
        }
        first_to_fail = -1;
        const long counted = n_allocations;
        ++n_calls;
        check(state() == (refused ? before : after), name);
        if (counted <= n) break;  // no allocation failed
        most = std::max(most, counted);
      }
    }
  }
  std::printf("%s: %ld calls, up to %ld allocations\n", name, n_calls, most);
  std::fflush(stdout);
}

// All roles and several slices; with many rows also several chunks. `whole` runs all calls,
// otherwise only encode and decode, without a search.
void fail_all(uint64_t n_rows, bool whole) {
  const Layout layout = {matrix(n_rows, 200), vector(90), matrix(6, 50, DType::kFloat16),
                         integers(60, 4), vector(64, DType::kFloat64)};
  Layout with_dense = layout;
  with_dense[4].role = Role::kDense;
  const Memory reference = random_model(layout, 1, false), state = random_model(layout, 2, false);
  const Memory earlier = random_model(layout, 3, false);
  Memory out;
  std::vector<std::vector<float>> feedback;
  std::vector<uint8_t> payload;

  struct Seen {
    Memory out;
    std::vector<std::vector<float>> feedback;
    bool operator==(const Seen&) const = default;
  };
  const std::function<Seen()> seen = [&] { return Seen{out, feedback}; };
  const auto reset = [&] {
    out = reference;
    feedback.clear();
    for (const Shape& shape : layout) feedback.emplace_back(shape.n_elems(), 0.25f);
  };
  // In place, like an encoder that predicts from its last model.
  const auto tensors = [&](const Layout& roles, bool predicted, bool with_feedback) {
    auto made = tensors_of(roles, out, &out);
    for (size_t i = 0; i < made.size(); ++i) {
      made[i].current = state[i].data();
      if (made[i].role == Role::kLossless) continue;
      if (predicted) {
        made[i].reference = nullptr;
        made[i].prediction = {{reference[i].data(), earlier[i].data()}, {0.75f, 0.25f}, 2};
      }
      if (with_feedback && made[i].role != Role::kDense) made[i].feedback = feedback[i].data();
    }
    return made;
  };
  EncodeOptions options;
  options.k_matrix = 800;
  options.k_vector = 70;
  options.lane_log2 = 6;
  options.dense = {4};
  const auto encode_with = [&](bool predicted) {
    const auto made = tensors(with_dense, predicted, true);
    std::vector<uint8_t> bytes = encode(made, options);
    payload = std::move(bytes);
  };
  fail_each<Seen>("encode", reset, [&] { encode_with(false); }, seen);
  const std::vector<uint8_t> plain = payload;
  fail_each<Seen>("encode, predicted", reset, [&] { encode_with(true); }, seen);
  const std::vector<uint8_t> predicted = payload;
  if (whole) {
    options.max_bytes = 900;
    fail_each<Seen>("encode, max_bytes", reset, [&] { encode_with(false); }, seen, 23);
    options.max_bytes = 0;
    options.max_error = 0.9;
    fail_each<Seen>("encode, max_error", reset, [&] { encode_with(false); }, seen, 23);
    options.max_error = -1;
  }

  const auto no_feedback = [&] {
    reset();
    for (auto& each : feedback) std::fill(each.begin(), each.end(), 0.0f);
  };
  no_feedback();
  encode_with(false);
  const std::vector<uint8_t> without = payload;
  fail_each<Seen>(
      "decode", reset,
      [&] {
        decode(open_payload(without.data(), without.size()), 0, tensors(layout, false, false));
      },
      seen);
  no_feedback();
  encode_with(true);
  const std::vector<uint8_t> from_terms = payload;
  fail_each<Seen>(
      "decode, predicted", reset,
      [&] {
        decode(open_payload(from_terms.data(), from_terms.size()), 0, tensors(layout, true, false));
      },
      seen);
  if (!whole) return;
  fail_each<Seen>(
      "add_values", reset,
      [&] {
        add_values(open_payload(plain.data(), plain.size()), tensors(with_dense, false, true));
      },
      seen);
  fail_each<Seen>("moments", reset, [&] { moments(tensors(layout, true, true)); }, seen);

  Bytes keyframe;
  fail_each<Bytes>(
      "encode_keyframe", [&] { keyframe.clear(); },
      [&] { keyframe = encode_keyframe(tensors_of(layout, state, nullptr), 0, 52); },
      [&] { return keyframe; });
  Memory fresh;
  // Only checks that it throws: no other code can see this memory yet.
  fail_each<int>(
      "decode_keyframe", [&] { fresh = filled_like(state, 0); },
      [&] {
        decode_keyframe(keyframe.data(), keyframe.size(), 0, tensors_of(layout, state, &fresh));
      },
      [] { return 0; });

  const std::vector<bool> is_signed(layout.size(), true);
  std::unique_ptr<Aggregator> aggregator;
  double total = 0;
  const auto empty = [&] {
    aggregator = std::make_unique<Aggregator>(tensors_of(layout, reference, nullptr), is_signed);
    aggregator->add(
        aggregator->prepare(open_payload(without.data(), without.size()), 0, 1.0).get());
    total = 1;
  };
  const std::function<Memory()> mean = [&] {
    Memory sum = filled_like(reference, 0);
    std::vector<void*> addresses;
    for (Bytes& tensor : sum) addresses.push_back(tensor.data());
    aggregator->result(addresses, total);
    return sum;
  };
  fail_each<Memory>(
      "Aggregator.add", empty,
      [&] {
        aggregator->add(
            aggregator->prepare(open_payload(without.data(), without.size()), 0, 2.0).get());
        total = 3;
      },
      mean);
  fail_each<Memory>(
      "Aggregator.add_state", empty,
      [&] {
        std::vector<const void*> addresses;
        for (const Bytes& tensor : state) addresses.push_back(tensor.data());
        aggregator->add(aggregator->prepare(addresses, 2.0).get());
        total = 3;
      },
      mean);
}

}  // namespace

int main() {
  fail_all(5, true);
  fail_all(660, false);
}
