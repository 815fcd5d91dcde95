// NEON of 64-bit Arm, which every such processor has.
#include <arm_neon.h>

#include "isa.h"

namespace ferryman::kernels {
namespace {

constexpr size_t kPixels = 3;
constexpr size_t kBlocks = 1;
constexpr size_t kDepth = 31;  // a byte of differences counts up to 8 a word

struct Words {
  uint32x4_t part[4];
};
struct Counts {  // a byte each, four to a lane
  uint8x16_t part[4];
};
struct Floats {
  float32x4_t part[4];
};

inline Words load(const uint32_t* from) {
  return {{vld1q_u32(from), vld1q_u32(from + 4), vld1q_u32(from + 8), vld1q_u32(from + 12)}};
}

inline Words splat(uint32_t word) {
  const uint32x4_t all = vdupq_n_u32(word);
  return {{all, all, all, all}};
}

inline Counts zero() {
  const uint8x16_t none = vdupq_n_u8(0);
  return {{none, none, none, none}};
}

inline Words differ(const Words& a, const Words& b) {
  return {{
      veorq_u32(a.part[0], b.part[0]),
      veorq_u32(a.part[1], b.part[1]),
      veorq_u32(a.part[2], b.part[2]),
      veorq_u32(a.part[3], b.part[3]),
  }};
}

inline Words carry(const Words& before, const Words& middle, const Words& after) {
  Words made;
  for (size_t i = 0; i < 4; ++i) {
    made.part[i] = vbslq_u32(middle.part[i], vmvnq_u32(after.part[i]), before.part[i]);
  }
  return made;
}

inline void add_ones(Counts& counts, const Words& words) {
  for (size_t i = 0; i < 4; ++i) {
    counts.part[i] = vaddq_u8(counts.part[i], vcntq_u8(vreinterpretq_u8_u32(words.part[i])));
  }
}

inline void add_masked(Counts& counts, const Words& a, const Words& mask, const Words& b) {
  Words kept;
  for (size_t i = 0; i < 4; ++i) {
    kept.part[i] = vandq_u32(a.part[i], mask.part[i]);
  }
  add_ones(counts, differ(kept, b));
}

inline void flush(int32_t* to, const Counts& counts, int times, bool first) {
  for (size_t i = 0; i < 4; ++i) {
    const int32x4_t once = vreinterpretq_s32_u32(vpaddlq_u16(vpaddlq_u8(counts.part[i])));
    const int32x4_t lanes = times == 2 ? vaddq_s32(once, once) : once;
    vst1q_s32(to + 4 * i, first ? lanes : vaddq_s32(vld1q_s32(to + 4 * i), lanes));
  }
}

inline Floats zero_floats() {
  const float32x4_t none = vdupq_n_f32(0);
  return {{none, none, none, none}};
}

inline Words select(const Words& weights, size_t bit) {
  const uint32x4_t one = vdupq_n_u32(1u << bit);
  return {{
      vtstq_u32(weights.part[0], one),
      vtstq_u32(weights.part[1], one),
      vtstq_u32(weights.part[2], one),
      vtstq_u32(weights.part[3], one),
  }};
}

inline void add_selected(Floats& sums, const Words& selected, float x) {
  const uint32x4_t all = vreinterpretq_u32_f32(vdupq_n_f32(x));
  for (size_t i = 0; i < 4; ++i) {
    sums.part[i] = vaddq_f32(sums.part[i], vreinterpretq_f32_u32(vandq_u32(all, selected.part[i])));
  }
}

inline void store(float* to, const Floats& sums) {
  for (size_t i = 0; i < 4; ++i) {
    vst1q_f32(to + 4 * i, sums.part[i]);
  }
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

} // namespace
} // namespace ferryman::kernels

#include "isa_defaults.h"
#include "isa_impl.h"

namespace ferryman::kernels {
const Isa kNeon = make("neon");
} // namespace ferryman::kernels
