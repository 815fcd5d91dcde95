// Depthwise quantized convolution. Four rows of the image are interleaved, so that a vector holds four inputs of each
// channel one above the other; windows of a row share these columns, and so do rows of outputs where four rows are more
// than the kernel has.
#include <algorithm>
#include <cstring>

#include "buffer.h"
#include "quant_work.h"

namespace ferryman::kernels {
namespace {

constexpr size_t kColumnBytes = 24576;
constexpr size_t kColumnLanes = 64;
constexpr size_t kColumnPixels = 64;  // finished at a time

// Interleaves the rows of `count` columns, `step` apart from the first of an output pixel's window on.
void put_columns(
    const QuantWork& work,
    const Columns& c,
    const int8_t* x,
    const Position& first,
    size_t count,
    size_t step,
    size_t channels,
    const int8_t* outside,
    uint8_t* to) {
  const Geometry& g = work.g;
  const auto pixel = static_cast<ptrdiff_t>(g.conv.out_channels);
  const auto by = static_cast<ptrdiff_t>(step);
  const ptrdiff_t left = g.source_x(first.column, 0);
  const auto within = [&](ptrdiff_t columns) { return static_cast<size_t>(std::clamp<ptrdiff_t>(columns, 0, count)); };
  const size_t begin = within((by - 1 - left) / by);  // the first column that the image has,
  const size_t end = std::max(begin, within((g.conv.width - left + by - 1) / by));  // and the first beyond it
  for (size_t quad = 0; quad < c.quads; ++quad, to += c.lanes * 4) {
    const int8_t* rows[4];
    const int8_t* const none[4] = {outside, outside, outside, outside};
    size_t steps[4];
    const size_t still[4] = {};
    for (size_t r = 0; r < 4; ++r) {
      const ptrdiff_t y = g.source_y(first.row, 4 * quad + r);
      const bool needed = 4 * quad + r < static_cast<size_t>(g.conv.kernel_h) + c.rows - 1;
      const bool inside = begin < end && needed && y >= 0 && y < g.conv.height;
      rows[r] = inside ? x + (y * g.conv.width + left + static_cast<ptrdiff_t>(begin) * by) * pixel : outside;
      steps[r] = inside ? static_cast<size_t>(by * pixel) : 0;
    }
    work.isa.interleave(none, still, begin, channels, to, c.bytes);
    work.isa.interleave(rows, steps, end - begin, channels, to + begin * c.bytes, c.bytes);
    work.isa.interleave(none, still, count - end, channels, to + end * c.bytes, c.bytes);
  }
}

// Rows of outputs of a depthwise convolution.
void run_rows(const QuantWork& work, const Columns& c, size_t image, size_t first, size_t row_count) {
  const Geometry& g = work.g;
  const auto channels = static_cast<size_t>(g.conv.out_channels);
  const auto kernel = static_cast<size_t>(g.conv.kernel_w);
  const size_t taps = kernel * c.quads;
  const Buffer<uint8_t> columns(c.count(c.pixels, kernel) * c.bytes);
  const Buffer<int32_t> dots(kColumnPixels * c.lanes);
  const Buffer<size_t> offsets(taps);
  const Buffer<int8_t> outside(c.lanes);
  if (!columns || !dots || !offsets || !outside) {
    work.failed->store(true);
    return;
  }
  memset(outside.get(), work.x_zero, c.lanes);
  for (size_t tap = 0; tap < taps; ++tap) {
    offsets.get()[tap] = tap / c.quads * c.tap_step * c.bytes + tap % c.quads * c.lanes * 4;
  }
  const int8_t* const x = work.x + image * g.in_pixels * channels;
  const size_t version = (channels + kLanes - 1) / kLanes * taps * kVectorBytes;
  Position begin(first * g.out_width, g.out_width);
  while (begin.row < first + row_count) {
    const size_t rows = std::min(c.rows, first + row_count - begin.row);
    const size_t pixels = std::min(c.pixels, g.out_width - begin.column);
    for (size_t n = 0; n < channels; n += c.lanes) {
      const size_t lanes = std::min(c.lanes, channels - n);
      if (c.shared) {
        put_columns(work, c, x + n, begin, c.count(pixels, kernel), 1, lanes, outside.get(), columns.get());
      } else {
        Position own = begin;
        for (size_t p = 0; p < pixels; ++p, ++own.column) {
          uint8_t* const to = columns.get() + p * c.step * c.bytes;
          put_columns(work, c, x + n, own, kernel, static_cast<size_t>(g.conv.dilation_w), lanes, outside.get(), to);
        }
      }
      for (size_t row = 0; row < rows; ++row) {
        const int8_t* const w = work.column_weights + row * version + n * taps * 4;
        const size_t pixel = (begin.row + row) * g.out_width + begin.column;
        for (size_t p = 0; p < pixels; p += kColumnPixels) {
          const size_t count = std::min(kColumnPixels, pixels - p);
          for (size_t lane = 0; lane < lanes; lane += kLanes) {
            work.isa.column_dots(columns.get() + p * c.step * c.bytes + lane * 4, c.step * c.bytes, offsets.get(), taps,
                                 w + lane * taps * 4, count, dots.get() + lane, c.lanes);
          }
          put(work, {image, 0, pixel + p, count, n, lanes}, dots.get(), c.lanes);
        }
      }
    }
    begin.column += pixels;
    if (begin.column == g.out_width) {
      begin.column = 0;
      begin.row += rows;
    }
  }
}

} // namespace

Columns::Columns(const Geometry& g) {
  const auto kernel = static_cast<size_t>(g.conv.kernel_w);
  const auto stride = static_cast<size_t>(g.conv.stride_w);
  const auto dilation = static_cast<size_t>(g.conv.dilation_w);
  const size_t extent = dilation * (kernel - 1) + 1;
  quads = (static_cast<size_t>(g.conv.kernel_h) + 3) / 4;
  rows = g.conv.stride_h == 1 && g.conv.dilation_h == 1 ? 4 * quads - static_cast<size_t>(g.conv.kernel_h) + 1 : 1;
  lanes = std::min((static_cast<size_t>(g.conv.out_channels) + kLanes - 1) / kLanes * kLanes, kColumnLanes);
  bytes = lanes * quads * 4;
  const size_t room = kColumnBytes / bytes;
  shared = extent <= room && stride <= kernel;
  step = shared ? stride : kernel;
  tap_step = shared ? dilation : 1;
  pixels = std::clamp<size_t>(shared ? (room - extent) / stride + 1 : room / kernel, 1, g.out_width);
}

void spread_weights(const QuantWork& work, const Columns& c, uint32_t* w, int32_t* sums) {
  const Geometry& g = work.g;
  const auto height = static_cast<size_t>(g.conv.kernel_h);
  const auto width = static_cast<size_t>(g.conv.kernel_w);
  const auto channels = static_cast<size_t>(g.conv.out_channels);
  const auto bits = static_cast<size_t>(work.conv.bits);
  const int32_t half = 1 << (bits - 1);
  const uint8_t* from = work.weights;
  uint32_t* to = w;
  for (size_t n = 0; n < channels; n += kLanes, from += (g.taps + work.per() - 1) / work.per() * kLanes) {
    int32_t total[kLanes] = {};
    for (size_t kx = 0; kx < width; ++kx) {
      for (size_t ky = 0; ky < 4 * c.quads; ky += 4, to += kLanes) {
        uint32_t words[kLanes] = {};
        for (size_t i = 0; i < 4 && ky + i < height; ++i) {
          const size_t tap = (ky + i) * width + kx;
          const uint8_t* const packed = from + tap / work.per() * kLanes;
          const size_t shift = tap % work.per() * bits;
#pragma GCC unroll 1  // or it is unrolled before it could be made of vectors
          for (size_t lane = 0; lane < kLanes; ++lane) {
            const int32_t weight = (packed[lane] >> shift & (2 * half - 1)) - half;
            words[lane] |= (static_cast<uint32_t>(weight) & 255) << (8 * i);
            total[lane] += weight;
          }
        }
        memcpy(to, words, sizeof words);
      }
    }
    memcpy(sums + n, total, sizeof total);
  }
  const auto count = static_cast<size_t>(to - w);
  const uint32_t nothing[kLanes] = {};
  for (size_t row = 1; row < c.rows; ++row) {  // further down, which may reach the next quad
    for (size_t i = 0; i < count; i += kLanes, to += kLanes) {
      const uint32_t* const above = i / kLanes % c.quads ? w + i - kLanes : nothing;
      for (size_t lane = 0; lane < kLanes; ++lane) {
        to[lane] = w[i + lane] << (8 * row) | above[lane] >> (32 - 8 * row);
      }
    }
  }
}

void run_depthwise(const QuantWork& work, const Columns& columns) {
  const Geometry& g = work.g;
  const auto images = static_cast<size_t>(g.conv.batch);
  const size_t each = std::max<size_t>(g.out_height * images / (2 * work.threads()), 1);
  const size_t run = (each + columns.rows - 1) / columns.rows * columns.rows;
  const size_t runs = (g.out_height + run - 1) / run;
  for_each(work.call, images * runs, [&](size_t task) {
    const size_t first = task % runs * run;
    run_rows(work, columns, task / runs, first, std::min(run, g.out_height - first));
  });
}

void widen_bytes(const Geometry& g, const int8_t* x, int8_t* wide) {
  const size_t count = static_cast<size_t>(g.conv.batch) * g.in_pixels * static_cast<size_t>(g.conv.channels);
  for (size_t i = 0; i < count; ++i, wide += g.out_channels) {
    memset(wide, x[i], g.out_channels);
  }
}

} // namespace ferryman::kernels
