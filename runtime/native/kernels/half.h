// float16, where no instruction turns it into a float.
#pragma once

#include <cstdint>

namespace ferryman::kernels {
namespace {

// As if the exponent had the same bias, then scaled by the difference; infinities and NaNs have one exponent, whatever
// the width.
inline float float_of_half(uint16_t half) {
  constexpr float kBias = 0x1p112f;
  constexpr uint32_t kInfinity = 255u << 23;
  uint32_t bits = (half & 0x7fffu) << 13;
  float magnitude;
  __builtin_memcpy(&magnitude, &bits, sizeof bits);
  magnitude *= kBias;
  __builtin_memcpy(&bits, &magnitude, sizeof bits);
  bits |= (magnitude >= 0x1p16f ? kInfinity : 0) | (half & 0x8000u) << 16;
  __builtin_memcpy(&magnitude, &bits, sizeof bits);
  return magnitude;
}

} // namespace
} // namespace ferryman::kernels
