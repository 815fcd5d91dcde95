// Of single floats, the same as a lane of a vector.
#pragma once

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

inline float clip_one(float x, float low, float high) {
  const float above = low > x ? low : x;
  return high < above ? high : above;
}

} // namespace
} // namespace ferryman::kernels
