// Compares cuda::encode and cuda::decode with simulated kernels to the CPU codec, bit for bit.
// `cases NAME` runs one case.
#include "mean.hpp"
#include "numeric/select.hpp"

using namespace resfed;
using namespace ptx;

namespace {

constexpr size_t kFew = 500,
                 kMany = 4200;  // estimated threshold, whole chunks

void plain() { check(mixed({}, kMany)); }
void unaligned() {
  Spec spec{};
  spec.shift = 1;
  check(mixed(spec, kFew));
}
void predicted() {
  Spec spec{};
  spec.predicted = true;
  check(mixed(spec, kFew));
}
void feedback() {
  Spec spec{};
  spec.with_feedback = true;
  check(mixed(spec, kFew));
}
void predicted_with_feedback() {
  Spec spec{};
  spec.predicted = spec.with_feedback = true;
  check(mixed(spec, kFew));
}
void in_place() {
  Spec spec{};
  spec.in_place = true;
  check(mixed(spec, kFew));
}
// Few distinct values, exact in every dtype; several equal the threshold.
void ties() {
  check(mixed({}, kFew, [](size_t i) {
    return i % 3 == 0 ? (i % 2 == 0 ? 2.0f : -2.0f) : i % 7 == 0 ? 3.0f : 0.0f;
  }));
}
void nothing_changed() {
  check(mixed({}, kFew, [](size_t) { return 0.0f; }));
}
void nothing_wanted() {
  Model model = mixed({}, kFew);
  model.options.k_matrix = 0;
  check(model);
}
// Tensors of which nothing has changed, or one element: the last one of a chunk, or of the tensor.
void frozen() {
  Model model;
  for (const DType dtype : kDTypes) {
    for (const size_t changed : {size_t{4095}, size_t{4199}, kMany}) {
      model.add({kMany, dtype}, [=](size_t i) { return i == changed ? 0.5f : 0.0f; });
    }
  }
  model.add({300, DType::kFloat32, Role::kVector}, usual);
  model.add({40, DType::kFloat32, Role::kVector}, [](size_t) { return 0.0f; });
  model.options.k_matrix = 10;
  model.options.k_vector = 10;
  check(model);
}
// No estimated threshold: all nonzeros are candidates.
void small() {
  Model model;
  for (const DType dtype : kDTypes) model.add({70, dtype}, usual);
  model.options.k_matrix = 25;
  check(model);
}
void everything() {
  Model model;
  for (const DType dtype : kDTypes) model.add({70, dtype}, usual);
  model.options.k_matrix = 280;
  model.options.lane_log2 = CurrentFormat::kMinLaneLog2;
  check(model);
}
void one_element() {
  Model model;
  model.add({1}, [](size_t) { return 0.5f; });
  model.options.k_matrix = 1;
  check(model);
}

void roles() { check(all_roles()); }
void no_matrices() {
  Model model;
  model.add({90, DType::kFloat32, Role::kVector}, usual);
  model.options.k_vector = 20;
  check(model);
}
// Several selections, one after the other, among the same candidates and among more.
void within_a_budget() {
  Model model = all_roles();
  model.options.k_matrix = model.options.k_vector = 0;
  model.options.max_bytes = 600;
  check(model);
}
void within_an_error() {
  Model model = mixed({}, 100);
  model.options.k_matrix = 0;
  model.options.max_error = 0.7;
  check(model);
}
// All groups, lower quantizers; a bound below all steps of bfloat16, so that nothing is sent; one
// that holds anyway; and changes of lossless tensors, which have no bound.
void within_a_norm() {
  Model model = all_roles();
  expect(model.specs.back().role == Role::kLossless, "the last tensor is lossless");
  model.memory.back().current = model.memory.back().reference;
  for (const double bound : {0.05, 100.0}) {
    model.options.max_norm = bound;
    check(model);
  }
  model.options.max_bytes = 600;
  model.options.max_norm = 0.05;
  check(model);
  Model vast;  // the least level of the vector is above 2^-50
  vast.add({400}, usual);
  vast.add({9, DType::kFloat32, Role::kVector}, [](size_t) { return 1e30f; });
  vast.memory.back().reference.assign(36, 0);
  vast.options.k_matrix = vast.options.k_vector = 9;
  vast.options.max_norm = 0x1p-100;
  check(vast);
  Model with_changes = lossless_model();
  with_changes.options.max_norm = 1;
  expect(check(with_changes).empty(), "a norm of lossless changes is refused");
}
// Few rows and columns with signs of their own, and blocks whose elements are sent together: scan
// orders that leave out, turn around and flip, and lanes with blocks.
void scans_and_blocks() {
  Model model;
  Spec rows{2400}, columns{2400}, blocks{2400};
  rows.row_length = 60;
  columns.row_length = 40;
  blocks.block = 9;
  model.add(rows, [](size_t i) {
    const size_t r = i / 60, c = i % 60;
    if (r % 5 != 0 || c % 3 != 0) return 0.0f;
    return ((r / 5 + c / 3 * c) % 2 == 0 ? 0.1f : -0.1f) * (1.0f + uniform());
  });
  model.add(columns, [](size_t i) { return i % 40 % 7 == 0 ? 0.1f * (1.0f + uniform()) : 0.0f; });
  model.add(blocks, [](size_t i) { return i / 9 % 11 == 0 ? 0.1f * normal() : 0.0f; });
  model.options.k_matrix = 600;
  model.options.lane_log2 = 7;
  check(model);
}

// A second attempt: the sampled elements are the largest, so the estimated threshold is too high.
void too_few_candidates() {
  Model model = mixed({}, kMany, [](size_t) { return 0.0f; });
  size_t n = 0;
  for (const Spec& spec : model.specs) n += spec.n_elems;
  model.options.k_matrix = 2000;
  const SamplePlan plan = sample_plan(n, model.options.k_matrix);
  std::vector<bool> sampled(n);
  for (uint32_t j = 0; j < plan.n_samples; ++j) {
    sampled[sampled_index(n / plan.n_samples, j)] = true;
  }
  const EncodeOptions options = model.options;
  size_t begin = 0;
  Model again;
  for (const Spec& spec : model.specs) {
    again.add(spec, [&](size_t i) {
      if (i >= spec.n_elems) return 0.0f;
      return sampled[begin + i] ? 1.0f + uniform() : (i % 2 == 0 ? 0.25f : -0.25f);
    });
    begin += spec.n_elems;
  }
  again.options = options;
  check(again);
}
// Isolated nonzeros of all magnitudes: escaped gaps and levels.
float of_all_sizes(size_t i) {
  if (i % 53 != 0) return 0.0f;
  const float size = std::ldexp(1.0f + uniform(), static_cast<int>(generator() % 22));
  return (generator() & 1) != 0 ? 0.001f * size : -0.001f * size;
}
void escapes() {
  Model model;
  model.add({16000}, of_all_sizes);
  model.add({40000}, [](size_t i) { return i == 39999 ? 100.0f : 0.0f; });
  model.options.k_matrix = 300;
  model.options.step.automatic = false;
  model.options.lane_log2 = 7;
  check(model);
}
// Lanes of all shifts, with raw numbers of more than 16 bits, and dense tensors behind them.
void large_levels() {
  Model model;
  model.add({1280}, [](size_t i) {
    const float size = std::ldexp(1.0f + uniform(), static_cast<int>(i / 64));
    return (generator() & 1) != 0 ? size : -size;
  });
  model.add({300, DType::kFloat16, Role::kDense}, usual);
  model.options.dense.push_back(1);
  model.options.dense_bits = 12;
  model.options.k_matrix = 1280;
  model.options.step.automatic = false;
  model.options.lane_log2 = CurrentFormat::kMinLaneLog2;
  check(model);
}
// Signs, gaps and levels that repeat, and then change.
void sure_and_wrong() {
  Model model;
  model.add({4500}, [](size_t i) {
    if (i < 3000) return i % 3 == 0 ? 0.25f : 0.0f;
    return i % 3 == 0 || uniform() < 0.05f ? 0.25f * normal() : 0.0f;
  });
  model.options.k_matrix = 1300;
  model.options.lane_log2 = 12;
  check(model);
}
void not_finite() {
  Model model = mixed({}, kFew);
  const float infinity = float_from_bits(kFloatInfinityBits);
  std::memcpy(model.memory[0].current.data() + 4 * 321, &infinity, 4);
  check(model);
}
void no_memory() {
  Model model = mixed({}, kFew);
  OnDevice device(model.memory);
  cuda::release_workspace();
  ptx::refuse_memory(true);
  const Outcome got =
      outcome_of([&] { cuda::encode(device.tensors(model), model.options, 0, nullptr); });
  ptx::refuse_memory(false);
  expect(got && got->code == Code::kDeviceMemory, "encode: says that memory ran out");
  expect(device.equals(model.memory), "encode: nothing has changed");
  check(model);
}

void lossless() { check(lossless_model()); }
// No lossy tensor at all. Weights move to the next bfloat16, steps that an optimizer counts by one.
void lossless_alone() {
  Model model;
  for (const size_t n : {40000, 300}) {
    model.add({n, DType::kBFloat16, Role::kLossless}, [](size_t) { return 0.0f; });
    Memory& weights = model.memory.back();
    for (size_t i = 0; i < n; ++i) {
      const uint64_t moves = generator() % 16;
      if (moves < 3) weights.current[2 * i] ^= moves == 0 ? 1 : 3;
    }
    model.options.exclusions.push_back(model.specs.size() - 1);
  }
  model.add_integers(700, 8, [](size_t) { return 1; });
  model.add_integers(500, 8, [](size_t i) {
    return i % 3 == 0 ? static_cast<int64_t>(generator() >> generator() % 64) : 0;
  });
  model.add_integers(900, 1, [](size_t i) { return i % 9 == 0 ? -2 : 0; });
  model.add_integers(400, 4, [](size_t) { return 0; });
  model.options.lane_log2 = CurrentFormat::kMinLaneLog2;
  check(model);
}

void forged_with(int fill) {
  ptx::fill_fresh_memory(fill);
  forge(all_roles(), Part::kLossy);
}
void forged_over_zeros() { forged_with(0x00); }
void forged_over_ones() { forged_with(0xff); }
void forged_changes() { forge(lossless_model(), Part::kLossless); }

// More matrix symbols than the header counts: their indices lie beyond all matrices.
void forged_counts() {
  const Model model = all_roles();
  const Bytes sound = check(model);
  Frame frame = open_payload(sound.data(), sound.size(), model.specs.size()).frame;
  const Bytes slices(sound.begin() + static_cast<ptrdiff_t>(frame.slices_offset), sound.end());
  for (const uint64_t more : {1, 7, 29}) {
    Frame forged = frame;
    forged.k_matrix += more;
    forged.k_vector -= more;
    ByteWriter out;
    write_frame(forged, out);
    Bytes payload = out.bytes();
    payload.insert(payload.end(), slices.begin(), slices.end());
    seal(payload);
    expect(check_decode(model, payload).has_value(), "forged counts are refused");
  }
}

// A payload, a model, and a payload that replaces the model, with weights that divide nothing.
void mean_of(const Model& model) {
  const Bytes payload = check(model);
  Means means(model);
  means.add(payload, 0.7);
  means.add_model(3.0);
  means.check();
  means.add(payload, 0x1p-30, true);
  means.check();
}
void mean() { mean_of(all_roles()); }
void mean_of_lossless() { mean_of(lossless_model()); }
// Sums of which a part is carried over to further 64 bits, and a weight that is refused.
void mean_beyond_128_bits() {
  Model floats, integers;
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat64}) {
    floats.add({40, dtype}, [](size_t i) { return i % 2 == 0 ? 0x1p44f : -0x1p43f * uniform(); });
  }
  integers.add_integers(30, 8, [](size_t i) { return static_cast<int64_t>(i) << 57; });
  for (const auto& [model, unit] : {std::pair(&floats, 1.0), std::pair(&integers, 0x1p22)}) {
    Means means(*model);
    for (const double weight : {1.9, 1.0, 1.5, 1.7}) means.add_model(unit * weight);
    means.check();
    means.add_model(0x1p39);
    means.check();
  }
}

void arithmetic() { expect(ptx::arithmetic_differences() == 0, "arithmetic: host and device"); }

// For --cycles: one float32 tensor, nonzeros of one lane, and of 32.
void timing() {
  Model model;
  model.add({20000}, usual);
  model.options.k_matrix = 200;
  check(model);
}
void timing_of_slice() {
  Model model;
  model.add({20000}, usual);
  model.options.k_matrix = 2048;
  model.options.lane_log2 = 6;
  check(model);
}

// One tile of bfloat16, of which one in 16 moves to a neighbor.
void timing_of_changes() {
  Model model;
  model.add({32768, DType::kBFloat16, Role::kLossless}, [](size_t) { return 0.0f; });
  Memory& weights = model.memory.back();
  for (size_t i = 0; i < 32768; i += 16) weights.current[2 * (i + generator() % 16)] ^= 1;
  model.options.exclusions.push_back(0);
  model.options.lane_log2 = 6;
  check(model);
}

// The memory check detects an invalid access.
void account() {
  const ptx::Block memory(100);
  uint8_t bytes[100];
  cuda::copy_to_host(bytes, memory.data(), 100, 0, nullptr);
  expect(ptx::wild_accesses() == 0, "account: what is allocated may be read");
  cuda::copy_to_host(bytes, static_cast<uint8_t*>(memory.data()) + 1, 100, 0, nullptr);
  expect(ptx::wild_accesses() == 1, "account: one byte more may not");
}

struct Case {
  const char* name;
  void (*body)();
};
constexpr Case kCases[] = {
#define CASE(name) {#name, name}
    CASE(account),
    CASE(arithmetic),
    CASE(plain),
    CASE(unaligned),
    CASE(predicted),
    CASE(feedback),
    CASE(in_place),
    CASE(predicted_with_feedback),
    CASE(ties),
    CASE(nothing_changed),
    CASE(nothing_wanted),
    CASE(frozen),
    CASE(small),
    CASE(everything),
    CASE(one_element),
    CASE(roles),
    CASE(no_matrices),
    CASE(scans_and_blocks),
    CASE(too_few_candidates),
    CASE(sure_and_wrong),
    CASE(escapes),
    CASE(large_levels),
    CASE(lossless),
    CASE(lossless_alone),
    CASE(mean),
    CASE(mean_of_lossless),
    CASE(mean_beyond_128_bits),
    CASE(within_a_budget),
    CASE(within_an_error),
    CASE(within_a_norm),
    CASE(not_finite),
    CASE(no_memory),
    CASE(forged_over_zeros),
    CASE(forged_over_ones),
    CASE(forged_changes),
    CASE(forged_counts),
    CASE(timing),
    CASE(timing_of_slice),
    CASE(timing_of_changes),
#undef CASE
};

}  // namespace

int main(int argc, char** argv) {
  for (const Case& one : kCases) {
    if (argc < 2 || std::strcmp(argv[1], one.name) != 0) continue;
    ptx::begin_account();
    one.body();
    const size_t n_wild = ptx::wild_accesses();
    if (one.body != account && n_wild > 0)
      std::printf("WILD: %zu accesses\n", n_wild), failed = true;
    std::printf("DONE: %s %s\n", one.name, failed ? "failed" : "passed");
    std::fflush(stdout);
  }
  return failed ? 1 : 0;
}
