// Makes a model and options from the fuzzer's bytes and encodes with every kernel and one to three
// threads, which must agree. Decodes the payload, then damages it, repairs the checksum and decodes
// again.
#include "harness.hpp"

using namespace fuzz;

namespace {

Layout layout_from(Input& in) {
  Layout layout;
  const uint64_t n_tensors = in.number(5);
  for (uint64_t i = 0; i < n_tensors; ++i) {
    const uint8_t kind = in.byte();
    const auto dtype = static_cast<DType>(kind >> 2 & 3);
    switch (kind & 3) {
      case 0:
        layout.push_back(matrix(in.number(40), in.number(40), dtype));
        break;
      case 1:
        layout.push_back(vector(in.number(100), dtype));
        break;
      case 2:
        layout.push_back(matrix(in.number(3), in.number(700), dtype));
        break;
      default:
        layout.push_back(integers(in.number(60), 1u << (kind >> 2 & 3)));
    }
  }
  return layout;
}

// A second model that is equal to the first, near it, or arbitrary.
Bytes tensor_near(const Shape& shape, const Bytes& reference, Input& in) {
  Bytes tensor = reference;
  const uint64_t seed = in.byte();
  switch (seed & 3) {
    case 0:
      return tensor;
    case 1: {  // some elements
      const Bytes other = random_tensor(shape, seed, false);
      for (uint64_t i = 0; i < shape.n_elems(); ++i) {
        if (mix64(seed * 31 + i) % 8 != 0) continue;
        std::memcpy(tensor.data() + i * shape.elem_bytes, other.data() + i * shape.elem_bytes,
                    shape.elem_bytes);
      }
      return tensor;
    }
    case 2:
      return random_tensor(shape, seed, (seed & 64) != 0);
    default:  // the fuzzer's bits
      for (uint64_t n = in.number(8); n > 0 && !tensor.empty(); --n) {
        tensor[in.number(tensor.size() - 1)] = in.byte();
      }
      return tensor;
  }
}

EncodeOptions options_from(Input& in, Layout& layout) {
  EncodeOptions options;
  options.digest = in.byte();
  options.vector_share = 10;
  options.lane_log2 = CurrentFormat::kMinLaneLog2 + static_cast<unsigned>(in.number(3));
  options.dense_bits = 2 + static_cast<unsigned>(in.number(10));
  switch (in.number(3)) {
    case 0:
      options.step.automatic = false;
      options.step.ratio = 0x1p-10 * static_cast<double>(1 + in.number((1u << 20) - 1));
      break;
    case 1:
      options.step.automatic = false;
      options.step.bits = 1 + static_cast<unsigned>(in.number(15));
  }
  for (size_t i = 0; i < layout.size(); ++i) {
    const uint8_t special = in.byte();
    options.blocks.push_back((special >> 3) % 32);
    if (layout[i].role == Role::kLossless) continue;
    if (special % 8 == 1) {
      layout[i].role = Role::kLossless;
      options.exclusions.push_back(i);
    } else if (special % 8 == 2) {
      layout[i].role = Role::kDense;
      options.dense.push_back(i);
    }
  }
  settle_roles(layout);
  uint64_t n_elems = 0;
  for (const Shape& shape : layout) n_elems += shape.n_elems();
  switch (in.number(3)) {
    case 0:
      options.max_bytes = 1 + in.number(2000);
      break;
    case 1:
      options.max_error = static_cast<double>(1 + in.byte()) / 256.0;
      break;
    default:
      options.k_matrix = in.number(n_elems);
      options.k_vector = in.number(n_elems);
  }
  return options;
}

// Models for the prediction, and feedback.
struct Past {
  std::vector<Memory> terms;
  std::vector<float> coefficients;
  std::vector<std::vector<float>> feedback;
};

Past history_from(Input& in, const Layout& layout) {
  Past history;
  const uint64_t n_terms = in.number(kMaxTerms);
  for (uint64_t j = 0; j < n_terms; ++j) {
    history.terms.push_back(random_model(layout, 100 + j, false));
    history.coefficients.push_back(static_cast<float>(in.byte()) / 64.0f - 2.0f);
  }
  if (in.flag()) {
    for (const Shape& shape : layout) {
      auto& feedback = history.feedback.emplace_back(shape.n_elems());
      for (size_t i = 0; i < feedback.size(); i += 3) feedback[i] = 0.125f;
    }
  }
  return history;
}

std::vector<Tensor> with_history(std::vector<Tensor> tensors, const Past& history,
                                 std::vector<std::vector<float>>* feedback) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    Tensor& t = tensors[i];
    if (t.role == Role::kLossless) continue;
    for (size_t j = 0; j < history.terms.size(); ++j) {
      t.prediction.terms[j] = history.terms[j][i].data();
      t.prediction.coefficients[j] = history.coefficients[j];
      ++t.prediction.n_terms;
    }
    if (feedback != nullptr && !feedback->empty() && t.role != Role::kDense) {
      t.feedback = (*feedback)[i].data();
    }
  }
  return tensors;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t n_bytes) {
  Input in(data, n_bytes);
  const Layout plain = layout_from(in);
  Layout layout = plain;
  const EncodeOptions options = options_from(in, layout);
  const Memory reference = random_model(plain, in.byte(), false);
  Memory state;
  for (size_t i = 0; i < plain.size(); ++i)
    state.push_back(tensor_near(plain[i], reference[i], in));
  const Past history = history_from(in, plain);

  Bytes payload;
  Memory recovered;
  auto feedback = history.feedback;
  Outcome outcome;
  bool first = true;
  for (const char* kernels : kKernels) {
    if (!choose_kernels(kernels)) continue;
    for (int threads = 1; threads <= (first ? 3 : 1); ++threads) {
      set_num_threads(threads);
      Memory out = filled_like(reference, 0xa5);
      auto own_feedback = history.feedback;
      Bytes made;
      const Outcome own = outcome_of([&] {
        auto tensors = with_history(tensors_of(layout, reference, &out), history, &own_feedback);
        for (size_t i = 0; i < tensors.size(); ++i) tensors[i].current = state[i].data();
        made = encode(tensors, options);
      });
      if (own) {
        check(out == filled_like(reference, 0xa5), "a failed encode leaves the output untouched");
        check(own_feedback == history.feedback, "a failed encode leaves feedback untouched");
      }
      if (first) {
        outcome = own, payload = made, recovered = out, feedback = own_feedback;
      } else {
        check(same(own, outcome), "kernels and threads fail alike");
        check(made == payload, "kernels and threads make the same bytes");
        check(out == recovered, "kernels and threads recover the same");
        check(std::equal(own_feedback.begin(), own_feedback.end(), feedback.begin(),
                         [](const auto& a, const auto& b) {
                           return a.empty() || std::memcmp(a.data(), b.data(), 4 * a.size()) == 0;
                         }),
              "kernels and threads leave the same feedback");
      }
      first = false;
    }
  }
  if (outcome) return 0;
  if (options.max_bytes > 0) check(payload.size() <= options.max_bytes, "max_bytes is a bound");

  Layout for_decoder = plain;
  settle_roles(for_decoder);
  const auto tensors = [&](Memory* out) {
    auto made = tensors_of(for_decoder, reference, out);
    for (const uint64_t i : options.exclusions) made[i].role = Role::kLossless;
    made = with_history(std::move(made), history, nullptr);
    for (size_t i = 0; i < made.size(); ++i) made[i].role = for_decoder[i].role;
    return made;
  };
  Memory decoded;
  check(!decode_everywhere(payload, options.digest, reference, tensors, &decoded),
        "what was encoded is decoded");
  check(decoded == recovered, "the decoder recovers what the encoder did");

  for (uint64_t n = 1 + in.number(3); n > 0; --n) {
    const uint64_t place = in.number(payload.size() - 1);
    switch (in.number(3)) {
      case 0:
        payload.resize(place);
        break;
      case 1:
        payload.insert(payload.begin() + static_cast<std::ptrdiff_t>(place), in.byte());
        break;
      default:
        payload[place] ^= static_cast<uint8_t>(1 + in.number(254));
    }
    if (payload.empty()) return 0;
  }
  if (payload.size() > kDigestOffset + 8) {
    store_le(payload.data() + kDigestOffset, options.digest);
  }
  seal(payload);
  decode_whatever_fits(payload, options.digest, reference, tensors, &decoded);
  return 0;
}
