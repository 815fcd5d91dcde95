#include "work.h"

#include <algorithm>
#include <cstring>

namespace ferryman::kernels {

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

void gather_bits(const Geometry& g, const uint32_t* corner, size_t group, uint32_t* row) {
  memset(row, 0, g.words * sizeof *row);
  for (size_t ky = 0, tap = 0; ky < static_cast<size_t>(g.conv.kernel_h); ++ky) {
    for (size_t kx = 0; kx < static_cast<size_t>(g.conv.kernel_w); ++kx, ++tap) {
      const uint32_t* const from = corner + g.frame_offset(ky, kx) * g.in_words;
      put_bits(row, tap * g.channels, from, group * g.channels, g.channels);
    }
  }
}

void run_up(size_t words, uint32_t* row) {
  for (size_t k = 1; k < words; ++k) {
    row[k] ^= row[k - 1];
  }
}

bool has_sums(const Geometry& g) {
  return g.conv.groups == 1 && (g.pointwise() || (g.channels % kWordBits == 0 && g.conv.dilation_w == 1));
}

void put_sums(const Work& work, uint32_t* sums) {
  const Geometry& g = work.g;
  const size_t words = work.sum_row() - 1;
  const uint32_t* row = work.frames;
  for (size_t y = 0; y < static_cast<size_t>(g.conv.batch) * g.frame_height; ++y) {
    uint32_t sum = 0;
    *sums++ = 0;
    for (size_t k = 0; k < words; ++k) {
      *sums++ = sum ^= *row++;
    }
  }
}

namespace {

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

} // namespace

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

} // namespace ferryman::kernels
