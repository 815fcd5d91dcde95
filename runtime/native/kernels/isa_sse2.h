// What AVX2 does no better than every x86-64 processor.
#pragma once

#include <emmintrin.h>

#include "isa.h"

namespace ferryman::kernels {
namespace {

inline void interleave16(const int8_t* a, const int8_t* b, const int8_t* c, const int8_t* d, uint8_t* out) {
  const auto at = [](const int8_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); };
  const __m128i low[] = {_mm_unpacklo_epi8(at(a), at(b)), _mm_unpackhi_epi8(at(a), at(b))};
  const __m128i high[] = {_mm_unpacklo_epi8(at(c), at(d)), _mm_unpackhi_epi8(at(c), at(d))};
  auto* const to = reinterpret_cast<__m128i*>(out);
  for (size_t i = 0; i < 2; ++i) {
    _mm_storeu_si128(to + 2 * i, _mm_unpacklo_epi16(low[i], high[i]));
    _mm_storeu_si128(to + 2 * i + 1, _mm_unpackhi_epi16(low[i], high[i]));
  }
}

} // namespace
} // namespace ferryman::kernels
