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

using HalfFloats = Floats;

template <typename Part>
inline Part part_of(const Floats& x) {
  return x;
}

template <typename Part>
inline Part load_part(const float* from) {
  return load_floats(from);
}

inline const Floats& whole_of(const Floats& x) {
  return x;
}

inline Floats load_some(const float* from, size_t count) {
  float whole[kWidth] = {};
  __builtin_memcpy(whole, from, count * sizeof *from);
  return load_floats(whole);
}

// Not the last of all, behind which there may be nothing.
inline Floats load_some_even(const float* from, size_t count) {
  float whole[kWidth] = {};
  for (size_t i = 0; i < count; ++i) {
    whole[i] = from[2 * i];
  }
  return load_floats(whole);
}

inline void store_some(float* to, const Floats& x, size_t count) {
  float whole[kWidth];
  store(whole, x);
  __builtin_memcpy(to, whole, count * sizeof *to);
}

inline size_t list_gaps(const uint8_t* gaps, int32_t bits, size_t count, size_t step, uint32_t* places) {
  size_t position = 0;
  if (bits == 8) {
    for (size_t i = 0; i < count; ++i) {
      position += gaps[i];
      places[i] = static_cast<uint32_t>(position++ * step);
    }
  } else {
    for (size_t i = 0; i < count; ++i) {
      position += i % 2 ? gaps[i / 2] >> 4 : gaps[i / 2] & 15;
      places[i] = static_cast<uint32_t>(position++ * step);
    }
  }
  return count ? position - 1 : 0;
}

inline size_t list_words(
    const uint32_t* words, const uint32_t* places, size_t count, uint32_t* listed, uint32_t* listed_places) {
  size_t found = 0;
  for (size_t i = 0; i < count; ++i) {  // no branch: nobody could guess
    listed[found] = words[i];
    listed_places[found] = places[i];
    found += words[i] != 0;
  }
  return found;
}

inline void list_bits(const uint8_t* row, size_t bits, size_t step, uint32_t* places) {
  for (size_t k = 0; k < bits; k += 64) {
    const size_t bytes = (bits - k + 7) / 8;
    uint64_t word = 0;
    __builtin_memcpy(&word, row + k / 8, bytes < sizeof word ? bytes : sizeof word);
    for (; word; word &= word - 1) {
      *places++ = static_cast<uint32_t>((k + static_cast<size_t>(__builtin_ctzll(word))) * step);
    }
  }
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
