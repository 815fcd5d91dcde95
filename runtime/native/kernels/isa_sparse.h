// The loops of the sparse operators, over what each unit defines besides the pieces of isa_impl.h and isa_quant.h:
//   fused(Floats a, b, c)                              a * b + c, as fused_one does it
//   clip(Floats x, low, high)                          as clip_one does it
//   load_some(const float*, size_t count), store_some(float*, Floats, size_t count)   of fewer than kWidth
//   splat_bytes(uint32_t)                              four bytes in every lane
//   kSparseVectors, kSparseChains                      how many running sums fit the registers, and how many must run at
//                                                      once so that none waits for the one before it
//
// A tile is some vectors of pixels, of one output channel or, where the vectors are few, of several.
#include "isa.h"
#include "isa_scalar.h"

namespace ferryman::kernels {
namespace {

constexpr size_t sparse_channels(size_t vectors) {
  size_t channels = 1;
  while (2 * channels * vectors <= kSparseVectors && channels * vectors < kSparseChains) {
    channels *= 2;
  }
  return channels;
}

template <size_t kN>
FERRYMAN_INLINE inline void add_listed(Floats (&sums)[kN], const Listed<float>& list, size_t i) {
  const float* const from = list.frame + list.offsets[i];
  const Floats value = splat_float(list.values[i]);
  unrolled<kN>([&](auto n) FERRYMAN_INLINE { sums[n] = fused(value, load_floats(from + n * kWidth), sums[n]); });
}

template <size_t kN>
FERRYMAN_INLINE inline void add_listed(Dots (&sums)[kN], const Listed<uint32_t>& list, size_t i) {
  const uint32_t* const from = list.frame + list.offsets[i];
  const Bytes value = splat_bytes(list.values[i]);
  unrolled<kN>([&](auto n) FERRYMAN_INLINE { add_products(sums[n], load_bytes(from + n * kWidth), value); });
}

// Adds up all of some channels' lists, from pixel `at` on.
template <size_t kM, size_t kN, typename Sums, typename Value>
FERRYMAN_INLINE inline void add_lists(Sums (&sums)[kM][kN], const Listed<Value>* lists, size_t at) {
  Listed<Value> own[kM];
  size_t common = SIZE_MAX;
  for (size_t m = 0; m < kM; ++m) {
    own[m] = lists[m];
    own[m].frame += at;
    common = own[m].count < common ? own[m].count : common;
  }
  for (size_t i = 0; i < common; ++i) {
    unrolled<kM>([&](auto m) FERRYMAN_INLINE { add_listed(sums[m], own[m], i); });
  }
  if constexpr (kM > 1) {
    unrolled<kM>([&](auto m) FERRYMAN_INLINE {
      for (size_t i = common; i < own[m].count; ++i) {
        add_listed(sums[m], own[m], i);
      }
    });
  }
}

struct FloatTiles {
  const SparseSums& s;

  template <size_t kM, size_t kN>
  void run(size_t channel, size_t at, size_t pixels) const {
    Floats sums[kM][kN];
    for (size_t m = 0; m < kM; ++m) {
      const Floats bias = splat_float(s.bias[channel + m]);
      unrolled<kN>([&](auto n) FERRYMAN_INLINE { sums[m][n] = bias; });
    }
    add_lists(sums, s.lists + channel, at);
    const Floats low = splat_float(s.low), high = splat_float(s.high);
    const size_t last = pixels - (kN - 1) * kWidth;
    unrolled<kM>([&](auto m) FERRYMAN_INLINE {
      float* const out = s.out + (channel + m) * s.out_stride + at;
      if (s.add) {
        const float* const add = s.add + (channel + m) * s.add_stride + at;
        unrolled<kN - 1>([&](auto n) FERRYMAN_INLINE { sums[m][n] = sums[m][n] + load_floats(add + n * kWidth); });
        sums[m][kN - 1] = sums[m][kN - 1] + load_some(add + (kN - 1) * kWidth, last);
      }
      unrolled<kN - 1>([&](auto n) FERRYMAN_INLINE { store(out + n * kWidth, clip(sums[m][n], low, high)); });
      store_some(out + (kN - 1) * kWidth, clip(sums[m][kN - 1], low, high), last);
    });
  }
};

struct WordTiles {
  const Listed<uint32_t>* lists;
  int32_t* out;
  size_t out_stride;

  template <size_t kM, size_t kN>
  void run(size_t channel, size_t at, size_t) const {
    Dots sums[kM][kN];
    fill(sums, zero_dots());
    add_lists(sums, lists + channel, at);
    for (size_t m = 0; m < kM; ++m) {
      for (size_t n = 0; n < kN; ++n) {
        store_dots(out + (channel + m) * out_stride + at + n * kWidth, sums[m][n]);
      }
    }
  }
};

template <size_t kN, typename Tiles>
void sparse_tiles(const Tiles& tiles, size_t channels, size_t at, size_t pixels) {
  if constexpr (kN > 1) {
    if (pixels <= (kN - 1) * kWidth) {
      sparse_tiles<kN - 1>(tiles, channels, at, pixels);
      return;
    }
  }
  constexpr size_t kM = sparse_channels(kN);
  size_t channel = 0;
  for (; channel + kM <= channels; channel += kM) {
    tiles.template run<kM, kN>(channel, at, pixels);
  }
  for (; channel < channels; ++channel) {
    tiles.template run<1, kN>(channel, at, pixels);
  }
}

// As many vectors at a time as fit, and about as many each time.
template <typename Tiles>
void all_sparse_tiles(const Tiles& tiles, size_t channels, size_t pixels) {
  constexpr size_t kMost = kSparseVectors * kWidth;
  const size_t runs = (pixels + kMost - 1) / kMost;
  const size_t vectors = (pixels + kWidth - 1) / kWidth;
  const size_t step = (vectors + runs - 1) / runs * kWidth;
  for (size_t at = 0; at < pixels; at += step) {
    sparse_tiles<kSparseVectors>(tiles, channels, at, pixels - at < step ? pixels - at : step);
  }
}

void sparse_sums(const SparseSums& s) {
  all_sparse_tiles(FloatTiles{s}, s.channels, s.pixels);
}

void sparse_dots(const Listed<uint32_t>* lists, size_t channels, size_t pixels, int32_t* out, size_t out_stride) {
  all_sparse_tiles(WordTiles{lists, out, out_stride}, channels, (pixels + kLanes - 1) / kLanes * kLanes);
}

template <size_t kM>
void sparse_pixel(const SparseSums& s, size_t channel) {
  Listed<float> own[kM];
  float sums[kM];
  size_t common = SIZE_MAX;
  for (size_t m = 0; m < kM; ++m) {
    own[m] = s.lists[channel + m];
    sums[m] = s.bias[channel + m];
    common = own[m].count < common ? own[m].count : common;
  }
  const auto add = [&](size_t m, size_t i) FERRYMAN_INLINE {
    sums[m] = fused_one(own[m].values[i], own[m].frame[own[m].offsets[i]], sums[m]);
  };
  for (size_t i = 0; i < common; ++i) {
    unrolled<kM>([&](auto m) FERRYMAN_INLINE { add(m, i); });
  }
  for (size_t m = 0; m < kM; ++m) {
    for (size_t i = common; i < own[m].count; ++i) {
      add(m, i);
    }
    const float made = s.add ? sums[m] + s.add[channel + m] : sums[m];
    s.out[channel + m] = clip_one(made, s.low, s.high);
  }
}

void sparse_row(const SparseSums& s) {
  constexpr size_t kM = 4;
  size_t channel = 0;
  for (; channel + kM <= s.channels; channel += kM) {
    sparse_pixel<kM>(s, channel);
  }
  for (; channel < s.channels; ++channel) {
    sparse_pixel<1>(s, channel);
  }
}

template <bool kAdd>
inline void finish_rows(const Finished& f) {
  const Floats low = splat_float(f.low), high = splat_float(f.high);
  for (size_t row = 0; row < f.rows; ++row) {
    const float* const from = f.from + row * f.from_stride;
    const float* const add = kAdd ? f.add + row * f.out_stride : nullptr;
    float* const out = f.out + row * f.out_stride;
    size_t i = 0;
    for (; i + kWidth <= f.columns; i += kWidth) {
      const Floats x = load_floats(from + i);
      if constexpr (kAdd) {
        store(out + i, clip(x + load_floats(add + i), low, high));
      } else {
        store(out + i, clip(x, low, high));
      }
    }
    if (i < f.columns) {
      const Floats x = load_some(from + i, f.columns - i);
      if constexpr (kAdd) {
        store_some(out + i, clip(x + load_some(add + i, f.columns - i), low, high), f.columns - i);
      } else {
        store_some(out + i, clip(x, low, high), f.columns - i);
      }
    }
  }
}

void finish(const Finished& f) {
  (f.add ? finish_rows<true> : finish_rows<false>)(f);
}

void take_every(const float* x, size_t step, size_t count, float* out) {
  if (step == 1) {
    __builtin_memcpy(out, x, count * sizeof *x);
  } else if (step == 2) {
    for (size_t i = 0; i < count; ++i) {
      out[i] = x[2 * i];
    }
  } else {
    for (size_t i = 0; i < count; ++i) {
      out[i] = x[step * i];
    }
  }
}

} // namespace
} // namespace ferryman::kernels
