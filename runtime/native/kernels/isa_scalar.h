// Of single floats, the same as a lane of a vector.
#pragma once

#include <cstdint>

namespace ferryman::kernels {
namespace {

// The emulation of a fused multiply-add would be many times as slow.
inline float fused_one(float a, float b, float c) {
#if defined(__FP_FAST_FMAF) || defined(__FMA__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

inline uint64_t ones_of(uint64_t x) {
#if defined(__POPCNT__) || defined(__aarch64__)
  return static_cast<uint64_t>(__builtin_popcountll(x));
#else
  x -= x >> 1 & 0x5555555555555555;
  x = (x & 0x3333333333333333) + (x >> 2 & 0x3333333333333333);
  x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0f;
  return x * 0x0101010101010101 >> 56;
#endif
}

inline float clip_one(float x, float low, float high) {
  const float above = low > x ? low : x;
  return high < above ? high : above;
}

} // namespace
} // namespace ferryman::kernels
