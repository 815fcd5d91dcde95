// What a processor does at most, over the pieces of isa_impl.h, isa_quant.h, and
//   multiplied(Floats a, b, c)   a * b + c, as fast as can be
// The loops are those of a perfect matrix product: a tile of sums in registers, operands from the first cache.
#include "isa.h"

namespace ferryman::kernels {
namespace {

constexpr size_t kPeakRows = kWidth == kLanes && kPixels == 1 ? 2 : 4;
constexpr size_t kPeakVectors = kWidth == kLanes && kPixels == 1 ? 1 : 3;
constexpr size_t kPeakDots = kWidth == 8 ? 2 : kPeakVectors;  // AVX2 has but 16 registers, and needs some in between
constexpr size_t kPeakDepth = 16;  // what is gone through at a time stays in the first cache

// Operands have room for kPeakDepth * 64 floats.
float peak_floats(const float* x, size_t rounds) {
  Floats sums[kPeakRows][kPeakVectors];
  for (auto& row : sums) {
    for (auto& one : row) {
      one = zero_floats();
    }
  }
  for (size_t round = 0; round < rounds; ++round) {
    for (size_t k = 0; k < kPeakDepth; ++k) {
      Floats w[kPeakVectors];
      for (size_t j = 0; j < kPeakVectors; ++j) {
        w[j] = load_floats(x + kPeakDepth * kPeakRows + (k * kPeakVectors + j) * kWidth);
      }
      for (size_t i = 0; i < kPeakRows; ++i) {
        const Floats one = splat_float(x[k * kPeakRows + i]);
        for (size_t j = 0; j < kPeakVectors; ++j) {
          sums[i][j] = multiplied(one, w[j], sums[i][j]);
        }
      }
    }
  }
  float out[kWidth], total = 0;
  for (auto& row : sums) {
    for (auto& one : row) {
      store(out, one);
      total += out[0];
    }
  }
  return total;
}

int32_t peak_bytes(const int8_t* x, size_t rounds) {
  constexpr size_t kBytes = sizeof(Bytes);
  Dots sums[kPeakRows][kPeakDots];
  for (auto& row : sums) {
    for (auto& one : row) {
      one = zero_dots();
    }
  }
  for (size_t round = 0; round < rounds; ++round) {
    for (size_t k = 0; k < kPeakDepth; ++k) {
      Bytes w[kPeakDots];
      for (size_t j = 0; j < kPeakDots; ++j) {
        w[j] = load_bytes(x + 4 * kPeakDepth * kPeakRows + (k * kPeakDots + j) * kBytes);
      }
      for (size_t i = 0; i < kPeakRows; ++i) {
        const Quad one = spread(x + 4 * (k * kPeakRows + i));
        for (size_t j = 0; j < kPeakDots; ++j) {
          add_dots<4>(sums[i][j], w[j], one);
        }
      }
    }
  }
  int32_t out[kLanes], total = 0;
  for (auto& row : sums) {
    for (auto& one : row) {
      store_dots(out, one);
      total += out[0];
    }
  }
  return total;
}

// Every bit of them counts, so that none is left out.
uint32_t peak_read(const uint32_t* x, size_t count) {
  constexpr size_t kWide = sizeof(Words) / sizeof *x, kChains = 8;
  Words all[kChains];
  for (auto& one : all) {
    one = splat(0);
  }
  for (size_t i = 0; i + kChains * kWide <= count; i += kChains * kWide) {
    for (size_t j = 0; j < kChains; ++j) {
      all[j] = differ(all[j], load(x + i + j * kWide));
    }
  }
  uint32_t total = 0;
  for (auto& one : all) {
    uint32_t words[kWide];
    __builtin_memcpy(words, &one, sizeof one);
    for (const uint32_t word : words) {
      total ^= word;
    }
  }
  return total;
}

} // namespace
} // namespace ferryman::kernels
