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

} // namespace

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

} // namespace ferryman::kernels
