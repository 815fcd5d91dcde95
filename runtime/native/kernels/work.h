// What the steps of a convolution share: what every task reads, and the pieces that tasks are made of.
#pragma once

#include <atomic>

#include "buffer.h"
#include "geometry.h"
#include "isa.h"
#include "kernels.h"

namespace ferryman::kernels {

constexpr const char* kNoMemory = "out of memory";
constexpr size_t kRunChannels = 32;  // of counts, at a time

template <typename Call, typename Body>
void for_each(const Call& call, size_t tasks, const Body& body) {
  if (call.parallel == nullptr || tasks < 2) {
    for (size_t task = 0; task < tasks; ++task) {
      body(task);
    }
    return;
  }
  call.parallel(
      call.pool,
      [](void* argument, size_t task) { (*static_cast<const Body*>(argument))(task); },
      const_cast<Body*>(&body),
      tasks);
}

// What every task reads.
struct Work {
  const Geometry& g;
  const ferryman_binary_call& call;
  const Isa& isa;
  const uint32_t* frames = nullptr;      // packed activations, of all images
  const uint32_t* sums = nullptr;        // running exclusive ors of each row of the frames, a 0 before each; see has_sums
  const uint32_t* planes = nullptr;      // the same with each word's pixels side by side; for trees
  const Tree* tree = nullptr;            // the weights, when they are one
  const float* reals = nullptr;          // channels last, of all images
  const int32_t* tap_ones = nullptr;     // [groups, taps, 16 * blocks]: ones among a tap's weights, for zero padding
  std::atomic<bool>* failed = nullptr;

  size_t lanes() const {
    return g.blocks * kLanes;
  }
  size_t frame_words() const {
    return g.frame_height * g.frame_width * g.in_words;
  }
  size_t sum_row() const {
    return g.frame_width * g.in_words + 1;
  }
};

// Some output pixels of one image, and some of a group's output channels.
struct Part {
  size_t image, group;
  size_t pixel, pixels;
  size_t channel, channels;  // within the group
};

// Puts `count` bits of `from`, beginning at bit `from_bit`, into `to` at bit `to_bit`, where there are zeros.
void put_bits(uint32_t* to, size_t to_bit, const uint32_t* from, size_t from_bit, size_t count);
void put_ones(uint32_t* to, size_t to_bit, size_t count);

// One output pixel's window of one group, its bits in the order of the weights'.
void gather_bits(const Geometry& g, const uint32_t* corner, size_t group, uint32_t* row);

// Replaces words by running exclusive ors, as the weights' are.
void run_up(size_t words, uint32_t* row);

// Whether what a window has of a row of the frame are whole words, side by side.
bool has_sums(const Geometry& g);
void put_sums(const Work& work, uint32_t* sums);

// Writes floats that lie by pixel, `stride` apart, to where the output has them.
void put_floats(const Work& work, const Part& part, const float* from, size_t stride);

// What the dot products of a part would be without any difference: depth, and what taps outside the image give back.
class Bases {
 public:
  Bases(const Work& work, const Part& part);

  explicit operator bool() const {
    return rows_ && of_;
  }

  // With the counts of some of the part's channels.
  Counted of(const Part& some, const int32_t* counts, size_t stride) const {
    return {counts, stride, of_.get(), some.channel - channel_, some.pixels, some.channels};
  }

 private:
  size_t channel_;
  Buffer<const int32_t*> of_;  // each pixel's row
  Buffer<int32_t> rows_;       // of channels; the first for all pixels inside the image, others for those alike
};

// Turns counts[p * stride + n] into the outputs of `part`, whose pixels are those of `bases`; at most kRunChannels
// channels, unless there is one group.
void finish(const Work& work, const Part& part, const Bases& bases, const int32_t* counts, size_t stride);

// isa.transpose, of words: out[c * out_stride + r] = in[r * in_stride + c].
template <typename Word>
void turn(const Isa& isa, const Word* in, size_t in_stride, size_t rows, size_t columns, Word* out, size_t out_stride) {
  static_assert(sizeof(Word) == sizeof(float));
  isa.transpose(
      reinterpret_cast<const float*>(in), in_stride, rows, columns, reinterpret_cast<float*>(out), out_stride);
}

// The kinds of task: compute the outputs of a part, or set work.failed.
void run_signs(const Work& work, const Part& part);
void run_reals(const Work& work, const Part& part);
void run_tree(const Work& work, const Part& part);
void run_depthwise_signs(const Work& work, const Part& part);
void run_depthwise_reals(const Work& work, const Part& part);

// One bit an output channel, where each input channel of a depthwise convolution has several.
void widen(const Geometry& g, const uint32_t* bits, uint32_t* wide);

} // namespace ferryman::kernels
