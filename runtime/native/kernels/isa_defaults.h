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

} // namespace
} // namespace ferryman::kernels
