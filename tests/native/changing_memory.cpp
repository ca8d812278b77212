// Runs calls on memory that changes at every access, as if another thread wrote to it all the time,
// but reproducibly:
//
//   changing_memory N_CALLS
//
// The pages of a model are inaccessible. An access makes a page accessible with new contents and
// the previous page inaccessible. So any two passes over a model read mostly different values.
// An instruction that reads across the border of two pages needs both: after kPatience alternating
// faults, both stay accessible until an access to a third page.
// Every call must succeed or throw a Failure, and its results must be consistent. Sanitizers and
// the exit status of the process reveal other errors.
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "api.hpp"
#include "cpu/aggregate.hpp"
#include "cpu/keyframe.hpp"
#include "cpu/residual.hpp"

namespace {

using namespace resfed;

constexpr size_t kPage = 4096;
constexpr int kPatience = 16;

uint64_t random_state = 1;
uint64_t random_bits() {
  random_state += 0x9e3779b97f4a7c15ull;
  return mix64(random_state);
}
double random_number() { return static_cast<double>(random_bits() >> 11) * 0x1p-53; }

enum class Contents { kTies, kNumbers, kScales, kSpecials };

void put(double value, DType dtype, void* place) {
  const float narrow = static_cast<float>(value);
  switch (dtype) {
    case DType::kFloat32:
      std::memcpy(place, &narrow, 4);
      return;
    case DType::kFloat64:
      std::memcpy(place, &value, 8);
      return;
    case DType::kFloat16: {
      const Half half = narrow_to_half(narrow);
      std::memcpy(place, &half, 2);
      return;
    }
    case DType::kBFloat16: {
      const BFloat16 half = narrow_to_bfloat16(narrow);
      std::memcpy(place, &half, 2);
      return;
    }
    case DType::kOther:
      return;  // this model has none
  }
}

void fill(Contents contents, DType dtype, uint8_t* bytes, size_t n_bytes) {
  const size_t size = dtype_size(dtype);
  const double scale = std::ldexp(1.0, static_cast<int>(random_bits() % 9) - 4);
  const uint64_t density = random_bits() % 4;  // larger: rarer changes
  for (size_t i = 0; i + size <= n_bytes; i += size) {
    double value = 0;
    if (random_bits() % (density + 1) == 0) {
      const double number = 2 * random_number() - 1;
      value = contents == Contents::kTies ? std::copysign(scale, number)
              : contents == Contents::kNumbers
                  ? number
                  : std::ldexp(number, static_cast<int>(random_bits() % 64) - 32);
      if (contents == Contents::kSpecials && random_bits() % 20000 == 0) {
        value = random_bits() % 2 == 0 ? NAN : number < 0 ? -INFINITY : INFINITY;
      }
    }
    put(value, dtype, bytes + i);
  }
}

// Memory of a model. It changes only between start() and stop().
class Changing {
 public:
  Changing(size_t n_bytes, DType dtype, Contents contents)
      : n_pages_((n_bytes + kPage - 1) / kPage), dtype_(dtype), contents_(contents) {
    void* const memory =
        mmap(nullptr, n_pages_ * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    memory_ = static_cast<uint8_t*>(memory);
    fill(contents_, dtype_, memory_, n_pages_ * kPage);
    all.push_back(this);
  }
  ~Changing() {
    std::erase(all, this);
    munmap(memory_, n_pages_ * kPage);
  }
  Changing(const Changing&) = delete;
  Changing& operator=(const Changing&) = delete;

  void* data() const { return memory_; }
  void start() {
    protect(memory_, n_pages_, PROT_NONE);
    open_ = previous_ = nullptr;
    n_alternations_ = 0;
  }
  void stop() { protect(memory_, n_pages_, PROT_READ | PROT_WRITE); }

  // Opens the page if the address is in this memory; returns whether it is.
  bool open(uint8_t* address) {
    if (address < memory_ || address >= memory_ + n_pages_ * kPage) return false;
    uint8_t* const page = memory_ + (address - memory_) / static_cast<ptrdiff_t>(kPage) * kPage;
    n_alternations_ = page == previous_ ? n_alternations_ + 1 : 0;
    if (n_alternations_ < kPatience) {
      if (open_ != nullptr) protect(open_, 1, PROT_NONE);
      if (previous_ != nullptr && previous_ != page) protect(previous_, 1, PROT_NONE);
    }
    protect(page, 1, PROT_READ | PROT_WRITE);
    fill(contents_, dtype_, page, kPage);
    previous_ = open_;
    open_ = page;
    return true;
  }

  static std::vector<Changing*> all;

 private:
  static void protect(uint8_t* begin, size_t n_pages, int how) {
    if (mprotect(begin, n_pages * kPage, how) != 0) std::abort();
  }

  uint8_t* memory_;
  uint8_t* open_ = nullptr;      // the page of the last fault
  uint8_t* previous_ = nullptr;  // the page of the fault before; accessible only if patience ended
  int n_alternations_ = 0;       // faults in a row at the page before the last
  size_t n_pages_;
  DType dtype_;
  Contents contents_;
};
std::vector<Changing*> Changing::all;

void on_fault(int signal, siginfo_t* info, void*) {
  for (Changing* const changing : Changing::all) {
    if (changing->open(static_cast<uint8_t*>(info->si_addr))) return;
  }
  struct sigaction action = {};  // another invalid access: repeat it with the default handler
  action.sa_handler = SIG_DFL;
  sigaction(signal, &action, nullptr);
}

void check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", what);
  std::exit(1);
}

template <class T>
bool equal(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// Runs a call while the memory changes; returns whether it succeeded.
template <class Call>
bool survives(Changing& memory, Call call) {
  memory.start();
  bool well = true;
  try {
    call();
  } catch (const Failure& failure) {
    well = false;
    check(failure.code >= Code::kNonFinite && failure.code <= Code::kTooSmallChange,
          "a failure that is not the state's");
  }
  memory.stop();
  return well;
}

struct Model {
  uint64_t n_elems;
  DType dtype;
  Role role;
  size_t n_bytes() const { return n_elems * dtype_size(dtype); }
};

Model random_model() {
  constexpr uint64_t kSizes[] = {3000, 30000, 150000, 300000};
  Model model{kSizes[random_bits() % 4], static_cast<DType>(random_bits() % 4),
              static_cast<Role>(random_bits() % 4)};
  if (model.role == Role::kDense) model.n_elems = 3000;
  return model;
}

EncodeOptions random_options(const Model& model) {
  EncodeOptions options;
  const uint64_t parts[] = {0, 1, 100, model.n_elems / 100, model.n_elems / 2, model.n_elems};
  options.k_matrix = options.k_vector = parts[random_bits() % 6];
  options.vector_share = 10;
  const uint64_t target = random_bits() % 6;
  if (target == 0) options.max_bytes = 1000 + model.n_elems / 20;
  if (target == 1) options.max_error = 0.9;
  if (random_bits() % 4 == 0) options.step.bits = 4;
  return options;
}

void try_encode(Changing& state, const Model& model) {
  const auto zeros = [&] { return std::vector<uint8_t>(model.n_bytes()); };
  std::vector<uint8_t> reference = zeros(), older = zeros(), out = zeros(), again = zeros();
  fill(Contents::kNumbers, model.dtype, older.data(), older.size());
  std::vector<float> feedback(model.n_elems, 0.25f);
  Tensor tensor{state.data(),
                reference.data(),
                out.data(),
                model.n_elems,
                static_cast<uint32_t>(dtype_size(model.dtype)),
                model.dtype,
                model.role,
                {},
                nullptr};
  if (model.role == Role::kMatrix || model.role == Role::kVector) {
    if (random_bits() % 2 == 0) tensor.feedback = feedback.data();
    if (random_bits() % 2 == 0) {
      tensor.prediction.n_terms = 2;
      tensor.prediction.terms[0] = reference.data();
      tensor.prediction.terms[1] = older.data();
      tensor.prediction.coefficients[0] = 0.5f;
      tensor.prediction.coefficients[1] = 0.5f;
    }
  }
  EncodeOptions options = random_options(model);
  if (model.role == Role::kLossless) options.exclusions = {0};
  if (model.role == Role::kDense) options.dense = {0};
  const std::vector<uint8_t> out_before = out;
  const std::vector<float> feedback_before = feedback;
  std::vector<uint8_t> payload;
  if (!survives(state, [&] { payload = encode({tensor}, options); })) {
    check(equal(out, out_before) && equal(feedback, feedback_before), "a refused call wrote");
    return;
  }
  if (options.max_bytes > 0) check(payload.size() <= options.max_bytes, "a budget was not kept");
  tensor.out = again.data();
  tensor.current = tensor.feedback = nullptr;
  const bool named = model.role == Role::kLossless || model.role == Role::kDense;
  if (named) tensor.role = Role::kMatrix;  // the payload names the tensor
  decode(open_payload(payload.data(), payload.size()), 0, {tensor});
  check(equal(out, again), "the payload is of another model than the encoder keeps");
  for (const float left : feedback) check(std::isfinite(left), "feedback is not finite");
}

void try_decode(Changing& reference, const Model& model) {
  if (model.role == Role::kDense) return;
  const auto size = static_cast<uint32_t>(dtype_size(model.dtype));
  std::vector<uint8_t> state(model.n_bytes()), out(model.n_bytes());
  fill(Contents::kNumbers, model.dtype, state.data(), state.size());
  Tensor tensor{state.data(), reference.data(), nullptr, model.n_elems, size,
                model.dtype,  model.role,       {},      nullptr};
  EncodeOptions options;
  options.k_matrix = options.k_vector = model.n_elems / 50;
  std::vector<uint8_t> payload;
  try {
    payload = encode({tensor}, options);
  } catch (const Failure&) {
    return;
  }
  tensor.out = random_bits() % 2 == 0 ? out.data() : reference.data();
  reference.start();
  try {
    decode(open_payload(payload.data(), payload.size()), 0, {tensor});
  } catch (const Failure& failure) {
    check(failure.code == Code::kWrongReference || failure.code == Code::kBadSlice ||
              failure.code == Code::kChangedDuringCall,
          "a failure that is not the reference's");
  }
  reference.stop();
  if (model.role == Role::kLossless) options.exclusions = {0};
  survives(reference, [&] { encode({tensor}, options); });
}

void try_aggregate(Changing& state, const Model& model, bool specials) {
  std::vector<uint8_t> reference(model.n_bytes()), before(model.n_bytes()), after(model.n_bytes());
  const Tensor tensor{nullptr,
                      reference.data(),
                      nullptr,
                      model.n_elems,
                      static_cast<uint32_t>(dtype_size(model.dtype)),
                      model.dtype,
                      model.role,
                      {},
                      nullptr};
  Aggregator sum({tensor}, {false});
  const auto add = [&](const void* model) {
    const auto contribution = sum.prepare(std::vector<const void*>{model}, 1.0);
    sum.add(contribution.get());
  };
  add(reference.data());
  const bool well = survives(state, [&] { add(state.data()); });
  sum.result({after.data()}, well ? 2.0 : 1.0);
  if (!well) check(equal(before, after), "a refused model was added");
  check(well || specials || model.role == Role::kLossless, "a sound model was refused");
}

void try_others(Changing& state, const Model& model) {
  const auto size = static_cast<uint32_t>(dtype_size(model.dtype));
  std::vector<uint8_t> other(model.n_bytes()), out(model.n_bytes());
  Tensor tensor{state.data(), other.data(), nullptr, model.n_elems, size,
                model.dtype,  model.role,   {},      nullptr};
  std::vector<uint8_t> keyframe;
  survives(state, [&] { keyframe = encode_keyframe({tensor}, 7, 10); });
  tensor.out = out.data();
  decode_keyframe(keyframe.data(), keyframe.size(), 7, {tensor});

  if (model.role == Role::kLossless) return;
  tensor.prediction.n_terms = 3;
  for (unsigned j = 0; j < 3; ++j) {
    tensor.prediction.terms[j] = j == 1 ? state.data() : other.data();
    tensor.prediction.coefficients[j] = 0.5f;
  }
  survives(state, [&] { moments({tensor}); });
}

}  // namespace

int main(int argc, char** argv) {
  const int n_calls = argc > 1 ? std::atoi(argv[1]) : 50;
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, nullptr);
  sigaction(SIGBUS, &action, nullptr);
  set_num_threads(1);  // only one page at a time is accessible
  const char* const kernels[] = {"scalar", "avx2", "avx512", "neon"};
  for (int call = 0; call < n_calls; ++call) {
    choose_kernels(kernels[random_bits() % 4]);
    const Model model = random_model();
    const auto contents = static_cast<Contents>(random_bits() % 4);
    Changing memory(model.n_bytes(), model.dtype, contents);
    try_encode(memory, model);
    try_decode(memory, model);
    try_aggregate(memory, model, contents == Contents::kSpecials);
    try_others(memory, model);
  }
  std::printf("%d calls of each kind\n", n_calls);
  return 0;
}
