// Weighted mean of recovered models, straight from payloads: adding one costs what it touches.
#pragma once

#include <functional>
#include <memory>
#include <mutex>

#include "api.hpp"
#include "cpu/decoder.hpp"
#include "cpu/exact_mean.hpp"

namespace resfed {

// The largest magnitude, and the first tensor that has one as large.
struct Largest {
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
  Largest floats, integers;

  void add(const Bounds& other) {
    floats.see(other.floats.magnitude, other.floats.ordinal);
    integers.see(other.integers.magnitude, other.integers.ordinal);
  }
};

class Aggregator;

// What one payload adds, with weight.
struct Contribution {
  const Aggregator* owner = nullptr;  // that it may be added to; none once it was added
  double weight = 0.0;
  Update update;
  std::vector<double> values;  // of the update's symbols
  Bounds bounds;
};

class Aggregator {
 public:
  // The tensors' references are borrowed for the aggregator's life; roles are those of a payload
  // without exclusions and dense tensors. `is_signed` tells the integers apart, one entry per
  // tensor.
  Aggregator(std::vector<Tensor> tensors, std::vector<bool> is_signed);

  // `digest` is the one that the payload must name; its prediction is the reference. Weights lie in
  // [2^-40, 2^40]. Several threads may prepare while another calls any other function; these take
  // turns. All or nothing: all throw Failure before anything is added, kSumTooLarge where sums
  // could overflow. A contribution is added once, and its memory used again. `state` has one
  // address per tensor. `before_adding` is called when nothing but the adding is left to do; what
  // it throws is passed on, and nothing has been added then.
  std::unique_ptr<Contribution> prepare(const uint8_t* payload, size_t n_bytes, uint64_t digest,
                                        double weight);
  void add(Contribution* contribution, const std::function<void()>& before_adding = nullptr);
  void add_state(const std::vector<const void*>& state, double weight,
                 const std::function<void()>& before_adding = nullptr);

  // Writes the mean to `out`, one address per tensor. `total_weight` is the exact sum of the
  // weights, rounded once.
  void result(const std::vector<void*>& out, double total_weight) const;

  const std::vector<Tensor>& tensors() const { return tensors_; }

 private:
  uint32_t weigh(const Group& group, SentSymbols sent, const Quantizer& quantizer, double weight,
                 Bounds& bounds, double* values) const;
  void touch(const Group& group, SentSymbols sent);
  void sum_up(const Group& group, SentSymbols sent, const double* values);
  void look_at(uint64_t ordinal, uint64_t element, uint64_t after, double weight,
               Bounds& bounds) const;
  void touch(uint64_t ordinal, uint64_t element);
  void add_element(uint64_t ordinal, uint64_t element, uint64_t after, double weight);
  void accept(const Bounds& bounds, double weight, const std::function<void()>& before_adding);
  double float_change(uint64_t ordinal, uint64_t element, uint64_t after) const;
  int128 integer_change(uint64_t ordinal, uint64_t element, uint64_t after) const;
  void write_floats(const Piece& piece, uint64_t first, uint64_t n, void* out,
                    double total_weight) const;
  void write_integers(const Piece& piece, uint64_t first, uint64_t n, void* out) const;

  std::mutex spare_mutex_;
  std::vector<std::unique_ptr<Contribution>> spare_;  // for their memory

  std::vector<Tensor> tensors_;
  std::vector<bool> is_signed_;
  Group floats_, integers_;      // all tensors of that kind: where their sums lie
  std::vector<uint64_t> begin_;  // of each tensor in its group
  Sums float_sums_, integer_sums_;
  double float_bound_ = 0.0, integer_bound_ = 0.0;  // of any absolute sum
  int128 integer_weight_ = 0;                       // sum of the integer weights
};

}  // namespace resfed
