// The quantized operators against plain loops that follow quantized.h to the letter. Every buffer has exactly the size
// the library asked for.
#include <cstdio>

#include "check_quantized.h"

namespace {

int32_t field(const Bytes& packed, size_t byte, size_t j, int32_t bits) {
  return packed.at(byte) >> (static_cast<int32_t>(j) * bits) & ((1 << bits) - 1);
}

// What is stored for a weight of a convolution's group, or of a linear layer, at a depth.
int32_t stored(const Bytes& packed, int32_t bits, size_t first_block, size_t depth, size_t n, size_t k) {
  const size_t per = 8 / static_cast<size_t>(bits);
  const size_t vectors = ((depth + 3) / 4 + per - 1) / per;
  const size_t quad = k / 4;
  const size_t vector = (first_block + n / 16) * vectors + quad / per;
  return field(packed, vector * 64 + n % 16 * 4 + k % 4, quad % per, bits);
}

ferryman_quant_conv random_conv() {
  ferryman_quant_conv c = {};
  const int32_t per_group[] = {1, 2, 3, 4, 16, 17, 32, 36};
  const int32_t out_per_group[] = {1, 2, 5, 15, 16, 17, 32, 40};
  const bool depthwise = between(0, 2) == 0;
  c.groups = depthwise ? between(2, 70) : between(0, 2) ? 1 : between(2, 4);
  c.batch = between(1, 2);
  c.channels = c.groups * (depthwise ? 1 : per_group[between(0, 7)]);
  c.out_channels = c.groups * (depthwise ? between(1, 2) : out_per_group[between(0, 7)]);
  c.kernel_h = between(1, 5);
  c.kernel_w = between(1, 4);
  c.stride_h = between(1, 2);
  c.stride_w = between(1, 5);
  c.dilation_h = between(1, 2);
  c.dilation_w = between(1, 2);
  c.pad_top = between(0, std::min(2, c.dilation_h * (c.kernel_h - 1)));
  c.pad_left = between(0, std::min(2, c.dilation_w * (c.kernel_w - 1)));
  c.pad_bottom = between(0, std::min(2, c.dilation_h * (c.kernel_h - 1)));
  c.pad_right = between(0, std::min(2, c.dilation_w * (c.kernel_w - 1)));
  c.height = c.dilation_h * (c.kernel_h - 1) + between(1, 4);
  c.width = c.dilation_w * (c.kernel_w - 1) + between(1, 18);
  c.bits = 1 << between(1, 3);
  c.layout = between(0, 1);
  c.input = between(0, 1);
  c.output = between(0, 1);
  c.x_scale = c.input == FERRYMAN_FLOATS && between(0, 1) ? 0 : 0.0625f * static_cast<float>(between(1, 9));
  c.x_zero = between(-128, 127);
  c.out_scale = static_cast<float>(between(1, 99)) / 7;
  c.out_zero = between(-128, 127);
  c.out_low = between(-128, 0);
  c.out_high = between(0, 127);
  c.add_scale = between(0, 1) ? 0 : 0.3f;
  c.add_zero = between(-128, 127);
  return c;
}

struct ConvData {
  std::vector<float> x_floats, scale, bias, out_floats;
  std::vector<int8_t> x, add, out;
  Bytes weights;
};

ConvData random_data(const ferryman_quant_conv& c, const ferryman_quant_sizes& sizes) {
  ConvData data;
  if (c.input == FERRYMAN_FLOATS) {
    data.x_floats = floats(sizes.input);
  } else {
    data.x = bytes<int8_t>(sizes.input);
  }
  data.weights = bytes<uint8_t>(sizes.weights);
  data.scale = floats(sizes.per_channel);
  data.bias = floats(sizes.per_channel);
  data.add = bytes<int8_t>(c.add_scale == 0 ? 0 : sizes.output);
  (c.output == FERRYMAN_FLOATS ? data.out_floats.resize(static_cast<size_t>(sizes.output))
                               : data.out.resize(static_cast<size_t>(sizes.output)));
  return data;
}

const char* run(const ferryman_quant_conv& c, ConvData& data) {
  ferryman_quant_call call = {};
  call.input = c.input == FERRYMAN_FLOATS ? static_cast<const void*>(data.x_floats.data()) : data.x.data();
  call.weights = data.weights.data();
  call.scale = data.scale.data();
  call.bias = data.bias.data();
  call.add = c.add_scale == 0 ? nullptr : data.add.data();
  call.output = c.output == FERRYMAN_FLOATS ? static_cast<void*>(data.out_floats.data()) : data.out.data();
  call.parallel = backwards;
  call.threads = between(1, 3);
  return ferryman_quant_conv_run(&c, &call);
}

// Place of a float; int8 always have the channels last.
size_t place(const ferryman_quant_conv& c, size_t plane, size_t pixel, size_t channels, size_t channel) {
  return c.layout == FERRYMAN_CHANNELS_LAST ? pixel * channels + channel
                                            : (pixel / plane * channels + channel) * plane + pixel % plane;
}

int compare(const ferryman_quant_conv& c, const ferryman_quant_sizes& sizes, const ConvData& data) {
  const auto images = static_cast<size_t>(c.batch);
  const auto channels = static_cast<size_t>(c.channels);
  const size_t in_plane = static_cast<size_t>(c.height) * static_cast<size_t>(c.width);
  const size_t plane = static_cast<size_t>(sizes.out_height) * static_cast<size_t>(sizes.out_width);
  std::vector<int8_t> x = data.x;
  std::vector<float> x_scale(images, c.x_scale);
  if (c.input == FERRYMAN_FLOATS) {
    std::vector<float> last(data.x_floats.size());
    for (size_t i = 0; i < last.size(); ++i) {
      last[i] = data.x_floats[place(c, in_plane, i / channels, channels, i % channels)];
    }
    x.resize(last.size());
    for (size_t image = 0; image < images; ++image) {
      const size_t at = image * in_plane * channels;
      if (c.x_scale == 0) {
        x_scale[image] = quantize_dynamic(&last[at], in_plane * channels, &x[at]);
        continue;
      }
      for (size_t i = at; i < at + in_plane * channels; ++i) {
        x[i] = quantize(last[i], c.x_scale, c.x_zero, -128, 127);
      }
    }
  }
  const int32_t x_zero = c.x_scale == 0 ? 0 : c.x_zero;
  const auto in = static_cast<size_t>(c.channels / c.groups);
  const auto out = static_cast<size_t>(c.out_channels / c.groups);
  const size_t taps = static_cast<size_t>(c.kernel_h) * static_cast<size_t>(c.kernel_w);
  const size_t per = 8 / static_cast<size_t>(c.bits);
  const bool depthwise = in == 1 && c.groups > 1;
  int bad = 0;
  for (size_t i = 0; i < static_cast<size_t>(sizes.output); ++i) {
    const size_t pixel = i / static_cast<size_t>(c.out_channels);
    const size_t n = i % static_cast<size_t>(c.out_channels);
    const auto oy = static_cast<int32_t>(pixel % plane / static_cast<size_t>(sizes.out_width));
    const auto ox = static_cast<int32_t>(pixel % static_cast<size_t>(sizes.out_width));
    int32_t sum = 0;
    for (size_t tap = 0; tap < taps; ++tap) {
      const int32_t y = oy * c.stride_h - c.pad_top + static_cast<int32_t>(tap) / c.kernel_w * c.dilation_h;
      const int32_t left = ox * c.stride_w - c.pad_left + static_cast<int32_t>(tap) % c.kernel_w * c.dilation_w;
      if (y < 0 || left < 0 || y >= c.height || left >= c.width) {
        continue;
      }
      for (size_t k = 0; k < in; ++k) {
        const size_t from = pixel / plane * in_plane + static_cast<size_t>(y * c.width + left);
        const int32_t w = depthwise
            ? field(data.weights, (n / 16 * ((taps + per - 1) / per) + tap / per) * 16 + n % 16, tap % per, c.bits)
            : stored(data.weights, c.bits, n / out * ((out + 15) / 16), taps * in, n % out, tap * in + k);
        sum += (x[from * channels + n / out * in + k] - x_zero) * (w - (1 << (c.bits - 1)));
      }
    }
    float made = static_cast<float>(sum) * (x_scale[pixel / plane] * data.scale[n]) + data.bias[n];
    if (c.add_scale != 0) {
      made = made + c.add_scale * static_cast<float>(data.add[i] - c.add_zero);
    }
    if (c.output == FERRYMAN_INT8) {
      bad += data.out[i] != quantize(made, c.out_scale, c.out_zero, c.out_low, c.out_high);
    } else {
      bad += data.out_floats[place(c, plane, pixel, static_cast<size_t>(c.out_channels), n)] != made;
    }
  }
  return bad;
}

bool conv_is_right() {
  const ferryman_quant_conv c = random_conv();
  ferryman_quant_sizes sizes;
  const char* problem = ferryman_quant_conv_check(&c, &sizes);
  int bad = 0;
  if (!problem) {
    ConvData data = random_data(c, sizes);
    problem = run(c, data);
    bad = problem ? 0 : compare(c, sizes, data);
  }
  if (problem || bad) {
    printf("%d wrong, %s:", bad, problem ? problem : "computed");
    int32_t numbers[sizeof c / sizeof(int32_t)];
    memcpy(numbers, &c, sizeof c);
    for (const int32_t number : numbers) {
      printf(" %d", number);
    }
    puts("");
  }
  return !problem && !bad;
}

// float16 of which the exponent is in the middle: exact to a formula.
std::vector<uint16_t> random_halves(int64_t count) {
  std::vector<uint16_t> made(static_cast<size_t>(count));
  for (uint16_t& half : made) {
    half = static_cast<uint16_t>((random_word() & 0x83ff) | static_cast<uint32_t>(between(10, 20)) << 10);
  }
  return made;
}

float float_of(uint16_t half) {
  const float magnitude = std::ldexp(1.0f + static_cast<float>(half & 0x3ff) / 1024.0f, (half >> 10 & 31) - 15);
  return half & 0x8000 ? -magnitude : magnitude;
}

struct LinearData {
  std::vector<float> x, bias, out;
  std::vector<int8_t> x_blocks;
  Bytes weights, zero;
  std::vector<uint16_t> scale;
  bool zeros;
};

const char* run(const ferryman_quant_linear& l, const ferryman_quant_linear_sizes& sizes, LinearData& data) {
  data.x = floats(int64_t{l.rows} * l.channels);
  data.x_blocks = in_blocks(data.x, static_cast<size_t>(l.channels));
  data.bias = floats(l.out_channels);
  data.out.resize(static_cast<size_t>(sizes.output));
  data.weights = bytes<uint8_t>(sizes.weights);
  data.zero = bytes<uint8_t>(sizes.scales);
  data.scale = random_halves(sizes.scales);
  data.zeros = between(0, 1);
  ferryman_quant_linear_call call = {};
  call.input = l.input == FERRYMAN_BLOCKS ? static_cast<const void*>(data.x_blocks.data()) : data.x.data();
  call.weights = data.weights.data();
  call.scale = data.scale.data();
  call.zero = data.zeros ? data.zero.data() : nullptr;
  call.bias = data.bias.data();
  call.output = data.out.data();
  call.parallel = backwards;
  call.threads = between(1, 3);
  return ferryman_quant_linear_run(&l, &call);
}

ferryman_quant_linear random_linear() {
  ferryman_quant_linear l = {};
  l.rows = between(1, 9);
  l.channels = between(1, 200);
  l.out_channels = between(1, 80);
  l.bits = 1 << between(1, 3);
  l.group = l.channels >= 32 && between(0, 2) ? 32 * between(1, l.channels / 32) : l.channels;
  l.blocks = between(0, 1);
  l.input = l.blocks && between(0, 1) ? FERRYMAN_BLOCKS : FERRYMAN_FLOATS;
  if (l.blocks) {
    l.group = std::min(l.channels, kBlock);
  }
  return l;
}

bool linear_is_right() {
  const ferryman_quant_linear l = random_linear();
  ferryman_quant_linear_sizes sizes;
  LinearData data;
  if (ferryman_quant_linear_check(&l, &sizes) || run(l, sizes, data)) {
    puts("a linear layer was refused");
    return false;
  }
  const auto channels = static_cast<size_t>(l.channels);
  const auto out = static_cast<size_t>(l.out_channels);
  const auto group = static_cast<size_t>(l.group);
  const size_t groups = (channels + group - 1) / group;
  std::vector<float> expected(data.out.size());
  std::vector<int8_t> x(channels);
  for (size_t i = 0; i < expected.size(); ++i) {
    const float* const row = &data.x[i / out * channels];
    const float x_scale = l.blocks ? 0 : quantize_dynamic(row, channels, x.data());
    const size_t n = i % out;
    float total = 0;
    for (size_t g = 0; g < groups; ++g) {
      const size_t at = (n / 16 * groups + g) * 16 + n % 16;
      const int32_t zero = data.zeros ? data.zero[at] : 1 << (l.bits - 1);
      const size_t end = std::min(channels, (g + 1) * group);
      const float of_block = l.blocks ? quantize_dynamic(row + g * group, end - g * group, &x[g * group]) : 1;
      int32_t sum = 0;
      for (size_t k = g * group; k < end; ++k) {
        sum += x[k] * (stored(data.weights, l.bits, 0, channels, n, k) - zero);
      }
      const float product = static_cast<float>(sum) * float_of(data.scale[at]) * of_block;
      total = g ? total + product : product;
    }
    expected[i] = (l.blocks ? total : total * x_scale) + data.bias[n];
  }
  if (!same(expected, data.out)) {
    printf("wrong: a linear layer %d %d %d %d %d %d %d\n", l.rows, l.channels, l.out_channels, l.bits, l.group, l.input,
           l.blocks);
    return false;
  }
  return true;
}

struct TableData {
  std::vector<int32_t> ids;
  Bytes weights, zero;
  std::vector<uint16_t> scale;
  std::vector<float> out;
};

const char* run(const ferryman_quant_embedding& e, const ferryman_quant_embedding_sizes& sizes, TableData& data) {
  data.ids.resize(static_cast<size_t>(e.count * (e.id_bytes / 4)));
  for (size_t i = 0; i < data.ids.size(); i += static_cast<size_t>(e.id_bytes / 4)) {
    data.ids[i] = static_cast<int32_t>(random_word() % static_cast<uint32_t>(e.rows));
  }
  data.weights = bytes<uint8_t>(sizes.weights);
  data.zero = bytes<uint8_t>(sizes.scales);
  data.scale = random_halves(sizes.scales);
  data.out.resize(static_cast<size_t>(sizes.output));
  const ferryman_quant_embedding_call call = {
      data.ids.data(), data.weights.data(), data.scale.data(), data.zero.data(), data.out.data()};
  return ferryman_quant_embedding_run(&e, &call);
}

ferryman_quant_embedding random_table() {
  ferryman_quant_embedding e = {};
  e.rows = between(1, 20);
  e.channels = between(1, 100);
  e.bits = 1 << between(1, 3);
  e.group = e.channels > 64 && between(0, 1) ? 32 : e.channels;
  e.id_bytes = 4 * between(1, 2);
  e.lanes = between(0, 1);
  e.count = between(1, 5);
  return e;
}

bool embedding_is_right() {
  const ferryman_quant_embedding e = random_table();
  ferryman_quant_embedding_sizes sizes;
  TableData data;
  if (ferryman_quant_embedding_check(&e, &sizes) || run(e, sizes, data)) {
    puts("a table was refused");
    return false;
  }
  const auto channels = static_cast<size_t>(e.channels);
  const auto group = static_cast<size_t>(e.group);
  const size_t per = 8 / static_cast<size_t>(e.bits);
  std::vector<float> expected(data.out.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    const auto row = static_cast<size_t>(data.ids[i / channels * static_cast<size_t>(e.id_bytes / 4)]);
    const size_t d = i % channels;
    const size_t groups = (channels + group - 1) / group;
    const size_t g = e.lanes ? (row / 16 * groups + d / group) * 16 + row % 16 : row * groups + d / group;
    const int32_t w = e.lanes ? stored(data.weights, e.bits, 0, channels, row, d)
                              : field(data.weights, row * ((channels + per - 1) / per) + d / per, d % per, e.bits);
    expected[i] = static_cast<float>(w - data.zero[g]) * float_of(data.scale[g]);
  }
  if (!same(expected, data.out)) {
    puts("wrong: a table");
    return false;
  }
  return true;
}

bool fuzz_conv() {
  ferryman_quant_conv c = random_conv();
  spoil(c);
  ferryman_quant_sizes sizes;
  if (ferryman_quant_conv_check(&c, &sizes) || std::max({sizes.input, sizes.weights, sizes.output}) > kSmall ||
      sizes.output * c.kernel_h * c.kernel_w * (c.channels / c.groups) > 64 * kSmall) {
    return false;
  }
  ConvData data = random_data(c, sizes);
  return run(c, data) == nullptr;
}

bool fuzz_linear() {
  ferryman_quant_linear l = random_linear();
  spoil(l);
  ferryman_quant_linear_sizes sizes;
  LinearData data;
  return !ferryman_quant_linear_check(&l, &sizes) &&
      std::max({sizes.input, sizes.weights, sizes.scales, sizes.output}) <= kSmall && run(l, sizes, data) == nullptr;
}

bool fuzz_embedding() {
  ferryman_quant_embedding e = random_table();
  spoil(e);
  ferryman_quant_embedding_sizes sizes;
  TableData data;
  return !ferryman_quant_embedding_check(&e, &sizes) &&
      std::max({sizes.weights, sizes.scales, sizes.output}) <= kSmall && run(e, sizes, data) == nullptr;
}

} // namespace

int check_quantized(int cases) {
  int bad = 0;
  for (int i = 0; i < cases; ++i) {
    bad += !conv_is_right() + !linear_is_right() + !embedding_is_right() + !product_is_right() + !function_is_right();
  }
  return bad;
}

int fuzz_quantized(int cases) {
  int computed = 0;
  for (int i = 0; i < cases; ++i) {
    computed += i % 2 ? fuzz_conv() : i % 4 ? fuzz_linear() : i % 8 ? fuzz_embedding() : fuzz_blocks();
  }
  return computed;
}
