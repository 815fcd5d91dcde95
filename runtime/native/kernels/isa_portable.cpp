// Plain C++, built twice: `x86_64` with the vectors that every x86-64 processor has, `scalar` with none. Dot products of
// bytes, which no compiler finds in it, are written out for the former.
#include "half.h"
#include "isa.h"
#include "isa_scalar.h"

#if defined(__SSE2__) && !defined(FERRYMAN_SCALAR)
#include "isa_sse2.h"
#endif

namespace ferryman::kernels {
namespace {

constexpr size_t kPixels = 1;
constexpr size_t kVectors = 1;
constexpr size_t kWidth = kLanes;
constexpr size_t kDepth = SIZE_MAX;

struct Words {
  uint32_t lane[kLanes];
};
struct Counts {
  uint32_t lane[kLanes];
};
struct Floats {
  float lane[kLanes];
};

inline Words load(const uint32_t* from) {
  Words words;
  for (size_t i = 0; i < kLanes; ++i) {
    words.lane[i] = from[i];
  }
  return words;
}

inline Words splat(uint32_t word) {
  Words words;
  for (size_t i = 0; i < kLanes; ++i) {
    words.lane[i] = word;
  }
  return words;
}

inline Counts zero() {
  return {};
}

inline Words differ(const Words& a, const Words& b) {
  Words made;
  for (size_t i = 0; i < kLanes; ++i) {
    made.lane[i] = a.lane[i] ^ b.lane[i];
  }
  return made;
}

inline Words carry(const Words& before, const Words& middle, const Words& after) {
  Words made;
  for (size_t i = 0; i < kLanes; ++i) {
    made.lane[i] = (middle.lane[i] & ~after.lane[i]) | (before.lane[i] & ~middle.lane[i]);
  }
  return made;
}

inline void add_ones(Counts& counts, const Words& words) {
  for (size_t i = 0; i < kLanes; ++i) {
    uint32_t x = words.lane[i];
    x -= (x >> 1) & 0x55555555;
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333);
    x = (x + (x >> 4)) & 0x0f0f0f0f;
    x += x >> 8;
    counts.lane[i] += (x + (x >> 16)) & 63;
  }
}

inline void add_masked(Counts& counts, const Words& a, const Words& mask, const Words& b) {
  Words kept;
  for (size_t i = 0; i < kLanes; ++i) {
    kept.lane[i] = a.lane[i] & mask.lane[i];
  }
  add_ones(counts, differ(kept, b));
}

inline void flush(int32_t* to, const Counts& counts, int times, bool first) {
  for (size_t i = 0; i < kLanes; ++i) {
    to[i] = (first ? 0 : to[i]) + times * static_cast<int32_t>(counts.lane[i]);
  }
}

inline Floats zero_floats() {
  return {};
}

inline Words select(const Words& weights, size_t bit) {
  Words selected;
  for (size_t i = 0; i < kLanes; ++i) {
    selected.lane[i] = 0 - (weights.lane[i] >> bit & 1);
  }
  return selected;
}

inline void add_selected(Floats& sums, const Words& selected, float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  Floats added;
  Words kept;
  for (size_t i = 0; i < kLanes; ++i) {
    kept.lane[i] = selected.lane[i] & bits;
  }
  __builtin_memcpy(&added, &kept, sizeof added);
  for (size_t i = 0; i < kLanes; ++i) {
    sums.lane[i] += added.lane[i];
  }
}

inline void store(float* to, const Floats& sums) {
  for (size_t i = 0; i < kLanes; ++i) {
    to[i] = sums.lane[i];
  }
}

inline uint32_t signs(const float* x) {
  uint32_t word = 0;
  for (size_t i = 0; i < kWordBits; ++i) {
    word |= static_cast<uint32_t>(x[i] >= 0) << i;
  }
  return word;
}

inline uint32_t at_least(const int32_t* counts, const int32_t* base, const int32_t* threshold) {
  uint32_t word = 0;
  for (size_t i = 0; i < kWordBits; ++i) {
    word |= static_cast<uint32_t>(base[i] - 2 * counts[i] >= threshold[i]) << i;
  }
  return word;
}

inline Floats load_floats(const float* from) {
  Floats floats;
  for (size_t i = 0; i < kLanes; ++i) {
    floats.lane[i] = from[i];
  }
  return floats;
}

inline Floats scaled(const int32_t* counts, const int32_t* base, const Floats& scale, const Floats& bias) {
  Floats floats;
  for (size_t i = 0; i < kLanes; ++i) {
    floats.lane[i] = scale.lane[i] * static_cast<float>(base[i] - 2 * counts[i]) + bias.lane[i];
  }
  return floats;
}

inline void transpose16(const float* in, size_t in_stride, float* out, size_t out_stride) {
  for (size_t i = 0; i < kLanes; ++i) {
    for (size_t j = 0; j < kLanes; ++j) {
      out[i * out_stride + j] = in[j * in_stride + i];
    }
  }
}

constexpr int32_t kDotBias = 0;
constexpr int32_t kColumnBias = 0;

template <int kBits>
constexpr int32_t kTaken = 0;

#if defined(__SSE2__) && !defined(FERRYMAN_SCALAR)
constexpr size_t kDotPixels = 2;
constexpr size_t kDotVectors = 1;
constexpr size_t kGroupRows = kDotPixels;
constexpr size_t kRowVectors = kDotVectors;

constexpr size_t kRegisters = kVectorBytes / sizeof(__m128i);

struct Bytes {
  __m128i part[kRegisters];
};
using Quad = __m128i;
using Dots = Bytes;

template <typename Make>
inline Bytes each_part(const Make& make) {
  Bytes made;
  for (size_t i = 0; i < kRegisters; ++i) {
    made.part[i] = make(i);
  }
  return made;
}

inline Dots zero_dots() {
  return each_part([](size_t) { return _mm_setzero_si128(); });
}

inline Bytes load_bytes(const void* from) {
  return each_part([&](size_t i) { return _mm_loadu_si128(static_cast<const __m128i*>(from) + i); });
}

template <int kBits>
inline Bytes next_bits(const Bytes& packed) {
  return each_part([&](size_t i) { return _mm_srli_epi16(packed.part[i], kBits); });
}

template <int kBits>
inline Bytes low_bits(const Bytes& packed) {
  return each_part([&](size_t i) {
    return kBits == 8 ? packed.part[i] : _mm_and_si128(packed.part[i], _mm_set1_epi8((1 << kBits % 8) - 1));
  });
}

inline Quad spread(const int8_t* x) {
  int32_t quad;
  __builtin_memcpy(&quad, x, sizeof quad);
  return _mm_set1_epi32(quad);
}

// The signed bytes at even places, and at odd ones.
inline __m128i even(__m128i bytes) {
  return _mm_srai_epi16(_mm_slli_epi16(bytes, 8), 8);
}

inline __m128i odd(__m128i bytes) {
  return _mm_srai_epi16(bytes, 8);
}

template <int kBits>
inline void add_dots(Dots& dots, const Bytes& weights, Quad x) {
  for (size_t i = 0; i < kRegisters; ++i) {
    const __m128i even_weights = _mm_and_si128(weights.part[i], _mm_set1_epi16(255));
    const __m128i odd_weights = _mm_srli_epi16(weights.part[i], 8);
    const __m128i sum = _mm_add_epi32(_mm_madd_epi16(even_weights, even(x)), _mm_madd_epi16(odd_weights, odd(x)));
    dots.part[i] = _mm_add_epi32(dots.part[i], sum);
  }
}

template <int kBits, size_t kJ>
inline Bytes weights_of(const Bytes& packed) {
  return each_part([&](size_t i) {
    const __m128i own = _mm_srli_epi16(packed.part[i], kBits * kJ);
    const __m128i low = kBits == 8 ? own : _mm_and_si128(own, _mm_set1_epi8((1 << kBits % 8) - 1));
    return _mm_sub_epi8(low, _mm_set1_epi8(static_cast<char>(1 << (kBits - 1))));
  });
}

inline void add_products(Dots& dots, const Bytes& columns, const Bytes& weights) {
  for (size_t i = 0; i < kRegisters; ++i) {
    const __m128i a = columns.part[i];
    const __m128i b = weights.part[i];
    const __m128i sum = _mm_add_epi32(_mm_madd_epi16(even(a), even(b)), _mm_madd_epi16(odd(a), odd(b)));
    dots.part[i] = _mm_add_epi32(dots.part[i], sum);
  }
}

template <int kBits>
inline void add_signed(Dots& dots, const Bytes& weights, Quad x) {
  add_products(dots, each_part([&](size_t) { return x; }), weights);
}

inline void store_dots(int32_t* to, const Dots& dots) {
  for (size_t i = 0; i < kRegisters; ++i) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to) + i, dots.part[i]);
  }
}
#else
constexpr size_t kDotPixels = 1;
constexpr size_t kDotVectors = 1;
constexpr size_t kGroupRows = kDotPixels;
constexpr size_t kRowVectors = kDotVectors;
struct Bytes {
  uint8_t byte[kVectorBytes];
};
struct Quad {
  int8_t byte[4];
};
struct Dots {
  int32_t lane[kLanes];
};

inline Dots zero_dots() {
  return {};
}

inline Bytes load_bytes(const void* from) {
  Bytes bytes;
  __builtin_memcpy(&bytes, from, sizeof bytes);
  return bytes;
}

template <int kBits>
inline Bytes next_bits(Bytes packed) {
  for (size_t i = 0; i < kVectorBytes; ++i) {
    packed.byte[i] = static_cast<uint8_t>(packed.byte[i] >> kBits);
  }
  return packed;
}

template <int kBits>
inline Bytes low_bits(Bytes packed) {
  for (size_t i = 0; i < kVectorBytes; ++i) {
    packed.byte[i] &= (1 << kBits) - 1;
  }
  return packed;
}

inline Quad spread(const int8_t* x) {
  Quad quad;
  __builtin_memcpy(&quad, x, sizeof quad);
  return quad;
}

template <int kBits>
inline void add_dots(Dots& dots, const Bytes& weights, Quad x) {
  for (size_t i = 0; i < kLanes; ++i) {
    for (size_t j = 0; j < 4; ++j) {
      dots.lane[i] += weights.byte[4 * i + j] * x.byte[j];
    }
  }
}

template <int kBits, size_t kJ>
inline Bytes weights_of(Bytes packed) {
  for (size_t i = 0; i < kVectorBytes; ++i) {
    packed.byte[i] = static_cast<uint8_t>((packed.byte[i] >> (kBits * kJ) & ((1 << kBits) - 1)) - (1 << (kBits - 1)));
  }
  return packed;
}

template <int kBits>
inline void add_signed(Dots& dots, const Bytes& weights, Quad x) {
  for (size_t i = 0; i < kLanes; ++i) {
    for (size_t j = 0; j < 4; ++j) {
      dots.lane[i] += static_cast<int8_t>(weights.byte[4 * i + j]) * x.byte[j];
    }
  }
}

inline void add_products(Dots& dots, const Bytes& columns, const Bytes& weights) {
  for (size_t i = 0; i < kLanes; ++i) {
    for (size_t j = 0; j < 4; ++j) {
      dots.lane[i] += static_cast<int8_t>(columns.byte[4 * i + j]) * static_cast<int8_t>(weights.byte[4 * i + j]);
    }
  }
}

inline void store_dots(int32_t* to, const Dots& dots) {
  __builtin_memcpy(to, &dots, sizeof dots);
}

inline void interleave16(const int8_t* a, const int8_t* b, const int8_t* c, const int8_t* d, uint8_t* out) {
  const int8_t* const rows[] = {a, b, c, d};
  for (size_t i = 0; i < kVectorBytes; ++i) {
    out[i] = static_cast<uint8_t>(rows[i % 4][i / 4]);
  }
}
#endif

inline Quad with_bias(Quad x) {
  return x;
}

// Floats of what is made for each lane.
template <typename Make>
inline Floats each_lane(const Make& make) {
  Floats made;
#pragma GCC unroll 1  // or it is unrolled before it could be made of vectors
  for (size_t i = 0; i < kLanes; ++i) {
    made.lane[i] = make(i);
  }
  return made;
}

inline Floats operator*(const Floats& a, const Floats& b) {
  return each_lane([&](size_t i) { return a.lane[i] * b.lane[i]; });
}

inline Floats operator+(const Floats& a, const Floats& b) {
  return each_lane([&](size_t i) { return a.lane[i] + b.lane[i]; });
}

inline Floats less_products(const Dots& dots, int32_t less) {
  int32_t sums[kLanes];
  store_dots(sums, dots);
  return each_lane([&](size_t i) { return static_cast<float>(sums[i] - less); });
}

inline Floats less_products(const Dots& dots, const uint8_t* zero, int32_t taken, int32_t sum) {
  int32_t sums[kLanes];
  store_dots(sums, dots);
  return each_lane([&](size_t i) { return static_cast<float>(sums[i] - (zero[i] - taken) * sum); });
}

inline Floats load_halves(const uint16_t* from) {
  return each_lane([&](size_t i) { return float_of_half(from[i]); });
}

inline Floats splat_float(float x) {
  return each_lane([&](size_t) { return x; });
}

inline Floats sum_floats(const int32_t* a, const int32_t* b) {
  return each_lane([&](size_t i) { return static_cast<float>(a[i] + b[i]); });
}

inline Floats centred(const int8_t* from, int32_t zero) {
  return each_lane([&](size_t i) { return static_cast<float>(from[i] - zero); });
}

// A NaN is not above the low end. Adding this constant leaves no room for a fraction, and rounds to even.
inline void store_bytes(int8_t* to, const Floats& x, const Rounding& rounding) {
  constexpr float kNoFraction = 0x1.8p23f;
  const Rounding r = rounding;
  int8_t made[kLanes];
#pragma GCC unroll 1
  for (size_t i = 0; i < kLanes; ++i) {
    float y = x.lane[i] * r.inverse;
    y = y > r.low ? y : r.low;
    y = y < r.high ? y : r.high;
    made[i] = static_cast<int8_t>(r.zero + static_cast<int32_t>(y + kNoFraction - kNoFraction));
  }
  __builtin_memcpy(to, made, sizeof made);
}

constexpr size_t kSparseVectors = 1;
constexpr size_t kSparseChains = 2;

inline Floats fused(const Floats& a, const Floats& b, const Floats& c) {
  return each_lane([&](size_t i) { return fused_one(a.lane[i], b.lane[i], c.lane[i]); });
}

inline Floats multiplied(const Floats& a, const Floats& b, const Floats& c) {
  return each_lane([&](size_t i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
}

inline Floats load_even(const float* from) {
  return each_lane([&](size_t i) { return from[2 * i]; });
}

inline Floats clip(const Floats& x, const Floats& low, const Floats& high) {
  return each_lane([&](size_t i) { return clip_one(x.lane[i], low.lane[i], high.lane[i]); });
}

inline Bytes splat_bytes(uint32_t four) {
  Bytes all;
  for (size_t i = 0; i < kLanes; ++i) {
    __builtin_memcpy(reinterpret_cast<char*>(&all) + 4 * i, &four, sizeof four);
  }
  return all;
}

} // namespace
} // namespace ferryman::kernels

#include "isa_defaults.h"
#include "isa_impl.h"

namespace ferryman::kernels {
#ifdef FERRYMAN_SCALAR
const Isa kScalar = make("scalar");
#else
const Isa kX86_64 = make("x86_64");
#endif
} // namespace ferryman::kernels
