// Pieces of isa_impl.h for instruction sets that have nothing better.
#pragma once

#include "isa.h"

namespace ferryman::kernels {
namespace {

inline void flush_last(int32_t* to, const Counts& carries, const Words& parity, bool first) {
  flush(to, carries, 2, first);
  Counts last = zero();
  add_ones(last, parity);
  flush(to, last, 1, false);
}

inline void differ_all(uint32_t* to, const uint32_t* from, uint32_t by, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    to[i] = from[i] ^ by;
  }
}

inline Floats load_some(const float* from, size_t count) {
  float whole[kWidth] = {};
  __builtin_memcpy(whole, from, count * sizeof *from);
  return load_floats(whole);
}

inline void store_some(float* to, const Floats& x, size_t count) {
  float whole[kWidth];
  store(whole, x);
  __builtin_memcpy(to, whole, count * sizeof *to);
}

inline int32_t sum_bytes(const int8_t* x, size_t count) {
  int32_t sum = 0;
  for (size_t i = 0; i < count; ++i) {
    sum += x[i];
  }
  return sum;
}

inline void signs_across(const float* x, size_t plane, size_t bits, uint32_t* out, size_t out_stride) {
  uint32_t words[kLanes] = {};
  for (size_t bit = 0; bit < bits; ++bit, x += plane) {
    for (size_t pixel = 0; pixel < kLanes; ++pixel) {
      words[pixel] |= x[pixel] >= 0 ? 1u << bit : 0;
    }
  }
  for (size_t pixel = 0; pixel < kLanes; ++pixel) {
    out[pixel * out_stride] = words[pixel];
  }
}

} // namespace
} // namespace ferryman::kernels
