// What the steps of a quantized convolution share.
#pragma once

#include <algorithm>
#include <atomic>

#include "quantized.h"
#include "work.h"

namespace ferryman::kernels {

// What every task reads. Channels are counted in whole blocks of each group.
struct QuantWork {
  const Geometry& g;
  const ferryman_quant_conv& conv;
  const ferryman_quant_call& call;
  const Isa& isa;
  const uint8_t* weights = nullptr;  // dense ones
  const int8_t* x = nullptr;       // channels last, of all images
  const float* x_scale = nullptr;  // of each image
  int32_t x_zero = 0;
  const int8_t* frames = nullptr;   // x + isa.dot_bias in its padding, or x itself where it can do without
  const size_t* offsets = nullptr;  // in frames, of the runs of bytes that a window is
  size_t runs = 0;
  bool direct = false;              // runs are of whole bytes of weights; or else windows are gathered first
  const float* scale = nullptr;
  const float* bias = nullptr;
  const int32_t* base = nullptr;
  const int8_t* column_weights = nullptr;  // of depthwise convolutions
  std::atomic<bool>* failed = nullptr;

  size_t per() const {
    return 8 / static_cast<size_t>(conv.bits);
  }
  size_t vectors() const {
    return ((g.depth + 3) / 4 + per() - 1) / per();
  }
  size_t threads() const {
    return static_cast<size_t>(std::max(call.threads, 1));
  }
};

// Makes outputs of the dot products of some pixels of an image, and of some channels of a group, which begin in `base`.
void put(const QuantWork& work, const Part& part, const int32_t* dots, size_t stride, const int32_t* base);
inline void put(const QuantWork& work, const Part& part, const int32_t* dots, size_t stride) {
  put(work, part, dots, stride, work.base + part.group * work.g.blocks * kLanes + part.channel);
}

// With sparse weights that are not unpacked; NULL: all went well.
class SparseWeights;
const char* run_sparse(const QuantWork& work, const SparseWeights& weights);

// Where the columns of a run of output pixels lie. Where windows overlap they share them; where not, or where a window is
// too wide for that, each has its own.
struct Columns {
  size_t quads;    // of rows
  size_t rows;     // of outputs that they serve
  size_t lanes;    // at a time
  size_t bytes;    // of one column
  size_t pixels;   // of a run
  size_t step, tap_step;
  bool shared;

  explicit Columns(const Geometry& g);

  size_t count(size_t pixels_of_run, size_t kernel) const {
    return (pixels_of_run - 1) * step + tap_step * (kernel - 1) + 1;
  }
};

// Weights of each row of outputs that shares columns, and each block of channels: [kernel_w, quads, 16] words of four
// bytes, zeros where the kernel has no row; and their sums.
void spread_weights(const QuantWork& work, const Columns& columns, uint32_t* w, int32_t* sums);

void run_depthwise(const QuantWork& work, const Columns& columns);

// Each channel as often as it has output channels.
void widen_bytes(const Geometry& g, const int8_t* x, int8_t* wide);

} // namespace ferryman::kernels
