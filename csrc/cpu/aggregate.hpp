// Weighted mean of recovered models, straight from payloads: adding one costs what it touches.
#pragma once

#include "api.hpp"
#include "cpu/decoder.hpp"
#include "cpu/exact_mean.hpp"

namespace resfed {

class Aggregator {
 public:
  // The tensors' references are borrowed for the aggregator's life; roles are those of a payload
  // without exclusions. `is_signed` tells the integers apart, one entry per tensor.
  Aggregator(std::vector<Tensor> tensors, std::vector<bool> is_signed);

  // `digest` is the one that the payload must name; its prediction is the reference. Weights lie in
  // [2^-40, 2^40]. All or nothing: both throw Failure before anything is added,
  // kSumTooLarge where sums could overflow. `state` has one address per tensor.
  void add(const uint8_t* payload, size_t n_bytes, uint64_t digest, double weight);
  void add_state(const std::vector<const void*>& state, double weight);

  // Writes the mean to `out`, one address per tensor. `total_weight` is the exact sum of the
  // weights, rounded once.
  void result(const std::vector<void*>& out, double total_weight) const;
  void reset();

 private:
  struct Bounds;
  uint32_t weigh(const Group& group, SentSymbols sent, const Quantizer& quantizer, double weight,
                 Bounds& bounds, double* contributions);
  void sum_up(const Group& group, SentSymbols sent, const double* contributions);
  void look_at(uint64_t ordinal, uint64_t element, uint64_t after, double weight, Bounds& bounds);
  void add_element(uint64_t ordinal, uint64_t element, uint64_t after, double weight);
  void accept(const Bounds& bounds, double weight);
  double float_change(uint64_t ordinal, uint64_t element, uint64_t after) const;
  int128 integer_change(uint64_t ordinal, uint64_t element, uint64_t after) const;
  void write_floats(const Piece& piece, uint64_t first, uint64_t n, void* out,
                    double total_weight) const;
  void write_integers(const Piece& piece, uint64_t first, uint64_t n, void* out) const;

  Update update_;                      // the last one, kept for its memory
  std::vector<double> contributions_;  // of its symbols, likewise

  std::vector<Tensor> tensors_;
  std::vector<bool> is_signed_;
  Group floats_, integers_;      // all tensors of that kind: where their sums lie
  std::vector<uint64_t> begin_;  // of each tensor in its group
  Sums float_sums_, integer_sums_;
  double float_bound_ = 0.0, integer_bound_ = 0.0;  // of any absolute sum
  int128 integer_weight_ = 0;                       // sum of the integer weights
};

}  // namespace resfed
