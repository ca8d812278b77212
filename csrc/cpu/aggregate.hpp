// Weighted mean of recovered models, straight from payloads: adding one costs what it touches. No
// contribution can make another one be refused: each is held to limits of its own.
#pragma once

#include <functional>
#include <memory>

#include "api.hpp"
#include "cpu/decoder.hpp"
#include "cpu/sums.hpp"

namespace resfed {

// The largest magnitude, and the first tensor that has one as large.
struct MaxMagnitude {
  uint64_t magnitude = 0;
  uint64_t ordinal = 0;

  void see(uint64_t bits, uint64_t where) {
    if (bits < magnitude || (bits == magnitude && where >= ordinal)) return;
    magnitude = bits;
    ordinal = where;
  }
  double value() const { return double_from_bits(magnitude); }
};

// What is about to be added at most, to float and to integer sums.
struct Bounds {
  MaxMagnitude floats, integers;

  void add(const Bounds& other) {
    floats.see(other.floats.magnitude, other.floats.ordinal);
    integers.see(other.integers.magnitude, other.integers.ordinal);
  }
};

// What sums hold at most, but for their carries.
class SumBound {
 public:
  explicit SumBound(double limit) : limit_(limit) {}

  // Whether the sums must be carried over before so much is added. Throws kSumTooLarge for what is
  // too large by itself.
  bool lacks_room(const MaxMagnitude& largest) const {
    // Negated: a NaN is refused.
    if (!(largest.value() < limit_)) throw Failure{Code::kSumTooLarge, largest.ordinal};
    return !(bound_ + largest.value() < 2 * limit_);
  }
  void carried_over() { bound_ = limit_ / 2; }  // and more than what is left
  void add(const MaxMagnitude& largest) { bound_ += largest.value(); }

 private:
  double limit_, bound_ = 0.0;
};

class Aggregator;

// What one model adds, with weight: of a payload the update, of a model as it is a copy.
struct Contribution {
  const Aggregator* owner = nullptr;  // that it may be added to; none once it was used
  double weight = 0.0;
  Bounds bounds;
  Update update;
  Scratch<double> values;  // of the update's symbols
  bool is_model = false;
  Scratch<uint8_t> model;  // tensor after tensor
};

class Aggregator {
 public:
  // The tensors' references are borrowed for the aggregator's life; roles are those of a payload
  // without exclusions and dense tensors. `is_signed` tells the integers apart, `is_complex`
  // the lossless tensors whose elements are parts of complex numbers, floats of the tensor's dtype:
  // one entry per tensor, or none at all of the latter.
  Aggregator(std::vector<Tensor> tensors, std::vector<bool> is_signed,
             const std::vector<bool>& is_complex = {});

  // What a payload, or a model with one address per tensor, adds. `digest` is the one that the
  // payload must name; its prediction is the reference. Weights lie in [2^-40, 2^40], or are 0,
  // which adds nothing. Several threads may prepare while another calls any other function.
  std::unique_ptr<Contribution> prepare(const Payload& payload, uint64_t digest,
                                        double weight) const;
  std::unique_ptr<Contribution> prepare(const std::vector<const void*>& model, double weight) const;

  // Adds, and takes back what `replaced` once added: the same, prepared again; may be null. All or
  // nothing: throws Failure before anything is added, kSumTooLarge where this contribution alone is
  // too large or not finite. `before_adding` is called when nothing but the adding is left to do;
  // what it throws is passed on, and nothing has been added then. Both are used up.
  void add(Contribution* contribution, Contribution* replaced = nullptr,
           const std::function<void()>& before_adding = nullptr);

  // Writes the mean to `out`, one address per tensor. `total_weight` is the exact sum of the
  // weights, rounded once.
  void result(const std::vector<void*>& out, double total_weight) const;

  const std::vector<Tensor>& tensors() const { return tensors_; }

 private:
  uint32_t weigh(const Group& group, SentSymbols sent, const Quantizer& quantizer,
                 const Weight& weight, Bounds& bounds, double* values) const;
  void touch(const Group& group, SentSymbols sent);
  void sum_up(const Group& group, SentSymbols sent, const double* values, int sign);
  void look_at(uint64_t ordinal, uint64_t element, uint64_t after, const Weight& weight,
               Bounds& bounds) const;
  void touch(uint64_t ordinal, uint64_t element);
  void add_element(uint64_t ordinal, uint64_t element, uint64_t after, const Weight& weight);
  void touch(const Contribution& contribution);
  void make_room(const Bounds& bounds);
  void apply(const Contribution& contribution, int sign);
  // Calls visit(ordinal, element, bits after) for the elements that a model's copy changes.
  template <class Visit>
  void for_changed(const Contribution& contribution, const Group& group, size_t chunk,
                   const Visit& visit) const;
  double float_change(const Weight& weight, uint64_t ordinal, uint64_t element,
                      uint64_t after) const;
  int128 integer_change(uint64_t ordinal, uint64_t element, uint64_t after) const;
  void write_floats(const Member& member, uint64_t first, uint64_t n, void* out,
                    double total_weight) const;
  void write_integers(const Member& member, uint64_t first, uint64_t n, void* out) const;

  std::vector<Tensor> tensors_;
  std::vector<bool> is_signed_, is_float_;
  Group floats_, integers_;      // all tensors of that kind: where their sums lie
  std::vector<uint64_t> begin_;  // of each tensor in its group
  std::vector<uint64_t> bytes_;  // of each tensor's first byte in a model's copy, and the end
  Sums float_sums_, integer_sums_;
  SumBound float_bound_{kFloatLimit}, integer_bound_{kIntegerLimit};
  int128 integer_weight_ = 0;  // sum of the integer weights
};

}  // namespace resfed
