// The loops every instruction set shares, over what its own unit defines before including this:
//   Words      kWidth words, of a block of weights at one depth  load(const uint32_t*), splat(uint32_t), differ(a, b)
//   carry(before, middle, after)                                where middle is 1 not after, else before
//   Counts     kWidth running counts                            zero(), add_ones(Counts&, Words)
//   flush_last(int32_t* to, Counts carries, Words parity, bool first)   twice the carries, and the ones of the parity
//   differ_all(uint32_t* to, const uint32_t* from, uint32_t by, size_t count)   to[i] = from[i] ^ by
//   add_masked(Counts&, Words a, Words mask, Words b)           adds differences of a & mask and b
//   kDepth     how many words a Counts can take                 flush(int32_t* to, Counts, int times, bool first)
//   Floats     kWidth running sums                                  zero_floats(), load_floats(), store(float*, Floats)
//   scaled(const int32_t* counts, base, Floats scale, bias)   kWidth outputs, each operation rounded
//   add_selected(Floats&, Words weights, size_t bit, float x)   adds x in the lanes whose bit is 1
//   signs(const float*)          32 floats -> a word, bit = x >= 0
//   signs_across(const float* x, plane, bits, uint32_t* out, out_stride)   x[bit * plane + pixel] -> 16 words, of pixels
//   at_least(const int32_t* counts, base, threshold)  32 lanes -> a word
//   transpose16(in, in_stride, out, out_stride)       16 x 16
//   kPixels, kVectors            the tile that fits the registers, in pixels and Words; kVectors and the Words of a block
//                                are a multiple of one another
//
// Differences x of windows and weights are counted two words at a time. Both are kept as running exclusive ors, so the
// exclusive or of theirs is that of all x so far: the parity of the counts so far, bit by bit. From the parity before a
// pair of words, in its middle and after it follows the carry of a full adder, and before + x + x' = after + 2 * carry.
// So a pair takes one population count, of its carry, and the last parity one more.
//
// The quantized operators' are in isa_quant.h, those of the sparse ones in isa_sparse.h.
//
// Everything is static: code built for one processor must not be merged with another's. No standard library here.
#include "isa.h"
#include "isa_tree.h"

namespace ferryman::kernels {
namespace {

constexpr size_t kParts = kLanes / kWidth;  // Words of a block at one depth

// Where Words `n` lie, counted through the blocks.
constexpr size_t place(size_t n, size_t block_stride) {
  return n / kParts * block_stride + n % kParts * kWidth;
}

template <size_t kM, size_t kN, typename T>
void fill(T (&all)[kM][kN], const T& value) {
  for (size_t m = 0; m < kM; ++m) {
    for (size_t n = 0; n < kN; ++n) {
      all[m][n] = value;
    }
  }
}

template <size_t kM, size_t kN>
void flush_all(int32_t* counts, size_t count_stride, Counts (&carries)[kM][kN], bool first) {
  for (size_t m = 0; m < kM; ++m) {
    for (size_t n = 0; n < kN; ++n) {
      flush(counts + m * count_stride + n * kWidth, carries[m][n], 2, first);
    }
  }
  fill(carries, zero());
}

template <size_t kM, size_t kN>
void difference_tile(
    const uint32_t* a,
    size_t a_stride,
    size_t words,
    const uint32_t* w,
    size_t block_stride,
    int32_t* counts,
    size_t count_stride) {
  Counts carries[kM][kN];
  Words parity[kM][kN];
  fill(carries, zero());
  fill(parity, splat(0));
  bool first = true;
  size_t k = 0;
  while (k + 1 < words) {
    const size_t pairs = (words - k) / 2;
    const size_t end = k + 2 * (pairs < kDepth ? pairs : kDepth);
    for (; k < end; k += 2) {
      Words one[kN], two[kN];
      for (size_t n = 0; n < kN; ++n) {
        one[n] = load(w + place(n, block_stride) + k * kLanes);
        two[n] = load(w + place(n, block_stride) + (k + 1) * kLanes);
      }
      for (size_t m = 0; m < kM; ++m) {
        const Words a_one = splat(a[m * a_stride + k]);
        const Words a_two = splat(a[m * a_stride + k + 1]);
        for (size_t n = 0; n < kN; ++n) {
          const Words after = differ(a_two, two[n]);
          add_ones(carries[m][n], carry(parity[m][n], differ(a_one, one[n]), after));
          parity[m][n] = after;
        }
      }
    }
    if (k + 1 < words) {
      flush_all(counts, count_stride, carries, first);
      first = false;
    }
  }
  for (size_t m = 0; m < kM; ++m) {
    for (size_t n = 0; n < kN; ++n) {
      int32_t* const to = counts + m * count_stride + n * kWidth;
      if (k < words) {  // half a pair, whose other word has no differences
        const Words after = differ(splat(a[m * a_stride + k]), load(w + place(n, block_stride) + k * kLanes));
        Counts half = zero();
        add_ones(half, carry(parity[m][n], after, after));
        flush(to, half, 2, first);
        parity[m][n] = after;
      }
      flush_last(to, carries[m][n], parity[m][n], first && k == words);
    }
  }
}

template <size_t kM, size_t kN>
void selected_tile(
    const float* a,
    size_t a_stride,
    const uint32_t* w,
    size_t block_stride,
    size_t depth,
    float* sums,
    size_t sum_stride) {
  Floats running[kM][kN];
  fill(running, zero_floats());
  for (size_t k = 0; k < depth; k += kWordBits, w += kLanes) {
    Words weights[kN];
    for (size_t n = 0; n < kN; ++n) {
      weights[n] = load(w + place(n, block_stride));
      if (k > 0) {
        weights[n] = differ(weights[n], load(w + place(n, block_stride) - kLanes));
      }
    }
    const size_t bits = depth - k < kWordBits ? depth - k : kWordBits;
    for (size_t bit = 0; bit < bits; ++bit) {
      for (size_t n = 0; n < kN; ++n) {
        const auto selected = select(weights[n], bit);
        for (size_t m = 0; m < kM; ++m) {
          add_selected(running[m][n], selected, a[m * a_stride + k + bit]);
        }
      }
    }
  }
  for (size_t m = 0; m < kM; ++m) {
    for (size_t n = 0; n < kN; ++n) {
      store(sums + m * sum_stride + n * kWidth, running[m][n]);
    }
  }
}

struct DifferenceTile {
  const uint32_t* a;
  size_t a_stride;
  size_t words;
  const uint32_t* w;
  size_t block_stride;
  int32_t* counts;
  size_t count_stride;

  template <size_t kM, size_t kN>
  void run(size_t pixel, size_t vector) const {
    int32_t* const to = counts + pixel * count_stride + vector * kWidth;
    const uint32_t* const from = w + place(vector, block_stride);
    difference_tile<kM, kN>(a + pixel * a_stride, a_stride, words, from, block_stride, to, count_stride);
  }
};

struct SelectedTile {
  const float* a;
  size_t a_stride;
  const uint32_t* w;
  size_t block_stride;
  size_t depth;
  float* sums;
  size_t sum_stride;

  template <size_t kM, size_t kN>
  void run(size_t pixel, size_t vector) const {
    float* const to = sums + pixel * sum_stride + vector * kWidth;
    const uint32_t* const from = w + place(vector, block_stride);
    selected_tile<kM, kN>(a + pixel * a_stride, a_stride, from, block_stride, depth, to, sum_stride);
  }
};

// Tiles of kM pixels by kN vectors from (pixel, vector) down, the last ones with fewer pixels.
template <size_t kM, size_t kN, typename Tile>
void columns(const Tile& tile, size_t pixel, size_t pixels, size_t vector) {
  for (; pixels - pixel >= kM; pixel += kM) {
    tile.template run<kM, kN>(pixel, vector);
  }
  if constexpr (kM > 1) {
    if (pixel < pixels) {
      columns<kM - 1, kN>(tile, pixel, pixels, vector);
    }
  }
}

template <size_t kM, size_t kN, typename Tile>
void rows(const Tile& tile, size_t pixels, size_t vector, size_t vectors) {
  for (; vectors - vector >= kN; vector += kN) {
    columns<kM, kN>(tile, 0, pixels, vector);
  }
  if constexpr (kN > kParts) {
    if (vector < vectors) {
      rows<kM, kN - kParts>(tile, pixels, vector, vectors);
    }
  }
}

void differences(
    const uint32_t* a,
    size_t a_stride,
    size_t pixels,
    size_t words,
    const uint32_t* w,
    size_t block_stride,
    size_t blocks,
    int32_t* counts,
    size_t count_stride) {
  rows<kPixels, kVectors>(DifferenceTile{a, a_stride, words, w, block_stride, counts, count_stride}, pixels, 0, blocks * kParts);
}

void selected_sums(
    const float* a,
    size_t a_stride,
    size_t pixels,
    const uint32_t* w,
    size_t block_stride,
    size_t blocks,
    size_t depth,
    float* sums,
    size_t sum_stride) {
  rows<kPixels, kVectors>(SelectedTile{a, a_stride, w, block_stride, depth, sums, sum_stride}, pixels, 0, blocks * kParts);
}

void gather_rows(
    const uint32_t* sums,
    const size_t* offsets,
    size_t runs,
    size_t words,
    size_t pixels,
    size_t step,
    uint32_t* rows) {
  for (size_t p = 0; p < pixels; ++p, sums += step) {
    uint32_t before = 0;
    for (size_t run = 0; run < runs; ++run, rows += words) {
      const uint32_t* const from = sums + offsets[run];
      before ^= *from;
      differ_all(rows, from + 1, before, words);
      before ^= from[words];
    }
  }
}

void tap_ones(
    const uint32_t* w,
    size_t block_stride,
    size_t blocks,
    size_t taps,
    size_t tap_words,
    int32_t* ones,
    size_t stride) {
  for (size_t vector = 0; vector < blocks * kParts; ++vector, ones += kWidth) {
    const uint32_t* const begin = w + place(vector, block_stride);
    const uint32_t* at = begin;
    for (size_t tap = 0; tap < taps; ++tap) {
      for (size_t k = 0; k < tap_words;) {
        const bool first = k == 0;
        const size_t end = tap_words - k < kDepth ? tap_words : k + kDepth;
        Counts running = zero();
        for (; k < end; ++k, at += kLanes) {
          add_ones(running, at == begin ? load(at) : differ(load(at), load(at - kLanes)));
        }
        flush(ones + tap * stride, running, 1, first);
      }
    }
  }
}

float sum(const float* x, size_t count) {
  float parts[kLanes] = {};
  size_t k = 0;
  for (; k + kLanes <= count; k += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      parts[lane] += x[k + lane];
    }
  }
  for (size_t lane = 0; k + lane < count; ++lane) {
    parts[lane] += x[k + lane];
  }
  float total = 0;
  for (size_t lane = 0; lane < kLanes; ++lane) {
    total += parts[lane];
  }
  return total;
}

void pack_rows(const float* x, size_t rows, size_t channels, uint32_t* out, size_t out_stride) {
  for (size_t row = 0; row < rows; ++row, x += channels, out += out_stride) {
    size_t c = 0;
    for (; c + kWordBits <= channels; c += kWordBits) {
      out[c / kWordBits] = signs(x + c);
    }
    if (c < channels) {
      uint32_t word = 0;
      for (size_t bit = 0; c + bit < channels; ++bit) {
        word |= static_cast<uint32_t>(x[c + bit] >= 0) << bit;
      }
      out[c / kWordBits] = word;
    }
  }
}

void pack_planes(const float* x, size_t plane, size_t pixels, size_t channels, uint32_t* out, size_t out_stride) {
  for (size_t c = 0; c < channels; c += kWordBits) {
    const size_t bits = channels - c < kWordBits ? channels - c : kWordBits;
    const float* const from = x + c * plane;
    uint32_t* const to = out + c / kWordBits;
    size_t pixel = 0;
    for (; pixel + kLanes <= pixels; pixel += kLanes) {
      signs_across(from + pixel, plane, bits, to + pixel * out_stride, out_stride);
    }
    for (; pixel < pixels; ++pixel) {
      uint32_t word = 0;
      for (size_t bit = 0; bit < bits; ++bit) {
        word |= static_cast<uint32_t>(from[bit * plane + pixel] >= 0) << bit;
      }
      to[pixel * out_stride] = word;
    }
  }
}

// In bit slices: 15 taps fill four, which are then spread over the lanes.
void count_taps(const uint32_t* const* a, const uint32_t* w, size_t taps, size_t words, int32_t* counts) {
  constexpr size_t kRun = 15;
  for (size_t word = 0; word < words; ++word) {
    int32_t* const to = counts + word * kWordBits;
    for (size_t begin = 0; begin < taps; begin += kRun) {
      uint32_t ones = 0, twos = 0, fours = 0, eights = 0;
      const size_t end = taps - begin < kRun ? taps : begin + kRun;
      for (size_t tap = begin; tap < end; ++tap) {
        if (a[tap]) {
          uint32_t carry = a[tap][word] ^ w[tap * words + word];
          uint32_t next = ones & carry;
          ones ^= carry;
          carry = twos & next;
          twos ^= next;
          next = fours & carry;
          fours ^= carry;
          eights ^= next;
        }
      }
      for (size_t bit = 0; bit < kWordBits; ++bit) {
        const uint32_t count =
            (ones >> bit & 1) | (twos >> bit & 1) << 1 | (fours >> bit & 1) << 2 | (eights >> bit & 1) << 3;
        to[bit] = static_cast<int32_t>(count) + (begin ? to[bit] : 0);
      }
    }
  }
}

void transpose(const float* in, size_t in_stride, size_t rows, size_t columns, float* out, size_t out_stride) {
  for (size_t r = 0; r < rows; r += kLanes) {
    for (size_t c = 0; c < columns; c += kLanes) {
      const float* from = in + r * in_stride + c;
      float* to = out + c * out_stride + r;
      if (r + kLanes <= rows && c + kLanes <= columns) {
        transpose16(from, in_stride, to, out_stride);
        continue;
      }
      const size_t height = rows - r < kLanes ? rows - r : kLanes;
      const size_t width = columns - c < kLanes ? columns - c : kLanes;
      for (size_t i = 0; i < width; ++i) {
        for (size_t j = 0; j < height; ++j) {
          to[i * out_stride + j] = from[j * in_stride + i];
        }
      }
    }
  }
}

// kLanes channels of up to kLanes pixels.
inline void scale_block(
    const Counted& counted,
    size_t pixel,
    size_t pixels,
    size_t n,
    const float* scale,
    const float* bias,
    float* out,
    size_t out_stride) {
  const int32_t* const* const bases = counted.bases + pixel;
  const size_t stride = counted.stride;
  for (size_t part = 0; part < kLanes; part += kWidth) {
    const Floats factor = load_floats(scale + n + part);
    const Floats offset = load_floats(bias + n + part);
    const int32_t* const counts = counted.counts + pixel * stride + n + part;
    const size_t at = counted.channel + n + part;
    for (size_t p = 0; p < pixels; ++p) {
      store(out + p * out_stride + part, scaled(counts + p * stride, bases[p] + at, factor, offset));
    }
  }
}

void scale_counts(
    const Counted& counted, const float* scale, const float* bias, float* out, size_t out_stride, bool turned) {
  alignas(64) float square[kLanes * kLanes];
  for (size_t n = 0; n < counted.channels; n += kLanes) {
    const size_t channels = counted.channels - n < kLanes ? counted.channels - n : kLanes;
    for (size_t pixel = 0; pixel < counted.pixels; pixel += kLanes) {
      const size_t pixels = counted.pixels - pixel < kLanes ? counted.pixels - pixel : kLanes;
      float* const to = turned ? square : out + pixel * out_stride + n;
      const size_t to_stride = turned ? kLanes : out_stride;
      if (channels == kLanes) {
        scale_block(counted, pixel, pixels, n, scale, bias, to, to_stride);
      } else {
        for (size_t p = 0; p < pixels; ++p) {
          const int32_t* const counts = counted.counts + (pixel + p) * counted.stride + n;
          const int32_t* const base = counted.bases[pixel + p] + counted.channel + n;
          for (size_t lane = 0; lane < channels; ++lane) {
            const float dot = static_cast<float>(base[lane] - 2 * counts[lane]);
            to[p * to_stride + lane] = scale[n + lane] * dot + bias[n + lane];
          }
        }
      }
      if (turned) {
        transpose(square, kLanes, pixels, channels, out + n * out_stride + pixel, out_stride);
      }
    }
  }
}

void compare_counts(const Counted& counted, const int32_t* threshold, uint32_t* out, size_t out_stride) {
  for (size_t p = 0; p < counted.pixels; ++p, out += out_stride) {
    const int32_t* const counts = counted.counts + p * counted.stride;
    const int32_t* const base = counted.bases[p] + counted.channel;
    size_t n = 0;
    for (; n + kWordBits <= counted.channels; n += kWordBits) {
      out[n / kWordBits] = at_least(counts + n, base + n, threshold + n);
    }
    if (n < counted.channels) {
      uint32_t word = 0;
      for (size_t bit = 0; n + bit < counted.channels; ++bit) {
        word |= static_cast<uint32_t>(base[n + bit] - 2 * counts[n + bit] >= threshold[n + bit]) << bit;
      }
      out[n / kWordBits] = word;
    }
  }
}

} // namespace
} // namespace ferryman::kernels

#include "isa_quant.h"
#include "isa_functions.h"
#include "isa_sparse.h"
#include "isa_peak.h"

namespace ferryman::kernels {
namespace {

constexpr Isa make(const char* name) {
  return {
      name,
      pack_rows,
      pack_planes,
      gather_rows,
      differences,
      tap_ones,
      differences_along,
      selected_sums,
      sum,
      scale_counts,
      count_taps,
      compare_counts,
      transpose,
      kDotBias,
      kColumnBias,
      add_bias,
      gather_bytes,
      dots,
      interleave,
      column_dots,
      group_dots,
      sums,
      largest,
      quantize,
      quantize_blocks,
      activate,
      softmax,
      layer_norm,
      put_floats,
      put_bytes,
      kSparseMost * kWidth,
      kWidth,
      list_gaps,
      list_bits,
      list_words,
      count_ones,
      sparse_sums,
      sparse_row,
      sparse_dots,
      finish,
      take_planes,
      peak_floats,
      kPeakRows * kPeakVectors * kPeakDepth * kWidth,
      peak_bytes,
      kPeakRows * kPeakDots * kPeakDepth * sizeof(Bytes),
      peak_read,
  };
}

} // namespace
} // namespace ferryman::kernels
