// Functions of float rows, as plain loops that the compiler makes vectors of. Every operation is rounded by itself, so that
// all units agree to the bit.
#include "isa.h"
#include "quantized.h"

namespace ferryman::kernels {
namespace {

constexpr float kLeastPower = -80;  // e to it is nothing beside 1, and a normal number

// e^x for x of kLeastPower to 80: 2^n * e^f with |f| <= ln(2) / 2, the latter by its series.
inline float power(float x) {
  constexpr float kRound = 0x1.8p23f;  // what is added to it becomes a whole number, in the low bits
  constexpr float kLog2E = 0x1.715476p0f;
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // n times the high part is exact
  const float shifted = x * kLog2E + kRound;
  const float n = shifted - kRound;
  const float f = (x - n * kLn2High) - n * kLn2Low;
  float y = f * (1.0f / 720) + 1.0f / 120;
  y = y * f + 1.0f / 24;
  y = y * f + 1.0f / 6;
  y = y * f + 0.5f;
  y = y * f + 1;
  y = y * f + 1;
  uint32_t exponent, bits;
  __builtin_memcpy(&exponent, &shifted, sizeof exponent);
  __builtin_memcpy(&bits, &y, sizeof bits);
  bits += exponent << 23;
  __builtin_memcpy(&y, &bits, sizeof y);
  return y;
}

inline float clipped(float x) {
  const float low = x > kLeastPower ? x : kLeastPower;
  return low < -kLeastPower ? low : -kLeastPower;
}

inline float gelu(float x) {
  const float z = __builtin_fabsf(x) * 0x1.6a09e6p-1f;
  const float t = 1 / (1 + 0.3275911f * z);
  float y = t * 1.061405429f - 1.453152027f;
  y = y * t + 1.421413741f;
  y = y * t - 0.284496736f;
  y = y * t + 0.254829592f;
  const float beyond = y * t * power(clipped(-z * z)) * 0.5f;  // the normal distribution's, beyond |x|
  return x * (x < 0 ? beyond : 1 - beyond);
}

inline float sigmoid_times(float x, float u) {
  return x / (1 + power(clipped(-u)));
}

inline float gelu_tanh(float x) {
  return sigmoid_times(x, 1.5957691216f * (x + 0.044715f * x * x * x));
}

template <typename Function>
inline void each(const float* x, size_t count, float* out, const Function& function) {
  for (size_t i = 0; i < count; ++i) {
    out[i] = function(x[i]);
  }
}

void activate(int32_t kind, const float* x, size_t count, float* out) {
  if (kind == FERRYMAN_GELU) {
    each(x, count, out, gelu);
  } else if (kind == FERRYMAN_GELU_TANH) {
    each(x, count, out, gelu_tanh);
  } else {
    each(x, count, out, [](float one) { return sigmoid_times(one, one); });
  }
}

void softmax(const float* x, size_t count, float* out) {
  float lanes[kLanes];
  each(lanes, kLanes, lanes, [](float) { return -__builtin_inff(); });
  for (size_t i = 0; i < count; i += kLanes) {
    for (size_t lane = 0; lane < (count - i < kLanes ? count - i : kLanes); ++lane) {
      lanes[lane] = lanes[lane] > x[i + lane] ? lanes[lane] : x[i + lane];
    }
  }
  float most = lanes[0];
  for (const float one : lanes) {
    most = most > one ? most : one;
  }
  each(x, count, out, [most](float one) {
    const float below = one - most;
    return below > kLeastPower ? power(clipped(below)) : 0;
  });
  const float total = sum(out, count);
  const float by = total > 0 ? 1 / total : 0;
  each(out, count, out, [by](float one) { return one * by; });
}

void layer_norm(const float* x, size_t count, float epsilon, const float* weight, const float* bias, float* out) {
  const auto size = static_cast<float>(count);
  const float mean = sum(x, count) / size;
  each(x, count, out, [mean](float one) { return (one - mean) * (one - mean); });
  const float by = 1 / __builtin_sqrtf(sum(out, count) / size + epsilon);
  for (size_t i = 0; i < count; ++i) {
    out[i] = (x[i] - mean) * by * weight[i] + bias[i];
  }
}

} // namespace
} // namespace ferryman::kernels
