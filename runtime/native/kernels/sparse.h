// C ABI of the sparse operators: convolutions and linear layers of floats, of which only some weights have a value. Beside
// kernels.h, with the same rules. Quantized weights (quantized.h) may be sparse in the same way.
//
// The weights of an output channel are counted as in quantized.h: taps in row order, weight tap * in + c with `in` channels
// in a group; there are at most 65535. `index_bits` says how it is told which of them have a value:
//   0     all have; there is no index
//   1     bitmap [out_channels, ceil(weights / 8)] bytes: whether weight k has a value is bit k % 8 of byte k / 8
//   4, 8  gaps: how many values each channel has, uint16 little-endian [out_channels]; then, channel by channel, each
//         beginning at a byte, `index_bits` to a value, low bits first: how many weights lie between it and the value
//         before it, or the channel's beginning. A value may be 0, to bridge a gap that is too long.
// Values are in order of channel, then of position. Whatever an index says is checked when it is run.
//
//   y = bias[n], and then in order of position y = y + value * x: one fused multiply-add each where the instruction set has
//       it (all but x86_64, and scalar on x86-64), or else a product and a sum, each rounded; taps outside the image are 0
//   y = y + add, with something to add; then y = low where that is larger, y = high where that is less: a NaN stays one
#pragma once

#include "kernels.h"

// A 2-D convolution. A linear layer is one of a single tap, over as many pixels as there are rows, channels last.
typedef struct {
  int32_t batch, height, width, channels;
  int32_t out_channels, kernel_h, kernel_w;
  int32_t stride_h, stride_w, dilation_h, dilation_w;
  int32_t pad_top, pad_left, pad_bottom, pad_right;  // each at most dilation * (kernel - 1)
  int32_t groups;
  int32_t index_bits;                   // 0, 1, 4 or 8
  int32_t input_layout, output_layout;  // FERRYMAN_CHANNELS_FIRST or _LAST
  int32_t add;                          // whether something is added
  float low, high;                      // ends of the output; -FLT_MAX and FLT_MAX: none, so that infinities stay
} ferryman_sparse_conv;

typedef struct {
  int32_t out_height, out_width;
  int64_t input, output, per_channel;  // in elements
} ferryman_sparse_sizes;

typedef struct {
  const float* input;
  const float* values;
  int64_t value_count;
  const uint8_t* index;
  int64_t index_bytes;
  const float* bias;  // [out_channels]
  const float* add;   // of the output's shape and layout; NULL where nothing is added
  float* output;
  ferryman_parallel parallel;
  void* pool;
  int32_t threads;
} ferryman_sparse_call;

FERRYMAN_KERNELS_API const char* ferryman_sparse_conv_check(const ferryman_sparse_conv* conv, ferryman_sparse_sizes* sizes);
FERRYMAN_KERNELS_API const char* ferryman_sparse_conv_run(const ferryman_sparse_conv* conv, const ferryman_sparse_call* call);
