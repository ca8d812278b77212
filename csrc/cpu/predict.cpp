#include "cpu/predict.hpp"

#include <cstring>

#include "cpu/float_mode.hpp"
#include "cpu/threads.hpp"

namespace resfed {
namespace {

// predict() for n <= kBatch elements, term by term so that the compiler can use vectors; every
// element sees the same operations in the same order. Returns where they are: in `out`, or in the
// tensor's reference if they are that.
template <class T>
const T* predict_batch(const Tensor& tensor, uint64_t first, size_t n, T* out) {
  const Prediction& prediction = tensor.prediction;
  if (prediction.n_terms == 0) return static_cast<const T*>(tensor.reference) + first;
  using Wide = decltype(wide(T{}));
  Wide sum[kBatch];
  for (unsigned j = 0; j < prediction.n_terms; ++j) {
    const T* const term = static_cast<const T*>(prediction.terms[j]) + first;
    const Wide coefficient = static_cast<Wide>(prediction.coefficients[j]);
    if (j == 0) {
      for (size_t i = 0; i < n; ++i) sum[i] = wide(term[i]) * coefficient;
    } else {
      for (size_t i = 0; i < n; ++i) sum[i] = sum[i] + wide(term[i]) * coefficient;
    }
  }
  const T* const leading = static_cast<const T*>(prediction.terms[0]) + first;
  for (size_t i = 0; i < n; ++i) out[i] = prediction_of(sum[i], leading[i]);
  return out;
}

// Calls visit(first element, count) for batches of the n elements from `first` on.
template <class Visit>
void for_each_batch(uint64_t first, uint64_t n, Visit visit) {
  for (uint64_t done = 0; done < n; done += kBatch) {
    visit(first + done, static_cast<size_t>(std::min<uint64_t>(kBatch, n - done)));
  }
}

void write_prediction(const Tensor& t, uint64_t first, uint64_t n) {
  if (t.out == nullptr) return;
  if (t.prediction.n_terms == 0) {
    if (t.out == t.reference) return;
    std::memcpy(static_cast<uint8_t*>(t.out) + first * t.elem_bytes,
                static_cast<const uint8_t*>(t.reference) + first * t.elem_bytes, n * t.elem_bytes);
    return;
  }
  with_elements(t, 0, [&]<class T>(const Elements<T>&) {
    for_each_batch(first, n, [&](uint64_t at, size_t count) {
      T values[kBatch];
      predict_batch(t, at, count, values);
      std::memcpy(static_cast<T*>(t.out) + at, values, count * sizeof(T));
    });
  });
}

// Feedback must stay finite, or the tensor could never be sent again. It was, when it was looked
// at; another thread may have written to the model since.
float finite_or_nothing(float value) { return is_finite_key(magnitude_key(value)) ? value : 0.0f; }

// Fills n values and returns whether all are finite.
template <class ValueOf>
bool fill(float* values, size_t n, ValueOf value_of) {
  uint32_t n_not = 0;
  for (size_t i = 0; i < n; ++i) {
    values[i] = value_of(i);
    n_not += (float_bits(values[i]) & kFirstNonFiniteKey) == kFirstNonFiniteKey ? 1 : 0;
  }
  return n_not == 0;
}

bool has_feedback(const Group& group) {
  return std::any_of(group.members.begin(), group.members.end(),
                     [](const Member& member) { return member.tensor->feedback != nullptr; });
}

}  // namespace

bool residual_batch(const Tensor& tensor, uint64_t first, size_t n, float* residuals) {
  bool finite = true;
  with_elements(tensor, first, [&]<class T>(const Elements<T>& elements) {
    T room[kBatch];
    const T* const predicted = predict_batch(tensor, first, n, room);
    const T* const current = static_cast<const T*>(tensor.current) + first;
    const auto change = [&](size_t i) { return difference(current[i], predicted[i]); };
    if (tensor.feedback == nullptr) {
      finite = fill(residuals, n, change);
    } else {
      const float* const feedback = tensor.feedback + first;
      finite = fill(residuals, n, [&](size_t i) { return with_feedback(change(i), feedback[i]); });
    }
    if (finite) return;
    for (size_t i = 0; i < n; ++i) residuals[i] = elements.residual_to(i, predicted[i]);
  });
  return finite;
}

void write_predictions(const Groups& groups) {
  for (const Group* group : {&groups.matrix, &groups.vector, &groups.dense, &groups.lossless}) {
    parallel_for(n_chunks(*group), [&](size_t s) {
      for_each_member(*group, s, [](const Member& member, uint64_t first, uint64_t n, uint32_t) {
        write_prediction(*member.tensor, first, n);
      });
    });
  }
}

Scratch<float> left_of_sent(const Group& group, SentSymbols sent, const Recovered& recovered) {
  if (!has_feedback(group)) return {};
  Scratch<float> left(sent.size());
  float* const values = left.data();
  parallel_for(n_tasks(sent), [&](size_t task) {
    for_each_symbol_range(group, sent, task, [&](const SymbolRange& range) {
      with_elements(*range.member.tensor, 0, [&]<class T>(const Elements<T>& elements) {
        for (size_t i = range.begin; i < range.end; ++i) {
          T after;
          std::memcpy(&after, recovered.bits.at(i), sizeof after);
          const float rest = elements.residual_to(sent[i].index() - range.first, after);
          values[i] = finite_or_nothing(rest);
        }
      });
    });
  });
  return left;
}

void update_feedback(const Group& group, SentSymbols sent, const Scratch<float>& left) {
  if (!has_feedback(group)) return;
  parallel_for(n_chunks(group), [&](size_t s) {
    for_each_member(group, s, [&](const Member& member, uint64_t first, uint64_t n, uint32_t) {
      float* const feedback = member.tensor->feedback;
      if (feedback == nullptr) return;
      for_each_batch(first, n, [&](uint64_t at, size_t count) {
        float residuals[kBatch];
        if (!residual_batch(*member.tensor, at, count, residuals)) {
          for (size_t i = 0; i < count; ++i) residuals[i] = finite_or_nothing(residuals[i]);
        }
        std::memcpy(feedback + at, residuals, count * sizeof(float));
      });
    });
  });
  parallel_for(n_tasks(sent), [&](size_t task) {
    for_each_symbol_range(group, sent, task, [&](const SymbolRange& range) {
      float* const feedback = range.member.tensor->feedback;
      if (feedback == nullptr) return;
      const float* value = left.data() + range.begin;
      for (const SentSymbol& symbol : sent.subspan(range.begin, range.end - range.begin)) {
        feedback[symbol.index() - range.first] = *value++;
      }
    });
  });
}

namespace {

constexpr size_t kLanes = 8;
constexpr size_t kMaxFunctions = kMaxTerms;  // residual, and all terms but the last

struct Sums {
  double of[kMaxFunctions * (kMaxFunctions + 1) / 2] = {};
};

// Products of one batch: eight lanes, then their sum in order.
double sum_of_products(const float* a, const float* b, size_t n) {
  double lanes[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] += static_cast<double>(a[i + lane]) * static_cast<double>(b[i + lane]);
    }
  }
  for (size_t lane = 0; i + lane < n; ++lane) {
    lanes[lane] += static_cast<double>(a[i + lane]) * static_cast<double>(b[i + lane]);
  }
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

Sums chunk_moments(const Tensor& tensor, uint64_t first, uint64_t n) {
  const Prediction& prediction = tensor.prediction;
  const size_t n_functions = prediction.n_terms;
  Sums sums;
  with_elements(tensor, 0, [&]<class T>(const Elements<T>&) {
    float f[kMaxFunctions][kBatch];
    const T* const last = static_cast<const T*>(prediction.terms[prediction.n_terms - 1]);
    for_each_batch(first, n, [&](uint64_t at, size_t count) {
      residual_batch(tensor, at, count, f[0]);
      for (size_t j = 1; j < n_functions; ++j) {
        const T* const term = static_cast<const T*>(prediction.terms[j - 1]);
        for (size_t i = 0; i < count; ++i) f[j][i] = residual(term[at + i], last[at + i]);
      }
      size_t which = 0;
      for (size_t a = 0; a < n_functions; ++a) {
        for (size_t b = a; b < n_functions; ++b) {
          sums.of[which++] += sum_of_products(f[a], f[b], count);
        }
      }
    });
  });
  return sums;
}

}  // namespace

std::vector<std::vector<double>> moments(const std::vector<Tensor>& tensors) {
  const DefaultFloatMode mode;
  struct Task {
    size_t tensor;
    uint64_t first;
  };
  std::vector<Task> tasks;
  for (size_t t = 0; t < tensors.size(); ++t) {
    if (tensors[t].role == Role::kLossless || tensors[t].prediction.n_terms == 0) continue;
    for (uint64_t first = 0; first < tensors[t].n_elems; first += kChunkElems) {
      tasks.push_back({t, first});
    }
  }
  std::vector<Sums> sums(tasks.size());
  parallel_for(tasks.size(), [&](size_t i) {
    const auto [t, first] = tasks[i];
    const uint64_t n = std::min<uint64_t>(kChunkElems, tensors[t].n_elems - first);
    sums[i] = chunk_moments(tensors[t], first, n);
  });
  std::vector<std::vector<double>> totals(tensors.size());
  for (size_t i = 0; i < tasks.size(); ++i) {
    const size_t n_functions = tensors[tasks[i].tensor].prediction.n_terms;
    std::vector<double>& total = totals[tasks[i].tensor];
    total.resize(n_functions * (n_functions + 1) / 2);
    for (size_t j = 0; j < total.size(); ++j) total[j] += sums[i].of[j];
  }
  return totals;
}

}  // namespace resfed
