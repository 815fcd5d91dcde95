// The sparse operators: convolutions of floats against plain loops, in whole numbers, of which every sum is exact; quantized
// ones against themselves with dense weights. Every buffer has exactly the size it needs.
#include <cfloat>
#include <cstdio>

#include "check_quantized.h"
#include "sparse.h"

namespace {

// Which weights of each channel have a value, and an index that says so. Where it has gaps, zeros are put in for long ones.
struct Held {
  std::vector<std::vector<size_t>> positions;
  Bytes index;
};

Held random_index(int32_t bits, size_t channels, size_t depth) {
  Held held;
  const int32_t most = between(0, 9);
  Bytes gaps;
  for (size_t n = 0; n < channels; ++n) {
    std::vector<size_t> own;
    Bytes row((depth + 7) / 8), fields;
    size_t gap = 0;
    for (size_t k = 0; k < depth; ++k, ++gap) {
      const bool full = (bits == 4 || bits == 8) && gap == (size_t{1} << bits) - 1;
      if (bits != 0 && between(0, 9) >= most && !full) {
        continue;
      }
      own.push_back(k);
      row[k / 8] = static_cast<uint8_t>(row[k / 8] | 1u << k % 8);
      if (bits == 8 || own.size() % 2) {
        fields.push_back(0);
      }
      fields.back() = static_cast<uint8_t>(fields.back() | gap << (bits == 8 || own.size() % 2 ? 0 : 4));
      gap = static_cast<size_t>(-1);
    }
    if (bits == 1) {
      held.index.insert(held.index.end(), row.begin(), row.end());
    } else if (bits != 0) {
      held.index.push_back(static_cast<uint8_t>(own.size()));
      held.index.push_back(static_cast<uint8_t>(own.size() >> 8));
      gaps.insert(gaps.end(), fields.begin(), fields.end());
    }
    held.positions.push_back(own);
  }
  held.index.insert(held.index.end(), gaps.begin(), gaps.end());
  return held;
}

int32_t random_bits(bool none) {
  const int32_t bits[] = {1, 4, 8, 0};
  return bits[between(0, none ? 3 : 2)];
}

ferryman_sparse_conv random_conv() {
  ferryman_sparse_conv c = {};
  const int32_t per_group[] = {1, 2, 3, 16, 17, 40};
  const int32_t out_per_group[] = {1, 2, 5, 16, 19, 33};
  const bool depthwise = between(0, 2) == 0;
  c.groups = depthwise ? between(2, 40) : between(0, 2) ? 1 : between(2, 4);
  c.batch = between(1, 2);
  c.channels = c.groups * (depthwise ? 1 : per_group[between(0, 5)]);
  c.out_channels = c.groups * (depthwise ? between(1, 2) : out_per_group[between(0, 5)]);
  const bool pointwise = between(0, 1);
  c.kernel_h = pointwise ? 1 : between(1, 4);
  c.kernel_w = pointwise ? 1 : between(1, 4);
  c.stride_h = pointwise ? 1 : between(1, 3);
  c.stride_w = pointwise ? 1 : between(1, 4);
  c.dilation_h = between(1, 2);
  c.dilation_w = between(1, 3);
  c.pad_top = between(0, std::min(2, c.dilation_h * (c.kernel_h - 1)));
  c.pad_left = between(0, std::min(2, c.dilation_w * (c.kernel_w - 1)));
  c.pad_bottom = between(0, std::min(2, c.dilation_h * (c.kernel_h - 1)));
  c.pad_right = between(0, std::min(2, c.dilation_w * (c.kernel_w - 1)));
  c.height = c.dilation_h * (c.kernel_h - 1) + between(1, 6);
  c.width = c.dilation_w * (c.kernel_w - 1) + (between(0, 3) ? between(1, 24) : 16);
  if (between(0, 9) == 0) {
    c.height = c.width = c.kernel_h = c.kernel_w = c.stride_h = c.stride_w = 1;
    c.pad_top = c.pad_left = c.pad_bottom = c.pad_right = 0;
  }
  c.index_bits = random_bits(true);
  c.input_layout = between(0, 1);
  c.output_layout = between(0, 1);
  c.add = between(0, 1);
  c.low = between(0, 1) ? -FLT_MAX : static_cast<float>(between(-20, 0));
  c.high = between(0, 1) ? FLT_MAX : static_cast<float>(between(0, 20));
  return c;
}

struct ConvData {
  std::vector<float> x, values, bias, add, out;
  Held held;
};

std::vector<float> whole_numbers(size_t count) {
  std::vector<float> made(count);
  for (float& value : made) {
    value = static_cast<float>(between(-9, 9));
  }
  return made;
}

size_t depth_of(const ferryman_sparse_conv& c) {
  return static_cast<size_t>(c.kernel_h) * static_cast<size_t>(c.kernel_w) * static_cast<size_t>(c.channels / c.groups);
}

ConvData random_data(const ferryman_sparse_conv& c, const ferryman_sparse_sizes& sizes) {
  ConvData data;
  data.held = random_index(c.index_bits, static_cast<size_t>(c.out_channels), depth_of(c));
  size_t values = 0;
  for (const auto& own : data.held.positions) {
    values += own.size();
  }
  data.x = whole_numbers(static_cast<size_t>(sizes.input));
  data.values = whole_numbers(values);
  data.bias = whole_numbers(static_cast<size_t>(sizes.per_channel));
  data.add = whole_numbers(c.add ? static_cast<size_t>(sizes.output) : 0);
  data.out.assign(static_cast<size_t>(sizes.output), 77);
  return data;
}

const char* run(const ferryman_sparse_conv& c, ConvData& data) {
  ferryman_sparse_call call = {};
  call.input = data.x.data();
  call.values = data.values.data();
  call.value_count = static_cast<int64_t>(data.values.size());
  call.index = data.held.index.data();
  call.index_bytes = static_cast<int64_t>(data.held.index.size());
  call.bias = data.bias.data();
  call.add = c.add ? data.add.data() : nullptr;
  call.output = data.out.data();
  call.parallel = backwards;
  call.threads = between(1, 3);
  return ferryman_sparse_conv_run(&c, &call);
}

size_t place(int32_t layout, size_t plane, size_t image, size_t pixel, size_t channels, size_t channel) {
  return layout == FERRYMAN_CHANNELS_LAST ? (image * plane + pixel) * channels + channel
                                          : (image * channels + channel) * plane + pixel;
}

int compare(const ferryman_sparse_conv& c, const ferryman_sparse_sizes& sizes, const ConvData& data) {
  const auto channels = static_cast<size_t>(c.channels), outs = static_cast<size_t>(c.out_channels);
  const auto in = static_cast<size_t>(c.channels / c.groups), out = static_cast<size_t>(c.out_channels / c.groups);
  const size_t in_plane = static_cast<size_t>(c.height) * static_cast<size_t>(c.width);
  const size_t plane = static_cast<size_t>(sizes.out_height) * static_cast<size_t>(sizes.out_width);
  int bad = 0;
  size_t begin = 0;
  for (size_t n = 0; n < outs; ++n) {
    const auto& own = data.held.positions[n];
    for (size_t image = 0; image < static_cast<size_t>(c.batch); ++image) {
      for (size_t pixel = 0; pixel < plane; ++pixel) {
        float y = data.bias[n];
        for (size_t i = 0; i < own.size(); ++i) {
          const auto tap = static_cast<int32_t>(own[i] / in);
          const int32_t row = static_cast<int32_t>(pixel) / sizes.out_width * c.stride_h - c.pad_top +
              tap / c.kernel_w * c.dilation_h;
          const int32_t column = static_cast<int32_t>(pixel) % sizes.out_width * c.stride_w - c.pad_left +
              tap % c.kernel_w * c.dilation_w;
          if (row >= 0 && column >= 0 && row < c.height && column < c.width) {
            const auto from = static_cast<size_t>(row * c.width + column);
            y += data.values[begin + i] *
                data.x[place(c.input_layout, in_plane, image, from, channels, n / out * in + own[i] % in)];
          }
        }
        const size_t at = place(c.output_layout, plane, image, pixel, outs, n);
        y += c.add ? data.add[at] : 0;
        y = c.low > y ? c.low : y;
        y = c.high < y ? c.high : y;
        bad += data.out[at] != y;
      }
    }
    begin += own.size();
  }
  return bad;
}

template <typename Record>
void print(const Record& record) {
  int32_t numbers[sizeof record / sizeof(int32_t)];
  memcpy(numbers, &record, sizeof numbers);
  for (const int32_t number : numbers) {
    printf(" %d", number);
  }
  puts("");
}

bool conv_is_right() {
  const ferryman_sparse_conv c = random_conv();
  ferryman_sparse_sizes sizes;
  const char* problem = ferryman_sparse_conv_check(&c, &sizes);
  int bad = 0;
  if (!problem) {
    ConvData data = random_data(c, sizes);
    problem = run(c, data);
    bad = problem ? 0 : compare(c, sizes, data);
  }
  if (problem || bad) {
    printf("sparse: %d wrong, %s:", bad, problem ? problem : "computed");
    print(c);
  }
  return !problem && !bad;
}

// Weights in both ways: dense as quantized.h has them, and sparse.
struct Weights {
  Bytes dense, sparse;
};

Weights random_weights(int32_t bits, int32_t index_bits, size_t groups, size_t out, size_t depth) {
  const size_t per = 8 / static_cast<size_t>(bits);
  const size_t vectors = ((depth + 3) / 4 + per - 1) / per;
  const int none = bits == 8 ? 0x80 : bits == 4 ? 0x88 : 0xaa;
  Weights made;
  made.dense.assign(groups * ((out + 15) / 16) * vectors * 64, static_cast<uint8_t>(none));
  const Held held = random_index(index_bits, groups * out, depth);
  made.sparse = held.index;
  for (size_t n = 0; n < groups * out; ++n) {
    const size_t block = n / out * ((out + 15) / 16) + n % out / 16;
    size_t shift = 8;
    for (const size_t k : held.positions[n]) {
      const uint32_t value = random_word() & ((1u << bits) - 1);
      const size_t quad = k / 4, at = quad % per * static_cast<size_t>(bits);
      uint8_t& byte = made.dense.at((block * vectors + quad / per) * 64 + n % out % 16 * 4 + k % 4);
      byte = static_cast<uint8_t>((byte & ~(((1u << bits) - 1) << at)) | value << at);
      if (shift == 8) {
        made.sparse.push_back(0);
        shift = 0;
      }
      made.sparse.back() = static_cast<uint8_t>(made.sparse.back() | value << shift);
      shift += static_cast<size_t>(bits);
    }
  }
  return made;
}

ferryman_quant_conv random_quantized() {
  const ferryman_sparse_conv c = random_conv();
  ferryman_quant_conv q = {};
  memcpy(&q, &c, offsetof(ferryman_sparse_conv, groups));
  q.groups = c.channels > c.groups ? c.groups : 1;
  q.bits = 1 << between(1, 3);
  q.layout = between(0, 1);
  q.input = between(0, 1);
  q.output = between(0, 1);
  q.x_scale = q.input == FERRYMAN_FLOATS && between(0, 1) ? 0 : 0.25f;
  q.x_zero = between(-128, 127);
  q.out_scale = 3;
  q.out_zero = between(-128, 127);
  q.out_low = -128;
  q.out_high = 127;
  q.add_scale = between(0, 1) ? 0 : 0.3f;
  return q;
}

// What a convolution gives, as bytes; empty where it is refused.
Bytes run(const ferryman_quant_conv& q, const ferryman_quant_sizes& sizes, const Bytes& weights, uint64_t seed) {
  state = seed;
  const auto x = floats(q.input == FERRYMAN_FLOATS ? sizes.input : 0);
  const auto bytes_in = bytes<int8_t>(q.input == FERRYMAN_FLOATS ? 0 : sizes.input);
  const auto scale = floats(sizes.per_channel), bias = floats(sizes.per_channel);
  const auto add = bytes<int8_t>(q.add_scale == 0 ? 0 : sizes.output);
  Bytes out(static_cast<size_t>(sizes.output) * (q.output == FERRYMAN_FLOATS ? sizeof(float) : 1));
  ferryman_quant_call call = {};
  call.input = q.input == FERRYMAN_FLOATS ? static_cast<const void*>(x.data()) : bytes_in.data();
  call.weights = weights.data();
  call.weight_bytes = static_cast<int64_t>(weights.size());
  call.scale = scale.data();
  call.bias = bias.data();
  call.add = add.empty() ? nullptr : add.data();
  call.output = out.data();
  call.parallel = backwards;
  call.threads = between(1, 3);
  return ferryman_quant_conv_run(&q, &call) ? Bytes() : out;
}

bool quantized_is_right() {
  ferryman_quant_conv q = random_quantized();
  const int32_t index_bits = random_bits(false);
  ferryman_quant_sizes sizes;
  const char* const problem = ferryman_quant_conv_check(&q, &sizes);
  if (problem) {
    puts(problem);
    return false;
  }
  const auto groups = static_cast<size_t>(q.groups), out = static_cast<size_t>(q.out_channels) / groups;
  const size_t taps = static_cast<size_t>(q.kernel_h) * static_cast<size_t>(q.kernel_w);
  const Weights weights =
      random_weights(q.bits, index_bits, groups, out, taps * static_cast<size_t>(q.channels) / groups);
  const uint64_t seed = state;
  const Bytes dense = run(q, sizes, weights.dense, seed);
  q.index_bits = index_bits;
  for (q.unpack = 0; q.unpack < 2; ++q.unpack) {
    if (ferryman_quant_conv_check(&q, &sizes) || run(q, sizes, weights.sparse, seed) != dense || dense.empty()) {
      printf("wrong, with sparse weights:");
      print(q);
      return false;
    }
  }
  return true;
}

Bytes run(const ferryman_quant_linear& l, const ferryman_quant_linear_sizes& sizes, const Bytes& weights, uint64_t seed) {
  state = seed;
  const auto x = floats(sizes.input), bias = floats(l.out_channels);
  std::vector<uint16_t> scale(static_cast<size_t>(sizes.scales), 0x3555);
  Bytes out(static_cast<size_t>(sizes.output) * sizeof(float));
  ferryman_quant_linear_call call = {};
  call.input = x.data();
  call.weights = weights.data();
  call.weight_bytes = static_cast<int64_t>(weights.size());
  call.scale = scale.data();
  call.bias = bias.data();
  call.output = reinterpret_cast<float*>(out.data());
  call.parallel = backwards;
  call.threads = between(1, 3);
  return ferryman_quant_linear_run(&l, &call) ? Bytes() : out;
}

bool linear_is_right() {
  ferryman_quant_linear l = {};
  l.rows = between(1, 70);
  l.channels = between(1, 150);
  l.out_channels = between(1, 90);
  l.bits = 1 << between(1, 3);
  l.group = l.channels > 32 && between(0, 1) ? 32 : l.channels;
  ferryman_quant_linear_sizes sizes;
  ferryman_quant_linear_check(&l, &sizes);
  const int32_t index_bits = random_bits(false);
  const Weights weights = random_weights(
      l.bits, index_bits, 1, static_cast<size_t>(l.out_channels), static_cast<size_t>(l.channels));
  const uint64_t seed = state;
  const Bytes dense = run(l, sizes, weights.dense, seed);
  l.index_bits = index_bits;
  if (ferryman_quant_linear_check(&l, &sizes) || run(l, sizes, weights.sparse, seed) != dense || dense.empty()) {
    printf("wrong, a linear layer with sparse weights:");
    print(l);
    return false;
  }
  return true;
}

void spoil_bytes(Bytes& all) {
  for (int changes = all.empty() ? 0 : between(0, 3); changes > 0; --changes) {
    const uint8_t edges[] = {0, 1, 255, 128, random_byte()};
    all[random_word() % all.size()] = edges[between(0, 4)];
  }
  if (between(0, 3) == 0) {
    all.resize(random_word() % (all.size() + 2));
  }
}

bool fuzz_conv() {
  ferryman_sparse_conv c = random_conv();
  ferryman_sparse_sizes sizes;
  ferryman_sparse_conv_check(&c, &sizes);
  ConvData data = random_data(c, sizes);
  if (between(0, 1)) {
    spoil(c);
    if (ferryman_sparse_conv_check(&c, &sizes) || std::max({sizes.input, sizes.output}) > kSmall ||
        sizes.output * static_cast<int64_t>(depth_of(c)) > 64 * kSmall) {
      return false;
    }
    data = random_data(c, sizes);
  }
  spoil_bytes(data.held.index);
  return run(c, data) == nullptr;
}

bool fuzz_quantized_weights() {
  ferryman_quant_conv q = random_quantized();
  q.index_bits = random_bits(false);
  q.unpack = between(0, 1);
  ferryman_quant_sizes sizes;
  const auto groups = static_cast<size_t>(q.groups), out = static_cast<size_t>(q.out_channels) / groups;
  const size_t taps = static_cast<size_t>(q.kernel_h) * static_cast<size_t>(q.kernel_w);
  Bytes sparse =
      random_weights(q.bits, q.index_bits, groups, out, taps * static_cast<size_t>(q.channels) / groups).sparse;
  spoil_bytes(sparse);
  return !ferryman_quant_conv_check(&q, &sizes) && !run(q, sizes, sparse, state).empty();
}

} // namespace

int check_sparse(int cases) {
  int bad = 0;
  for (int i = 0; i < cases; ++i) {
    bad += !conv_is_right() + !conv_is_right() + !quantized_is_right() + !linear_is_right();
  }
  return bad;
}

int fuzz_sparse(int cases) {
  int computed = 0;
  for (int i = 0; i < cases; ++i) {
    computed += i % 3 ? fuzz_conv() : fuzz_quantized_weights();
  }
  return computed;
}
