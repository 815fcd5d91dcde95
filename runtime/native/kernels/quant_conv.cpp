// Quantized convolution: floats become int8 first, channels last. Then windows are gathered and multiplied with the
// weights where those lie; a depthwise convolution interleaves the rows of its columns, which its windows share.
//
// A dot product of inputs less their zero and weights is that of inputs and weights, plus `base`: -zero times the sum of
// the channel's weights. A tap outside the image is a zero.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "buffer.h"
#include "quantized.h"
#include "work.h"

namespace ferryman::kernels {
namespace {

constexpr int64_t kQuantDepthMax = INT32_MAX / (255 * 128);  // the sum of products fits
constexpr size_t kChunkFloats = 16384;                       // quantized at a time
constexpr size_t kWindowBytes = 32768;                       // of one task, at a time
constexpr size_t kWindowPixels = 64;
constexpr size_t kColumnBytes = 24576;
constexpr size_t kColumnLanes = 64;
constexpr size_t kColumnPixels = 64;  // finished at a time

ferryman_binary_conv shape_of(const ferryman_quant_conv& c) {
  return {c.batch,      c.height,     c.width,   c.channels, c.out_channels, c.kernel_h,   c.kernel_w,
          c.stride_h,   c.stride_w,   c.dilation_h, c.dilation_w, c.pad_top, c.pad_left,   c.pad_bottom,
          c.pad_right,  c.groups,     0,         FERRYMAN_REALS, 0,          c.layout};
}

bool is_scale(float scale) {
  return scale > 0 && std::isfinite(scale);
}

bool is_int8(int32_t number) {
  return number >= INT8_MIN && number <= INT8_MAX;
}

// What every task reads. Channels are counted in whole blocks of each group.
struct QuantWork {
  const Geometry& g;
  const ferryman_quant_conv& conv;
  const ferryman_quant_call& call;
  const Isa& isa;
  const int8_t* x = nullptr;       // channels last, of all images
  const float* x_scale = nullptr;  // of each image
  int32_t x_zero = 0;
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

// Quantizes all images; where the scale is dynamic, finds each image's first.
bool quantize_input(const QuantWork& work, int8_t* x, float* x_scale) {
  const Geometry& g = work.g;
  const auto channels = static_cast<size_t>(g.conv.channels);
  const auto images = static_cast<size_t>(g.conv.batch);
  const size_t size = g.in_pixels * channels;
  const auto* const floats = static_cast<const float*>(work.call.input);
  const bool dynamic = work.conv.x_scale == 0;
  const size_t chunks = (size + kChunkFloats - 1) / kChunkFloats;
  const Buffer<float> largest(dynamic ? images * chunks : 0);
  if (!largest) {
    return false;
  }
  if (dynamic) {
    for_each(work.call, images * chunks, [&](size_t task) {
      const size_t begin = task % chunks * kChunkFloats;
      const float* const from = floats + task / chunks * size + begin;
      largest.get()[task] = work.isa.largest(from, std::min(kChunkFloats, size - begin));
    });
  }
  for (size_t image = 0; image < images; ++image) {
    const float* const of_image = largest.get() + image * chunks;
    x_scale[image] = dynamic ? *std::max_element(of_image, of_image + chunks) / INT8_MAX : work.conv.x_scale;
  }

  const bool turn = g.conv.layout == FERRYMAN_CHANNELS_FIRST && channels > 1 && g.in_pixels > 1;
  const size_t pixels = std::clamp<size_t>(kChunkFloats / channels, 1, g.in_pixels);
  const size_t runs = (g.in_pixels + pixels - 1) / pixels;
  for_each(work.call, images * runs, [&](size_t task) {
    const size_t image = task / runs;
    const size_t begin = task % runs * pixels;
    const size_t count = std::min(pixels, g.in_pixels - begin);
    const float* from = floats + image * size + begin * (turn ? 1 : channels);
    const Buffer<float> turned(turn ? count * channels : 0);
    if (!turned) {
      work.failed->store(true);
      return;
    }
    if (turn) {
      work.isa.transpose(from, g.in_pixels, channels, count, turned.get(), channels);
      from = turned.get();
    }
    const float scale = x_scale[image];
    const int32_t low = dynamic ? -INT8_MAX : INT8_MIN;
    const Rounding rounding = {scale == 0 ? 0 : 1 / scale, static_cast<float>(low - work.x_zero),
                               static_cast<float>(INT8_MAX - work.x_zero), work.x_zero};
    work.isa.quantize(from, count * channels, rounding, x + image * size + begin * channels);
  });
  return !*work.failed;
}

// Makes outputs of the dot products of some pixels of an image, and of some channels of a group.
void put(const QuantWork& work, const Part& part, const int32_t* dots, size_t stride) {
  const Geometry& g = work.g;
  const ferryman_quant_conv& c = work.conv;
  const auto channels = static_cast<size_t>(c.out_channels);
  const size_t pixel = part.image * g.out_pixels + part.pixel;
  const size_t channel = part.group * g.out_channels + part.channel;
  const size_t lane = part.group * g.blocks * kLanes + part.channel;
  const int8_t* const add = c.add_scale == 0 ? nullptr : work.call.add + pixel * channels + channel;
  const Dotted dotted = {dots, stride, part.pixels, part.channels, work.base + lane, work.x_scale[part.image],
                         work.scale + lane, work.bias + lane, add, channels, c.add_scale, c.add_zero};
  if (c.output == FERRYMAN_INT8) {
    const Rounding rounding = {1 / c.out_scale, static_cast<float>(c.out_low - c.out_zero),
                               static_cast<float>(c.out_high - c.out_zero), c.out_zero};
    work.isa.put_bytes(dotted, rounding, static_cast<int8_t*>(work.call.output) + pixel * channels + channel, channels);
  } else if (c.layout == FERRYMAN_CHANNELS_LAST) {
    float* const out = static_cast<float*>(work.call.output) + pixel * channels + channel;
    work.isa.put_floats(dotted, out, channels, false);
  } else {
    float* const out =
        static_cast<float*>(work.call.output) + (part.image * channels + channel) * g.out_pixels + part.pixel;
    work.isa.put_floats(dotted, out, g.out_pixels, true);
  }
}

// Gathers the windows of a part. Runs are what windows have side by side: taps, or a row of taps where nothing lies
// between them. The windows of a row of the output that lie within the image's width move together.
class Gather {
 public:
  Gather(const QuantWork& work, const Part& part)
      : work_(work),
        part_(part),
        runs_(work.g.taps),
        steps_(work.g.taps),
        outside_(static_cast<size_t>(work.g.conv.kernel_w) * work.g.channels) {}

  explicit operator bool() const {
    return runs_ && steps_ && outside_;
  }

  void put(int8_t* rows, size_t stride) const {
    const Geometry& g = work_.g;
    memset(outside_.get(), work_.x_zero, static_cast<size_t>(g.conv.kernel_w) * g.channels);
    const ptrdiff_t last_tap = static_cast<ptrdiff_t>(g.conv.dilation_w) * (g.conv.kernel_w - 1);
    const ptrdiff_t room = g.conv.width + g.conv.pad_left - last_tap;  // of windows' first taps, from the padding on
    const auto begin = static_cast<size_t>((g.conv.pad_left + g.conv.stride_w - 1) / g.conv.stride_w);
    const auto end = static_cast<size_t>(std::max<ptrdiff_t>(room + g.conv.stride_w - 1, 0) / g.conv.stride_w);
    for (size_t p = 0, pixels = 0; p < part_.pixels; p += pixels) {
      const Position first(part_.pixel + p, g.out_width);
      const bool inside = first.column >= begin && first.column < end;
      pixels = inside ? std::min(part_.pixels - p, std::min(end, g.out_width) - first.column) : 1;
      put_run(first, inside, pixels, rows + p * stride, stride);
    }
  }

 private:
  void put_run(const Position& first, bool inside, size_t pixels, int8_t* rows, size_t stride) const {
    const Geometry& g = work_.g;
    const auto pixel_size = static_cast<size_t>(g.conv.channels);
    const bool whole_rows = inside && g.conv.groups == 1 && g.conv.dilation_w == 1;
    const int8_t* const x = work_.x + part_.image * g.in_pixels * pixel_size + part_.group * g.channels;
    size_t count = 0;
    g.for_taps(first, [&](size_t tap, ptrdiff_t source) {
      if (whole_rows && tap % static_cast<size_t>(g.conv.kernel_w)) {
        return;
      }
      runs_.get()[count] = source < 0 ? outside_.get() : x + static_cast<size_t>(source) * pixel_size;
      steps_.get()[count] = source < 0 ? 0 : static_cast<size_t>(g.conv.stride_w) * pixel_size;
      ++count;
    });
    const size_t bytes = g.depth / count;
    work_.isa.gather_bytes(runs_.get(), steps_.get(), count, bytes, pixels, rows, stride);
  }

  const QuantWork& work_;
  const Part& part_;
  Buffer<const int8_t*> runs_;
  Buffer<size_t> steps_;
  Buffer<int8_t> outside_;
};

void run_part(const QuantWork& work, const Part& part) {
  const Geometry& g = work.g;
  const size_t quads = (g.depth + 3) / 4;
  const size_t row = 4 * quads;
  const bool direct = g.pointwise() && g.conv.groups == 1 && g.conv.stride_h == 1 && g.conv.stride_w == 1 &&
      g.channels == row;
  const Buffer<int8_t> windows(direct ? 0 : part.pixels * row);
  const Buffer<int32_t> sums(part.pixels);
  const Buffer<int32_t> dots(part.pixels * kRunChannels);
  const Gather gather(work, part);
  if (!windows || !sums || !dots || !gather) {
    work.failed->store(true);
    return;
  }
  const int8_t* x = work.x + (part.image * g.in_pixels + part.pixel) * g.channels;
  if (!direct) {
    gather.put(windows.get(), row);
    x = windows.get();
  }
  work.isa.sums(x, row, part.pixels, row, sums.get());
  const size_t block = work.vectors() * kVectorBytes;
  const uint8_t* w = work.call.weights + (part.group * g.blocks + part.channel / kLanes) * block;
  Part run = part;
  const size_t end = part.channel + part.channels;
  for (; run.channel < end; run.channel += kRunChannels, w += kRunChannels / kLanes * block) {
    run.channels = std::min(kRunChannels, end - run.channel);
    const size_t blocks = (run.channels + kLanes - 1) / kLanes;
    work.isa.dots(work.conv.bits, x, row, sums.get(), part.pixels, quads, w, block, blocks, dots.get(), kRunChannels);
    put(work, run, dots.get(), kRunChannels);
  }
}

// Cuts the output into parts that fit the cache and give every thread something to do.
void run_parts(const QuantWork& work) {
  const Geometry& g = work.g;
  const auto groups = static_cast<size_t>(g.conv.groups);
  const auto images = static_cast<size_t>(g.conv.batch);
  const size_t threads = work.threads();
  const size_t each = std::max<size_t>(images * groups * g.out_pixels / (2 * threads), 8);
  const size_t fit = std::clamp<size_t>(kWindowBytes / g.depth, 8, kWindowPixels);
  const size_t pixels = std::min({each, fit, g.out_pixels});
  const size_t runs = (g.out_pixels + pixels - 1) / pixels;
  const size_t tasks = images * groups * runs;
  const size_t parts = tasks < threads ? (threads + tasks - 1) / tasks : 1;  // of the channels
  const size_t split = (g.out_channels / parts + kRunChannels - 1) / kRunChannels * kRunChannels;
  const size_t splits = split == 0 ? 1 : (g.out_channels + split - 1) / split;
  for_each(work.call, tasks * splits, [&](size_t task) {
    const size_t channel = task % splits * split;
    const size_t rest = task / splits;
    const size_t pixel = rest % runs * pixels;
    run_part(work, {rest / runs / groups, rest / runs % groups, pixel, std::min(pixels, g.out_pixels - pixel), channel,
                    splits == 1 ? g.out_channels : std::min(split, g.out_channels - channel)});
  });
}

// The sums of channels' weights, from windows of ones.
bool sum_weights(const QuantWork& work, int32_t* sums) {
  const Geometry& g = work.g;
  const size_t quads = (g.depth + 3) / 4;
  const Buffer<int8_t> ones(4 * quads);
  if (!ones) {
    return false;
  }
  std::fill_n(ones.get(), g.depth, 1);
  std::fill(ones.get() + g.depth, ones.get() + 4 * quads, 0);
  const auto depth = static_cast<int32_t>(g.depth);
  const size_t block = work.vectors() * kVectorBytes;
  const size_t blocks = static_cast<size_t>(g.conv.groups) * g.blocks;
  const size_t run = (blocks + work.threads() - 1) / work.threads();
  for_each(work.call, (blocks + run - 1) / run, [&](size_t task) {
    const size_t begin = task * run;
    work.isa.dots(work.conv.bits, ones.get(), 0, &depth, 1, quads, work.call.weights + begin * block, block,
                  std::min(run, blocks - begin), sums + begin * kLanes, 0);
  });
  return true;
}

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

  explicit Columns(const Geometry& g) {
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

  size_t count(size_t pixels_of_run, size_t kernel) const {
    return (pixels_of_run - 1) * step + tap_step * (kernel - 1) + 1;
  }
};

// Weights of each row of outputs that shares columns, and each block of channels: [kernel_w, quads, 16] words of four
// bytes, zeros where the kernel has no row; and their sums.
void spread_weights(const QuantWork& work, const Columns& c, uint32_t* w, int32_t* sums) {
  const Geometry& g = work.g;
  const auto height = static_cast<size_t>(g.conv.kernel_h);
  const auto width = static_cast<size_t>(g.conv.kernel_w);
  const auto channels = static_cast<size_t>(g.conv.out_channels);
  const auto bits = static_cast<size_t>(work.conv.bits);
  const int32_t half = 1 << (bits - 1);
  const uint8_t* from = work.call.weights;
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

// Each channel as often as it has output channels.
void widen_bytes(const Geometry& g, const int8_t* x, int8_t* wide) {
  const size_t count = static_cast<size_t>(g.conv.batch) * g.in_pixels * static_cast<size_t>(g.conv.channels);
  for (size_t i = 0; i < count; ++i, wide += g.out_channels) {
    memset(wide, x[i], g.out_channels);
  }
}

const char* run_quantized(const ferryman_quant_conv& conv, const ferryman_quant_call& call) {
  const Geometry g(shape_of(conv));
  std::atomic<bool> failed = false;
  QuantWork work{g, conv, call, isa()};
  work.failed = &failed;
  work.x_zero = conv.x_scale == 0 ? 0 : conv.x_zero;
  const auto channels = static_cast<size_t>(conv.out_channels);
  const auto groups = static_cast<size_t>(conv.groups);
  const size_t blocks = g.depthwise ? (channels + kLanes - 1) / kLanes : groups * g.blocks;
  const size_t in_pixels = static_cast<size_t>(conv.batch) * g.in_pixels;
  const bool floats = conv.input == FERRYMAN_FLOATS;
  const bool wide = g.depthwise && g.out_channels > 1;
  const Columns columns(g);
  const size_t words = g.depthwise ? columns.rows * blocks * static_cast<size_t>(conv.kernel_w) * columns.quads * kLanes : 0;

  const Buffer<int8_t> x(floats ? in_pixels * static_cast<size_t>(conv.channels) : 0);
  const Buffer<int8_t> widened(wide ? in_pixels * channels : 0);
  const Buffer<float> x_scale(static_cast<size_t>(conv.batch));
  const Buffer<float> factors(2 * blocks * kLanes);
  const Buffer<int32_t> base(blocks * kLanes);
  const Buffer<uint32_t> spread(words);
  if (!x || !widened || !x_scale || !factors || !base || !spread) {
    return kNoMemory;
  }
  std::fill_n(x_scale.get(), conv.batch, conv.x_scale);
  if (floats && !quantize_input(work, x.get(), x_scale.get())) {
    return kNoMemory;
  }
  work.x = floats ? x.get() : static_cast<const int8_t*>(call.input);
  work.x_scale = x_scale.get();
  if (wide) {
    widen_bytes(g, work.x, widened.get());
    work.x = widened.get();
  }

  float* const scale = factors.get();
  float* const bias = scale + blocks * kLanes;
  std::fill_n(scale, 2 * blocks * kLanes, 0.0f);
  const size_t parts = g.depthwise ? 1 : groups;
  for (size_t part = 0; part < parts; ++part) {
    const size_t lane = part * g.blocks * kLanes;
    std::copy_n(call.scale + part * (channels / parts), channels / parts, scale + lane);
    std::copy_n(call.bias + part * (channels / parts), channels / parts, bias + lane);
  }
  work.scale = scale;
  work.bias = bias;

  const int32_t zero = work.x_zero + (g.depthwise ? work.isa.column_bias : 0);
  if (g.depthwise) {
    spread_weights(work, columns, spread.get(), base.get());
    work.column_weights = reinterpret_cast<const int8_t*>(spread.get());
  } else if (zero && !sum_weights(work, base.get())) {
    return kNoMemory;
  }
  for (size_t n = 0; n < blocks * kLanes; ++n) {
    base.get()[n] = zero ? -zero * base.get()[n] : 0;
  }
  work.base = base.get();
  g.depthwise ? run_depthwise(work, columns) : run_parts(work);
  return failed ? kNoMemory : nullptr;
}

} // namespace
} // namespace ferryman::kernels

const char* ferryman_quant_conv_check(const ferryman_quant_conv* conv, ferryman_quant_sizes* sizes) {
  using namespace ferryman::kernels;
  const ferryman_quant_conv& c = *conv;
  const ferryman_binary_conv shape = shape_of(c);
  ferryman_binary_sizes of_shape;
  if (const char* const problem = ferryman_binary_check(&shape, &of_shape)) {
    return problem;
  }
  if (c.bits != 8 && c.bits != 4 && c.bits != 2) {
    return "weights must have 8, 4 or 2 bits";
  }
  if ((c.input != FERRYMAN_FLOATS && c.input != FERRYMAN_INT8) ||
      (c.output != FERRYMAN_FLOATS && c.output != FERRYMAN_INT8)) {
    return "unknown kind of input or output";
  }
  const bool dynamic = c.x_scale == 0 && c.input == FERRYMAN_FLOATS;
  if (!dynamic && !is_scale(c.x_scale)) {
    return "the input's scale must be finite and positive, or 0 for floats";
  }
  if (c.output == FERRYMAN_INT8 && !is_scale(c.out_scale)) {
    return "the output's scale must be finite and positive";
  }
  if (c.add_scale != 0 && !is_scale(c.add_scale)) {
    return "the scale of what is added must be finite and positive, or 0";
  }
  if (!is_int8(c.x_zero) || !is_int8(c.add_zero) ||
      (c.output == FERRYMAN_INT8 && (!is_int8(c.out_zero) || !is_int8(c.out_low) || !is_int8(c.out_high)))) {
    return "zeros and ends must be -128 to 127";
  }
  if (c.output == FERRYMAN_INT8 && c.out_low > c.out_high) {
    return "the output's low end must not be above the high one";
  }
  const int64_t in = c.channels / c.groups;
  const int64_t depth = product({c.kernel_h, c.kernel_w, in});
  if (depth > kQuantDepthMax) {
    return "an output must not depend on more than 65793 inputs";
  }
  const int64_t per = 8 / c.bits;
  sizes->out_height = of_shape.out_height;
  sizes->out_width = of_shape.out_width;
  sizes->input = of_shape.input;
  sizes->output = of_shape.output;
  sizes->per_channel = of_shape.per_channel;
  const bool depthwise = in == 1 && c.groups > 1;
  sizes->weights = depthwise
      ? product({ceil_div(c.out_channels, kLanes), ceil_div(depth, per), kLanes})
      : product({c.groups, ceil_div(c.out_channels / c.groups, kLanes), ceil_div(ceil_div(depth, 4), per), kVectorBytes});
  if (sizes->weights > kElementsMax) {
    return "a tensor would hold more than 2^31 elements";
  }
  return nullptr;
}

const char* ferryman_quant_conv_run(const ferryman_quant_conv* conv, const ferryman_quant_call* call) {
  return ferryman::kernels::run_quantized(*conv, *call);
}
