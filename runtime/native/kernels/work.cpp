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

void fill_base(const Work& work, const Part& part, const Position& position, int32_t* row) {
  const Geometry& g = work.g;
  std::fill_n(row, part.channels, static_cast<int32_t>(g.depth));
  g.for_taps(position, [&](size_t tap, ptrdiff_t source) {
    if (source < 0) {
      const int32_t* const ones = work.tap_ones + (part.group * g.taps + tap) * work.lanes() + part.channel;
      for (size_t n = 0; n < part.channels; ++n) {
        row[n] += 2 * ones[n] - static_cast<int32_t>(g.channels);
      }
    }
  });
}

} // namespace

Bases::Bases(const Work& work, const Part& part) : channel_(part.channel), of_(part.pixels), rows_(0) {
  const Geometry& g = work.g;
  const bool edges = work.tap_ones != nullptr;
  const Buffer<Met> met(edges ? part.pixels : 0);  // of each row but the first, where every tap is in the image
  const Buffer<Position> at(edges ? part.pixels : 0);
  const Buffer<size_t> row(part.pixels);
  if (!of_ || !met || !at || !row) {
    return;
  }
  size_t rows = 0;
  Position position(part.pixel, g.out_width);
  for (size_t p = 0; p < part.pixels; ++p, position.next()) {
    row.get()[p] = 0;
    if (edges && !g.inside(position)) {
      const Met own = g.met(position);
      const Met* const end = met.get() + rows;
      const Met* const alike = std::find(static_cast<const Met*>(met.get()), end, own);
      row.get()[p] = 1 + static_cast<size_t>(alike - met.get());
      if (alike == end) {
        met.get()[rows] = own;
        at.get()[rows++] = position;
      }
    }
  }
  rows_ = Buffer<int32_t>((1 + rows) * part.channels);
  if (!rows_) {
    return;
  }
  std::fill_n(rows_.get(), part.channels, static_cast<int32_t>(g.depth));
  for (size_t i = 0; i < rows; ++i) {
    fill_base(work, part, at.get()[i], rows_.get() + (1 + i) * part.channels);
  }
  for (size_t p = 0; p < part.pixels; ++p) {
    of_.get()[p] = rows_.get() + row.get()[p] * part.channels;
  }
}

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

void finish(const Work& work, const Part& part, const Bases& bases, const int32_t* counts, size_t stride) {
  const Geometry& g = work.g;
  const size_t channel = part.group * g.out_channels + part.channel;
  const size_t pixel = part.image * g.out_pixels + part.pixel;
  const Counted counted = bases.of(part, counts, stride);
  if (!g.conv.bits_out) {
    const auto all = static_cast<size_t>(g.conv.out_channels);
    const bool turned = g.conv.layout == FERRYMAN_CHANNELS_FIRST;
    const size_t at = turned ? (part.image * all + channel) * g.out_pixels + part.pixel : pixel * all + channel;
    float* const out = static_cast<float*>(work.call.output) + at;
    const size_t out_stride = turned ? g.out_pixels : all;
    work.isa.scale_counts(counted, work.call.scale + channel, work.call.bias + channel, out, out_stride, turned);
    return;
  }
  uint32_t* const out = static_cast<uint32_t*>(work.call.output) + pixel * g.out_words;
  const int32_t* const threshold = work.call.threshold + channel;
  if (channel % kWordBits == 0 && (g.conv.groups == 1 || part.channels % kWordBits == 0)) {
    work.isa.compare_counts(counted, threshold, out + channel / kWordBits, g.out_words);
    return;
  }
  for (size_t p = 0; p < part.pixels; ++p) {  // beside other groups' bits
    uint32_t packed[kRunChannels / kWordBits];
    work.isa.compare_counts({counts + p * stride, stride, counted.bases + p, counted.channel, 1, part.channels}, threshold, packed, 0);
    put_bits(out + p * g.out_words, channel, packed, 0, part.channels);
  }
}

} // namespace ferryman::kernels
