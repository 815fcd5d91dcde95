// Binary convolution: signs packed into a frame (the image with its padding around it), differences between windows of
// the frame and the weights counted, counts turned into floats or bits, some pixels at a time.
//
// With activations a and weights w in {-1, 1}, a dot product over n of them is n - 2 * differences. A tap outside the
// image counts as zero with pad_value 0: its activation bits are 0, so its differences are the ones among its weights,
// and are given back from a table.
//
// Weights come by output channel, or as a tree in which one channel follows from another (tree.cpp).
#include <algorithm>
#include <atomic>
#include <cstring>

#include "buffer.h"
#include "tree.h"
#include "work.h"

namespace ferryman::kernels {
namespace {

constexpr size_t kChunkCounts = 16384;  // counts of one task at a time: about what the first cache holds
constexpr size_t kPackPixels = 256;
constexpr size_t kTreePixels = 64;      // of one task along a tree
constexpr size_t kTaskDepth = 1 << 22;  // inputs of one task's windows
constexpr size_t kTapRows = 64;         // taps whose ones are counted at a time

// Packs all images, one after the other.
void pack(const Work& work, uint32_t* bits) {
  const Geometry& g = work.g;
  const auto channels = static_cast<size_t>(g.conv.channels);
  const size_t runs = (g.in_pixels + kPackPixels - 1) / kPackPixels;
  for_each(work.call, static_cast<size_t>(g.conv.batch) * runs, [&](size_t task) {
    const size_t image = task / runs;
    const size_t begin = task % runs * kPackPixels;
    const size_t count = std::min(kPackPixels, g.in_pixels - begin);
    const float* const x = static_cast<const float*>(work.call.input) + image * g.in_pixels * channels;
    uint32_t* const to = bits + (image * g.in_pixels + begin) * g.in_words;
    if (g.conv.layout == FERRYMAN_CHANNELS_LAST) {
      work.isa.pack_rows(x + begin * channels, count, channels, to, g.in_words);
    } else {
      work.isa.pack_planes(x + begin, g.in_pixels, count, channels, to, g.in_words);
    }
  });
}

// Copies packed images into frames, with the padding's value around them.
void put_border(const Work& work, const uint32_t* bits, uint32_t* frames) {
  const Geometry& g = work.g;
  const auto width = static_cast<size_t>(g.conv.width);
  const auto height = static_cast<size_t>(g.conv.height);
  const size_t images = static_cast<size_t>(g.conv.batch);
  memset(frames, g.conv.pad_value == 1 ? 0xff : 0, images * work.frame_words() * sizeof *frames);
  frames += (static_cast<size_t>(g.conv.pad_top) * g.frame_width + static_cast<size_t>(g.conv.pad_left)) * g.in_words;
  for (size_t image = 0; image < images; ++image, frames += work.frame_words()) {
    for (size_t y = 0; y < height; ++y, bits += width * g.in_words) {
      memcpy(frames + y * g.frame_width * g.in_words, bits, width * g.in_words * sizeof *bits);
    }
  }
}

// Ones among the weights of each tap; where a tap is no whole number of words, by what differs from a window that is 1
// at that tap alone, against one of zeros.
bool count_tap_ones(const Geometry& g, const ferryman_binary_call& call, const Isa& isa, int32_t* ones) {
  const size_t lanes = g.blocks * kLanes;
  const size_t group_words = g.blocks * g.words * kLanes;
  if (g.channels % kWordBits == 0) {
    for (size_t group = 0; group < static_cast<size_t>(g.conv.groups); ++group, ones += g.taps * lanes) {
      const uint32_t* const w = call.weights + group * group_words;
      isa.tap_ones(w, g.words * kLanes, g.blocks, g.taps, g.channels / kWordBits, ones, lanes);
    }
    return true;
  }
  const size_t rows = std::min(g.taps, kTapRows) + 1;
  const Buffer<uint32_t> windows(rows * g.words);
  const Buffer<int32_t> counts(rows * lanes);
  if (!windows || !counts) {
    return false;
  }
  for (size_t begin = 0; begin < g.taps; begin += kTapRows) {
    const size_t taps = std::min(kTapRows, g.taps - begin);
    memset(windows.get(), 0, rows * g.words * sizeof(uint32_t));
    for (size_t tap = 0; tap < taps; ++tap) {
      put_ones(windows.get() + tap * g.words, (begin + tap) * g.channels, g.channels);
      run_up(g.words, windows.get() + tap * g.words);
    }
    for (size_t group = 0; group < static_cast<size_t>(g.conv.groups); ++group) {
      const uint32_t* const w = call.weights + group * group_words;
      isa.differences(windows.get(), g.words, taps + 1, g.words, w, g.words * kLanes, g.blocks, counts.get(), lanes);
      const int32_t* const total = counts.get() + taps * lanes;
      int32_t* const to = ones + (group * g.taps + begin) * lanes;
      for (size_t i = 0; i < taps * lanes; ++i) {
        to[i] = (total[i % lanes] + static_cast<int32_t>(g.channels) - counts.get()[i]) / 2;
      }
    }
  }
  return true;
}

void to_channels_last(const Geometry& g, const ferryman_binary_call& call, const Isa& isa, float* reals) {
  const auto channels = static_cast<size_t>(g.conv.channels);
  const auto* const x = static_cast<const float*>(call.input);
  for_each(call, static_cast<size_t>(g.conv.batch), [&](size_t image) {
    const size_t offset = image * g.in_pixels * channels;
    isa.transpose(x + offset, g.in_pixels, channels, g.in_pixels, reals + offset, channels);
  });
}

using Run = void (*)(const Work&, const Part&);

// Cuts the output into parts that fit the cache and give every thread something to do.
void run_parts(const Work& work, Run run) {
  const Geometry& g = work.g;
  const size_t channels = g.depthwise ? static_cast<size_t>(g.conv.out_channels) : g.out_channels;
  const size_t groups = g.depthwise ? 1 : static_cast<size_t>(g.conv.groups);
  const size_t images = static_cast<size_t>(g.conv.batch);
  const auto threads = static_cast<size_t>(std::max(work.call.threads, 1));
  size_t pixels = std::clamp<size_t>(kChunkCounts / std::max(channels, kLanes), 4, 128);
  if (images * groups * g.out_pixels < 2 * threads * pixels) {
    pixels = std::max<size_t>(images * groups * g.out_pixels / (2 * threads), 4);
  }
  pixels = std::min(pixels, std::max<size_t>(kTaskDepth / g.depth, 1));
  if (work.tree) {
    pixels = std::min((pixels + kLanes - 1) / kLanes * kLanes, kTreePixels);
  }
  pixels = std::min(pixels, g.out_pixels);
  const size_t runs = (g.out_pixels + pixels - 1) / pixels;
  size_t splits = 1;  // of the channels, where there are too few pixels; on whole words, for packed outputs
  const size_t tasks = images * groups * runs;
  if (!g.depthwise && !work.tree && tasks < threads) {
    splits = std::clamp<size_t>((threads + tasks - 1) / tasks, 1, std::max<size_t>(channels / 64, 1));
  }
  const size_t split = splits == 1 ? channels : (channels / splits + kWordBits - 1) / kWordBits * kWordBits;
  splits = (channels + split - 1) / split;
  // Groups of packed outputs may share a word, so they are done by the one who has the pixels.
  const bool groups_together = g.conv.bits_out && groups > 1;
  const size_t group_tasks = groups_together ? 1 : groups;
  for_each(work.call, images * runs * splits * group_tasks, [&](size_t task) {
    const size_t channel = task % splits * split;
    const size_t first = task / splits % group_tasks;
    const size_t run_index = task / splits / group_tasks % runs;
    const size_t image = task / splits / group_tasks / runs;
    Part part{image, first, run_index * pixels, 0, channel, std::min(split, channels - channel)};
    part.pixels = std::min(pixels, g.out_pixels - part.pixel);
    if (groups_together) {
      uint32_t* const out = static_cast<uint32_t*>(work.call.output) + (image * g.out_pixels + part.pixel) * g.out_words;
      memset(out, 0, part.pixels * g.out_words * sizeof *out);
    }
    for (; part.group < (groups_together ? groups : first + 1); ++part.group) {
      run(work, part);
    }
  });
}

const char* run_checked(const Geometry& g, const ferryman_binary_call& call, const Tree* tree) {
  std::atomic<bool> failed = false;
  Work work{g, call, isa()};
  work.tree = tree;
  work.failed = &failed;
  const size_t in_pixels = static_cast<size_t>(g.conv.batch) * g.in_pixels;

  if (g.conv.input == FERRYMAN_REALS) {
    const bool turn = g.conv.layout == FERRYMAN_CHANNELS_FIRST && g.conv.channels > 1 && g.in_pixels > 1;
    const Buffer<float> reals(turn ? in_pixels * static_cast<size_t>(g.conv.channels) : 0);
    if (!reals) {
      return kNoMemory;
    }
    if (turn) {
      to_channels_last(g, call, work.isa, reals.get());
    }
    work.reals = turn ? reals.get() : static_cast<const float*>(call.input);
    run_parts(work, g.depthwise ? run_depthwise_reals : run_reals);
    return failed ? kNoMemory : nullptr;
  }

  const bool packed = g.conv.input == FERRYMAN_BITS;
  const bool border = g.padded() && !g.depthwise;
  const bool wide = g.depthwise && g.out_channels > 1;
  const bool tap_table = g.conv.pad_value == 0 && border;
  const auto images = static_cast<size_t>(g.conv.batch);
  const Buffer<uint32_t> bits(packed ? 0 : in_pixels * g.in_words);
  const Buffer<uint32_t> frames(border ? images * work.frame_words() : 0);
  const Buffer<uint32_t> widened(wide ? in_pixels * g.out_words : 0);
  const Buffer<int32_t> tap_ones(tap_table ? static_cast<size_t>(g.conv.groups) * g.taps * work.lanes() : 0);
  if (!bits || !frames || !widened || !tap_ones) {
    return kNoMemory;
  }
  if (!packed) {
    pack(work, bits.get());
  }
  work.frames = packed ? static_cast<const uint32_t*>(call.input) : bits.get();
  if (border) {
    put_border(work, work.frames, frames.get());
    work.frames = frames.get();
  }
  if (wide) {
    widen(g, work.frames, widened.get());
    work.frames = widened.get();
  }
  if (tap_table) {
    if (!(tree ? count_tap_ones_along(work, tap_ones.get()) : count_tap_ones(g, call, work.isa, tap_ones.get()))) {
      return kNoMemory;
    }
    work.tap_ones = tap_ones.get();
  }
  const bool in_sums = !tree && !g.depthwise && has_sums(g);
  const Buffer<uint32_t> sums(in_sums ? images * g.frame_height * work.sum_row() : 0);
  if (!sums) {
    return kNoMemory;
  }
  if (in_sums) {
    put_sums(work, sums.get());
    work.sums = sums.get();
  }
  const bool in_planes = tree && has_planes(g);
  const Buffer<uint32_t> planes(in_planes ? images * work.frame_words() : 0);
  if (!planes) {
    return kNoMemory;
  }
  if (in_planes) {
    put_planes(work, planes.get());
    work.planes = planes.get();
  }
  run_parts(work, tree ? run_tree : g.depthwise ? run_depthwise_signs : run_signs);
  return failed ? kNoMemory : nullptr;
}

} // namespace
} // namespace ferryman::kernels

const char* ferryman_binary_run(const ferryman_binary_conv* conv, const ferryman_binary_call* call) {
  return ferryman::kernels::run_checked(ferryman::kernels::Geometry(*conv), *call, nullptr);
}

const char* ferryman_tree_run(const ferryman_binary_conv* conv, const ferryman_binary_call* call, int64_t words) {
  const ferryman::kernels::Geometry g(*conv);
  ferryman::kernels::Tree tree;
  const auto length = static_cast<uint64_t>(std::max<int64_t>(words, 0));
  if (const char* const problem = ferryman::kernels::read_tree(g, call->weights, length, tree)) {
    return problem;
  }
  return ferryman::kernels::run_checked(g, *call, &tree);
}
