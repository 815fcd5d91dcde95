// What the parts of the self-check share.
#pragma once

#include <cstdint>

extern uint64_t state;

inline uint32_t random_word() {  // xorshift*, the same everywhere
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return static_cast<uint32_t>((state * 0x2545f4914f6cdd1dULL) >> 32);
}

inline int32_t between(int32_t low, int32_t high) {
  return low + static_cast<int32_t>(random_word() % static_cast<uint32_t>(high - low + 1));
}

inline float random_float() {
  return static_cast<float>(between(-8, 8)) * 0.5f;
}

// Of all that functions gave, which every instruction set must give alike.
extern uint64_t digest;

// Random operators against plain loops; returns how many were wrong of five times as many.
int check_quantized(int cases);

// Good numbers of which some were changed; returns how many were computed.
int fuzz_quantized(int cases);

// The same of sparse ones, of four times as many, and with spoiled indexes too.
int check_sparse(int cases);
int fuzz_sparse(int cases);
