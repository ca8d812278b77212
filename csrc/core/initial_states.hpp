#pragma once
#include <array>
#include "core/context.hpp"
#include "core/probability.hpp"
namespace resfed {
template <unsigned N> constexpr std::array<InitialState, N> flat_states() { std::array<InitialState, N> a{}; for (auto& s : a) s = {128, 0}; return a; }
inline constexpr auto kFlatSlice = flat_states<kSliceContexts>();
inline constexpr auto kFlatLossless = flat_states<kLosslessContexts>();
inline constexpr const InitialState* kInitialSliceStates = kFlatSlice.data();
inline constexpr const InitialState* kInitialLosslessStates = kFlatLossless.data();
}
