#include <algorithm>
#include <stdexcept>

#include "cpu/float_mode.hpp"
#include "cuda/aggregate.hpp"
#include "cuda/decoder.hpp"
#include "cuda/sums.cuh"

namespace resfed::cuda {
namespace {

// New elements of the tensors that the host decodes, by place.
struct HostElements {
  std::vector<uint64_t> places, bits;

  void put(uint64_t place, const uint8_t* element, uint32_t elem_bytes) {
    places.push_back(place);
    bits.push_back(load_element(element, 0, elem_bytes));
  }
};

HostElements host_elements(const DecodedUpdate& decoded, const std::vector<uint64_t>& begins) {
  HostElements elements;
  const Update& u = decoded.update;
  const auto take = [&](const Group& group, SentSymbols sent, const Recovered& recovered) {
    for (size_t i = 0; i < sent.size(); ++i) {
      const uint64_t index = sent[i].index() - group.base;
      const Member& member = member_at(group, index);
      elements.put(begins[member.ordinal] + (index - member.begin), recovered.bits.at(i),
                   member.tensor->elem_bytes);
    }
  };
  take(u.groups.vector, u.sent_vector, decoded.vector);
  take(u.groups.dense, u.sent_dense, decoded.dense);
  for_each_change(u.groups.lossless, u.changes,
                  [&](const Member& member, uint64_t element, size_t i) {
                    elements.put(begins[member.ordinal] + element, u.restored.bits.at(i),
                                 member.tensor->elem_bytes);
                  });
  return elements;
}

}  // namespace

Aggregator::Aggregator(std::vector<Tensor> tensors, std::vector<bool> is_signed, int device,
                       Stream stream)
    : tensors_(std::move(tensors)),
      is_signed_(std::move(is_signed)),
      device_(device),
      sums_(tensors_.size()) {
  BumpAllocator copy(nullptr);
  uint64_t n_elems = 0;
  for (Tensor& t : tensors_) {
    t.out = const_cast<void*>(t.reference);  // nothing is written
    copy.take<uint8_t>(0);                   // aligns
    bytes_.push_back(copy.n_bytes());
    copy.take<uint8_t>(t.n_elems * t.elem_bytes);
    begins_.push_back(n_elems);
    n_elems += t.n_elems;
    n_chunks_ += cuda::n_chunks(t.n_elems);
  }
  bytes_.push_back(copy.n_bytes());
  wait(device, stream);  // later calls may be on other streams
}

// The tensors as kernels see them, of a contribution or to write a mean.
void Aggregator::fill_in(const Contribution* c, const std::vector<void*>* out,
                         SumTensor* tensors) const {
  uint64_t chunk = 0;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const Tensor& t = tensors_[i];
    const bool is_model = c != nullptr && c->is_model;
    tensors[i] = {t.reference,
                  is_model ? static_cast<const uint8_t*>(c->memory.get()) + bytes_[i] : nullptr,
                  out != nullptr ? (*out)[i] : nullptr,
                  sums_[i].sums,
                  sums_[i].carries,
                  i,
                  begins_[i],
                  t.n_elems,
                  chunk,
                  t.dtype,
                  t.elem_bytes,
                  is_signed_[i]};
    chunk += cuda::n_chunks(t.n_elems);
  }
}

// Its changes, of all elements without a contribution; `tensors` are on the device.
ElementChanges Aggregator::changes_of(const Contribution* c, const SumTensor* tensors) const {
  ElementChanges changes{tensors, tensors_.size(), n_chunks_, true, nullptr, nullptr, 0};
  if (c == nullptr || c->is_model) return changes;
  changes.is_model = false;
  changes.places = static_cast<uint64_t*>(c->memory.get());
  changes.bits = changes.places + c->n;
  changes.n = c->n;
  return changes;
}

std::unique_ptr<Contribution> Aggregator::prepare(const Payload& payload, uint64_t digest,
                                                  double weight, Stream stream) const {
  const DefaultFloatMode mode;
  WorkspaceLease lease(device_, stream);
  const DecodedUpdate decoded(lease, payload, digest, tensors_);
  auto c = std::make_unique<Contribution>();
  c->owner = this;
  c->weight = weight;
  find_bounds(lease, &decoded, c.get());
  return c;
}

// Another thread may write to the caller's arrays, so all that follows reads a copy.
std::unique_ptr<Contribution> Aggregator::prepare(const std::vector<const void*>& model,
                                                  double weight, Stream stream) const {
  const DefaultFloatMode mode;
  WorkspaceLease lease(device_, stream);
  auto c = std::make_unique<Contribution>();
  c->owner = this;
  c->weight = weight;
  c->is_model = true;
  c->memory = take_memory(device_, bytes_.back());
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const Tensor& t = tensors_[i];
    if (t.n_elems == 0) continue;
    lease.copy(static_cast<uint8_t*>(c->memory.get()) + bytes_[i], model[i],
               t.n_elems * t.elem_bytes);
  }
  find_bounds(lease, nullptr, c.get());
  return c;
}

// Takes what a payload changes to the contribution's memory, and finds what is added at most.
void Aggregator::find_bounds(WorkspaceLease& lease, const DecodedUpdate* decoded,
                             Contribution* c) const {
  NewElements matrix, lossless;
  HostElements others;
  if (decoded != nullptr) {
    if (decoded->matrices) matrix = decoded->matrices->recovered();
    if (decoded->lossless) lossless = decoded->lossless->restored();
    others = host_elements(*decoded, begins_);
    c->n = matrix.n + lossless.n + others.places.size();
    c->memory = take_memory(device_, 2 * c->n * sizeof(uint64_t));
    lease.wait();  // until nothing reads host_tables() any more
  }
  SumTensor* tensors = nullptr;
  uint64_t *largest = nullptr, *places = nullptr, *bits = nullptr;
  size_t n_tables = 0;  // bytes; the rest goes to the contribution
  const auto carve = [&](void* memory) {
    BumpAllocator allocator(memory);
    tensors = allocator.take<SumTensor>(tensors_.size());
    largest = allocator.take<uint64_t>(tensors_.size());
    n_tables = allocator.n_bytes();
    places = allocator.take<uint64_t>(others.places.size());
    bits = allocator.take<uint64_t>(others.bits.size());
    return allocator.n_bytes();
  };
  carve(lease.host_tables(carve(nullptr)));
  fill_in(c, nullptr, tensors);
  std::fill_n(largest, tensors_.size(), 0);
  std::copy(others.places.begin(), others.places.end(), places);
  std::copy(others.bits.begin(), others.bits.end(), bits);
  const size_t n_others = others.places.size() * sizeof(uint64_t);
  const ElementChanges on_host = changes_of(c, nullptr);
  const uint64_t at = c->n - others.places.size();
  if (n_others > 0) {
    lease.copy_in(on_host.places + at, places, n_others);
    lease.copy_in(on_host.bits + at, bits, n_others);
  }
  void* const device = lease.coded(n_tables);
  lease.copy_in(device, tensors, n_tables);
  carve(device);
  const ElementChanges changes = changes_of(c, tensors);
  take_elements(lease, matrix, changes, 0);
  take_elements(lease, lossless, changes, matrix.n);
  find_largest(lease, changes, Weight(c->weight), largest);
  auto* const found =
      static_cast<uint64_t*>(lease.host_results(tensors_.size() * sizeof(uint64_t)));
  lease.copy_out(found, largest, tensors_.size() * sizeof(uint64_t));
  lease.wait();
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const bool is_float = tensors_[i].dtype != DType::kOther;
    (is_float ? c->bounds.floats : c->bounds.integers).see(found[i], i);
    c->changes.push_back(found[i] > 0);
  }
}

// Zeros for some of the tensors, one for each element. All or nothing.
template <class T>
void Aggregator::make_zeros(WorkspaceLease& lease, const std::vector<size_t>& ordinals,
                            T* SumsOf::* field) {
  std::vector<T*> made(ordinals.size());
  const auto carve = [&](void* memory) {
    BumpAllocator allocator(memory);
    for (size_t i = 0; i < made.size(); ++i) {
      made[i] = allocator.take<T>(tensors_[ordinals[i]].n_elems);
    }
    return allocator.n_bytes();
  };
  const size_t n_bytes = carve(nullptr);
  if (n_bytes == 0) return;
  memory_.push_back(take_memory(device_, n_bytes));
  carve(memory_.back().get());
  clear(lease, static_cast<uint64_t*>(memory_.back().get()), n_bytes / sizeof(uint64_t));
  for (size_t i = 0; i < made.size(); ++i) sums_[ordinals[i]].*field = made[i];
}

// Memory for the sums that a contribution changes.
void Aggregator::touch(WorkspaceLease& lease, const Contribution& c) {
  std::vector<size_t> untouched;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    if (c.changes[i] && sums_[i].sums == nullptr) untouched.push_back(i);
  }
  make_zeros(lease, untouched, &SumsOf::sums);
}

// Whether sums have to be carried over before so much is added; then there is memory for it.
bool Aggregator::make_room(WorkspaceLease& lease, const MaxMagnitude& largest,
                           const SumBound& bound, bool floats) {
  if (!bound.lacks_room(largest)) return false;
  std::vector<size_t> uncarried;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const bool is_float = tensors_[i].dtype != DType::kOther;
    if (is_float == floats && sums_[i].sums != nullptr && sums_[i].carries == nullptr)
      uncarried.push_back(i);
  }
  make_zeros(lease, uncarried, &SumsOf::carries);
  return true;
}

void Aggregator::add(Contribution* contribution, Contribution* replaced, Stream stream,
                     const std::function<void()>& before_adding) {
  const DefaultFloatMode mode;
  for (const Contribution* c : {contribution, replaced}) {
    if (c != nullptr && c->owner != this)
      throw std::invalid_argument("contribution: of another sum");
  }
  WorkspaceLease lease(device_, stream);
  bool carry_floats = false, carry_integers = false;
  if (contribution->weight > 0) {
    const Bounds& bounds = contribution->bounds;
    touch(lease, *contribution);
    carry_floats = make_room(lease, bounds.floats, float_bound_, true);
    carry_integers = make_room(lease, bounds.integers, integer_bound_, false);
  }
  const size_t n = tensors_.size();
  auto* const host = static_cast<SumTensor*>(lease.host_tables(2 * n * sizeof(SumTensor)));
  auto* const tensors = static_cast<SumTensor*>(lease.tables(2 * n * sizeof(SumTensor)));
  fill_in(contribution, nullptr, host);
  fill_in(replaced, nullptr, host + n);
  lease.copy_in(tensors, host, 2 * n * sizeof(SumTensor));
  const ElementChanges all = changes_of(nullptr, tensors);
  const auto carry = [&](bool floats, SumBound* bound) {
    carry_over(lease, all, floats);
    bound->carried_over();
  };
  if (carry_floats) carry(true, &float_bound_);
  if (carry_integers) carry(false, &integer_bound_);
  if (before_adding) before_adding();
  // From here on only the device can fail.
  const auto apply = [&](Contribution* c, const SumTensor* as_seen, int sign) {
    c->owner = nullptr;
    if (c->weight == 0) return;
    if (sign > 0) {
      float_bound_.add(c->bounds.floats);
      integer_bound_.add(c->bounds.integers);
    }
    const Weight weight(sign * c->weight);
    integer_weight_ += weight.units;
    add_changes(lease, changes_of(c, as_seen), weight);
  };
  apply(contribution, tensors, 1);
  if (replaced != nullptr) apply(replaced, tensors + n, -1);
  lease.wait();
}

void Aggregator::result(const std::vector<void*>& out, double total_weight, Stream stream) const {
  WorkspaceLease lease(device_, stream);
  const size_t n_bytes = tensors_.size() * sizeof(SumTensor);
  auto* const host = static_cast<SumTensor*>(lease.host_tables(n_bytes));
  auto* const tensors = static_cast<SumTensor*>(lease.tables(n_bytes));
  fill_in(nullptr, &out, host);
  lease.copy_in(tensors, host, n_bytes);
  write_means(lease, changes_of(nullptr, tensors), total_weight, integer_weight_);
  lease.wait();
}

}  // namespace resfed::cuda
