// The loops of the sparse operators, over what each unit defines besides the pieces of isa_impl.h and isa_quant.h:
//   fused(Floats a, b, c)                              a * b + c, as fused_one does it
//   clip(Floats x, low, high)                          as clip_one does it
//   load_some(const float*, size_t count)              of fewer, zeros after them
//   store_some(float*, Floats, size_t count)
//   HalfFloats                                         the first half of Floats, or just these; fused as well
//   part_of<Part>(Floats), load_part<Part>(const float*), whole_of(Part)   of both
//   load_even(const float*)                            every other one; reads one less than twice kWidth, or
//   load_some_even(const float*, size_t count)         of some, 1 to kWidth, zeros after them
//   splat_bytes(uint32_t)                              four bytes in every lane
//   kSparseVectors, kSparseChains                      how many running sums fit the registers, and how many must run at
//                                                      once so that none waits for the one before it
//
// A tile is some vectors of pixels, of one output channel or, where the vectors are few, of several.
#include "isa.h"
#include "isa_scalar.h"

namespace ferryman::kernels {
namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr size_t kSparseMost = kSparseVectors < 3 ? kSparseVectors : 3;  // of more, compilers take many minutes to instrument the tiles
#else
constexpr size_t kSparseMost = kSparseVectors;
#endif

constexpr size_t sparse_channels(size_t vectors) {
  size_t channels = 1;
  while (2 * channels * vectors <= kSparseMost && channels * vectors < kSparseChains) {
    channels *= 2;
  }
  return channels;
}

// kN vectors, of which the last may be but half of one.
template <size_t kN, typename Last>
struct FloatRun {
  Floats whole[kN > 1 ? kN - 1 : 1];
  Last last;
};

template <size_t kN, typename Last>
FERRYMAN_INLINE inline void add_listed(FloatRun<kN, Last>& sums, const Listed<float>& list, size_t i) {
  const float* const from = list.frame + list.offsets[i];
  const Floats value = splat_float(list.values[i]);
  unrolled<kN - 1>([&](auto n) FERRYMAN_INLINE {
    sums.whole[n] = fused(value, load_floats(from + n * kWidth), sums.whole[n]);
  });
  sums.last = fused(part_of<Last>(value), load_part<Last>(from + (kN - 1) * kWidth), sums.last);
}

template <size_t kN>
struct DotRun {
  Dots whole[kN];
};

template <size_t kN>
FERRYMAN_INLINE inline void add_listed(DotRun<kN>& sums, const Listed<uint32_t>& list, size_t i) {
  const uint32_t* const from = list.frame + list.offsets[i];
  const Bytes value = splat_bytes(list.values[i]);
  unrolled<kN>([&](auto n) FERRYMAN_INLINE { add_products(sums.whole[n], load_bytes(from + n * kWidth), value); });
}

// Adds up all of some channels' lists, from pixel `at` on.
template <size_t kM, typename Run, typename Value>
FERRYMAN_INLINE inline void add_lists(Run (&sums)[kM], const Listed<Value>* lists, size_t at) {
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
    if (2 * (pixels - (kN - 1) * kWidth) <= kWidth) {
      run_to<kM, kN, HalfFloats>(channel, at, pixels);
    } else {
      run_to<kM, kN, Floats>(channel, at, pixels);
    }
  }

  template <size_t kM, size_t kN, typename Last>
  void run_to(size_t channel, size_t at, size_t pixels) const {
    const size_t left = pixels - (kN - 1) * kWidth;
    FloatRun<kN, Last> sums[kM];
    unrolled<kM>([&](auto m) FERRYMAN_INLINE {
      const Floats bias = splat_float(s.bias[channel + m]);
      unrolled<kN - 1>([&](auto n) FERRYMAN_INLINE { sums[m].whole[n] = bias; });
      sums[m].last = part_of<Last>(bias);
    });
    add_lists(sums, s.lists + channel, s.at + at);
    const Floats low = splat_float(s.low), high = splat_float(s.high);
    unrolled<kM>([&](auto m) FERRYMAN_INLINE {
      float* const out = s.out + (channel + m) * s.out_stride + at;
      Floats last = whole_of(sums[m].last);
      if (s.add) {
        const float* const add = s.add + (channel + m) * s.out_stride + at;
        unrolled<kN - 1>([&](auto n) FERRYMAN_INLINE {
          sums[m].whole[n] = sums[m].whole[n] + load_floats(add + n * kWidth);
        });
        last = last + load_some(add + (kN - 1) * kWidth, left);
      }
      unrolled<kN - 1>([&](auto n) FERRYMAN_INLINE { store(out + n * kWidth, clip(sums[m].whole[n], low, high)); });
      store_some(out + (kN - 1) * kWidth, clip(last, low, high), left);
    });
  }
};

struct WordTiles {
  const Listed<uint32_t>* lists;
  size_t first;
  int32_t* out;
  size_t out_stride;

  template <size_t kM, size_t kN>
  void run(size_t channel, size_t at, size_t) const {
    DotRun<kN> sums[kM];
    for (size_t m = 0; m < kM; ++m) {
      for (size_t n = 0; n < kN; ++n) {
        sums[m].whole[n] = zero_dots();
      }
    }
    add_lists(sums, lists + channel, first + at);
    for (size_t m = 0; m < kM; ++m) {
      for (size_t n = 0; n < kN; ++n) {
        store_dots(out + (channel + m) * out_stride + at + n * kWidth, sums[m].whole[n]);
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
  constexpr size_t kMost = kSparseMost * kWidth;
  const size_t runs = (pixels + kMost - 1) / kMost;
  const size_t vectors = (pixels + kWidth - 1) / kWidth;
  const size_t step = (vectors + runs - 1) / runs * kWidth;
  for (size_t at = 0; at < pixels; at += step) {
    sparse_tiles<kSparseMost>(tiles, channels, at, pixels - at < step ? pixels - at : step);
  }
}

void sparse_sums(const SparseSums& s) {
  all_sparse_tiles(FloatTiles{s}, s.channels, s.pixels);
}

void sparse_dots(
    const Listed<uint32_t>* lists, size_t channels, size_t at, size_t pixels, int32_t* out, size_t out_stride) {
  all_sparse_tiles(WordTiles{lists, at, out, out_stride}, channels, (pixels + kLanes - 1) / kLanes * kLanes);
}

size_t count_ones(const uint8_t* bytes, size_t count) {
  uint64_t ones = 0;
  for (size_t i = 0; i < count; i += sizeof ones) {
    uint64_t x = 0;
    __builtin_memcpy(&x, bytes + i, count - i < sizeof x ? count - i : sizeof x);
    ones += ones_of(x);
  }
  return ones;
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

// Zeros in [from, to), and maybe as many behind as fill a vector.
inline void put_zeros(float* from, const float* to) {
  for (; from < to; from += kWidth) {
    store(from, zero_floats());
  }
}

// Whole vectors are put, of which the next ones replace what was too much. With kStep of 0, any step.
template <size_t kStep>
inline void take_all(const Taken& given) {
  const Taken t = given;
  const size_t whole = kStep ? (t.columns - 1) / kWidth * kWidth : 0;
  const size_t rest = t.columns - whole;
  for (size_t plane = 0; plane < t.planes; ++plane) {
    float* const to = t.to + plane * t.to_plane;
    const float* from = t.from + plane * t.from_plane;
    float* at = to + t.above * t.to_row;
    put_zeros(to, at);
    for (size_t row = 0; row < t.rows; ++row, from += t.from_row, at += t.to_row) {
      put_zeros(at, at + t.left);
      float* const first = at + t.left;
      for (size_t i = 0; i < whole; i += kWidth) {
        store(first + i, kStep == 2 ? load_even(from + 2 * i) : load_floats(from + i));
      }
      if constexpr (kStep == 0) {
        for (size_t i = 0; i < rest; ++i) {
          first[i] = from[i * t.step];
        }
        put_zeros(first + rest, at + t.to_row);
      } else {
        store(first + whole, kStep == 2 ? load_some_even(from + 2 * whole, rest) : load_some(from + whole, rest));
        put_zeros(first + whole + kWidth, at + t.to_row);
      }
    }
    float* const end = to + t.size - kWidth;
    for (; at < end; at += kWidth) {
      store(at, zero_floats());
    }
    store(end, zero_floats());
  }
}

void take_planes(const Taken& t) {
  (t.step == 1 ? take_all<1> : t.step == 2 ? take_all<2> : take_all<0>)(t);
}

} // namespace
} // namespace ferryman::kernels
