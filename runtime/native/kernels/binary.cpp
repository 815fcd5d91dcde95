// Binary convolution: signs packed into a frame (the image with its padding around it), differences between windows of
// the frame and the weights counted, counts turned into floats or bits, some pixels at a time.
//
// With activations a and weights w in {-1, 1}, a dot product over n of them is n - 2 * differences. A tap outside the
// image counts as zero with pad_value 0: its activation bits are 0, so its differences are the ones among its weights,
// and are given back from a table.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "buffer.h"
#include "geometry.h"
#include "isa.h"
#include "kernels.h"

namespace ferryman::kernels {
namespace {

constexpr const char* kNoMemory = "out of memory";
constexpr size_t kChunkCounts = 16384;  // counts of one task at a time: about what the first cache holds
constexpr size_t kPackPixels = 256;
constexpr size_t kFinishPixels = 16;   // a square of floats to turn

template <typename Body>
void for_each(const ferryman_binary_call& call, size_t tasks, const Body& body) {
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

// Puts `count` bits of `from`, beginning at bit `from_bit`, into `to` at bit `to_bit`, where there are zeros.
void put_bits(uint32_t* to, size_t to_bit, const uint32_t* from, size_t from_bit, size_t count) {
  while (count > 0) {
    const size_t at = to_bit % kWordBits;
    const size_t begin = from_bit % kWordBits;
    const size_t run = std::min({count, kWordBits - at, kWordBits - begin});
    const uint32_t mask = run == kWordBits ? ~0u : (1u << run) - 1;
    to[to_bit / kWordBits] |= (from[from_bit / kWordBits] >> begin & mask) << at;
    to_bit += run;
    from_bit += run;
    count -= run;
  }
}

void put_ones(uint32_t* to, size_t to_bit, size_t count) {
  constexpr uint32_t ones = ~0u;
  while (count > 0) {
    const size_t run = std::min(count, kWordBits - to_bit % kWordBits);
    put_bits(to, to_bit, &ones, 0, run);
    to_bit += run;
    count -= run;
  }
}

// What every task reads.
struct Work {
  const Geometry& g;
  const ferryman_binary_call& call;
  const Isa& isa;
  const uint32_t* frames = nullptr;      // packed activations, of all images
  const float* reals = nullptr;          // channels last, of all images
  const int32_t* tap_ones = nullptr;     // [groups, taps, 16 * blocks]: ones among a tap's weights, for zero padding
  std::atomic<bool>* failed = nullptr;

  size_t lanes() const {
    return g.blocks * kLanes;
  }
  size_t frame_words() const {
    return g.frame_height * g.frame_width * g.in_words;
  }
};

// One output pixel's window of one group, its bits in the order of the weights'.
void gather_bits(const Geometry& g, const uint32_t* corner, size_t group, uint32_t* row) {
  memset(row, 0, g.words * sizeof *row);
  for (size_t ky = 0, tap = 0; ky < static_cast<size_t>(g.conv.kernel_h); ++ky) {
    for (size_t kx = 0; kx < static_cast<size_t>(g.conv.kernel_w); ++kx, ++tap) {
      const uint32_t* const from = corner + g.frame_offset(ky, kx) * g.in_words;
      put_bits(row, tap * g.channels, from, group * g.channels, g.channels);
    }
  }
}

void gather_reals(const Work& work, size_t image, const Position& pixel, size_t group, float* row) {
  const Geometry& g = work.g;
  const auto pixel_size = static_cast<size_t>(g.conv.channels);
  const float* const reals = work.reals + image * g.in_pixels * pixel_size + group * g.channels;
  g.for_taps(pixel, [&](size_t, ptrdiff_t source) {
    if (source >= 0) {
      memcpy(row, reals + static_cast<size_t>(source) * pixel_size, g.channels * sizeof *row);
    } else {
      std::fill_n(row, g.channels, static_cast<float>(g.conv.pad_value));
    }
    row += g.channels;
  });
}

// base[n] of this pixel, so that base - 2 * differences is the dot product.
void fill_base(const Work& work, const Position& pixel, size_t group, size_t begin, size_t count, int32_t* base) {
  const Geometry& g = work.g;
  std::fill_n(base, count, static_cast<int32_t>(g.depth));
  if (work.tap_ones == nullptr) {
    return;
  }
  g.for_taps(pixel, [&](size_t tap, ptrdiff_t source) {
    if (source < 0) {
      const int32_t* const ones = work.tap_ones + (group * g.taps + tap) * work.lanes() + begin;
      for (size_t n = 0; n < count; ++n) {
        base[n] += 2 * ones[n] - static_cast<int32_t>(g.channels);
      }
    }
  });
}

// Some output pixels of one image, and some of a group's output channels.
struct Part {
  size_t image, group;
  size_t pixel, pixels;
  size_t channel, channels;  // within the group
};

// Writes floats that lie by pixel, `stride` apart, to where the output has them.
void put_floats(const Work& work, const Part& part, const float* from, size_t stride) {
  const Geometry& g = work.g;
  const auto all = static_cast<size_t>(g.conv.out_channels);
  const size_t channel = part.group * g.out_channels + part.channel;
  auto* const out = static_cast<float*>(work.call.output) + part.image * g.out_pixels * all;
  if (g.conv.layout == FERRYMAN_CHANNELS_FIRST) {
    float* const to = out + channel * g.out_pixels + part.pixel;
    work.isa.transpose(from, stride, part.pixels, part.channels, to, g.out_pixels);
    return;
  }
  for (size_t p = 0; p < part.pixels; ++p) {
    memcpy(out + (part.pixel + p) * all + channel, from + p * stride, part.channels * sizeof *from);
  }
}

// Turns counts into outputs. counts[p * stride + n], the pixels and channels of `part`; `base` and `floats` are scratch.
void finish(const Work& work, Part part, const int32_t* counts, size_t stride, int32_t* base, float* floats) {
  const Geometry& g = work.g;
  const size_t channel = part.group * g.out_channels + part.channel;
  const auto all = static_cast<size_t>(g.conv.out_channels);
  const bool direct = g.conv.layout == FERRYMAN_CHANNELS_LAST;
  const size_t end = part.pixel + part.pixels;
  bool base_is_inside = false;
  Position position(part.pixel, g.out_width);
  for (; part.pixel < end; part.pixel += kFinishPixels) {
    part.pixels = std::min(kFinishPixels, end - part.pixel);
    for (size_t p = 0; p < part.pixels; ++p, position.next(), counts += stride) {
      const bool is_inside = work.tap_ones == nullptr || g.inside(position);
      if (!is_inside || !base_is_inside) {
        fill_base(work, position, part.group, part.channel, part.channels, base);
        base_is_inside = is_inside;
      }
      const size_t at = part.image * g.out_pixels + part.pixel + p;
      if (!g.conv.bits_out) {
        float* const out = direct ? static_cast<float*>(work.call.output) + at * all + channel : floats + p * stride;
        work.isa.scale_counts(counts, base, work.call.scale + channel, work.call.bias + channel, part.channels, out);
        continue;
      }
      uint32_t* const out = static_cast<uint32_t*>(work.call.output) + at * g.out_words;
      const int32_t* const threshold = work.call.threshold + channel;
      if (channel % kWordBits == 0 && (g.conv.groups == 1 || part.channels % kWordBits == 0)) {
        work.isa.compare_counts(counts, base, threshold, part.channels, out + channel / kWordBits);
      } else {
        auto* const packed = reinterpret_cast<uint32_t*>(floats);
        work.isa.compare_counts(counts, base, threshold, part.channels, packed);
        put_bits(out, channel, packed, 0, part.channels);
      }
    }
    if (!g.conv.bits_out && !direct) {
      put_floats(work, part, floats, stride);
    }
  }
}

void run_signs(const Work& work, const Part& part) {
  const Geometry& g = work.g;
  const size_t blocks = (part.channels + kLanes - 1) / kLanes;
  const size_t stride = blocks * kLanes;
  const bool whole_words = g.channels % kWordBits == 0;
  const bool in_place = whole_words || (g.conv.groups == 1 && g.pointwise());
  // With one group, taps that are neighbours in a row of the frame are neighbours in memory too.
  const bool whole_rows = in_place && g.conv.groups == 1 && g.conv.dilation_w == 1;
  const size_t runs = !in_place ? 1 : whole_rows ? static_cast<size_t>(g.conv.kernel_h) : g.taps;
  const Buffer<uint32_t> rows(in_place ? 0 : part.pixels * g.words);
  const Buffer<const uint32_t*> windows(part.pixels);
  const Buffer<size_t> offsets(runs);
  const Buffer<int32_t> counts(part.pixels * stride);
  const Buffer<int32_t> base(stride);
  const Buffer<float> floats(kFinishPixels * stride);
  if (!rows || !windows || !offsets || !counts || !base || !floats) {
    work.failed->store(true);
    return;
  }
  for (size_t run = 0; run < runs; ++run) {
    const size_t ky = whole_rows ? run : run / static_cast<size_t>(g.conv.kernel_w);
    const size_t kx = whole_rows ? 0 : run % static_cast<size_t>(g.conv.kernel_w);
    offsets.get()[run] = in_place ? g.frame_offset(ky, kx) * g.in_words : 0;
  }
  Position position(part.pixel, g.out_width);
  for (size_t p = 0; p < part.pixels; ++p, position.next()) {
    const uint32_t* const corner = work.frames + part.image * work.frame_words() + g.frame_corner(position) * g.in_words;
    if (!in_place) {
      gather_bits(g, corner, part.group, rows.get() + p * g.words);
    }
    windows.get()[p] = in_place ? corner + part.group * g.channels / kWordBits : rows.get() + p * g.words;
  }
  const Windows found{windows.get(), offsets.get(), runs, g.words / runs};
  const uint32_t* const w = work.call.weights + (part.group * g.blocks + part.channel / kLanes) * g.words * kLanes;
  work.isa.differences(found, part.pixels, w, g.words * kLanes, blocks, counts.get(), stride);
  finish(work, part, counts.get(), stride, base.get(), floats.get());
}

void run_reals(const Work& work, const Part& part) {
  const Geometry& g = work.g;
  const size_t blocks = (part.channels + kLanes - 1) / kLanes;
  const size_t stride = blocks * kLanes;
  const bool gather = !(g.pointwise() && g.conv.groups == 1 && g.conv.stride_h == 1 && g.conv.stride_w == 1);
  const Buffer<float> rows(gather ? part.pixels * g.depth : 0);
  const Buffer<float> sums(part.pixels * stride);
  if (!rows || !sums) {
    work.failed->store(true);
    return;
  }
  const float* a = work.reals + (part.image * g.in_pixels + part.pixel) * g.channels;
  if (gather) {
    Position pixel(part.pixel, g.out_width);
    for (size_t p = 0; p < part.pixels; ++p, pixel.next()) {
      gather_reals(work, part.image, pixel, part.group, rows.get() + p * g.depth);
    }
    a = rows.get();
  }
  const uint32_t* const w =
      work.call.weights + (part.group * g.blocks + part.channel / kLanes) * g.words * kLanes;
  work.isa.selected_sums(a, g.depth, part.pixels, w, g.words * kLanes, blocks, g.depth, sums.get(), stride);
  const float* const scale = work.call.scale + part.group * g.out_channels + part.channel;
  const float* const bias = work.call.bias + part.group * g.out_channels + part.channel;
  for (size_t p = 0; p < part.pixels; ++p) {
    const float all = work.isa.sum(a + p * g.depth, g.depth);
    float* const row = sums.get() + p * stride;
    for (size_t n = 0; n < part.channels; ++n) {
      row[n] = scale[n] * (2 * row[n] - all) + bias[n];
    }
  }
  put_floats(work, part, sums.get(), stride);
}

// Depthwise: a bit a channel, 32 channels at once. The frames have no border, and a bit an output channel.
void run_depthwise_signs(const Work& work, const Part& part) {
  const Geometry& g = work.g;
  const auto channels = static_cast<size_t>(g.conv.out_channels);
  const size_t stride = g.out_words * kWordBits;
  const Buffer<int32_t> counts(part.pixels * stride);
  const Buffer<int32_t> base(stride);
  const Buffer<float> floats(part.pixels * stride);
  const Buffer<const uint32_t*> met(g.taps);
  const Buffer<uint32_t> outside(g.out_words);
  if (!counts || !base || !floats || !met || !outside) {
    work.failed->store(true);
    return;
  }
  std::fill_n(outside.get(), g.out_words, g.conv.pad_value == 1 ? ~0u : 0);
  const uint32_t* const bits = work.frames + part.image * g.in_pixels * g.out_words;
  Position pixel(part.pixel, g.out_width);
  for (size_t p = 0; p < part.pixels; ++p, pixel.next()) {
    size_t taps = g.taps;
    g.for_taps(pixel, [&](size_t tap, ptrdiff_t source) {
      const bool counts_not = source < 0 && g.conv.pad_value == 0;
      taps -= counts_not;
      met.get()[tap] = counts_not ? nullptr
          : source < 0            ? outside.get()
                                  : bits + static_cast<size_t>(source) * g.out_words;
    });
    int32_t* const row = counts.get() + p * stride;
    work.isa.count_taps(met.get(), work.call.weights, g.taps, g.out_words, row);
    std::fill_n(base.get(), channels, static_cast<int32_t>(taps));
    const size_t at = part.image * g.out_pixels + part.pixel + p;
    if (g.conv.bits_out) {
      uint32_t* const out = static_cast<uint32_t*>(work.call.output) + at * g.out_words;
      work.isa.compare_counts(row, base.get(), work.call.threshold, channels, out);
    } else {
      work.isa.scale_counts(row, base.get(), work.call.scale, work.call.bias, channels, floats.get() + p * stride);
    }
  }
  if (!g.conv.bits_out) {
    put_floats(work, {part.image, 0, part.pixel, part.pixels, 0, channels}, floats.get(), stride);
  }
}

void run_depthwise_reals(const Work& work, const Part& part) {
  const Geometry& g = work.g;
  const auto channels = static_cast<size_t>(g.conv.out_channels);
  const auto in_channels = static_cast<size_t>(g.conv.channels);
  const Buffer<float> rows(part.pixels * channels);
  if (!rows) {
    work.failed->store(true);
    return;
  }
  const float* const reals = work.reals + part.image * g.in_pixels * in_channels;
  Position pixel(part.pixel, g.out_width);
  for (size_t p = 0; p < part.pixels; ++p, pixel.next()) {
    float* const row = rows.get() + p * channels;
    std::fill_n(row, channels, 0.0f);
    g.for_taps(pixel, [&](size_t tap, ptrdiff_t source) {
      const uint32_t* const w = work.call.weights + tap * g.out_words;
      for (size_t n = 0; n < channels; ++n) {
        const float x = source < 0 ? static_cast<float>(g.conv.pad_value)
                                   : reals[static_cast<size_t>(source) * in_channels + n / g.out_channels];
        row[n] += w[n / kWordBits] >> n % kWordBits & 1 ? x : -x;
      }
    });
    for (size_t n = 0; n < channels; ++n) {
      row[n] = work.call.scale[n] * row[n] + work.call.bias[n];
    }
  }
  put_floats(work, {part.image, 0, part.pixel, part.pixels, 0, channels}, rows.get(), channels);
}

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

// One bit an output channel, where each input channel has several.
void widen(const Geometry& g, const uint32_t* bits, uint32_t* wide) {
  const size_t pixels = static_cast<size_t>(g.conv.batch) * g.in_pixels;
  for (size_t p = 0; p < pixels; ++p, bits += g.in_words, wide += g.out_words) {
    memset(wide, 0, g.out_words * sizeof *wide);
    for (size_t n = 0; n < static_cast<size_t>(g.conv.out_channels); ++n) {
      const size_t c = n / g.out_channels;
      wide[n / kWordBits] |= (bits[c / kWordBits] >> c % kWordBits & 1) << n % kWordBits;
    }
  }
}

// Ones among the weights of each tap: what differs from a window that is 1 at that tap alone, against one of zeros.
bool count_tap_ones(const Geometry& g, const ferryman_binary_call& call, const Isa& isa, int32_t* ones) {
  const size_t lanes = g.blocks * kLanes;
  const Buffer<uint32_t> windows((g.taps + 1) * g.words);
  const Buffer<int32_t> counts((g.taps + 1) * lanes);
  if (!windows || !counts) {
    return false;
  }
  memset(windows.get(), 0, (g.taps + 1) * g.words * sizeof(uint32_t));
  for (size_t tap = 0; tap < g.taps; ++tap) {
    put_ones(windows.get() + tap * g.words, tap * g.channels, g.channels);
  }
  const uint32_t* const zeros = windows.get() + g.taps * g.words;
  const size_t none = 0;
  const Buffer<const uint32_t*> at(g.taps + 1);
  if (!at) {
    return false;
  }
  for (size_t tap = 0; tap <= g.taps; ++tap) {
    at.get()[tap] = windows.get() + tap * g.words;
  }
  for (size_t group = 0; group < static_cast<size_t>(g.conv.groups); ++group) {
    const uint32_t* const w = call.weights + group * g.blocks * g.words * kLanes;
    const size_t tap_words = g.channels / kWordBits;
    if (g.channels % kWordBits == 0) {
      for (size_t tap = 0; tap < g.taps; ++tap) {
        int32_t* const to = ones + (group * g.taps + tap) * lanes;
        isa.differences({&zeros, &none, 1, tap_words}, 1, w + tap * tap_words * kLanes, g.words * kLanes, g.blocks, to, lanes);
      }
      continue;
    }
    isa.differences({at.get(), &none, 1, g.words}, g.taps + 1, w, g.words * kLanes, g.blocks, counts.get(), lanes);
    const int32_t* const total = counts.get() + g.taps * lanes;
    for (size_t tap = 0; tap < g.taps; ++tap) {
      for (size_t n = 0; n < lanes; ++n) {
        const int32_t differ = counts.get()[tap * lanes + n];
        ones[(group * g.taps + tap) * lanes + n] = (total[n] + static_cast<int32_t>(g.channels) - differ) / 2;
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
  pixels = std::min(pixels, g.out_pixels);
  const size_t runs = (g.out_pixels + pixels - 1) / pixels;
  size_t splits = 1;  // of the channels, where there are too few pixels; on whole words, for packed outputs
  const size_t tasks = images * groups * runs;
  if (!g.depthwise && tasks < threads) {
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

const char* run_checked(const Geometry& g, const ferryman_binary_call& call) {
  std::atomic<bool> failed = false;
  Work work{g, call, isa()};
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
    if (!count_tap_ones(g, call, work.isa, tap_ones.get())) {
      return kNoMemory;
    }
    work.tap_ones = tap_ones.get();
  }
  run_parts(work, g.depthwise ? run_depthwise_signs : run_signs);
  return failed ? kNoMemory : nullptr;
}

} // namespace
} // namespace ferryman::kernels

const char* ferryman_binary_run(const ferryman_binary_conv* conv, const ferryman_binary_call* call) {
  return ferryman::kernels::run_checked(ferryman::kernels::Geometry(*conv), *call);
}
