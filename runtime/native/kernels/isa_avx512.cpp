// FMA, and AVX-512 F, BW, DQ, VL, VPOPCNTDQ and VNNI.
#include <immintrin.h>

#include "isa.h"

namespace ferryman::kernels {
namespace {

constexpr size_t kPixels = 4;
constexpr size_t kVectors = 1;
constexpr size_t kWidth = kLanes;
constexpr size_t kDepth = SIZE_MAX;

using Words = __m512i;
using Counts = __m512i;
using Floats = __m512;

inline Words load(const uint32_t* from) {
  return _mm512_loadu_si512(from);
}

inline Words splat(uint32_t word) {
  return _mm512_set1_epi32(static_cast<int>(word));
}

inline Counts zero() {
  return _mm512_setzero_si512();
}

inline Words differ(Words a, Words b) {
  return _mm512_xor_si512(a, b);
}

inline Words carry(Words before, Words middle, Words after) {
  constexpr int kSelect = 0x5c;  // bit 4 * middle + 2 * before + after; the temporary comes first, and is overwritten
  return _mm512_ternarylogic_epi32(middle, before, after, kSelect);
}

inline void add_ones(Counts& counts, Words words) {
  counts = _mm512_add_epi32(counts, _mm512_popcnt_epi32(words));
}

inline void add_masked(Counts& counts, Words a, Words mask, Words b) {
  constexpr int kAndXor = 0x6a;  // bit 4 * a + 2 * mask + b: (a & mask) ^ b
  counts = _mm512_add_epi32(counts, _mm512_popcnt_epi32(_mm512_ternarylogic_epi32(a, mask, b, kAndXor)));
}

inline void flush(int32_t* to, Counts counts, int times, bool first) {
  const __m512i before = first ? _mm512_setzero_si512() : _mm512_loadu_si512(to);
  _mm512_storeu_si512(to, _mm512_add_epi32(before, times == 2 ? _mm512_slli_epi32(counts, 1) : counts));
}

inline void flush_last(int32_t* to, Counts carries, Words parity, bool first) {
  const __m512i counts = _mm512_add_epi32(_mm512_slli_epi32(carries, 1), _mm512_popcnt_epi32(parity));
  _mm512_storeu_si512(to, first ? counts : _mm512_add_epi32(_mm512_loadu_si512(to), counts));
}

inline void differ_all(uint32_t* to, const uint32_t* from, uint32_t by, size_t count) {
  for (size_t i = 0; i < count; i += kLanes) {
    const auto lanes = static_cast<__mmask16>(count - i < kLanes ? (1u << (count - i)) - 1 : 0xffff);
    _mm512_mask_storeu_epi32(to + i, lanes, _mm512_xor_si512(_mm512_maskz_loadu_epi32(lanes, from + i), splat(by)));
  }
}

inline Floats zero_floats() {
  return _mm512_setzero_ps();
}

inline __mmask16 select(Words weights, size_t bit) {
  return _mm512_test_epi32_mask(weights, _mm512_set1_epi32(1 << bit));
}

inline void add_selected(Floats& sums, __mmask16 selected, float x) {
  sums = _mm512_mask_add_ps(sums, selected, sums, _mm512_set1_ps(x));
}

inline void store(float* to, Floats sums) {
  _mm512_storeu_ps(to, sums);
}

inline uint32_t signs(const float* x) {
  const __m512 zeros = _mm512_setzero_ps();
  const __mmask16 low = _mm512_cmp_ps_mask(_mm512_loadu_ps(x), zeros, _CMP_GE_OQ);
  const __mmask16 high = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + 16), zeros, _CMP_GE_OQ);
  return static_cast<uint32_t>(low) | static_cast<uint32_t>(high) << 16;
}

inline uint32_t at_least(const int32_t* counts, const int32_t* base, const int32_t* threshold) {
  __mmask16 half[2];
  for (size_t i = 0; i < 2; ++i) {
    const __m512i twice = _mm512_slli_epi32(_mm512_loadu_si512(counts + 16 * i), 1);
    const __m512i dot = _mm512_sub_epi32(_mm512_loadu_si512(base + 16 * i), twice);
    half[i] = _mm512_cmpge_epi32_mask(dot, _mm512_loadu_si512(threshold + 16 * i));
  }
  return static_cast<uint32_t>(half[0]) | static_cast<uint32_t>(half[1]) << 16;
}

inline Floats load_floats(const float* from) {
  return _mm512_loadu_ps(from);
}

inline Floats scaled(const int32_t* counts, const int32_t* base, Floats scale, Floats bias) {
  const __m512i dot = _mm512_sub_epi32(_mm512_loadu_si512(base), _mm512_slli_epi32(_mm512_loadu_si512(counts), 1));
  return _mm512_add_ps(_mm512_mul_ps(scale, _mm512_cvtepi32_ps(dot)), bias);
}

inline void signs_across(const float* x, size_t plane, size_t bits, uint32_t* out, size_t out_stride) {
  alignas(64) uint16_t channels[kWordBits] = {};
  for (size_t bit = 0; bit < bits; ++bit) {
    channels[bit] = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + bit * plane), _mm512_setzero_ps(), _CMP_GE_OQ);
  }
  const __m512i all = _mm512_load_si512(channels);
  for (size_t pixel = 0; pixel < kLanes; ++pixel) {
    out[pixel * out_stride] = _mm512_test_epi16_mask(all, _mm512_set1_epi16(static_cast<int16_t>(1 << pixel)));
  }
}

inline void transpose16(const float* in, size_t in_stride, float* out, size_t out_stride) {
  __m512 rows[16], turned[16];
  for (size_t i = 0; i < 16; ++i) {
    rows[i] = _mm512_loadu_ps(in + i * in_stride);
  }
  for (size_t i = 0; i < 16; i += 2) {  // pairs of rows
    turned[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
    turned[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
  }
  for (size_t i = 0; i < 16; i += 4) {  // 4 x 4 within each 128 bits
    rows[i] = _mm512_shuffle_ps(turned[i], turned[i + 2], 0x44);
    rows[i + 1] = _mm512_shuffle_ps(turned[i], turned[i + 2], 0xee);
    rows[i + 2] = _mm512_shuffle_ps(turned[i + 1], turned[i + 3], 0x44);
    rows[i + 3] = _mm512_shuffle_ps(turned[i + 1], turned[i + 3], 0xee);
  }
  for (size_t i = 0; i < 4; ++i) {  // quarters of 128 bits
    const __m512 a = _mm512_shuffle_f32x4(rows[i], rows[i + 4], 0x88);
    const __m512 b = _mm512_shuffle_f32x4(rows[i], rows[i + 4], 0xdd);
    const __m512 c = _mm512_shuffle_f32x4(rows[i + 8], rows[i + 12], 0x88);
    const __m512 d = _mm512_shuffle_f32x4(rows[i + 8], rows[i + 12], 0xdd);
    turned[i] = _mm512_shuffle_f32x4(a, c, 0x88);
    turned[i + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
    turned[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
    turned[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
  for (size_t i = 0; i < 16; ++i) {
    _mm512_storeu_ps(out + i * out_stride, turned[i]);
  }
}

#ifdef __SANITIZE_ADDRESS__
constexpr size_t kDotPixels = 2;  // of eight, compilers take many minutes to instrument the tiles
#else
constexpr size_t kDotPixels = 8;
#endif
constexpr size_t kDotVectors = 2;
constexpr size_t kGroupRows = 4;
constexpr size_t kRowVectors = 4;
constexpr int32_t kDotBias = 128;  // what is multiplied with signed weights is unsigned
constexpr int32_t kColumnBias = 128;

using Bytes = __m512i;
using Quad = __m512i;
using Dots = __m512i;

inline Dots zero_dots() {
  return _mm512_setzero_si512();
}

inline Bytes load_bytes(const void* from) {
  return _mm512_loadu_si512(from);
}

template <int kBits>
inline Bytes next_bits(Bytes packed) {
  return _mm512_srli_epi16(packed, kBits);
}

template <int kBits>
inline Bytes low_bits(Bytes packed) {
  return kBits == 8 ? packed : _mm512_and_si512(packed, _mm512_set1_epi8((1 << kBits % 8) - 1));
}

template <int kBits>
constexpr int32_t kTaken = 0;

inline Quad spread(const int8_t* x) {
  int32_t quad;
  __builtin_memcpy(&quad, x, sizeof quad);
  return _mm512_set1_epi32(quad);
}

template <int kBits>
inline void add_dots(Dots& dots, Bytes weights, Quad x) {
  dots = _mm512_dpbusd_epi32(dots, weights, x);
}

inline Quad with_bias(Quad x) {
  return _mm512_xor_si512(x, _mm512_set1_epi8(-128));
}

template <int kBits, size_t kJ>
inline Bytes weights_of(Bytes packed) {
  const Bytes own = low_bits<kBits>(_mm512_srli_epi16(packed, kBits * kJ));
  return _mm512_sub_epi8(own, _mm512_set1_epi8(static_cast<char>(1 << (kBits - 1))));
}

template <int kBits>
inline void add_signed(Dots& dots, Bytes weights, Quad x) {
  dots = _mm512_dpbusd_epi32(dots, x, weights);
}

inline void interleave16(const int8_t* a, const int8_t* b, const int8_t* c, const int8_t* d, uint8_t* out) {
  const auto at = [](const int8_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); };
  const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(at(a)), at(b), 1);
  const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(at(c)), at(d), 1);
  const __m512i all = _mm512_xor_si512(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1), _mm512_set1_epi8(-128));
  const __m512i fours = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m128i across = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i turned = _mm512_shuffle_epi8(_mm512_permutexvar_epi32(fours, all), _mm512_broadcast_i32x4(across));
  _mm512_storeu_si512(out, turned);
}

inline void add_products(Dots& dots, Bytes columns, Bytes weights) {
  dots = _mm512_dpbusd_epi32(dots, columns, weights);
}

inline void store_dots(int32_t* to, Dots dots) {
  _mm512_storeu_si512(to, dots);
}

inline int32_t sum_bytes(const int8_t* x, size_t count) {
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i sums = _mm512_setzero_si512();
  size_t i = 0;
  for (; i + kVectorBytes <= count; i += kVectorBytes) {
    sums = _mm512_dpbusd_epi32(sums, ones, _mm512_loadu_si512(x + i));
  }
  if (i < count) {
    sums = _mm512_dpbusd_epi32(sums, ones, _mm512_maskz_loadu_epi8(~0ull >> (kVectorBytes - (count - i)), x + i));
  }
  return _mm512_reduce_add_epi32(sums);
}

inline Floats less_products(Dots dots, int32_t less) {
  return _mm512_cvtepi32_ps(_mm512_sub_epi32(dots, _mm512_set1_epi32(less)));
}

inline Floats less_products(Dots dots, const uint8_t* zero, int32_t taken, int32_t sum) {
  const __m512i stored = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(zero)));
  const __m512i less = _mm512_sub_epi32(stored, _mm512_set1_epi32(taken));
  return _mm512_cvtepi32_ps(_mm512_sub_epi32(dots, _mm512_mullo_epi32(less, _mm512_set1_epi32(sum))));
}

inline Floats load_halves(const uint16_t* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

inline Floats splat_float(float x) {
  return _mm512_set1_ps(x);
}

inline Floats sum_floats(const int32_t* a, const int32_t* b) {
  return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_loadu_si512(a), _mm512_loadu_si512(b)));
}

inline Floats centred(const int8_t* from, int32_t zero) {
  const __m512i bytes = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  return _mm512_cvtepi32_ps(_mm512_sub_epi32(bytes, _mm512_set1_epi32(zero)));
}

inline void store_bytes(int8_t* to, Floats x, const Rounding& r) {
  const __m512 y = _mm512_min_ps(_mm512_max_ps(x * r.inverse, _mm512_set1_ps(r.low)), _mm512_set1_ps(r.high));
  const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(y));  // modulo 256, until the zero is added
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_add_epi8(bytes, _mm_set1_epi8(static_cast<char>(r.zero))));
}

constexpr size_t kSparseVectors = 16;
constexpr size_t kSparseChains = 8;

inline Floats fused(Floats a, Floats b, Floats c) {
  return _mm512_fmadd_ps(a, b, c);
}

inline Floats multiplied(Floats a, Floats b, Floats c) {
  return fused(a, b, c);
}

inline Floats clip(Floats x, Floats low, Floats high) {
  return _mm512_min_ps(high, _mm512_max_ps(low, x));
}

using HalfFloats = __m256;

inline HalfFloats fused(HalfFloats a, HalfFloats b, HalfFloats c) {
  return _mm256_fmadd_ps(a, b, c);
}

template <typename Part>
inline Part part_of(Floats x) {
  if constexpr (sizeof(Part) == sizeof(Floats)) {
    return x;
  } else {
    return _mm512_castps512_ps256(x);
  }
}

template <typename Part>
inline Part load_part(const float* from) {
  if constexpr (sizeof(Part) == sizeof(Floats)) {
    return _mm512_loadu_ps(from);
  } else {
    return _mm256_loadu_ps(from);
  }
}

inline Floats whole_of(Floats x) {
  return x;
}

inline Floats whole_of(HalfFloats x) {
  return _mm512_zextps256_ps512(x);
}

inline __mmask16 first(size_t count) {
  return static_cast<__mmask16>((1u << count) - 1);
}

inline Floats load_some(const float* from, size_t count) {
  return _mm512_maskz_loadu_ps(first(count), from);
}

inline Floats load_some_even(const float* from, size_t count) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const auto there = static_cast<uint32_t>((1ull << (2 * count - 1)) - 1);
  const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(there), from);
  const __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(there >> kWidth), from + kWidth);
  return _mm512_permutex2var_ps(low, even, high);
}

inline Floats load_even(const float* from) {
  return load_some_even(from, kWidth);
}

inline void store_some(float* to, Floats x, size_t count) {
  _mm512_mask_storeu_ps(to, first(count), x);
}

// Sums of all lanes up to each.
inline __m512i running(__m512i x) {
  const __m512i none = _mm512_setzero_si512();
  x = _mm512_add_epi32(x, _mm512_alignr_epi32(x, none, 15));
  x = _mm512_add_epi32(x, _mm512_alignr_epi32(x, none, 14));
  x = _mm512_add_epi32(x, _mm512_alignr_epi32(x, none, 12));
  return _mm512_add_epi32(x, _mm512_alignr_epi32(x, none, 8));
}

inline size_t list_gaps(const uint8_t* gaps, int32_t bits, size_t count, size_t step, uint32_t* places) {
  const __m512i by = _mm512_set1_epi32(static_cast<int>(step)), ends = _mm512_set1_epi32(15);
  __m512i last = _mm512_set1_epi32(-1);
  for (size_t i = 0; i < count; i += kLanes) {
    const size_t some = count - i < kLanes ? count - i : kLanes;
    const __mmask16 lanes = first(some);
    __m512i gap;
    if (bits == 8) {
      gap = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(lanes, gaps + i));
    } else {
      const __m128i pairs = _mm_maskz_loadu_epi8(first((some + 1) / 2), gaps + i / 2);
      const __m128i low = _mm_and_si128(pairs, _mm_set1_epi8(15)), high = _mm_and_si128(_mm_srli_epi16(pairs, 4), _mm_set1_epi8(15));
      gap = _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(low, high));
    }
    // Lanes beyond the last repeat it.
    const __m512i sums = running(_mm512_maskz_add_epi32(lanes, gap, _mm512_set1_epi32(1)));
    const __m512i positions = _mm512_add_epi32(sums, last);
    _mm512_mask_storeu_epi32(places + i, lanes, _mm512_mullo_epi32(positions, by));
    last = _mm512_permutexvar_epi32(ends, positions);
  }
  return count ? static_cast<size_t>(_mm512_cvtsi512_si32(last)) : 0;
}

inline size_t list_words(
    const uint32_t* words, const uint32_t* places, size_t count, uint32_t* listed, uint32_t* listed_places) {
  size_t found = 0;
  for (size_t i = 0; i < count; i += kLanes) {
    const __mmask16 lanes = first(count - i < kLanes ? count - i : kLanes);
    const __m512i word = _mm512_maskz_loadu_epi32(lanes, words + i);
    const __mmask16 there = _mm512_test_epi32_mask(word, word);
    const auto some = static_cast<size_t>(__builtin_popcount(there));
    _mm512_mask_storeu_epi32(listed + found, first(some), _mm512_maskz_compress_epi32(there, word));
    const __m512i place = _mm512_maskz_compress_epi32(there, _mm512_maskz_loadu_epi32(lanes, places + i));
    _mm512_mask_storeu_epi32(listed_places + found, first(some), place);
    found += some;
  }
  return found;
}

inline void list_bits(const uint8_t* row, size_t bits, size_t step, uint32_t* places) {
  const __m512i each = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i by = _mm512_set1_epi32(static_cast<int>(step));
  __m512i at = _mm512_mullo_epi32(each, by);
  const __m512i on = _mm512_slli_epi32(by, 4);
  for (size_t k = 0; k < bits; k += kLanes, at = _mm512_add_epi32(at, on)) {
    const uint32_t low = row[k / 8], high = k + 8 < bits ? row[k / 8 + 1] : 0;
    const auto there = static_cast<__mmask16>(low | high << 8);
    const auto count = static_cast<size_t>(__builtin_popcount(there));
    _mm512_mask_storeu_epi32(places, first(count), _mm512_maskz_compress_epi32(there, at));
    places += count;
  }
}

inline Bytes splat_bytes(uint32_t four) {
  return _mm512_set1_epi32(static_cast<int>(four));
}

} // namespace
} // namespace ferryman::kernels

#include "isa_impl.h"

namespace ferryman::kernels {
const Isa kAvx512 = make("avx512");
} // namespace ferryman::kernels
