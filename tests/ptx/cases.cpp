// Compares cuda::encode and cuda::decode with simulated kernels to the CPU codec, bit for bit.
// `cases NAME` runs one case.
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <utility>

#include "api.hpp"
#include "cpu/crc32c.hpp"
#include "cpu/decoder.hpp"
#include "cuda/codec.hpp"
#include "cuda/device.hpp"
#include "cuda/workspace.hpp"
#include "numeric/select.hpp"
#include "runtime.hpp"

using namespace resfed;

namespace {

using Bytes = std::vector<uint8_t>;
using Floats = std::vector<float>;
constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat64};

bool failed = false;
void expect(bool holds, const char* what) {
  if (holds) return;
  std::printf("FAILED: %s\n", what);
  failed = true;
}

// Numbers
std::mt19937_64 generator(1);
float uniform() { return static_cast<float>(generator() >> 40) * 0x1p-24f; }
float normal() {  // approximately
  float sum = -6.0f;
  for (int i = 0; i < 12; ++i) sum += uniform();
  return sum;
}

Bytes stored(const Floats& values, DType dtype) {
  Bytes bytes(values.size() * dtype_size(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    const double whole = values[i] * 1.0000000001;
    const Half half = narrow_to_half(values[i]);
    const BFloat16 short_float = narrow_to_bfloat16(values[i]);
    const void* const from = dtype == DType::kFloat32   ? static_cast<const void*>(&values[i])
                             : dtype == DType::kFloat64 ? static_cast<const void*>(&whole)
                             : dtype == DType::kFloat16 ? static_cast<const void*>(&half)
                                                        : static_cast<const void*>(&short_float);
    std::memcpy(bytes.data() + i * dtype_size(dtype), from, dtype_size(dtype));
  }
  return bytes;
}

// A tensor's memory on the host. The tensor starts after `shift` elements, so it is unaligned on
// the device.
struct Memory {
  Bytes current, reference, older, out;
  Floats feedback;
};
struct Spec {
  size_t n_elems;
  DType dtype = DType::kFloat32;
  Role role = Role::kMatrix;
  bool predicted = false, with_feedback = false, in_place = false;
  size_t shift = 0;
  uint64_t row_length = 0, block = 0;
};

struct Model {
  std::vector<Spec> specs;
  std::vector<Memory> memory;
  EncodeOptions options;

  void add(const Spec& spec, const std::function<float(size_t)>& residual) {
    const size_t n = spec.n_elems + spec.shift;
    Floats current(n), reference(n), older(n), feedback(n);
    for (size_t i = 0; i < n; ++i) {
      reference[i] = normal();
      older[i] = reference[i] + 0.01f * normal();
      feedback[i] = 0.001f * normal();
      current[i] = reference[i] + residual(i - spec.shift);
    }
    if (spec.role == Role::kLossless) {  // few changes
      for (size_t i = 0; i < n; ++i) current[i] = i % 7 == 0 ? current[i] : reference[i];
    }
    memory.push_back({stored(current, spec.dtype), stored(reference, spec.dtype),
                      stored(older, spec.dtype), Bytes(n * dtype_size(spec.dtype), 0x5a),
                      feedback});
    specs.push_back(spec);
    options.blocks.push_back(spec.block);
  }

  // `at` maps a host buffer to the address for reading and writing.
  std::vector<Tensor> tensors(std::vector<Memory>& of,
                              const std::function<void*(void*)>& at) const {
    std::vector<Tensor> tensors;
    for (size_t i = 0; i < specs.size(); ++i) {
      const Spec& spec = specs[i];
      const size_t shift = spec.shift * dtype_size(spec.dtype);
      const auto place = [&](Bytes& bytes) {
        return static_cast<uint8_t*>(at(bytes.data())) + shift;
      };
      Tensor t;
      t.n_elems = spec.n_elems;
      t.dtype = spec.dtype;
      t.elem_bytes = static_cast<uint32_t>(dtype_size(spec.dtype));
      t.role = spec.role;
      t.row_length = spec.row_length;
      t.current = place(of[i].current);
      t.reference = place(of[i].reference);
      t.out = place(spec.in_place ? of[i].reference : of[i].out);
      if (spec.with_feedback) {
        t.feedback = static_cast<float*>(at(of[i].feedback.data())) + spec.shift;
      }
      if (spec.predicted) {
        t.prediction.n_terms = 2;
        t.prediction.terms[0] = t.reference;
        t.prediction.terms[1] = place(of[i].older);
        t.prediction.coefficients[0] = 1.25f;
        t.prediction.coefficients[1] = -0.25f;
      }
      tensors.push_back(t);
    }
    return tensors;
  }
};

// A copy of a model's memory on the device.
class OnDevice {
 public:
  explicit OnDevice(const std::vector<Memory>& memory) : host_(memory) {
    for (Memory& m : host_) {
      for (Bytes* bytes : {&m.current, &m.reference, &m.older, &m.out}) {
        put(bytes->data(), bytes->size());
      }
      put(m.feedback.data(), 4 * m.feedback.size());
    }
  }
  std::vector<Tensor> tensors(const Model& model) {
    return model.tensors(host_, [this](void* host) { return blocks_.at(host)->data(); });
  }
  bool equals(const std::vector<Memory>& memory) {
    for (Memory& m : host_) {
      for (Bytes* bytes : {&m.current, &m.reference, &m.older, &m.out}) {
        get(bytes->data(), bytes->size());
      }
      get(m.feedback.data(), 4 * m.feedback.size());
    }
    for (size_t i = 0; i < memory.size(); ++i) {
      const Memory &a = host_[i], &b = memory[i];
      if (a.current != b.current || a.reference != b.reference || a.older != b.older) return false;
      if (a.out != b.out) return false;
      const size_t n = a.feedback.size();
      if (std::memcmp(a.feedback.data(), b.feedback.data(), 4 * n) != 0) return false;
    }
    return true;
  }

 private:
  void put(void* host, size_t n_bytes) {
    const auto& block = blocks_[host] = std::make_unique<ptx::Block>(n_bytes);
    cuda::copy_to_device(block->data(), host, n_bytes, 0, nullptr);
  }
  void get(void* host, size_t n_bytes) {
    cuda::copy_to_host(host, blocks_.at(host)->data(), n_bytes, 0, nullptr);
  }
  std::vector<Memory> host_;
  std::map<void*, std::unique_ptr<ptx::Block>> blocks_;
};

void* same_place(void* host) { return host; }

using Outcome = std::optional<Failure>;
Outcome outcome_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Failure& failure) {
    return failure;
  }
  return std::nullopt;
}
bool same(const Outcome& a, const Outcome& b) {
  if (a.has_value() != b.has_value()) return false;
  return !a || (a->code == b->code && a->where == b->where && a->detail == b->detail);
}

void for_decoding(std::vector<Tensor>& tensors) {
  for (Tensor& t : tensors) t.current = nullptr, t.feedback = nullptr;
}

// Decodes on host and device and compares the outcome and the memory.
Outcome check_decode(const Model& model, const Bytes& payload) {
  std::vector<Memory> host = model.memory;
  OnDevice device(model.memory);
  std::vector<Tensor> tensors = model.tensors(host, same_place), there = device.tensors(model);
  for_decoding(tensors);
  for_decoding(there);
  const Outcome want =
      outcome_of([&] { decode(open_payload(payload.data(), payload.size()), 0, tensors); });
  const Outcome got = outcome_of(
      [&] { cuda::decode(open_payload(payload.data(), payload.size()), 0, there, 0, nullptr); });
  cuda::wait(0, nullptr);
  expect(same(got, want), "decode: host and device come to the same");
  if (!same(got, want)) {
    std::printf("device %d %llu %llu, host %d %llu %llu\n", got ? int(got->code) : 0,
                got ? (unsigned long long)got->where : 0, got ? (unsigned long long)got->detail : 0,
                want ? int(want->code) : 0, want ? (unsigned long long)want->where : 0,
                want ? (unsigned long long)want->detail : 0);
  }
  expect(device.equals(host), "decode: recovered model, or what was there before a failure");
  return got;
}

// Encodes and decodes on host and device and compares payload, model and feedback. Returns the
// payload, or nothing if encoding fails on both.
Bytes check(const Model& model) {
  std::vector<Memory> host = model.memory;
  OnDevice device(model.memory);
  Bytes want, got;
  const Outcome on_host =
      outcome_of([&] { want = encode(model.tensors(host, same_place), model.options); });
  const Outcome on_device =
      outcome_of([&] { got = cuda::encode(device.tensors(model), model.options, 0, nullptr); });
  cuda::wait(0, nullptr);
  expect(same(on_device, on_host), "encode: host and device come to the same");
  expect(got == want, "encode: payload");
  expect(device.equals(host), "encode: recovered model and feedback");
  if (on_host) return {};
  expect(!check_decode(model, want), "decode: a sound payload is taken");
  return want;
}

float usual(size_t) { return 0.01f * normal() * normal(); }

// Four tensors, one of each dtype.
Model mixed(Spec spec, size_t n_elems, const std::function<float(size_t)>& residual = usual) {
  Model model;
  for (const DType dtype : kDTypes) {
    spec.dtype = dtype;
    spec.n_elems = n_elems + 100 * static_cast<size_t>(dtype);
    model.add(spec, residual);
  }
  model.options.k_matrix = n_elems / 4;
  model.options.lane_log2 = CurrentFormat::kMinLaneLog2;
  return model;
}
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

// The host codes some tensors; the payload appends them to the device's.
Model all_roles() {
  Model model;
  for (const DType dtype : kDTypes) {
    Spec matrix{600, dtype}, vector{37, dtype, Role::kVector}, dense{9, dtype, Role::kDense};
    matrix.row_length = 30;
    vector.with_feedback = true;
    model.add(matrix, usual);
    model.add(vector, usual);
    model.add(dense, usual);
    model.options.dense.push_back(model.specs.size() - 1);
  }
  model.add({50, DType::kFloat32, Role::kLossless}, usual);
  model.options.exclusions.push_back(model.specs.size() - 1);
  model.options.k_matrix = 200;
  model.options.k_vector = 30;
  model.options.lane_log2 = CurrentFormat::kMinLaneLog2;
  return model;
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

// So many elements that the device codes them.
Model lossless_model() {
  Model model;
  model.add({300}, usual);
  for (const DType dtype : kDTypes) model.add({900, dtype, Role::kLossless}, usual);
  // 16-bit patterns as integers, some of which change alike.
  model.add({1200, DType::kOther, Role::kLossless, false, false, true}, usual);
  auto& integers = model.memory.back();
  for (size_t i = 0; i < integers.current.size(); i += 2) {
    integers.current[i] = static_cast<uint8_t>(integers.reference[i] + (i < 900 ? 3 : 0));
  }
  for (uint64_t i = 1; i < model.specs.size() - 1; ++i) model.options.exclusions.push_back(i);
  model.options.k_matrix = 100;
  model.options.lane_log2 = CurrentFormat::kMinLaneLog2;
  return model;
}
void lossless() { check(lossless_model()); }

void seal(Bytes& payload) {
  const size_t n = payload.size() - kChecksumBytes;
  store_le(payload.data() + n, crc32c(payload.data(), n));
}

// Corrupt slices with a valid checksum. Memory after the damage stays unwritten: it holds the data
// of an earlier call, or fresh memory filled with a byte.
void forge(const Model& model, Part part) {
  const Bytes sound = check(model);
  const Frame frame = open_payload(sound.data(), sound.size(), model.specs.size()).frame;
  size_t begin = frame.slices_offset, end = begin;
  for (uint64_t s = 0; s < frame.n_lossy_slices(); ++s) end += frame.slice_bytes[s];
  if (part == Part::kLossless) begin = std::exchange(end, sound.size() - kChecksumBytes);
  size_t n_bad = 0, n_all = 0;
  const auto decode_damaged = [&](const std::function<void(Bytes&)>& damage) {
    Bytes forged = sound;
    damage(forged);
    seal(forged);
    if (n_all++ % 4 != 0) cuda::release_workspace();
    const Outcome outcome = check_decode(model, forged);
    return outcome && outcome->code == Code::kBadSlice;
  };
  const auto place = [&] { return begin + generator() % (end - begin); };
  for (int turn = 0; turn < 5; ++turn) {
    n_bad += decode_damaged([&](Bytes& b) { b[place()] ^= 1u << generator() % 8; });
    n_bad += decode_damaged([&](Bytes& b) {  // zeros from some position on
      std::fill(b.begin() + place(), b.begin() + end, 0);
    });
    n_bad += decode_damaged([&](Bytes& b) {  // random words from some position on
      for (size_t i = place(); i < end; ++i) b[i] = static_cast<uint8_t>(generator());
    });
    n_bad += decode_damaged([&](Bytes& b) {  // an invalid state in the first slice
      const uint32_t state = turn % 2 == 0 ? 0 : kLaneStart - 1;
      store_le(b.data() + begin, state);
    });
  }
  std::printf("SAYS: %zu of %zu forged payloads stopped in a slice\n", n_bad, n_all);
  expect(n_bad >= n_all / 2, "forged: most stop in a slice");
  expect(!check_decode(model, sound), "forged: a sound payload is taken afterwards");
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
    CASE(within_a_budget),
    CASE(within_an_error),
    CASE(not_finite),
    CASE(no_memory),
    CASE(forged_over_zeros),
    CASE(forged_over_ones),
    CASE(forged_changes),
    CASE(forged_counts),
    CASE(timing),
    CASE(timing_of_slice),
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
