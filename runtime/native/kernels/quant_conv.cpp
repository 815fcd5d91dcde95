// Quantized convolution: floats become int8 first, channels last. Then each image is put into its padding of zeros, where
// windows are runs of bytes, and these are multiplied with the weights where those lie; depthwise convolutions are in
// quant_depthwise.cpp.
//
// A dot product of inputs less their zero and weights is that of inputs and weights, plus `base`: -zero times the sum of
// the channel's weights.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "buffer.h"
#include "quant_sparse.h"
#include "quant_work.h"
#include "sparse_frame.h"

namespace ferryman::kernels {
namespace {

constexpr int64_t kQuantDepthMax = INT32_MAX / (255 * 128);  // the sum of products fits
constexpr size_t kChunkFloats = 16384;                       // quantized at a time
constexpr size_t kWindowBytes = 32768;                       // of one task, at a time
constexpr size_t kWindowPixels = 64;

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

} // namespace

void put(const QuantWork& work, const Part& part, const int32_t* dots, size_t stride, const int32_t* base) {
  const Geometry& g = work.g;
  const ferryman_quant_conv& c = work.conv;
  const auto channels = static_cast<size_t>(c.out_channels);
  const size_t pixel = part.image * g.out_pixels + part.pixel;
  const size_t channel = part.group * g.out_channels + part.channel;
  const size_t lane = part.group * g.blocks * kLanes + part.channel;
  const int8_t* const add = c.add_scale == 0 ? nullptr : work.call.add + pixel * channels + channel;
  const Dotted dotted = {dots, stride, part.pixels, part.channels, base, work.x_scale[part.image],
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

namespace {

// The windows in the frame of a row of the output, or of all rows where they go on alike, from pixel `p` of a part on.
Windows framed(const QuantWork& work, const Part& part, size_t p) {
  const Geometry& g = work.g;
  const Position first(part.pixel + p, g.out_width);
  const auto stride = static_cast<size_t>(g.conv.stride_w);
  const bool alike = g.out_width * stride == g.frame_width * static_cast<size_t>(g.conv.stride_h);
  const size_t corner = part.image * g.frame_height * g.frame_width + g.frame_corner(first);
  const auto channels = static_cast<size_t>(g.conv.channels);
  const size_t left = part.pixels - p;
  return {work.frames + corner * channels + part.group * g.channels, stride * channels, work.offsets, work.runs,
          g.depth / work.runs, alike ? left : std::min(left, g.out_width - first.column), work.frames != work.x};
}

void run_part(const QuantWork& work, const Part& part) {
  const Geometry& g = work.g;
  const size_t row = (g.depth + 3) / 4 * 4;
  const bool gathered = !work.direct;
  const Buffer<int8_t> rows(gathered ? part.pixels * row : 0);
  if (!rows) {
    work.failed->store(true);
    return;
  }
  for (size_t p = 0; gathered && p < part.pixels;) {
    const Windows windows = framed(work, part, p);
    work.isa.gather_bytes(windows, rows.get() + p * row, row);
    p += windows.pixels;
  }
  constexpr size_t nowhere = 0;
  const Windows all = {rows.get(), row, &nowhere, 1, row, part.pixels, true};
  alignas(kAlignment) int32_t dots[kWindowPixels * kRunChannels];
  const size_t block = work.vectors() * kVectorBytes;
  const uint8_t* w = work.weights + (part.group * g.blocks + part.channel / kLanes) * block;
  Part run = part;
  const size_t end = part.channel + part.channels;
  for (; run.channel < end; run.channel += kRunChannels, w += kRunChannels / kLanes * block) {
    run.channels = std::min(kRunChannels, end - run.channel);
    const size_t blocks = (run.channels + kLanes - 1) / kLanes;
    for (size_t p = 0; p < part.pixels;) {
      const Windows windows = gathered ? all : framed(work, part, p);
      work.isa.dots(work.conv.bits, windows, w, block, blocks, dots + p * kRunChannels, kRunChannels);
      p += windows.pixels;
    }
    put(work, run, dots, kRunChannels);
  }
}

// Cuts the output into parts that fit the cache and give every thread something to do; of whole rows, where they may be.
void run_parts(const QuantWork& work) {
  const Geometry& g = work.g;
  const auto groups = static_cast<size_t>(g.conv.groups);
  const auto images = static_cast<size_t>(g.conv.batch);
  const size_t threads = work.threads();
  const size_t each = std::max<size_t>(images * groups * g.out_pixels / (2 * threads), 8);
  const size_t fit = work.direct ? kWindowPixels : std::clamp<size_t>(kWindowBytes / g.depth, 8, kWindowPixels);
  const size_t most = std::min({each, fit, g.out_pixels});
  const size_t pixels = most < g.out_width ? most : most / g.out_width * g.out_width;
  const size_t runs = (g.out_pixels + pixels - 1) / pixels;
  const size_t tasks = images * groups * runs;
  const size_t parts = tasks < threads ? (threads + tasks - 1) / tasks : 1;  // of the channels
  const size_t split = (g.out_channels / parts / kRunChannels + 1) * kRunChannels;
  const size_t splits = (g.out_channels + split - 1) / split;
  for_each(work.call, tasks * splits, [&](size_t task) {
    const size_t channel = task % splits * split;
    const size_t rest = task / splits;
    const size_t pixel = rest % runs * pixels;
    run_part(work, {rest / runs / groups, rest / runs % groups, pixel, std::min(pixels, g.out_pixels - pixel), channel,
                    std::min(split, g.out_channels - channel)});
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
  constexpr size_t nowhere = 0;
  const Windows windows = {ones.get(), 0, &nowhere, 1, 4 * quads, 1, true};
  const size_t block = work.vectors() * kVectorBytes;
  const size_t blocks = static_cast<size_t>(g.conv.groups) * g.blocks;
  const size_t run = (blocks + work.threads() - 1) / work.threads();
  for_each(work.call, (blocks + run - 1) / run, [&](size_t task) {
    const size_t begin = task * run;
    work.isa.dots(work.conv.bits, windows, work.weights + begin * block, block, std::min(run, blocks - begin),
                  sums + begin * kLanes, 0);
  });
  return true;
}

// Finds the runs that windows are, and puts images into frames where these are not the images themselves.
bool put_frames(QuantWork& work, Buffer<size_t>& offsets, Buffer<int8_t>& frames) {
  const Geometry& g = work.g;
  const auto kernel = static_cast<size_t>(g.conv.kernel_w);
  const bool whole_rows = g.conv.groups == 1 && g.conv.dilation_w == 1;
  const size_t taps = whole_rows ? kernel : 1;  // of a run
  const auto channels = static_cast<size_t>(g.conv.channels);
  const auto height = static_cast<size_t>(g.conv.height);
  const size_t row = g.frame_width * channels;
  const size_t rows = static_cast<size_t>(g.conv.batch) * g.frame_height;
  work.runs = g.taps / taps;
  work.direct = taps * g.channels % (4 * (work.runs == 1 ? 1 : work.per())) == 0;
  const bool own = g.padded() || !work.direct;
  offsets = Buffer<size_t>(work.runs);
  frames = Buffer<int8_t>(own ? rows * row : 0);
  if (!offsets || !frames) {
    return false;
  }
  for (size_t run = 0; run < work.runs; ++run) {
    offsets.get()[run] = g.frame_offset(run * taps / kernel, run * taps % kernel) * channels;
  }
  work.offsets = offsets.get();
  work.frames = own ? frames.get() : work.x;
  const size_t size = static_cast<size_t>(g.conv.width) * channels;
  for_each(work.call, own ? rows : 0, [&](size_t task) {
    const size_t y = task % g.frame_height - static_cast<size_t>(g.conv.pad_top);
    int8_t* const to = frames.get() + task * row;
    memset(to, work.x_zero + work.isa.dot_bias, row);
    if (y < height) {  // which is wrapped around above the image
      const int8_t* const from = work.x + (task / g.frame_height * height + y) * size;
      work.isa.add_bias(from, size, to + static_cast<size_t>(g.conv.pad_left) * channels);
    }
  });
  return true;
}

// Lays sparse weights out as the dense ones are; those of whole blocks of channels at a time.
const char* unpack(const QuantWork& work, const SparseWeights& sparse, uint8_t* w) {
  const Geometry& g = work.g;
  const size_t block = sparse.block_bytes();
  std::atomic<bool> good = true;
  for_each(work.call, static_cast<size_t>(g.conv.groups) * g.blocks, [&](size_t task) {
    const size_t first = task % g.blocks * kLanes;
    const size_t channels = std::min(kLanes, g.out_channels - first);
    if (!sparse.unpack(task / g.blocks * g.out_channels + first, channels, w + task * block)) {
      good = false;
    }
  });
  return good ? nullptr : kBadIndex;
}

const char* run_quantized(const ferryman_quant_conv& conv, const ferryman_quant_call& call, const SparseWeights* sparse) {
  const Geometry g(shape_of(conv));
  std::atomic<bool> failed = false;
  QuantWork work{g, conv, call, isa()};
  work.weights = call.weights;
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

  Buffer<size_t> offsets(0);
  Buffer<int8_t> frames(0);
  Buffer<uint8_t> unpacked(0);
  if (sparse && conv.unpack) {
    unpacked = Buffer<uint8_t>(groups * g.blocks * sparse->block_bytes());
    if (!unpacked) {
      return kNoMemory;
    }
    if (const char* const problem = unpack(work, *sparse, unpacked.get())) {
      return problem;
    }
    work.weights = unpacked.get();
    sparse = nullptr;
  }
  if (!sparse && !g.depthwise && !put_frames(work, offsets, frames)) {
    return kNoMemory;
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
  if (sparse) {
    const char* const problem = run_sparse(work, *sparse);
    return failed ? kNoMemory : problem;
  }

  const int32_t zero = work.x_zero + (g.depthwise ? work.isa.column_bias : work.isa.dot_bias);
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

const char* run_sparse_quantized(const ferryman_quant_conv& conv, const ferryman_quant_call& call) {
  const Geometry g(shape_of(conv));
  const SparseWeights weights(
      conv.index_bits, conv.bits, call.weights, call.weight_bytes, static_cast<size_t>(conv.out_channels), g.depth);
  return weights.problem() ? weights.problem() : run_quantized(conv, call, &weights);
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
  if (!is_index(c.index_bits)) {
    return "an index must have 0, 1, 4 or 8 bits";
  }
  if (c.index_bits && (depthwise || depth > kSparseDepthMax)) {
    return "weights with an index must be at most 65535 to an output channel, and of a group with several input channels";
  }
  const int64_t frame = depthwise
      ? 0
      : product({c.batch, c.height + c.pad_top + c.pad_bottom, c.width + c.pad_left + c.pad_right, c.channels});
  sizes->weights = depthwise
      ? product({ceil_div(c.out_channels, kLanes), ceil_div(depth, per), kLanes})
      : product({c.groups, ceil_div(c.out_channels / c.groups, kLanes), ceil_div(ceil_div(depth, 4), per), kVectorBytes});
  if (std::max(sizes->weights, frame) > kElementsMax) {
    return "a tensor would hold more than 2^31 elements";
  }
  if (!frame_fits(frame, sizes->input + sizes->output)) {
    return kFrameTooLarge;
  }
  if (c.index_bits) {
    sizes->weights = 0;
    return c.unpack ? nullptr : check_frames(shape, of_shape);
  }
  return nullptr;
}

const char* ferryman_quant_conv_run(const ferryman_quant_conv* conv, const ferryman_quant_call* call) {
  using namespace ferryman::kernels;
  return conv->index_bits ? run_sparse_quantized(*conv, *call) : run_quantized(*conv, *call, nullptr);
}
