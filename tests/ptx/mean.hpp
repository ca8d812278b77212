// Runs the Aggregator on host and device side by side, and compares their means.
#pragma once

#include "check.hpp"
#include "cpu/aggregate.hpp"
#include "cuda/aggregate.hpp"

namespace ptx {

class Means {
 public:
  explicit Means(const Model& model)
      : model_(with_outputs(model)),
        memory_(model.memory),
        device_(model.memory),
        tensors_(model_.tensors(memory_, same_place)),
        there_(device_.tensors(model_)),
        host_mean_(references(tensors_), are_signed()),
        device_mean_(references(there_), are_signed(), 0, nullptr) {}

  // A payload, and whether it replaces the one before.
  void add(const Bytes& bytes, double weight, bool replaces = false) {
    const Payload payload = open_payload(bytes.data(), bytes.size(), tensors_.size());
    add([&] { return host_mean_.prepare(payload, 0, weight); },
        [&] { return device_mean_.prepare(payload, 0, weight, nullptr); }, weight, replaces);
  }
  // The model's current values.
  void add_model(double weight, bool replaces = false) {
    const auto currents = [](const std::vector<Tensor>& tensors) {
      std::vector<const void*> addresses;
      for (const Tensor& t : tensors) addresses.push_back(t.current);
      return addresses;
    };
    add([&] { return host_mean_.prepare(currents(tensors_), weight); },
        [&] { return device_mean_.prepare(currents(there_), weight, nullptr); }, weight, replaces);
  }

  void check() {
    const auto outputs = [](const std::vector<Tensor>& tensors) {
      std::vector<void*> addresses;
      for (const Tensor& t : tensors) addresses.push_back(t.out);
      return addresses;
    };
    host_mean_.result(outputs(tensors_), total_weight_);
    device_mean_.result(outputs(there_), total_weight_, nullptr);
    expect(device_.equals(memory_), "mean: host and device come to the same");
  }

 private:
  // Means are written beside the references, which later calls read.
  static Model with_outputs(Model model) {
    for (Spec& spec : model.specs) spec.in_place = false;
    return model;
  }
  // Without what only a payload says: exclusions and dense tensors.
  static std::vector<Tensor> references(std::vector<Tensor> tensors) {
    for_decoding(tensors);
    for (Tensor& t : tensors) {
      t.out = nullptr;
      if (t.dtype != DType::kOther && t.role != Role::kVector) t.role = Role::kMatrix;
    }
    return tensors;
  }
  // Every other tensor; only integers have a sign to tell apart.
  std::vector<bool> are_signed() const {
    std::vector<bool> are;
    for (size_t i = 0; i < model_.specs.size(); ++i) are.push_back(i % 2 == 0);
    return are;
  }

  // One after the other, prepared twice if they replace: an aggregator uses up what it adds.
  template <class OnHost, class There>
  void add(const OnHost& prepare_host, const There& prepare_there, double weight, bool replaces) {
    auto host = prepare_host();
    auto there = prepare_there();
    const auto same_bounds = [&](const MaxMagnitude& a, const MaxMagnitude& b) {
      return a.magnitude == b.magnitude && a.ordinal == b.ordinal;
    };
    expect(same_bounds(host->bounds.floats, there->bounds.floats) &&
               same_bounds(host->bounds.integers, there->bounds.integers),
           "mean: host and device find the same bounds");
    if (replaces) total_weight_ -= weight_before_;
    const Outcome want =
        outcome_of([&] { host_mean_.add(host.get(), replaces ? host_before_.get() : nullptr); });
    const Outcome got = outcome_of(
        [&] { device_mean_.add(there.get(), replaces ? there_before_.get() : nullptr, nullptr); });
    expect(same(got, want), "mean: host and device refuse the same");
    if (want) return;
    total_weight_ += weight;
    weight_before_ = weight;
    host_before_ = prepare_host();
    there_before_ = prepare_there();
  }

  const Model model_;
  std::vector<Memory> memory_;
  OnDevice device_;
  std::vector<Tensor> tensors_, there_;
  Aggregator host_mean_;
  cuda::Aggregator device_mean_;
  std::unique_ptr<Contribution> host_before_;
  std::unique_ptr<cuda::Contribution> there_before_;
  double total_weight_ = 0.0, weight_before_ = 0.0;
};

}  // namespace ptx
