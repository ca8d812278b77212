// Concurrent calls from several threads, each with several threads, for the thread sanitizer. All
// must have the same results.
#include <mutex>
#include <thread>

#include "../fuzz/harness.hpp"
#include "cpu/aggregate.hpp"
#include "cpu/keyframe.hpp"
#include "numeric/keyframe.hpp"

using namespace fuzz;

int main() {
  constexpr int kThreads = 4, kCalls = 6;
  const Layout layout = {matrix(700, 300), vector(900), matrix(60, 50, DType::kFloat16),
                         integers(2000, 4), vector(64, DType::kFloat64)};
  const Memory reference = random_model(layout, 1, false), state = random_model(layout, 2, false);
  EncodeOptions options;
  options.k_matrix = 9000;
  options.k_vector = 700;
  options.lane_log2 = 6;
  const auto encode_into = [&](Memory* out, std::vector<std::vector<float>>* feedback) {
    auto tensors = tensors_of(layout, reference, out);
    for (size_t i = 0; i < tensors.size(); ++i) {
      tensors[i].current = state[i].data();
      if (tensors[i].role != Role::kLossless) tensors[i].feedback = (*feedback)[i].data();
    }
    return encode(tensors, options);
  };
  const auto zeros = [&] {
    std::vector<std::vector<float>> feedback;
    for (const Shape& shape : layout) feedback.emplace_back(shape.n_elems());
    return feedback;
  };
  set_num_threads(3);
  Memory expected = reference;
  auto left = zeros();
  const std::vector<uint8_t> payload = encode_into(&expected, &left);
  const std::vector<uint8_t> keyframe =
      encode_keyframe(tensors_of(layout, state, nullptr), 0, kMaxMantissaBits);
  const std::vector<bool> is_signed(layout.size(), true);
  Aggregator aggregator(tensors_of(layout, reference, nullptr), is_signed);
  std::mutex adding;

  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int n = 0; n < kCalls; ++n) {
        set_num_threads(2 + (t + n) % 3);
        choose_kernels(n % 2 == 0 ? "scalar" : "avx2");
        Memory out = reference;
        auto feedback = zeros();
        check(encode_into(&out, &feedback) == payload, "the same payload");
        check(out == expected && feedback == left, "the same model and feedback");
        Memory decoded = reference;
        decode(open_payload(payload.data(), payload.size()), 0,
               tensors_of(layout, reference, &decoded));
        check(decoded == expected, "the same decoded model");
        check(encode_keyframe(tensors_of(layout, state, nullptr), 0, kMaxMantissaBits) == keyframe,
              "the same keyframe");
        decode_keyframe(keyframe.data(), keyframe.size(), 0,
                        tensors_of(layout, reference, &decoded));
        check(decoded == state, "the keyframe's model");
        const auto contribution =
            aggregator.prepare(open_payload(payload.data(), payload.size()), 0, 1.0);
        const std::lock_guard lock(adding);
        aggregator.add(contribution.get());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::printf("%d calls of each kind from %d threads\n", kThreads * kCalls, kThreads);
}
