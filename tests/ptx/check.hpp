// Runs the codec on host and device, and compares all that comes of it.
#pragma once

#include <cstdio>
#include <optional>
#include <utility>

#include "cpu/crc32c.hpp"
#include "cpu/decoder.hpp"
#include "cuda/codec.hpp"
#include "cuda/workspace.hpp"
#include "model.hpp"

namespace ptx {

inline bool failed = false;
inline void expect(bool holds, const char* what) {
  if (holds) return;
  std::printf("FAILED: %s\n", what);
  failed = true;
}

inline void* same_place(void* host) { return host; }

using Outcome = std::optional<Failure>;
inline Outcome outcome_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Failure& failure) {
    return failure;
  }
  return std::nullopt;
}
inline bool same(const Outcome& a, const Outcome& b) {
  if (a.has_value() != b.has_value()) return false;
  return !a || (a->code == b->code && a->where == b->where && a->detail == b->detail);
}

inline void for_decoding(std::vector<Tensor>& tensors) {
  for (Tensor& t : tensors) t.current = nullptr, t.feedback = nullptr;
}

// Decodes on host and device and compares the outcome and the memory.
inline Outcome check_decode(const Model& model, const Bytes& payload) {
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
inline Bytes check(const Model& model) {
  std::vector<Memory> host = model.memory;
  OnDevice device(model.memory);
  expect(
      cuda::changed(device.tensors(model), 0, nullptr) == changed(model.tensors(host, same_place)),
      "changed: host and device find the same tensors");
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

inline void seal(Bytes& payload) {
  const size_t n = payload.size() - kChecksumBytes;
  store_le(payload.data() + n, crc32c(payload.data(), n));
}

// Corrupt slices with a valid checksum. Memory after the damage stays unwritten: it holds the data
// of an earlier call, or fresh memory filled with a byte.
inline void forge(const Model& model, Part part) {
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
}  // namespace ptx
