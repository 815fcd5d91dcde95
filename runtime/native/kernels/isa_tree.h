// The loop along a tree, over the same things as isa_impl.h, which includes this.
#pragma once

#include "isa.h"

namespace ferryman::kernels {
namespace {

// Counts over kM * kWidth pixels what add(running, k) adds for k < length.
template <size_t kM, typename Add>
void count_lanes(size_t length, int32_t* counts, const Add& add) {
  Counts running[kM];
  for (size_t m = 0; m < kM; ++m) {
    running[m] = zero();
  }
  bool first = true;
  for (size_t begin = 0; begin < length || first; first = false) {
    const size_t end = length - begin > kDepth ? begin + kDepth : length;
    for (size_t k = begin; k < end; ++k) {
      add(running, k);
    }
    begin = end;
    for (size_t m = 0; m < kM; ++m) {
      flush(counts + m * kWidth, running[m], 1, first);
      running[m] = zero();
    }
  }
}

// Over 16 * kM pixels.
template <size_t kM>
void tree_tile(const Tree& tree, const uint32_t* turned, size_t lanes, int32_t* counts) {
  constexpr size_t kV = kM * kLanes / kWidth;
  const uint32_t* row = tree.rows;
  size_t entry = 0;
  for (size_t step = 0; step < tree.channels; ++step) {
    int32_t* const to = counts + static_cast<size_t>(tree.order[step]) * lanes;
    if (tree.parents[step] < 0) {
      count_lanes<kV>(tree.words, to, [&](Counts(&running)[kV], size_t k) {
        const Words weights = splat(row[k]);
        for (size_t m = 0; m < kV; ++m) {
          add_ones(running[m], differ(load(turned + k * lanes + m * kWidth), weights));
        }
      });
      row += tree.words;
      continue;
    }
    const size_t begin = entry;
    entry = static_cast<size_t>(tree.ends[step]);
    count_lanes<kV>(entry - begin, to, [&](Counts(&running)[kV], size_t k) {
      const Words mask = splat(tree.masks[begin + k]);
      const Words bits = splat(tree.bits[begin + k]);
      const uint32_t* const a = turned + tree.at[begin + k] * lanes;
      for (size_t m = 0; m < kV; ++m) {
        add_masked(running[m], load(a + m * kWidth), mask, bits);
      }
    });
    const int32_t* const from = counts + static_cast<size_t>(tree.order[tree.parents[step]]) * lanes;
    const int32_t distance = tree.distances[step];
    for (size_t i = 0; i < kM * kLanes; ++i) {
      to[i] = from[i] + distance - 2 * to[i];
    }
  }
}

// Tiles of 16 * kM pixels, the last ones with fewer.
template <size_t kM>
void tree_tiles(const Tree& tree, const uint32_t* turned, size_t lanes, int32_t* counts, size_t pixel) {
  for (; lanes - pixel >= kM * kLanes; pixel += kM * kLanes) {
    tree_tile<kM>(tree, turned + pixel, lanes, counts + pixel);
  }
  if constexpr (kM > 1) {
    if (pixel < lanes) {
      tree_tiles<kM - 1>(tree, turned, lanes, counts, pixel);
    }
  }
}

void differences_along(const Tree& tree, const uint32_t* turned, size_t lanes, int32_t* counts) {
  tree_tiles<kPixels>(tree, turned, lanes, counts, 0);
}

} // namespace
} // namespace ferryman::kernels
