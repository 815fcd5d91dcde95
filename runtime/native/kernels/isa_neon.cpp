// NEON of 64-bit Arm, built twice: with the dot products of bytes that newer processors have, and without.
#include <arm_neon.h>

#include "isa.h"

namespace ferryman::kernels {
namespace {

constexpr size_t kPixels = 2;
constexpr size_t kVectors = 4;
constexpr size_t kWidth = 4;
constexpr size_t kDepth = 31;  // a byte of differences counts up to 8 a word

using Words = uint32x4_t;
using Counts = uint8x16_t;  // a byte each, four to a lane
using Floats = float32x4_t;

inline Words load(const uint32_t* from) {
  return vld1q_u32(from);
}

inline Words splat(uint32_t word) {
  return vdupq_n_u32(word);
}

inline Counts zero() {
  return vdupq_n_u8(0);
}

inline Words differ(Words a, Words b) {
  return veorq_u32(a, b);
}

inline Words carry(Words before, Words middle, Words after) {
  return vbslq_u32(middle, vmvnq_u32(after), before);
}

inline void add_ones(Counts& counts, Words words) {
  counts = vaddq_u8(counts, vcntq_u8(vreinterpretq_u8_u32(words)));
}

inline void add_masked(Counts& counts, Words a, Words mask, Words b) {
  add_ones(counts, differ(vandq_u32(a, mask), b));
}

inline void flush(int32_t* to, Counts counts, int times, bool first) {
  const int32x4_t once = vreinterpretq_s32_u32(vpaddlq_u16(vpaddlq_u8(counts)));
  const int32x4_t lanes = times == 2 ? vaddq_s32(once, once) : once;
  vst1q_s32(to, first ? lanes : vaddq_s32(vld1q_s32(to), lanes));
}

inline Floats zero_floats() {
  return vdupq_n_f32(0);
}

inline Words select(Words weights, size_t bit) {
  return vtstq_u32(weights, vdupq_n_u32(1u << bit));
}

inline void add_selected(Floats& sums, Words selected, float x) {
  const uint32x4_t all = vreinterpretq_u32_f32(vdupq_n_f32(x));
  sums = vaddq_f32(sums, vreinterpretq_f32_u32(vandq_u32(all, selected)));
}

inline void store(float* to, Floats sums) {
  vst1q_f32(to, sums);
}

// Four lanes of all ones or none -> their bits, at `shift`.
inline uint32_t bits(uint32x4_t lanes, size_t shift) {
  const uint32x4_t weight = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(lanes, weight)) << shift;
}

inline uint32_t signs(const float* x) {
  uint32_t word = 0;
  for (size_t i = 0; i < kWordBits; i += 4) {
    word |= bits(vcgezq_f32(vld1q_f32(x + i)), i);
  }
  return word;
}

inline uint32_t at_least(const int32_t* counts, const int32_t* base, const int32_t* threshold) {
  uint32_t word = 0;
  for (size_t i = 0; i < kWordBits; i += 4) {
    const int32x4_t dot = vsubq_s32(vld1q_s32(base + i), vshlq_n_s32(vld1q_s32(counts + i), 1));
    word |= bits(vcgeq_s32(dot, vld1q_s32(threshold + i)), i);
  }
  return word;
}

inline Floats load_floats(const float* from) {
  return vld1q_f32(from);
}

inline Floats scaled(const int32_t* counts, const int32_t* base, Floats scale, Floats bias) {
  const int32x4_t dot = vsubq_s32(vld1q_s32(base), vshlq_n_s32(vld1q_s32(counts), 1));
  return vaddq_f32(vmulq_f32(scale, vcvtq_f32_s32(dot)), bias);
}

inline void transpose16(const float* in, size_t in_stride, float* out, size_t out_stride) {
  for (size_t r = 0; r < 16; r += 4) {
    for (size_t c = 0; c < 16; c += 4) {
      const float* from = in + r * in_stride + c;
      const float32x4x2_t low = vtrnq_f32(vld1q_f32(from), vld1q_f32(from + in_stride));
      const float32x4x2_t high = vtrnq_f32(vld1q_f32(from + 2 * in_stride), vld1q_f32(from + 3 * in_stride));
      for (size_t i = 0; i < 2; ++i) {
        float* to = out + (c + i) * out_stride + r;
        vst1q_f32(to, vcombine_f32(vget_low_f32(low.val[i]), vget_low_f32(high.val[i])));
        vst1q_f32(to + 2 * out_stride, vcombine_f32(vget_high_f32(low.val[i]), vget_high_f32(high.val[i])));
      }
    }
  }
}

constexpr size_t kDotPixels = 4;
constexpr size_t kDotVectors = 4;
constexpr size_t kGroupRows = 2;
constexpr size_t kRowVectors = kDotVectors;
constexpr int32_t kDotBias = 0;
constexpr int32_t kColumnBias = 0;

using Bytes = uint8x16_t;
using Quad = int8x16_t;

inline Bytes load_bytes(const void* from) {
  return vld1q_u8(static_cast<const uint8_t*>(from));
}

template <int kBits>
inline Bytes next_bits(Bytes packed) {
  return vshrq_n_u8(packed, kBits);
}

// Weights are multiplied as signed bytes, to which those of 8 bits are brought first.
template <int kBits>
constexpr int32_t kTaken = kBits == 8 ? 128 : 0;

template <int kBits>
inline Bytes low_bits(Bytes packed) {
  return kBits == 8 ? veorq_u8(packed, vdupq_n_u8(128)) : vandq_u8(packed, vdupq_n_u8((1 << kBits % 8) - 1));
}

inline Quad spread(const int8_t* x) {
  int32_t quad;
  __builtin_memcpy(&quad, x, sizeof quad);
  return vreinterpretq_s8_s32(vdupq_n_s32(quad));
}

inline void interleave16(const int8_t* a, const int8_t* b, const int8_t* c, const int8_t* d, uint8_t* out) {
  const int8x16x4_t four = {{vld1q_s8(a), vld1q_s8(b), vld1q_s8(c), vld1q_s8(d)}};
  vst4q_s8(reinterpret_cast<int8_t*>(out), four);  // a macro, for clang: no commas of braces
}

#ifdef __ARM_FEATURE_DOTPROD
using Dots = int32x4_t;

inline Dots zero_dots() {
  return vdupq_n_s32(0);
}

inline void add_products(Dots& dots, Bytes columns, Bytes weights) {
  dots = vdotq_s32(dots, vreinterpretq_s8_u8(columns), vreinterpretq_s8_u8(weights));
}

inline int32x4_t sums_of(Dots dots) {
  return dots;
}
#else
using Dots = int32x4x2_t;  // two sums to a lane

inline Dots zero_dots() {
  return {{vdupq_n_s32(0), vdupq_n_s32(0)}};
}

inline void add_products(Dots& dots, Bytes columns, Bytes weights) {
  const int8x16_t a = vreinterpretq_s8_u8(columns);
  const int8x16_t b = vreinterpretq_s8_u8(weights);
  dots.val[0] = vpadalq_s16(dots.val[0], vmull_s8(vget_low_s8(a), vget_low_s8(b)));
  dots.val[1] = vpadalq_s16(dots.val[1], vmull_high_s8(a, b));
}

inline int32x4_t sums_of(const Dots& dots) {
  return vpaddq_s32(dots.val[0], dots.val[1]);
}
#endif

inline void store_dots(int32_t* to, const Dots& dots) {
  vst1q_s32(to, sums_of(dots));
}

template <int kBits>
inline void add_dots(Dots& dots, Bytes weights, Quad x) {
  add_products(dots, vreinterpretq_u8_s8(x), weights);
}

inline Quad with_bias(Quad x) {
  return x;
}

template <int kBits, size_t kJ>
inline Bytes weights_of(Bytes packed) {
  constexpr uint8_t kSigns = kBits == 8 ? 0x80 : kBits == 4 ? 0x88 : 0xaa;
  const Bytes turned = veorq_u8(packed, vdupq_n_u8(kSigns));  // once for all in a byte
  const int8x16_t raised = vreinterpretq_s8_u8(vshlq_n_u8(turned, 8 - kBits * (kJ + 1)));
  return vreinterpretq_u8_s8(kBits == 8 ? raised : vshrq_n_s8(raised, 8 - kBits % 8));
}

template <int kBits>
inline void add_signed(Dots& dots, Bytes weights, Quad x) {
  add_products(dots, vreinterpretq_u8_s8(x), weights);
}

inline Floats less_products(const Dots& dots, int32_t less) {
  return vcvtq_f32_s32(vsubq_s32(sums_of(dots), vdupq_n_s32(less)));
}

inline int32x4_t four(const void* bytes) {
  int32_t lanes;
  __builtin_memcpy(&lanes, bytes, sizeof lanes);
  return vdupq_n_s32(lanes);
}

inline Floats less_products(const Dots& dots, const uint8_t* zero, int32_t taken, int32_t sum) {
  const uint16x8_t stored = vmovl_u8(vget_low_u8(vreinterpretq_u8_s32(four(zero))));
  const int32x4_t less = vsubq_s32(vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(stored))), vdupq_n_s32(taken));
  return vcvtq_f32_s32(vmlsq_s32(sums_of(dots), less, vdupq_n_s32(sum)));
}

inline Floats load_halves(const uint16_t* from) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from)));
}

inline Floats splat_float(float x) {
  return vdupq_n_f32(x);
}

inline Floats sum_floats(const int32_t* a, const int32_t* b) {
  return vcvtq_f32_s32(vaddq_s32(vld1q_s32(a), vld1q_s32(b)));
}

inline Floats centred(const int8_t* from, int32_t zero) {
  const int16x8_t bytes = vmovl_s8(vget_low_s8(vreinterpretq_s8_s32(four(from))));
  return vcvtq_f32_s32(vsubq_s32(vmovl_s16(vget_low_s16(bytes)), vdupq_n_s32(zero)));
}

inline void store_bytes(int8_t* to, Floats x, const Rounding& r) {
  const float32x4_t y = vminnmq_f32(vmaxnmq_f32(x * r.inverse, vdupq_n_f32(r.low)), vdupq_n_f32(r.high));
  const int16x4_t whole = vmovn_s32(vaddq_s32(vcvtnq_s32_f32(y), vdupq_n_s32(r.zero)));
  const int8x8_t bytes = vmovn_s16(vcombine_s16(whole, whole));
  __builtin_memcpy(to, &bytes, 4);
}

constexpr size_t kSparseVectors = 16;
constexpr size_t kSparseChains = 8;

inline Floats fused(Floats a, Floats b, Floats c) {
  return vfmaq_f32(c, a, b);
}

inline Floats multiplied(Floats a, Floats b, Floats c) {
  return fused(a, b, c);
}

inline Floats load_even(const float* from) {
  return vuzp1q_f32(vld1q_f32(from), vextq_f32(vld1q_f32(from + 3), vdupq_n_f32(0), 1));
}

inline Floats clip(Floats x, Floats low, Floats high) {
  const Floats above = vbslq_f32(vcgtq_f32(low, x), low, x);
  return vbslq_f32(vcltq_f32(high, above), high, above);
}

inline Bytes splat_bytes(uint32_t four) {
  return vreinterpretq_u8_u32(vdupq_n_u32(four));
}

} // namespace
} // namespace ferryman::kernels

#include "isa_defaults.h"
#include "isa_impl.h"

namespace ferryman::kernels {
#ifdef __ARM_FEATURE_DOTPROD
const Isa kNeonDot = make("neon_dot");
#else
const Isa kNeon = make("neon");
#endif
} // namespace ferryman::kernels
