// Tasks of convolutions whose groups have several input channels: signs, and real activations.
#include <algorithm>
#include <cstring>

#include "buffer.h"
#include "work.h"

namespace ferryman::kernels {
namespace {

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

// The windows of a part, by pixel, as running exclusive ors.
void gather_windows(const Work& work, const Part& part, size_t* offsets, uint32_t* rows) {
  const Geometry& g = work.g;
  if (work.sums) {
    const auto runs = static_cast<size_t>(g.conv.kernel_h);
    const uint32_t* const sums = work.sums + part.image * g.frame_height * work.sum_row();
    const size_t step = static_cast<size_t>(g.conv.stride_w) * g.in_words;
    for (size_t p = 0, pixels = 0; p < part.pixels; p += pixels) {  // a row of the output, or what the part has of it
      const Position position(part.pixel + p, g.out_width);
      pixels = std::min(part.pixels - p, g.out_width - position.column);
      size_t y = position.row * static_cast<size_t>(g.conv.stride_h);
      for (size_t run = 0; run < runs; ++run, y += static_cast<size_t>(g.conv.dilation_h)) {
        offsets[run] = y * work.sum_row() + position.column * step;
      }
      work.isa.gather_rows(sums, offsets, runs, g.words / runs, pixels, step, rows + p * g.words);
    }
    return;
  }
  const uint32_t* const frame = work.frames + part.image * work.frame_words();
  Position position(part.pixel, g.out_width);
  for (size_t p = 0; p < part.pixels; ++p, position.next(), rows += g.words) {
    gather_bits(g, frame + g.frame_corner(position) * g.in_words, part.group, rows);
    run_up(g.words, rows);
  }
}

} // namespace

void run_signs(const Work& work, const Part& part) {
  const Geometry& g = work.g;
  const Buffer<uint32_t> rows(part.pixels * g.words);
  const Buffer<size_t> offsets(static_cast<size_t>(g.conv.kernel_h));
  const Buffer<int32_t> counts(part.pixels * kRunChannels);
  const Bases bases(work, part);
  if (!rows || !offsets || !counts || !bases) {
    work.failed->store(true);
    return;
  }
  gather_windows(work, part, offsets.get(), rows.get());
  const size_t block = g.words * kLanes;
  const uint32_t* w = work.call.weights + (part.group * g.blocks + part.channel / kLanes) * block;
  Part run = part;
  const size_t end = part.channel + part.channels;
  for (; run.channel < end; run.channel += kRunChannels, w += kRunChannels / kLanes * block) {
    run.channels = std::min(kRunChannels, end - run.channel);
    const size_t blocks = (run.channels + kLanes - 1) / kLanes;
    work.isa.differences(
        rows.get(), g.words, part.pixels, g.words, w, block, blocks, counts.get(), kRunChannels);
    finish(work, run, bases, counts.get(), kRunChannels);
  }
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

} // namespace ferryman::kernels
