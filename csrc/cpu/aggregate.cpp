#include "cpu/aggregate.hpp"

#include <stdexcept>
#include <type_traits>

#include "cpu/float_mode.hpp"
#include "cpu/threads.hpp"

namespace resfed {
namespace {

std::vector<bool> floats_of(const std::vector<Tensor>& tensors,
                            const std::vector<bool>& is_complex) {
  std::vector<bool> is_float;
  for (size_t i = 0; i < tensors.size(); ++i) {
    is_float.push_back(tensors[i].role != Role::kLossless ||
                       (!is_complex.empty() && is_complex[i]));
  }
  return is_float;
}

Group group_of(const std::vector<Tensor>& tensors, const std::vector<bool>& is_float, bool floats) {
  Group group;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (is_float[i] != floats || tensors[i].n_elems == 0) continue;
    group.members.push_back({&tensors[i], i, group.n_elems});
    group.n_elems += tensors[i].n_elems;
  }
  return group;
}

// Calls visit(reference) with the float elements by their type.
template <class Visit>
void with_reference(const Tensor& t, Visit visit) {
  with_elements(t, 0,
                [&]<class T>(const Elements<T>&) { visit(static_cast<const T*>(t.reference)); });
}

}  // namespace

Aggregator::Aggregator(std::vector<Tensor> tensors, std::vector<bool> is_signed,
                       const std::vector<bool>& is_complex)
    : tensors_(std::move(tensors)),
      is_signed_(std::move(is_signed)),
      is_float_(floats_of(tensors_, is_complex)),
      floats_(group_of(tensors_, is_float_, true)),
      integers_(group_of(tensors_, is_float_, false)),
      begin_(tensors_.size()),
      float_sums_(floats_.n_elems),
      integer_sums_(integers_.n_elems) {
  for (const Group* group : {&floats_, &integers_}) {
    for (const Member& member : group->members) begin_[member.ordinal] = member.begin;
  }
  bytes_.push_back(0);
  for (const Tensor& t : tensors_) bytes_.push_back(bytes_.back() + t.n_elems * t.elem_bytes);
}

namespace {

// Calls visit(ordinal, element, bits after) for an update's changed lossless elements.
template <class Visit>
void for_lossless(const Update& u, Visit visit) {
  for_each_change(u.groups.lossless, u.changes,
                  [&](const Member& member, uint64_t element, size_t i) {
                    visit(member.ordinal, element,
                          load_element(u.restored.bits.at(i), 0, member.tensor->elem_bytes));
                  });
}

}  // namespace

std::unique_ptr<Contribution> Aggregator::prepare(const Payload& payload, uint64_t digest,
                                                  double model_weight) const {
  const DefaultFloatMode mode;
  const Weight weight(model_weight);
  auto c = std::make_unique<Contribution>();
  c->owner = this;
  c->weight = model_weight;
  read_update(payload, digest, tensors_, &c->update);
  const Frame& frame = payload.frame;
  const Update& u = c->update;
  c->values.resize(u.symbols.size());
  double* const matrix = c->values.data();
  double* const vector = matrix + u.sent_matrix.size();
  double* const dense = vector + u.sent_vector.size();
  u.verify(weigh(u.groups.matrix, u.sent_matrix, frame.matrix, weight, c->bounds, matrix) +
           weigh(u.groups.vector, u.sent_vector, frame.vector, weight, c->bounds, vector) +
           weigh(u.groups.dense, u.sent_dense, frame.dense, weight, c->bounds, dense));
  for_lossless(u, [&](uint64_t ordinal, uint64_t element, uint64_t after) {
    look_at(ordinal, element, after, weight, c->bounds);
  });
  return c;
}

// Another thread may write to the caller's arrays, so all that follows reads a copy.
std::unique_ptr<Contribution> Aggregator::prepare(const std::vector<const void*>& model,
                                                  double model_weight) const {
  const DefaultFloatMode mode;
  const Weight weight(model_weight);
  auto c = std::make_unique<Contribution>();
  c->owner = this;
  c->weight = model_weight;
  c->is_model = true;
  c->model.resize(bytes_.back());
  std::mutex mutex;
  for (const Group* group : {&floats_, &integers_}) {
    parallel_for(n_chunks(*group), [&](size_t s) {
      for_each_member(*group, s, [&](const Member& member, uint64_t first, uint64_t n, uint32_t) {
        const uint64_t begin = first * member.tensor->elem_bytes;
        std::memcpy(c->model.data() + bytes_[member.ordinal] + begin,
                    static_cast<const uint8_t*>(model[member.ordinal]) + begin,
                    n * member.tensor->elem_bytes);
      });
      Bounds own;
      for_changed(*c, *group, s, [&](uint64_t ordinal, uint64_t element, uint64_t after) {
        look_at(ordinal, element, after, weight, own);
      });
      const std::lock_guard lock(mutex);
      c->bounds.add(own);
    });
  }
  return c;
}

template <class Visit>
void Aggregator::for_changed(const Contribution& c, const Group& group, size_t chunk,
                             const Visit& visit) const {
  for_each_member(group, chunk, [&](const Member& member, uint64_t first, uint64_t n, uint32_t) {
    const Tensor& t = *member.tensor;
    const uint8_t* const model = c.model.data() + bytes_[member.ordinal];
    for (uint64_t i = first; i < first + n; ++i) {
      const uint64_t after = load_element(model, i, t.elem_bytes);
      if (after != load_element(t.reference, i, t.elem_bytes)) visit(member.ordinal, i, after);
    }
  });
}

void Aggregator::add(Contribution* contribution, Contribution* replaced,
                     const std::function<void()>& before_adding) {
  const DefaultFloatMode mode;
  for (const Contribution* c : {contribution, replaced}) {
    if (c != nullptr && c->owner != this)
      throw std::invalid_argument("contribution: of another sum");
  }
  if (contribution->weight > 0) {
    touch(*contribution);
    make_room(contribution->bounds);
  }
  if (before_adding) before_adding();
  // From here on nothing can fail.
  apply(*contribution, 1);
  contribution->owner = nullptr;
  if (replaced == nullptr) return;
  apply(*replaced, -1);  // its bounds stay: sums are smaller than that
  replaced->owner = nullptr;
}

// Memory for sums, so that adding cannot fail half way.
void Aggregator::touch(const Contribution& c) {
  const auto one = [&](uint64_t ordinal, uint64_t element, uint64_t) { touch(ordinal, element); };
  if (c.is_model) {
    for (const Group* group : {&floats_, &integers_}) {
      parallel_for(n_chunks(*group), [&](size_t s) { for_changed(c, *group, s, one); });
    }
    return;
  }
  const Update& u = c.update;
  touch(u.groups.matrix, u.sent_matrix);
  touch(u.groups.vector, u.sent_vector);
  touch(u.groups.dense, u.sent_dense);
  for_lossless(u, one);
}

// Refuses what is too large by itself; sums that might overflow by it are carried over.
void Aggregator::make_room(const Bounds& bounds) {
  const auto room = [](const MaxMagnitude& largest, Sums& sums, SumBound& bound) {
    if (!bound.lacks_room(largest)) return;
    sums.carry_over();
    bound.carried_over();
  };
  room(bounds.floats, float_sums_, float_bound_);
  room(bounds.integers, integer_sums_, integer_bound_);
}

void Aggregator::apply(const Contribution& c, int sign) {
  if (c.weight == 0) return;
  if (sign > 0) {
    float_bound_.add(c.bounds.floats);
    integer_bound_.add(c.bounds.integers);
  }
  const Weight weight(sign * c.weight);
  integer_weight_ += weight.units;
  const auto one = [&](uint64_t ordinal, uint64_t element, uint64_t after) {
    add_element(ordinal, element, after, weight);
  };
  if (c.is_model) {
    for (const Group* group : {&floats_, &integers_}) {
      parallel_for(n_chunks(*group), [&](size_t s) { for_changed(c, *group, s, one); });
    }
    return;
  }
  const Update& u = c.update;
  const double* const matrix = c.values.data();
  const double* const vector = matrix + u.sent_matrix.size();
  sum_up(u.groups.matrix, u.sent_matrix, matrix, sign);
  sum_up(u.groups.vector, u.sent_vector, vector, sign);
  sum_up(u.groups.dense, u.sent_dense, vector + u.sent_vector.size(), sign);
  for_lossless(u, one);
}

// What the sent elements add; returns their part of the reference check.
uint32_t Aggregator::weigh(const Group& group, SentSymbols sent, const Quantizer& quantizer,
                           const Weight& weight, Bounds& bounds, double* values) const {
  uint32_t check = 0;
  std::mutex mutex;
  parallel_for(n_tasks(sent), [&](size_t task) {
    Bounds own;
    uint32_t own_check = 0;
    for_each_symbol_range(group, sent, task, [&](const SymbolRange& range) {
      uint64_t most = 0;
      own_check +=
          recover_range(range, sent, quantizer, [&](size_t i, uint64_t, auto before, auto after) {
            values[i] = resfed::float_change(weight, before, after);
            most = std::max(most, magnitude_bits(values[i]));
          });
      own.floats.see(most, range.member.ordinal);
    });
    const std::lock_guard lock(mutex);
    bounds.add(own);
    check += own_check;
  });
  return check;
}

void Aggregator::touch(const Group& group, SentSymbols sent) {
  for (size_t task = 0; task < n_tasks(sent); ++task) {
    for_each_symbol_range(group, sent, task, [&](const SymbolRange& range) {
      const uint64_t place = begin_[range.member.ordinal] - range.first;
      float_sums_.touch(place + sent[range.begin].index(), place + sent[range.end - 1].index());
    });
  }
}

void Aggregator::touch(uint64_t ordinal, uint64_t element) {
  const uint64_t place = begin_[ordinal] + element;
  (is_float_[ordinal] ? float_sums_ : integer_sums_).touch(place, place);
}

void Aggregator::sum_up(const Group& group, SentSymbols sent, const double* values, int sign) {
  parallel_for(n_tasks(sent), [&](size_t task) {
    for_each_symbol_range(group, sent, task, [&](const SymbolRange& range) {
      const uint64_t place = begin_[range.member.ordinal] - range.first;
      for (size_t i = range.begin; i < range.end; ++i) {
        float_sums_.at(place + sent[i].index()) += to_units(sign * values[i]);
      }
    });
  });
}

double Aggregator::float_change(const Weight& weight, uint64_t ordinal, uint64_t element,
                                uint64_t after) const {
  double change = 0.0;
  with_reference(tensors_[ordinal], [&]<class T>(const T* reference) {
    T value;
    from_bits(after, &value);
    change = resfed::float_change(weight, reference[element], value);
  });
  return change;
}

int128 Aggregator::integer_change(uint64_t ordinal, uint64_t element, uint64_t after) const {
  const Tensor& t = tensors_[ordinal];
  const uint64_t before = load_element(t.reference, element, t.elem_bytes);
  return integer_value(after, t.elem_bytes, is_signed_[ordinal]) -
         integer_value(before, t.elem_bytes, is_signed_[ordinal]);
}

// One changed element of any kind.
void Aggregator::look_at(uint64_t ordinal, uint64_t element, uint64_t after, const Weight& weight,
                         Bounds& bounds) const {
  if (is_float_[ordinal]) {
    const double change = float_change(weight, ordinal, element, after);
    bounds.floats.see(magnitude_bits(change), ordinal);
  } else {
    const int128 change = integer_change(ordinal, element, after);
    bounds.integers.see(integer_magnitude(weight, change), ordinal);
  }
}

void Aggregator::add_element(uint64_t ordinal, uint64_t element, uint64_t after,
                             const Weight& weight) {
  const uint64_t place = begin_[ordinal] + element;
  if (is_float_[ordinal]) {
    float_sums_.at(place) += to_units(float_change(weight, ordinal, element, after));
  } else {
    integer_sums_.at(place) += weight.units * integer_change(ordinal, element, after);
  }
}

void Aggregator::result(const std::vector<void*>& out, double total_weight) const {
  const DefaultFloatMode mode;
  parallel_for(n_chunks(floats_), [&](size_t s) {
    for_each_member(floats_, s, [&](const Member& member, uint64_t first, uint64_t n, uint32_t) {
      write_floats(member, first, n, out[member.ordinal], total_weight);
    });
  });
  parallel_for(n_chunks(integers_), [&](size_t s) {
    for_each_member(integers_, s, [&](const Member& member, uint64_t first, uint64_t n, uint32_t) {
      write_integers(member, first, n, out[member.ordinal]);
    });
  });
}

// A member's elements in one chunk of the group lie in one chunk of the sums: both are cut alike.
void Aggregator::write_floats(const Member& member, uint64_t first, uint64_t n, void* out,
                              double total_weight) const {
  const uint64_t place = member.begin + first;
  const int128* sums = float_sums_.chunk(place);
  with_reference(*member.tensor, [&](const auto* reference) {
    using T = std::remove_cvref_t<decltype(*reference)>;
    T* const mean = static_cast<T*>(out) + first;
    if (sums == nullptr) {
      std::memcpy(mean, reference + first, n * sizeof(T));
      return;
    }
    sums += place % kChunkElems;
    const int64_t* const carries = float_sums_.carries(place);
    for (uint64_t i = 0; i < n; ++i) {
      const int64_t carry = carries != nullptr ? carries[place % kChunkElems + i] : 0;
      mean[i] = float_mean(reference[first + i], carry, sums[i], total_weight);
    }
  });
}

void Aggregator::write_integers(const Member& member, uint64_t first, uint64_t n, void* out) const {
  const Tensor& t = *member.tensor;
  const uint64_t place = member.begin + first;
  const int128* const sums = integer_sums_.chunk(place);
  const int64_t* const carries = integer_sums_.carries(place);
  for (uint64_t i = 0; i < n; ++i) {
    const uint64_t before = load_element(t.reference, first + i, t.elem_bytes);
    const int128 base = integer_value(before, t.elem_bytes, is_signed_[member.ordinal]);
    const int128 sum = sums != nullptr ? sums[place % kChunkElems + i] : 0;
    const int64_t carry = carries != nullptr ? carries[place % kChunkElems + i] : 0;
    const uint64_t mean = integer_mean(base, carry, sum, integer_weight_);
    std::memcpy(static_cast<uint8_t*>(out) + (first + i) * t.elem_bytes, &mean, t.elem_bytes);
  }
}

}  // namespace resfed
