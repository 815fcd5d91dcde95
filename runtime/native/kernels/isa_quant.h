// The loops of the quantized operators, over what each unit defines besides the pieces of isa_impl.h:
//   Bytes      weights, four to a lane, of kWidth lanes         load_bytes(const void*)
//   low_bits<kBits>(Bytes)     the lowest bits of each byte, as they are multiplied: less kTaken<kBits>
//   next_bits<kBits>(Bytes)    the bits above them brought down; what comes in from above does not matter
//   Quad       four inputs in every lane                        spread(const int8_t*)
//   Dots       kWidth running dot products                      zero_dots(), store_dots(int32_t* to, Dots)
//   add_dots<kBits>(Dots&, Bytes, Quad)                         adds four products to each lane
//   with_bias(Quad)                                             inputs + kDotBias
//   weights_of<kBits, kJ>(Bytes)                                the kJ-th weights of each byte, less what stands for 0
//   add_signed<kBits>(Dots&, Bytes, Quad)                       adds four products of these and inputs + kDotBias
//   interleave16(const int8_t* a, b, c, d, uint8_t* out)        out[4 * i] and on: a[i], b[i], c[i], d[i], + kColumnBias
//   add_products(Dots&, Bytes columns, Bytes weights)           the same of signed weights, and inputs + kColumnBias
//   less_products(Dots, int32_t less), less_products(Dots, const uint8_t* zero, int32_t taken, int32_t sum)
//                                                               Floats of dots less these, or less (zero - taken) * sum
//   Floats * and +, splat_float(float), load_halves(const uint16_t*), sum_floats(const int32_t* a, const int32_t* b)
//   centred(const int8_t*, int32_t zero)                        Floats of bytes less zero
//   store_bytes(int8_t* to, Floats, const Rounding&)            kWidth of them, quantized
//   sum_bytes(const int8_t*, size_t)
//   kDotPixels, kDotVectors    the tile that fits the registers, as above; kGroupRows, where sums of groups have to, too
//   kRowVectors                the same of a row alone, which waits for its weights: they come faster in more runs at once
#include "isa.h"

namespace ferryman::kernels {
namespace {

template <int kBits>
constexpr int32_t kHalf = 1 << (kBits - 1);  // what stands for 0

constexpr size_t byte_place(size_t n, size_t block_stride) {
  return n / kParts * block_stride + n % kParts * kWidth * 4;
}

// Inlined and unrolled before the compiler asks which arrays registers can hold: running sums must be among them.
#define FERRYMAN_INLINE __attribute__((always_inline))

template <size_t kI>
struct Index {
  constexpr operator size_t() const {
    return kI;
  }
};

// Calls body with every Index below kCount.
template <size_t kCount, typename Body>
FERRYMAN_INLINE inline void unrolled(const Body& body) {
  if constexpr (kCount > 0) {
    unrolled<kCount - 1>(body);
    body(Index<kCount - 1>());
  }
}

// Of weights less kTaken; or, kSigned, less what stands for 0, with inputs that have their bias or, kBias, get it here.
template <int kBits, bool kSigned = false, bool kBias = false, size_t kM, size_t kN>
FERRYMAN_INLINE inline void accumulate(
    Dots (&dots)[kM][kN], const int8_t* x, size_t x_stride, size_t quads, const uint8_t* w, size_t block_stride) {
  constexpr size_t kPer = 8 / kBits;
  const int8_t* const fifth = x + 4 * x_stride;  // or the offsets of eight inputs would take too many registers
  Bytes packed[kN];
  const auto load = [&] {
    unrolled<kN>([&](auto n) FERRYMAN_INLINE { packed[n] = load_bytes(w + byte_place(n, block_stride)); });
    w += kVectorBytes;
  };
  const auto add = [&](size_t quad, auto j) FERRYMAN_INLINE {
    Bytes weights[kN];
    unrolled<kN>([&](auto n) FERRYMAN_INLINE {
      if constexpr (kSigned) {
        weights[n] = weights_of<kBits, j>(packed[n]);
      } else {
        weights[n] = low_bits<kBits>(packed[n]);
        if constexpr (kPer > 1) {
          packed[n] = next_bits<kBits>(packed[n]);
        }
      }
    });
    unrolled<kM>([&](auto m) FERRYMAN_INLINE {
      const Quad given = spread((m < 4 ? x : fifth) + m % 4 * x_stride + 4 * quad);
      const Quad four = kBias ? with_bias(given) : given;
      unrolled<kN>([&](auto n) FERRYMAN_INLINE {
        if constexpr (kSigned) {
          add_signed<kBits>(dots[m][n], weights[n], four);
        } else {
          add_dots<kBits>(dots[m][n], weights[n], four);
        }
      });
    });
  };
  size_t quad = 0;
  for (; quad + kPer <= quads; quad += kPer) {
    load();
    unrolled<kPer>([&](auto j) FERRYMAN_INLINE { add(quad + j, j); });
  }
  if (quad < quads) {
    load();
    unrolled<kPer - 1>([&](auto j) FERRYMAN_INLINE {
      if (quad + j < quads) {
        add(quad + j, j);
      }
    });
  }
}

template <int kBits, bool kBias>
struct DotTile {
  const Windows& windows;
  const uint8_t* w;
  size_t block_stride;
  int32_t* out;
  size_t out_stride;

  template <size_t kM, size_t kN>
  FERRYMAN_INLINE void run(size_t pixel, size_t vector) const {
    const size_t step = windows.step;
    const size_t quads = windows.bytes / 4;
    const int8_t* const x = windows.x + pixel * step;
    const uint8_t* from = w + byte_place(vector, block_stride);
    Dots dots[kM][kN];
    unrolled<kM>([&](auto m) FERRYMAN_INLINE {
      unrolled<kN>([&](auto n) FERRYMAN_INLINE { dots[m][n] = zero_dots(); });
    });
    for (size_t run = 0; run < windows.runs; ++run, from += quads * kBits / 8 * kVectorBytes) {
      accumulate<kBits, true, kBias>(dots, x + windows.offsets[run], step, quads, from, block_stride);
    }
    unrolled<kM>([&](auto m) FERRYMAN_INLINE {
      unrolled<kN>([&](auto n) FERRYMAN_INLINE {
        store_dots(out + (pixel + m) * out_stride + (vector + n) * kWidth, dots[m][n]);
      });
    });
  }
};

template <int kBits>
void dots_of(
    const Windows& windows, const uint8_t* w, size_t block_stride, size_t blocks, int32_t* out, size_t out_stride) {
  const auto run = [&](const auto& tile) { rows<kDotPixels, kDotVectors>(tile, windows.pixels, 0, blocks * kParts); };
  if (windows.biased || kDotBias == 0) {
    run(DotTile<kBits, false>{windows, w, block_stride, out, out_stride});
  } else {
    run(DotTile<kBits, true>{windows, w, block_stride, out, out_stride});
  }
}

void dots(
    int32_t bits,
    const Windows& windows,
    const uint8_t* w,
    size_t block_stride,
    size_t blocks,
    int32_t* out,
    size_t out_stride) {
  const auto own = bits == 8 ? dots_of<8> : bits == 4 ? dots_of<4> : dots_of<2>;
  own(windows, w, block_stride, blocks, out, out_stride);
}

void interleave(
    const int8_t* const* rows,
    const size_t* steps,
    size_t columns,
    size_t channels,
    uint8_t* out,
    size_t out_stride) {
  const int8_t* a = rows[0];
  const int8_t* b = rows[1];
  const int8_t* c = rows[2];
  const int8_t* d = rows[3];
  for (; columns > 0; --columns, a += steps[0], b += steps[1], c += steps[2], d += steps[3], out += out_stride) {
    size_t n = 0;
    for (; n + kLanes <= channels; n += kLanes) {
      interleave16(a + n, b + n, c + n, d + n, out + 4 * n);
    }
    if (n < channels) {
      int8_t last[4][kLanes] = {};
      __builtin_memcpy(last[0], a + n, channels - n);
      __builtin_memcpy(last[1], b + n, channels - n);
      __builtin_memcpy(last[2], c + n, channels - n);
      __builtin_memcpy(last[3], d + n, channels - n);
      interleave16(last[0], last[1], last[2], last[3], out + 4 * n);
    }
  }
}

struct ColumnTile {
  const uint8_t* columns;
  size_t pixel_step;
  const size_t* offsets;
  size_t taps;
  const int8_t* w;
  int32_t* out;
  size_t out_stride;

  template <size_t kM, size_t kN>
  void run(size_t pixel, size_t) const {
    Dots dots[kM][kN];
    fill(dots, zero_dots());
    for (size_t tap = 0; tap < taps; ++tap) {
      const uint8_t* const from = columns + pixel * pixel_step + offsets[tap];
      for (size_t n = 0; n < kN; ++n) {
        const Bytes weights = load_bytes(w + tap * kVectorBytes + n * 4 * kWidth);
        for (size_t m = 0; m < kM; ++m) {
          add_products(dots[m][n], load_bytes(from + m * pixel_step + n * 4 * kWidth), weights);
        }
      }
    }
    for (size_t m = 0; m < kM; ++m) {
      for (size_t n = 0; n < kN; ++n) {
        store_dots(out + (pixel + m) * out_stride + n * kWidth, dots[m][n]);
      }
    }
  }
};

void column_dots(
    const uint8_t* columns,
    size_t pixel_step,
    const size_t* offsets,
    size_t taps,
    const int8_t* w,
    size_t pixels,
    int32_t* out,
    size_t out_stride) {
  const ColumnTile tile{columns, pixel_step, offsets, taps, w, out, out_stride};
  rows<kDotPixels, kParts>(tile, pixels, 0, kParts);
}

template <int kBits>
struct GroupTile {
  const Grouped& grouped;
  float* out;

  template <size_t kM, size_t kN>
  void run(size_t row, size_t vector) const {
    const size_t groups = grouped.groups;
    const int8_t* const x = grouped.x + row * grouped.x_stride;
    const uint8_t* const w = grouped.w + byte_place(vector, grouped.block_stride);
    Floats total[kM][kN];
    fill(total, zero_floats());
    for (size_t g = 0; g < groups; ++g) {
      const size_t begin = g * grouped.group;
      const size_t end = begin + grouped.group < grouped.channels ? begin + grouped.group : grouped.channels;
      Dots dots[kM][kN];
      fill(dots, zero_dots());
      accumulate<kBits>(
          dots, x + begin, grouped.x_stride, (end - begin + 3) / 4, w + begin * kBits / 8 * kLanes, grouped.block_stride);
      for (size_t n = 0; n < kN; ++n) {
        const size_t at = place(vector + n, groups * kLanes) + g * kLanes;
        const Floats factor = grouped.scale ? load_halves(grouped.scale + at) : load_floats(grouped.wide_scale + at);
        for (size_t m = 0; m < kM; ++m) {
          const size_t of_row = (row + m) * groups + g;
          const int32_t sum = grouped.sums[of_row];
          Floats product = factor *
              (grouped.zero ? less_products(dots[m][n], grouped.zero + at, kTaken<kBits>, sum)
                            : less_products(dots[m][n], (kHalf<kBits> - kTaken<kBits>)*sum));
          if (grouped.x_scale) {
            product = product * splat_float(grouped.x_scale[of_row]);
          }
          total[m][n] = g == 0 ? product : total[m][n] + product;
        }
      }
    }
    for (size_t m = 0; m < kM; ++m) {
      for (size_t n = 0; n < kN; ++n) {
        store(out + (row + m) * grouped.blocks * kLanes + (vector + n) * kWidth, total[m][n]);
      }
    }
  }
};

void group_dots(const Grouped& grouped, float* out) {
  const auto run = [&](const auto& tile) {
    if (grouped.rows == 1) {
      rows<1, kRowVectors>(tile, 1, 0, grouped.blocks * kParts);
    } else {
      rows<kGroupRows, kDotVectors>(tile, grouped.rows, 0, grouped.blocks * kParts);
    }
  };
  if (grouped.bits == 8) {
    run(GroupTile<8>{grouped, out});
  } else if (grouped.bits == 4) {
    run(GroupTile<4>{grouped, out});
  } else {
    run(GroupTile<2>{grouped, out});
  }
}

void sums(const int8_t* x, size_t stride, size_t rows, size_t count, int32_t* out) {
  for (size_t row = 0; row < rows; ++row) {
    out[row] = sum_bytes(x + row * stride, count);
  }
}

void add_bias(const int8_t* x, size_t count, int8_t* out) {
  for (size_t i = 0; i < count; ++i) {
    out[i] = static_cast<int8_t>(x[i] + kDotBias);
  }
}

// kRun bytes at a time, the last of them again where the count is no multiple; false where there are fewer.
template <size_t kRun>
inline bool copy_runs(int8_t* to, const int8_t* from, size_t count) {
  for (size_t i = 0; i + kRun <= count; i += kRun) {
    __builtin_memcpy(to + i, from + i, kRun);
  }
  if (count >= kRun) {
    __builtin_memcpy(to + count - kRun, from + count - kRun, kRun);
  }
  return count >= kRun;
}

void gather_bytes(const Windows& windows, int8_t* rows, size_t stride) {
  const int8_t* x = windows.x;
  for (size_t p = 0; p < windows.pixels; ++p, x += windows.step, rows += stride) {
    int8_t* to = rows;
    for (size_t run = 0; run < windows.runs; ++run, to += windows.bytes) {
      const int8_t* const from = x + windows.offsets[run];
      copy_runs<16>(to, from, windows.bytes) || copy_runs<8>(to, from, windows.bytes) ||
          copy_runs<1>(to, from, windows.bytes);
    }
    for (; to < rows + stride; ++to) {
      *to = 0;
    }
  }
}

// As integers, magnitudes have the same order.
float largest(const float* x, size_t count) {
  constexpr int32_t kInfinity = 255 << 23;
  int32_t most = 0;
  for (size_t i = 0; i < count; ++i) {
    int32_t bits;
    __builtin_memcpy(&bits, x + i, sizeof bits);
    bits &= INT32_MAX;
    bits = bits > kInfinity ? 0 : bits;
    most = most > bits ? most : bits;
  }
  float magnitude;
  __builtin_memcpy(&magnitude, &most, sizeof most);
  return magnitude;
}

void quantize(const float* x, size_t count, const Rounding& rounding, int8_t* out) {
  const Rounding own = rounding;
  size_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    store_bytes(out + i, load_floats(x + i), own);
  }
  if (i < count) {
    float last[kWidth] = {};
    int8_t made[kWidth];
    __builtin_memcpy(last, x + i, (count - i) * sizeof *x);
    store_bytes(made, load_floats(last), own);
    __builtin_memcpy(out + i, made, count - i);
  }
}

void quantize_blocks(const float* x, size_t count, int8_t* out, float* scale) {
  for (size_t i = 0; i < count; i += kBlock) {
    const size_t some = count - i < kBlock ? count - i : kBlock;
    const float by = largest(x + i, some) / INT8_MAX;
    quantize(x + i, some, {by == 0 ? 0 : 1 / by, -INT8_MAX, INT8_MAX, 0}, out + i);
    *scale++ = by;
  }
}

// Calls put(pixel, n, channels, outputs) for each pixel's blocks of channels, pixels innermost.
template <bool kAdd, typename Put>
inline void for_blocks(const Dotted& given, const Put& put) {
  const Dotted d = given;
  for (size_t n = 0; n < d.channels; n += kLanes) {
    const size_t channels = d.channels - n < kLanes ? d.channels - n : kLanes;
    Floats factor[kParts], bias[kParts];
    for (size_t i = 0; i < kParts; ++i) {
      factor[i] = splat_float(d.x_scale) * load_floats(d.scale + n + i * kWidth);
      bias[i] = load_floats(d.bias + n + i * kWidth);
    }
    for (size_t p = 0; p < d.pixels; ++p) {
      Floats made[kParts];
      for (size_t i = 0; i < kParts; ++i) {
        const size_t at = n + i * kWidth;
        made[i] = sum_floats(d.dots + p * d.stride + at, d.base + at) * factor[i] + bias[i];
      }
      if constexpr (kAdd) {
        const int8_t* add = d.add + p * d.add_stride + n;
        int8_t last[kLanes] = {};
        if (channels < kLanes) {
          __builtin_memcpy(last, add, channels);
          add = last;
        }
        for (size_t i = 0; i < kParts; ++i) {
          made[i] = made[i] + splat_float(d.add_scale) * centred(add + i * kWidth, d.add_zero);
        }
      }
      put(p, n, channels, made);
    }
  }
}

template <bool kAdd>
void put_all_floats(const Dotted& dotted, float* out, size_t out_stride, bool turned) {
  alignas(64) float square[kLanes * kLanes];
  for_blocks<kAdd>(dotted, [&](size_t p, size_t n, size_t channels, const Floats(&made)[kParts]) {
    const size_t row = p % kLanes;
    const bool whole = !turned && channels == kLanes;
    float* const to = whole ? out + p * out_stride + n : square + row * kLanes;
    for (size_t i = 0; i < kParts; ++i) {
      store(to + i * kWidth, made[i]);
    }
    if (turned && (row == kLanes - 1 || p == dotted.pixels - 1)) {
      transpose(square, kLanes, row + 1, channels, out + n * out_stride + p - row, out_stride);
    } else if (!turned && !whole) {
      __builtin_memcpy(out + p * out_stride + n, to, channels * sizeof *to);
    }
  });
}

void put_floats(const Dotted& dotted, float* out, size_t out_stride, bool turned) {
  (dotted.add ? put_all_floats<true> : put_all_floats<false>)(dotted, out, out_stride, turned);
}

template <bool kAdd>
void put_all_bytes(const Dotted& dotted, const Rounding& given, int8_t* out, size_t out_stride) {
  const Rounding rounding = given;
  for_blocks<kAdd>(dotted, [&](size_t p, size_t n, size_t channels, const Floats(&made)[kParts]) {
    int8_t last[kLanes];
    int8_t* const to = channels == kLanes ? out + p * out_stride + n : last;
    for (size_t i = 0; i < kParts; ++i) {
      store_bytes(to + i * kWidth, made[i], rounding);
    }
    if (channels < kLanes) {
      __builtin_memcpy(out + p * out_stride + n, last, channels);
    }
  });
}

void put_bytes(const Dotted& dotted, const Rounding& rounding, int8_t* out, size_t out_stride) {
  (dotted.add ? put_all_bytes<true> : put_all_bytes<false>)(dotted, rounding, out, out_stride);
}

} // namespace
} // namespace ferryman::kernels
