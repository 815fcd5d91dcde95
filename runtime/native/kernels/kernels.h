// C ABI of ferryman's own operators: no dependency beyond the C++ library. Two registrations stand on it, operators in
// the ExecuTorch session and an external delegate for TFLite; tests and the self-check call it directly.
//
// Bits: +1 is bit 1, -1 is bit 0, least significant bit first in 32-bit words; bits beyond the last are 0.
//   activations  [batch, height, width, ceil(channels / 32)]                    channel c of a pixel is bit c
//   weights      [groups, ceil(out / 16), ceil(taps * in / 32), 16]             bit tap * in + c of lane n is w[n, c, tap]
//                with in and out counted in one group, and taps in row order; then each word is replaced by the exclusive
//                or of itself and all words of its lane before it (isa_impl.h says what for)
//   depthwise    [taps, ceil(out_channels / 32)] where a group has one input channel: bit n is w[n, 0, tap]
//   tree         words of 32 bits: the magic "TRE1", output channels, words = ceil(taps * in / 32), roots, entries;
//                then, of each step, the output channel it computes [out], the earlier step it starts from or -1 for a
//                root [out], in how many weights the two channels differ [out], and where its entries end [out];
//                the weights of the roots, in order, bits as above [roots, words]; then, of each entry, the word in
//                which weights differ [entries], which bits [entries], and the parent's weights there [entries]
// The artifact stores these words once; they are read where they lie.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define FERRYMAN_KERNELS_API extern "C" __attribute__((visibility("default")))
#else
#define FERRYMAN_KERNELS_API __attribute__((visibility("default")))
#endif

// Of operators and layouts together; artifacts name the one they need. Rises with each change that adds to them.
enum { FERRYMAN_KERNELS_VERSION = 4 };

// Where a real-valued tensor keeps its channels; bits always go by pixel.
enum { FERRYMAN_CHANNELS_FIRST = 0, FERRYMAN_CHANNELS_LAST = 1 };

// What the inputs are taken for.
enum {
  FERRYMAN_SIGNS = 0,  // floats, of which the sign counts: x >= 0 is +1, anything else (NaN too) is -1
  FERRYMAN_BITS = 1,   // signs, packed
  // Floats as they are, against binary weights. They must be finite and below 1e38 / depth: a dot product is computed as
  // twice the sum of those whose weight is 1, less the sum of all, which overflows before the dot product itself does.
  FERRYMAN_REALS = 2,
};

// A 2-D convolution; a linear layer is one of 1x1 over images of 1x1, channels last.
typedef struct {
  int32_t batch, height, width, channels;
  int32_t out_channels, kernel_h, kernel_w;
  int32_t stride_h, stride_w, dilation_h, dilation_w;
  int32_t pad_top, pad_left, pad_bottom, pad_right;  // each at most dilation * (kernel - 1): no window of padding alone
  int32_t groups;
  int32_t pad_value;  // -1, 0 or 1
  int32_t input;      // FERRYMAN_SIGNS, FERRYMAN_BITS or FERRYMAN_REALS
  int32_t bits_out;   // 0: floats scale * dot + bias; 1: signs, packed, +1 where dot >= threshold
  int32_t layout;     // of float inputs and outputs
} ferryman_binary_conv;

// What the operator reads and writes, in elements of 4 bytes.
typedef struct {
  int32_t out_height, out_width;
  int64_t input, weights, per_channel, output;
} ferryman_binary_sizes;

// Runs body(argument, task) for every task below `tasks`, in any order, on any threads; returns when all are done.
typedef void (*ferryman_parallel)(void* pool, void (*body)(void*, size_t), void* argument, size_t tasks);

typedef struct {
  const void* input;        // floats or words
  const uint32_t* weights;
  const float* scale;       // [out_channels]; unused with bits_out
  const float* bias;        // [out_channels]; unused with bits_out
  const int32_t* threshold; // [out_channels]; used with bits_out
  void* output;             // floats or words
  ferryman_parallel parallel; // NULL: this thread alone
  void* pool;
  int32_t threads;          // how many tasks to make at least, where there is work for them
} ferryman_binary_call;

FERRYMAN_KERNELS_API int32_t ferryman_kernels_version(void);

// What one thread does at most, measured for so many seconds with the instruction set in use: multiply-adds of floats and
// of int8 a second, and bytes a second read from memory, `times` the same words at a time.
FERRYMAN_KERNELS_API double ferryman_peak_floats(double seconds);
FERRYMAN_KERNELS_API double ferryman_peak_int8(double seconds);
FERRYMAN_KERNELS_API double ferryman_peak_read(const uint32_t* words, size_t count, size_t times, double seconds);

// The instruction set in use: the best this processor has, or what FERRYMAN_KERNELS_ISA names if the processor has it.
FERRYMAN_KERNELS_API const char* ferryman_kernels_isa(void);

// Instruction sets built in that this processor has, best first, separated by spaces.
FERRYMAN_KERNELS_API const char* ferryman_kernels_isas(void);

// Uses another from now on, in all threads; returns 0, or -1 if it is not one of the above. For tests and benchmarks.
FERRYMAN_KERNELS_API int32_t ferryman_kernels_use(const char* isa);

// Checks the numbers and works out the sizes; returns NULL, or what is wrong with them.
FERRYMAN_KERNELS_API const char* ferryman_binary_check(const ferryman_binary_conv* conv, ferryman_binary_sizes* sizes);

// Computes; `conv` must have passed the check and every pointer must have the room it named. Returns NULL or an error.
FERRYMAN_KERNELS_API const char* ferryman_binary_run(const ferryman_binary_conv* conv, const ferryman_binary_call* call);

// The same convolution with a tree for weights, of one group, signs or bits: each output channel counts its differences
// from those of an earlier one,
//   differences(child) = differences(parent) + distance - 2 * sum over entries of popcount((a ^ parent) & mask).
// Same outputs to the bit as from the same weights in the other layout. `words` is the tree's length, which the sizes of
// ferryman_binary_check do not say.

// Whether these words are a tree for a convolution that passed ferryman_binary_check; returns NULL or what is wrong.
FERRYMAN_KERNELS_API const char* ferryman_tree_check(
    const ferryman_binary_conv* conv, const uint32_t* tree, int64_t words);

// Computes; call->weights are checked as above in each call, so that any words may be given.
FERRYMAN_KERNELS_API const char* ferryman_tree_run(
    const ferryman_binary_conv* conv, const ferryman_binary_call* call, int64_t words);
