// What each instruction set gives: the loops where the time goes, one translation unit each.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ferryman::kernels {

constexpr size_t kLanes = 16;  // output channels in a block of weights
constexpr size_t kWordBits = 32;

// Output channels in the order of their steps, each computed from an earlier one's.
struct Tree {
  size_t channels, words;
  const int32_t* order;      // of each step: its channel,
  const int32_t* parents;    // the step it starts from, or -1 for a root,
  const int32_t* distances;  // in how many weights the two differ,
  const int32_t* ends;       // where its entries end, which begin where those of the step before end
  const uint32_t* rows;      // [roots, words]: the weights of roots
  const uint32_t* at;        // of each entry: which word,
  const uint32_t* masks;     // which of its weights differ,
  const uint32_t* bits;      // and the parent's weights there
};

// Differences of some pixels and channels: counts[p * stride + n]; without any, a dot product is bases[p][channel + n].
struct Counted {
  const int32_t* counts;
  size_t stride;
  const int32_t* const* bases;
  size_t channel;
  size_t pixels, channels;
};

// Bytes of a vector of quantized weights: four weights' bits of each lane.
constexpr size_t kVectorBytes = 4 * kLanes;

// What weights are multiplied with, of some pixels: pixel p's window is, run after run, the bytes from
// x + p * step + offsets[run] on: inputs, to which dot_bias was added or not.
struct Windows {
  const int8_t* x;
  size_t step;
  const size_t* offsets;
  size_t runs, bytes;  // of each run
  size_t pixels;
  bool biased;
};

// How floats become int8: zero + rint(min(max(x * inverse, low), high)).
struct Rounding {
  float inverse, low, high;
  int32_t zero;
};

// Inputs of one scale where rows are in blocks.
constexpr size_t kBlock = 32;

// Rows of int8 and some blocks of lanes of weights, with scales to groups; see ferryman_quant_linear.
struct Grouped {
  size_t channels, group, groups;
  int32_t bits;
  const int8_t* x;
  size_t x_stride;
  const int32_t* sums;   // [rows, groups], of x
  const float* x_scale;  // [rows, groups], or null: not of groups
  size_t rows;
  const uint8_t* w;
  size_t block_stride, blocks;
  const uint16_t* scale;    // float16 [blocks, groups, 16], or null:
  const float* wide_scale;  // float32
  const uint8_t* zero;      // or null
};

// Dot products of some pixels and channels, and what makes outputs of them:
//   (dots[p * stride + n] + base[n]) * (x_scale * scale[n]) + bias[n], and add_scale * (add[p * add_stride + n] - add_zero)
// All but `add` have room for whole blocks of channels.
struct Dotted {
  const int32_t* dots;
  size_t stride;
  size_t pixels, channels;
  const int32_t* base;
  float x_scale;
  const float* scale;
  const float* bias;
  const int8_t* add;  // or null
  size_t add_stride;
  float add_scale;
  int32_t add_zero;
};

// Weights of an output channel that have a value: this, and what it is multiplied with lies at frame + offset.
template <typename Value>
struct Listed {
  const Value* frame;
  const uint32_t* offsets;
  const Value* values;
  size_t count;
};

// Outputs of a sparse convolution, of some channels: out[n * out_stride + p] for p < pixels, which lie side by side in the
// frame, from `at` on. See sparse.h for what is added and what low and high are.
struct SparseSums {
  const Listed<float>* lists;
  size_t channels;
  size_t at, pixels;
  const float* bias;
  const float* add;  // or null
  float low, high;
  float* out;
  size_t out_stride;  // of what is added as well
};

// Values in a rectangle, to be put into another after what is added and clipped.
struct Finished {
  const float* from;
  size_t from_stride;
  size_t rows, columns;
  const float* add;  // or null; apart like `out`
  float low, high;
  float* out;
  size_t out_stride;
};

// Planes into larger ones, zeros all around: a plane's rows, of floats that are `step` apart, are put side by side from
// row `above` and column `left` on. The last kLanes of a plane are behind its rows.
struct Taken {
  const float* from;
  size_t from_plane, from_row, step;
  size_t planes, rows, columns;  // at least one of each
  size_t above, left;
  float* to;
  size_t to_plane, to_row;
  size_t size;  // of a plane there
};

struct Isa {
  const char* name;

  // out[row * out_stride + c / 32]: bit c % 32 is x[row * channels + c] >= 0.
  void (*pack_rows)(const float* x, size_t rows, size_t channels, uint32_t* out, size_t out_stride);

  // out[pixel * out_stride + c / 32]: bit c % 32 is x[c * plane + pixel] >= 0, for pixel < pixels.
  void (*pack_planes)(const float* x, size_t plane, size_t pixels, size_t channels, uint32_t* out, size_t out_stride);

  // The running exclusive ors of windows, from those of the rows they lie in: of pixel p, `words` words from
  // sums[p * step + offsets[run] + 1] on, for each run, as if they stood one after the other.
  void (*gather_rows)(
      const uint32_t* sums,
      const size_t* offsets,
      size_t runs,
      size_t words,
      size_t pixels,
      size_t step,
      uint32_t* rows);

  // counts[pixel * count_stride + 16 * block + lane]: bits in which a window, a[pixel * a_stride + k], and a lane of
  // weights, w[block * block_stride + 16 * k + lane], differ, for k < words. Both are running exclusive ors over k.
  void (*differences)(
      const uint32_t* a,
      size_t a_stride,
      size_t pixels,
      size_t words,
      const uint32_t* w,
      size_t block_stride,
      size_t blocks,
      int32_t* counts,
      size_t count_stride);

  // ones[tap * stride + 16 * block + lane]: ones among the tap_words words of weights of each tap.
  void (*tap_ones)(
      const uint32_t* w,
      size_t block_stride,
      size_t blocks,
      size_t taps,
      size_t tap_words,
      int32_t* ones,
      size_t stride);

  // counts[channel * lanes + pixel]: bits in which a window and a channel's weights differ; turned[k * lanes + pixel] is
  // word k of the window. lanes is a multiple of 16.
  void (*differences_along)(const Tree& tree, const uint32_t* turned, size_t lanes, int32_t* counts);

  // sums[pixel * sum_stride + 16 * block + lane]: those a[pixel * a_stride + k] whose weight is 1, added up in
  // the order of k < depth.
  void (*selected_sums)(
      const float* a,
      size_t a_stride,
      size_t pixels,
      const uint32_t* w,
      size_t block_stride,
      size_t blocks,
      size_t depth,
      float* sums,
      size_t sum_stride);

  // x[0..count) in 16 interleaved sums, then these in order.
  float (*sum)(const float* x, size_t count);

  // scale[n] * float(base - 2 * count) + bias[n], each operation rounded: out[p * out_stride + n], or out[n * out_stride
  // + p] where turned.
  void (*scale_counts)(
      const Counted& counted, const float* scale, const float* bias, float* out, size_t out_stride, bool turned);

  // counts[32 * word + bit]: how many taps differ there; a[tap][word] against w[tap * words + word], and where a[tap] is
  // null the tap does not count.
  void (*count_taps)(const uint32_t* const* a, const uint32_t* w, size_t taps, size_t words, int32_t* counts);

  // Bit n of out[p * out_stride] and on is base - 2 * count >= threshold[n]; the last word's other bits are 0.
  void (*compare_counts)(const Counted& counted, const int32_t* threshold, uint32_t* out, size_t out_stride);

  // out[c * out_stride + r] = in[r * in_stride + c] for r < rows, c < columns.
  void (*transpose)(const float* in, size_t in_stride, size_t rows, size_t columns, float* out, size_t out_stride);

  // What `dots` and `interleave` add to inputs.
  int32_t dot_bias, column_bias;

  // out[i] = x[i] + dot_bias, modulo 256.
  void (*add_bias)(const int8_t* x, size_t count, int8_t* out);

  // rows[pixel * stride] and on: the window, then zeros.
  void (*gather_bytes)(const Windows& windows, int8_t* rows, size_t stride);

  // out[pixel * out_stride + 16 * block + lane]: the dot product of a window, with its bias, and a lane of weights of
  // `bits`, from w + block * block_stride on. A run is of whole quads; where there are several, of whole bytes of weights.
  void (*dots)(
      int32_t bits,
      const Windows& windows,
      const uint8_t* w,
      size_t block_stride,
      size_t blocks,
      int32_t* out,
      size_t out_stride);

  // out[column * out_stride + 4 * c + i]: rows[i][column * steps[i] + c] + column_bias, for c < channels; as many more as
  // fill a block hold what may be multiplied too.
  void (*interleave)(
      const int8_t* const* rows,
      const size_t* steps,
      size_t columns,
      size_t channels,
      uint8_t* out,
      size_t out_stride);

  // out[pixel * out_stride + lane], for a block of lanes: the sum over taps and bytes i < 4 of
  // columns[pixel * pixel_step + offsets[tap] + 4 * lane + i] and w[tap * 64 + 4 * lane + i].
  void (*column_dots)(
      const uint8_t* columns,
      size_t pixel_step,
      const size_t* offsets,
      size_t taps,
      const int8_t* w,
      size_t pixels,
      int32_t* out,
      size_t out_stride);

  // out[row * 16 * blocks + 16 * block + lane]: the sum over groups of the dot product times the group's scales.
  void (*group_dots)(const Grouped& grouped, float* out);

  // out[row]: the sum of x[row * stride + k], k < count.
  void (*sums)(const int8_t* x, size_t stride, size_t rows, size_t count, int32_t* out);

  // The largest magnitude; that of a NaN is 0.
  float (*largest)(const float* x, size_t count);

  void (*quantize)(const float* x, size_t count, const Rounding& rounding, int8_t* out);

  // Every kBlock by their largest magnitude / 127, which is put into scale.
  void (*quantize_blocks)(const float* x, size_t count, int8_t* out, float* scale);

  // FERRYMAN_GELU, FERRYMAN_GELU_TANH or FERRYMAN_SILU of each; `out` may be `x`.
  void (*activate)(int32_t kind, const float* x, size_t count, float* out);
  void (*softmax)(const float* x, size_t count, float* out);
  void (*layer_norm)(const float* x, size_t count, float epsilon, const float* weight, const float* bias, float* out);

  // out[p * out_stride + n], or out[n * out_stride + p] where turned.
  void (*put_floats)(const Dotted& dotted, float* out, size_t out_stride, bool turned);

  // out[p * out_stride + n].
  void (*put_bytes)(const Dotted& dotted, const Rounding& rounding, int8_t* out, size_t out_stride);

  // What sparse_sums has at a time: pixels, and how many of them to a vector.
  size_t sparse_pixels, width;

  // Where values lie that come after gaps of `bits`, their positions times `step`; the last one's is returned.
  size_t (*list_gaps)(const uint8_t* gaps, int32_t bits, size_t count, size_t step, uint32_t* places);

  // The same of those of a bitmap's row, of which bytes there are (bits + 7) / 8.
  void (*list_bits)(const uint8_t* row, size_t bits, size_t step, uint32_t* places);

  // The words that are not 0, and what lies at the same place in `places`; there is room for all. How many they are.
  size_t (*list_words)(
      const uint32_t* words, const uint32_t* places, size_t count, uint32_t* listed, uint32_t* listed_places);

  size_t (*count_ones)(const uint8_t* bytes, size_t count);

  // Reads as many pixels as fill kLanes.
  void (*sparse_sums)(const SparseSums& sums);

  // The same of one pixel: channels lie side by side.
  void (*sparse_row)(const SparseSums& sums);

  // out[n * out_stride + p]: sums of products of four bytes, of a value and of a word of the frame to which column_bias
  // was added. Reads and writes as many pixels as fill kLanes.
  void (*sparse_dots)(
      const Listed<uint32_t>* lists, size_t channels, size_t at, size_t pixels, int32_t* out, size_t out_stride);

  void (*finish)(const Finished& finished);

  void (*take_planes)(const Taken& taken);

  // Multiply-adds as fast as can be: so many a round; x has room for 4096 floats, or 16384 bytes.
  float (*peak_floats)(const float* x, size_t rounds);
  size_t peak_float_macs;
  int32_t (*peak_bytes)(const int8_t* x, size_t rounds);
  size_t peak_byte_macs;

  // Reads as many words as fill a whole number of vectors.
  uint32_t (*peak_read)(const uint32_t* x, size_t count);
};

extern const Isa kAvx512, kAvx2, kX86_64, kNeonDot, kNeon, kScalar;

// The one in use.
const Isa& isa();

} // namespace ferryman::kernels
