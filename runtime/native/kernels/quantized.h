// C ABI of the quantized operators: weights of 8, 4 or 2 bits, activations of 8. Beside kernels.h, with the same rules.
//
// An int8 q stands for scale * (q - zero). Floats become int8 by
//   quantize(x) = zero + rint(min(max(x * (1 / scale), low - zero), high - zero))
// with 1 / scale a float, rint to even, and a NaN taken for the low end. Where a scale is dynamic, it is the largest
// magnitude / 127 and zero is 0, low -127 and high 127; of nothing but zeros, all are 0. Every operation on floats is
// rounded by itself, in the order written, on every instruction set.
//
// Weights are stored unsigned, w + 2^(bits - 1), low bits first, kPer = 8 / bits to a byte:
//   convolution, linear  [groups, ceil(out / 16), ceil(ceil(depth / 4) / kPer), 16, 4] bytes, with out and depth = taps * in
//                        counted in one group, taps in row order: in vector v, bits j of byte [lane, i] are the weight of
//                        channel `lane` at depth 4 * (kPer * v + j) + i, where depth counts tap * in + c
//   depthwise            where a group has one input channel: [ceil(out_channels / 16), ceil(taps / kPer), 16] bytes: in
//                        vector v, bits j of byte `lane` are the weight at tap kPer * v + j
//   embedding            [rows, ceil(channels / kPer)] bytes: element d is in byte d / kPer, at bits d % kPer
// What is beyond the last channel, depth or tap is a weight of zero, 2^(bits - 1).
// The artifact stores these bytes once; they are read where they lie.
//
// Those of convolutions, but for depthwise ones, and of linear layers may also be sparse: an index as in sparse.h, of
// `index_bits`, then the values: channel by channel, each beginning at a byte, stored and packed as above. Weights without a
// value are zeros.
//
// A row in blocks is int8 of which every 32 channels, the last maybe fewer, have a dynamic scale of their own:
// [channels] bytes, then [ceil(channels / 32)] scales of 4 bytes at any alignment.
#pragma once

#include "kernels.h"

enum { FERRYMAN_FLOATS = 0, FERRYMAN_INT8 = 1, FERRYMAN_BLOCKS = 2 };

// How many channels a row in blocks of so many bytes has; 0: no row has so many bytes.
FERRYMAN_KERNELS_API int32_t ferryman_quant_block_channels(int64_t bytes);
// The bytes of such a row.
FERRYMAN_KERNELS_API int64_t ferryman_quant_block_bytes(int32_t channels);

// A 2-D convolution with symmetric weights, a scale to an output channel; taps outside the image count as zero.
//   acc = sum of (x - x_zero) * w;  y = float(acc) * (x_scale * scale[n]) + bias[n]
//   with something to add: y = y + add_scale * float(add - add_zero)
//   int8 out: quantize(y) by out_scale, out_zero, out_low, out_high (a fused activation is in the ends)
// int8 tensors are [batch, height, width, channels]; floats too, or with the channels first, as `layout` says.
typedef struct {
  int32_t batch, height, width, channels;
  int32_t out_channels, kernel_h, kernel_w;
  int32_t stride_h, stride_w, dilation_h, dilation_w;
  int32_t pad_top, pad_left, pad_bottom, pad_right;  // each at most dilation * (kernel - 1)
  int32_t groups;
  int32_t bits;           // of weights: 8, 4 or 2
  int32_t layout;         // FERRYMAN_CHANNELS_FIRST or _LAST, of floats
  int32_t input, output;  // FERRYMAN_FLOATS or FERRYMAN_INT8
  float x_scale;          // of the input, > 0; or 0: dynamic, of each image by itself, for floats only
  int32_t x_zero;
  float out_scale;        // of int8 outputs, > 0
  int32_t out_zero, out_low, out_high;
  float add_scale;        // of int8 that are added to the output; 0: nothing is
  int32_t add_zero;
  int32_t index_bits;     // 0: dense weights; 1, 4 or 8: sparse ones,
  int32_t unpack;         // which are made dense in each run, or else only those with a value are multiplied
} ferryman_quant_conv;

typedef struct {
  int32_t out_height, out_width;
  int64_t input, weights, per_channel, output;  // in elements; weights in bytes, 0 of sparse ones
} ferryman_quant_sizes;

typedef struct {
  const void* input;
  const uint8_t* weights;
  int64_t weight_bytes;   // of sparse ones
  const float* scale;     // [out_channels], of weights; of either sign
  const float* bias;      // [out_channels]
  const int8_t* add;      // as many as outputs; NULL where nothing is added
  void* output;
  ferryman_parallel parallel;
  void* pool;
  int32_t threads;
} ferryman_quant_call;

FERRYMAN_KERNELS_API const char* ferryman_quant_conv_check(const ferryman_quant_conv* conv, ferryman_quant_sizes* sizes);
FERRYMAN_KERNELS_API const char* ferryman_quant_conv_run(const ferryman_quant_conv* conv, const ferryman_quant_call* call);

// A linear layer of rows that are quantized by themselves (dynamic), and weights with a scale to every `group` inputs:
//   y[n] = (sum over groups g, in order, of float(sum of x * (w + 2^(bits - 1) - zero[n, g])) * scale[n, g]) * x_scale + bias[n]
// or, where rows are in blocks, with x_scale[g] within the sum:
//   y[n] = (sum over g of (float(sum of x * (w + 2^(bits - 1) - zero[n, g])) * scale[n, g]) * x_scale[g]) + bias[n]
// The sum over groups begins with the first product, not with 0.
typedef struct {
  int32_t rows, channels, out_channels;
  int32_t bits;    // 8, 4 or 2
  int32_t group;   // inputs of one scale: a multiple of 32, or all channels; with blocks 32, or all of fewer
  int32_t input;   // FERRYMAN_FLOATS or FERRYMAN_BLOCKS
  int32_t blocks;  // whether floats are quantized in blocks, not by row; blocks always are
  int32_t index_bits;  // 0: dense weights; 1, 4 or 8: sparse ones, made dense in each run; there are no zeros then
} ferryman_quant_linear;

typedef struct {
  int64_t input, weights, scales, output;  // in elements; weights and blocks in bytes
} ferryman_quant_linear_sizes;

typedef struct {
  const void* input;      // [rows, channels]
  const uint8_t* weights;
  int64_t weight_bytes;   // of sparse ones
  const uint16_t* scale;  // float16 [ceil(out_channels / 16), groups, 16]
  const uint8_t* zero;    // the same shape: what stands for 0; NULL: 2^(bits - 1) everywhere
  const float* bias;      // [out_channels]
  float* output;          // [rows, out_channels]
  ferryman_parallel parallel;
  void* pool;
  int32_t threads;
} ferryman_quant_linear_call;

FERRYMAN_KERNELS_API const char* ferryman_quant_linear_check(
    const ferryman_quant_linear* linear, ferryman_quant_linear_sizes* sizes);
FERRYMAN_KERNELS_API const char* ferryman_quant_linear_run(
    const ferryman_quant_linear* linear, const ferryman_quant_linear_call* call);

// Rows of a table, by number: out[i, d] = float(stored - zero[id, g]) * scale[id, g], with g = d / group.
typedef struct {
  int32_t rows, channels;
  int32_t bits;
  int32_t group;     // elements of one scale: a multiple of 32, or all channels
  int32_t id_bytes;  // of each number: 4 or 8
  int32_t lanes;     // whether weights, scales and zeros lie as those of a linear layer of `rows` outputs, which shares its weights
  int64_t count;     // of numbers
} ferryman_quant_embedding;

typedef struct {
  int64_t weights, scales, output;  // in elements; weights in bytes
} ferryman_quant_embedding_sizes;

typedef struct {
  const void* ids;        // int32 or int64; negative, or too large: an error
  const uint8_t* weights;
  const uint16_t* scale;  // float16 [rows, groups], or with lanes [ceil(rows / 16), groups, 16]
  const uint8_t* zero;    // the same shape, or NULL as above
  float* output;          // [count, channels]
} ferryman_quant_embedding_call;

FERRYMAN_KERNELS_API const char* ferryman_quant_embedding_check(
    const ferryman_quant_embedding* embedding, ferryman_quant_embedding_sizes* sizes);
FERRYMAN_KERNELS_API const char* ferryman_quant_embedding_run(
    const ferryman_quant_embedding* embedding, const ferryman_quant_embedding_call* call);

// The product of two tensors, both quantized in blocks along what is summed over:
//   y[row, n] = sum over blocks g, in order, of (float(sum of a * b) * b_scale[n, g]) * a_scale[row, g]
typedef struct {
  int32_t batch, rows, channels, columns;  // [batch, rows, channels] by [batch, channels, columns]
  int32_t turned;                          // b lies as [batch, columns, channels]
  int32_t input;                           // of a: FERRYMAN_FLOATS or FERRYMAN_BLOCKS
} ferryman_quant_matmul;

typedef struct {
  int64_t a, b, output;  // in elements; blocks in bytes
} ferryman_quant_matmul_sizes;

typedef struct {
  const void* a;
  const float* b;
  float* output;  // [batch, rows, columns]
  ferryman_parallel parallel;
  void* pool;
  int32_t threads;
} ferryman_quant_matmul_call;

FERRYMAN_KERNELS_API const char* ferryman_quant_matmul_check(
    const ferryman_quant_matmul* matmul, ferryman_quant_matmul_sizes* sizes);
FERRYMAN_KERNELS_API const char* ferryman_quant_matmul_run(
    const ferryman_quant_matmul* matmul, const ferryman_quant_matmul_call* call);

// A function of rows, approximated by polynomials in float32: to about 1e-6 of the largest output, and the same to the bit on
// every instruction set. A softmax of nothing but minus infinity is 0.
enum {
  FERRYMAN_GELU = 0,  // x * (1 + erf(x / sqrt(2))) / 2, with erf by Abramowitz and Stegun 7.1.26
  FERRYMAN_GELU_TANH = 1,
  FERRYMAN_SILU = 2,
  FERRYMAN_SOFTMAX = 3,     // of a row
  FERRYMAN_LAYER_NORM = 4,  // of a row, (x - mean) / sqrt(variance + epsilon) * weight + bias
};

typedef struct {
  int32_t rows, channels;
  int32_t kind;
  int32_t output;  // FERRYMAN_FLOATS or FERRYMAN_BLOCKS
  float epsilon;   // of a layer norm, >= 0
} ferryman_quant_function;

typedef struct {
  int64_t input, per_channel, output;  // in elements; blocks in bytes; per_channel is 0 but for layer norms
} ferryman_quant_function_sizes;

typedef struct {
  const float* input;
  const float* weight;  // [channels], of layer norms
  const float* bias;
  void* output;
  ferryman_parallel parallel;
  void* pool;
  int32_t threads;
} ferryman_quant_function_call;

FERRYMAN_KERNELS_API const char* ferryman_quant_function_check(
    const ferryman_quant_function* function, ferryman_quant_function_sizes* sizes);
FERRYMAN_KERNELS_API const char* ferryman_quant_function_run(
    const ferryman_quant_function* function, const ferryman_quant_function_call* call);
