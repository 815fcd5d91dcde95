// Tasks of depthwise convolutions: a bit a channel, 32 channels at once. The frames have no border, and a bit an output
// channel.
#include <algorithm>
#include <cstring>

#include "buffer.h"
#include "work.h"

namespace ferryman::kernels {

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
    const int32_t* const bases = base.get();
    const Counted counted{row, stride, &bases, 0, 1, channels};
    const size_t at = part.image * g.out_pixels + part.pixel + p;
    if (g.conv.bits_out) {
      uint32_t* const out = static_cast<uint32_t*>(work.call.output) + at * g.out_words;
      work.isa.compare_counts(counted, work.call.threshold, out, 0);
    } else {
      work.isa.scale_counts(counted, work.call.scale, work.call.bias, floats.get() + p * stride, 0, false);
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

} // namespace ferryman::kernels
