// AVX2, FMA and F16C.
#include <immintrin.h>

#include "isa.h"
#include "isa_sse2.h"

namespace ferryman::kernels {
namespace {

constexpr size_t kPixels = 2;
constexpr size_t kVectors = 2;
constexpr size_t kWidth = 8;
constexpr size_t kDepth = 31;  // a byte of differences counts up to 8 a word

using Words = __m256i;
using Counts = __m256i;  // a byte each, four to a lane
using Floats = __m256;

inline Words load(const uint32_t* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

inline Words splat(uint32_t word) {
  return _mm256_set1_epi32(static_cast<int>(word));
}

inline Counts zero() {
  return _mm256_setzero_si256();
}

inline Words differ(Words a, Words b) {
  return _mm256_xor_si256(a, b);
}

inline Words carry(Words before, Words middle, Words after) {
  return _mm256_or_si256(_mm256_andnot_si256(after, middle), _mm256_andnot_si256(middle, before));
}

inline void add_ones(Counts& counts, Words words) {
  const __m256i of_nibble = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  const __m256i nibble = _mm256_set1_epi8(15);
  const __m256i low = _mm256_shuffle_epi8(of_nibble, _mm256_and_si256(words, nibble));
  const __m256i high = _mm256_shuffle_epi8(of_nibble, _mm256_and_si256(_mm256_srli_epi16(words, 4), nibble));
  counts = _mm256_add_epi8(counts, _mm256_add_epi8(low, high));
}

inline void add_masked(Counts& counts, Words a, Words mask, Words b) {
  add_ones(counts, differ(_mm256_and_si256(a, mask), b));
}

inline void flush(int32_t* to, Counts counts, int times, bool first) {
  auto* const at = reinterpret_cast<__m256i*>(to);
  const __m256i pairs = _mm256_maddubs_epi16(counts, _mm256_set1_epi8(1));
  const __m256i lanes = _mm256_madd_epi16(pairs, _mm256_set1_epi16(static_cast<short>(times)));
  _mm256_storeu_si256(at, first ? lanes : _mm256_add_epi32(_mm256_loadu_si256(at), lanes));
}

inline Floats zero_floats() {
  return _mm256_setzero_ps();
}

inline Words select(Words weights, size_t bit) {
  const __m256i one = _mm256_set1_epi32(1 << bit);
  return _mm256_cmpeq_epi32(_mm256_and_si256(weights, one), one);
}

inline void add_selected(Floats& sums, Words selected, float x) {
  sums = _mm256_add_ps(sums, _mm256_and_ps(_mm256_set1_ps(x), _mm256_castsi256_ps(selected)));
}

inline void store(float* to, Floats sums) {
  _mm256_storeu_ps(to, sums);
}

inline uint32_t signs(const float* x) {
  uint32_t word = 0;
  for (size_t i = 0; i < 4; ++i) {
    const __m256 positive = _mm256_cmp_ps(_mm256_loadu_ps(x + 8 * i), _mm256_setzero_ps(), _CMP_GE_OQ);
    word |= static_cast<uint32_t>(_mm256_movemask_ps(positive)) << (8 * i);
  }
  return word;
}

inline uint32_t at_least(const int32_t* counts, const int32_t* base, const int32_t* threshold) {
  uint32_t word = 0;
  for (size_t i = 0; i < 4; ++i) {
    const auto at = [i](const int32_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from) + i); };
    const __m256i dot = _mm256_sub_epi32(at(base), _mm256_slli_epi32(at(counts), 1));
    const __m256i less = _mm256_cmpgt_epi32(at(threshold), dot);
    word |= static_cast<uint32_t>(~_mm256_movemask_ps(_mm256_castsi256_ps(less)) & 0xff) << (8 * i);
  }
  return word;
}

inline Floats load_floats(const float* from) {
  return _mm256_loadu_ps(from);
}

inline Floats scaled(const int32_t* counts, const int32_t* base, Floats scale, Floats bias) {
  const auto at = [](const int32_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); };
  const __m256i dot = _mm256_sub_epi32(at(base), _mm256_slli_epi32(at(counts), 1));
  return _mm256_add_ps(_mm256_mul_ps(scale, _mm256_cvtepi32_ps(dot)), bias);
}

inline void transpose8(const float* in, size_t in_stride, float* out, size_t out_stride) {
  __m256 rows[8], turned[8];
  for (size_t i = 0; i < 8; ++i) {
    rows[i] = _mm256_loadu_ps(in + i * in_stride);
  }
  for (size_t i = 0; i < 8; i += 2) {
    turned[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    turned[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
  for (size_t i = 0; i < 8; i += 4) {
    rows[i] = _mm256_shuffle_ps(turned[i], turned[i + 2], 0x44);
    rows[i + 1] = _mm256_shuffle_ps(turned[i], turned[i + 2], 0xee);
    rows[i + 2] = _mm256_shuffle_ps(turned[i + 1], turned[i + 3], 0x44);
    rows[i + 3] = _mm256_shuffle_ps(turned[i + 1], turned[i + 3], 0xee);
  }
  for (size_t i = 0; i < 4; ++i) {
    _mm256_storeu_ps(out + i * out_stride, _mm256_permute2f128_ps(rows[i], rows[i + 4], 0x20));
    _mm256_storeu_ps(out + (i + 4) * out_stride, _mm256_permute2f128_ps(rows[i], rows[i + 4], 0x31));
  }
}

inline void transpose16(const float* in, size_t in_stride, float* out, size_t out_stride) {
  for (size_t r = 0; r < 16; r += 8) {
    for (size_t c = 0; c < 16; c += 8) {
      transpose8(in + r * in_stride + c, in_stride, out + c * out_stride + r, out_stride);
    }
  }
}

constexpr size_t kDotPixels = 4;
constexpr size_t kDotVectors = 2;
constexpr size_t kGroupRows = 2;
constexpr size_t kRowVectors = 8;
constexpr int32_t kDotBias = 128;  // what is multiplied with signed weights is unsigned
constexpr int32_t kColumnBias = 0;

using Bytes = __m256i;
using Quad = __m256i;
using Dots = __m256i;

inline Dots zero_dots() {
  return _mm256_setzero_si256();
}

inline Bytes load_bytes(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}

template <int kBits>
inline Bytes next_bits(Bytes packed) {
  return _mm256_srli_epi16(packed, kBits);
}

template <int kBits>
inline Bytes low_bits(Bytes packed) {
  return kBits == 8 ? packed : _mm256_and_si256(packed, _mm256_set1_epi8((1 << kBits % 8) - 1));
}

template <int kBits>
constexpr int32_t kTaken = 0;

inline Quad spread(const int8_t* x) {
  int32_t quad;
  __builtin_memcpy(&quad, x, sizeof quad);
  return _mm256_set1_epi32(quad);
}

inline __m256i even(__m256i bytes) {
  return _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8);
}

inline __m256i odd(__m256i bytes) {
  return _mm256_srai_epi16(bytes, 8);
}

// Two products of bytes fit 16 bits only where weights have fewer than 8.
template <int kBits>
inline void add_dots(Dots& dots, Bytes weights, Quad x) {
  if constexpr (kBits == 8) {
    const __m256i even_weights = _mm256_and_si256(weights, _mm256_set1_epi16(255));
    const __m256i odd_weights = _mm256_srli_epi16(weights, 8);
    dots = _mm256_add_epi32(dots, _mm256_madd_epi16(even_weights, even(x)));
    dots = _mm256_add_epi32(dots, _mm256_madd_epi16(odd_weights, odd(x)));
  } else {
    const __m256i pairs = _mm256_maddubs_epi16(weights, x);
    dots = _mm256_add_epi32(dots, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
}

inline Quad with_bias(Quad x) {
  return _mm256_xor_si256(x, _mm256_set1_epi8(-128));
}

template <int kBits, size_t kJ>
inline Bytes weights_of(Bytes packed) {
  const Bytes own = low_bits<kBits>(_mm256_srli_epi16(packed, kBits * kJ));
  return _mm256_sub_epi8(own, _mm256_set1_epi8(static_cast<char>(1 << (kBits - 1))));
}

// Products of an unsigned byte and a signed one.
template <int kBits>
inline void add_signed(Dots& dots, Bytes weights, Quad x) {
  if constexpr (kBits == 8) {
    const __m256i even_inputs = _mm256_and_si256(x, _mm256_set1_epi16(255));
    const __m256i odd_inputs = _mm256_srli_epi16(x, 8);
    dots = _mm256_add_epi32(dots, _mm256_madd_epi16(even_inputs, even(weights)));
    dots = _mm256_add_epi32(dots, _mm256_madd_epi16(odd_inputs, odd(weights)));
  } else {
    const __m256i pairs = _mm256_maddubs_epi16(x, weights);
    dots = _mm256_add_epi32(dots, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
}

inline void add_products(Dots& dots, Bytes columns, Bytes weights) {
  dots = _mm256_add_epi32(dots, _mm256_madd_epi16(even(columns), even(weights)));
  dots = _mm256_add_epi32(dots, _mm256_madd_epi16(odd(columns), odd(weights)));
}

inline void store_dots(int32_t* to, Dots dots) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), dots);
}

inline Floats less_products(Dots dots, int32_t less) {
  return _mm256_cvtepi32_ps(_mm256_sub_epi32(dots, _mm256_set1_epi32(less)));
}

inline Floats less_products(Dots dots, const uint8_t* zero, int32_t taken, int32_t sum) {
  const __m256i stored = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(zero)));
  const __m256i less = _mm256_sub_epi32(stored, _mm256_set1_epi32(taken));
  return _mm256_cvtepi32_ps(_mm256_sub_epi32(dots, _mm256_mullo_epi32(less, _mm256_set1_epi32(sum))));
}

inline Floats load_halves(const uint16_t* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

inline Floats splat_float(float x) {
  return _mm256_set1_ps(x);
}

inline Floats sum_floats(const int32_t* a, const int32_t* b) {
  const auto at = [](const int32_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); };
  return _mm256_cvtepi32_ps(_mm256_add_epi32(at(a), at(b)));
}

inline Floats centred(const int8_t* from, int32_t zero) {
  const __m256i bytes = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  return _mm256_cvtepi32_ps(_mm256_sub_epi32(bytes, _mm256_set1_epi32(zero)));
}

inline void store_bytes(int8_t* to, Floats x, const Rounding& r) {
  const __m256 y = _mm256_min_ps(_mm256_max_ps(x * r.inverse, _mm256_set1_ps(r.low)), _mm256_set1_ps(r.high));
  const __m256i whole = _mm256_add_epi32(_mm256_cvtps_epi32(y), _mm256_set1_epi32(r.zero));
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(words, words));
}

constexpr size_t kSparseVectors = 12;
constexpr size_t kSparseChains = 8;

inline Floats fused(Floats a, Floats b, Floats c) {
  return _mm256_fmadd_ps(a, b, c);
}

inline Floats multiplied(Floats a, Floats b, Floats c) {
  return fused(a, b, c);
}

inline Floats load_even(const float* from) {
  // The last one that is wanted is the second one's last but one: that is loaded from one before.
  const __m256 low = _mm256_loadu_ps(from), high = _mm256_loadu_ps(from + 7);
  const __m256 mixed = _mm256_blend_ps(_mm256_permutevar8x32_ps(low, _mm256_setr_epi32(0, 2, 4, 6, 0, 0, 0, 0)),
                                       _mm256_permutevar8x32_ps(high, _mm256_setr_epi32(0, 0, 0, 0, 1, 3, 5, 7)), 0xf0);
  return mixed;
}

inline Floats clip(Floats x, Floats low, Floats high) {
  return _mm256_min_ps(high, _mm256_max_ps(low, x));
}

inline Bytes splat_bytes(uint32_t four) {
  return _mm256_set1_epi32(static_cast<int>(four));
}

} // namespace
} // namespace ferryman::kernels

#include "isa_defaults.h"
#include "isa_impl.h"

namespace ferryman::kernels {
const Isa kAvx2 = make("avx2");
} // namespace ferryman::kernels
