// Products of tensors in blocks, to the letter of quantized.h; functions of rows beside the C library's, in double.
#include <cstdio>

#include "check_quantized.h"

uint64_t digest;

namespace {

constexpr double kNear = 4e-6;

ferryman_quant_matmul random_matmul() {
  return {between(1, 3), between(1, 70), between(1, 100), between(1, 40), between(0, 1), 2 * between(0, 1)};
}

struct MatmulData {
  std::vector<float> a, b, out;
  std::vector<int8_t> a_blocks;
};

const char* run(const ferryman_quant_matmul& m, const ferryman_quant_matmul_sizes& sizes, MatmulData& data) {
  data.a = floats(int64_t{m.batch} * m.rows * m.channels);
  data.a_blocks = in_blocks(data.a, static_cast<size_t>(m.channels));
  data.b = floats(sizes.b);
  data.out.resize(static_cast<size_t>(sizes.output));
  ferryman_quant_matmul_call call = {};
  call.a = m.input == FERRYMAN_BLOCKS ? static_cast<const void*>(data.a_blocks.data()) : data.a.data();
  call.b = data.b.data();
  call.output = data.out.data();
  call.parallel = backwards;
  call.threads = between(1, 3);
  return ferryman_quant_matmul_run(&m, &call);
}

float product_of(const std::vector<float>& a, const std::vector<float>& b) {
  float total = 0;
  for (size_t k = 0; k < a.size(); k += kBlock) {
    const size_t count = std::min<size_t>(kBlock, a.size() - k);
    int8_t x[kBlock], y[kBlock];
    const float x_scale = quantize_dynamic(&a[k], count, x);
    const float y_scale = quantize_dynamic(&b[k], count, y);
    int32_t sum = 0;
    for (size_t i = 0; i < count; ++i) {
      sum += x[i] * y[i];
    }
    const float product = static_cast<float>(sum) * y_scale * x_scale;
    total = k ? total + product : product;
  }
  return total;
}

ferryman_quant_function random_function() {
  const float epsilon = static_cast<float>(between(1, 100)) / 1000;
  return {between(1, 9), between(1, 100), between(FERRYMAN_GELU, FERRYMAN_LAYER_NORM), 2 * between(0, 1), epsilon};
}

struct FunctionData {
  std::vector<float> x, weight, bias, out;
  std::vector<int8_t> out_blocks;
};

void fill(const ferryman_quant_function& f, FunctionData& data) {
  data.x = floats(int64_t{f.rows} * f.channels);
  data.weight = floats(f.kind == FERRYMAN_LAYER_NORM ? f.channels : 0);
  data.bias = floats(f.kind == FERRYMAN_LAYER_NORM ? f.channels : 0);
  for (float& one : data.x) {
    one = between(0, 9) ? one : one * 100;
    one = f.kind == FERRYMAN_SOFTMAX && between(0, 9) == 0 ? -INFINITY : one;
  }
}

const char* run(const ferryman_quant_function& f, const ferryman_quant_function_sizes& sizes, FunctionData& data) {
  const bool blocks = f.output == FERRYMAN_BLOCKS;
  data.out.resize(static_cast<size_t>(blocks ? 0 : sizes.output));
  data.out_blocks.resize(static_cast<size_t>(blocks ? sizes.output : 0));
  ferryman_quant_function_call call = {};
  call.input = data.x.data();
  call.weight = data.weight.data();
  call.bias = data.bias.data();
  call.output = blocks ? static_cast<void*>(data.out_blocks.data()) : data.out.data();
  call.parallel = backwards;
  call.threads = between(1, 3);
  return ferryman_quant_function_run(&f, &call);
}

std::vector<double> expected_row(const ferryman_quant_function& f, const FunctionData& data, size_t row) {
  const auto channels = static_cast<size_t>(f.channels);
  const std::vector<double> x(&data.x[row * channels], &data.x[row * channels] + channels);
  const auto size = static_cast<double>(channels);
  double mean = 0, variance = 0, total = 0;
  for (const double one : x) {
    mean += one / size;
  }
  for (const double one : x) {
    variance += (one - mean) * (one - mean) / size;
  }
  const double most = *std::max_element(x.begin(), x.end());
  for (const double one : x) {
    total += std::isinf(one) ? 0 : std::exp(one - most);
  }
  std::vector<double> made;
  for (size_t i = 0; i < channels; ++i) {
    const double one = x[i];
    const double u = 1.5957691216057308 * (one + 0.044715 * one * one * one);
    switch (f.kind) {
      case FERRYMAN_GELU: made.push_back(one * std::erfc(-one * std::sqrt(0.5)) / 2); break;
      case FERRYMAN_GELU_TANH: made.push_back(one / (1 + std::exp(-u))); break;
      case FERRYMAN_SILU: made.push_back(one / (1 + std::exp(-one))); break;
      case FERRYMAN_SOFTMAX: made.push_back(std::isinf(one) ? 0 : std::exp(one - most) / total); break;
      default:
        made.push_back(
            (one - mean) / std::sqrt(variance + static_cast<double>(f.epsilon)) * static_cast<double>(data.weight[i]) +
            static_cast<double>(data.bias[i]));
    }
  }
  return made;
}

} // namespace

bool product_is_right() {
  const ferryman_quant_matmul m = random_matmul();
  ferryman_quant_matmul_sizes sizes;
  MatmulData data;
  if (ferryman_quant_matmul_check(&m, &sizes) || run(m, sizes, data)) {
    puts("a product was refused");
    return false;
  }
  const auto channels = static_cast<size_t>(m.channels), columns = static_cast<size_t>(m.columns);
  std::vector<float> expected;
  for (size_t i = 0; i < data.out.size(); ++i) {
    const size_t row = i / columns, n = i % columns, batch = row / static_cast<size_t>(m.rows);
    const std::vector<float> a(&data.a[row * channels], &data.a[row * channels] + channels);
    std::vector<float> b;
    for (size_t k = 0; k < channels; ++k) {
      b.push_back(data.b[batch * channels * columns + (m.turned ? n * channels + k : k * columns + n)]);
    }
    expected.push_back(product_of(a, b));
  }
  if (!same(expected, data.out)) {
    printf("wrong: a product %d %d %d %d %d %d\n", m.batch, m.rows, m.channels, m.columns, m.turned, m.input);
    return false;
  }
  return true;
}

bool function_is_right() {
  ferryman_quant_function f = random_function();
  ferryman_quant_function_sizes sizes;
  FunctionData data;
  fill(f, data);
  if (ferryman_quant_function_check(&f, &sizes) || run(f, sizes, data)) {
    puts("a function was refused");
    return false;
  }
  if (f.output == FERRYMAN_BLOCKS) {
    const std::vector<int8_t> blocks = data.out_blocks;
    f.output = FERRYMAN_FLOATS;
    if (ferryman_quant_function_check(&f, &sizes) || run(f, sizes, data) ||
        in_blocks(data.out, static_cast<size_t>(f.channels)) != blocks) {
      printf("wrong: blocks of function %d, %d channels\n", f.kind, f.channels);
      return false;
    }
  }
  for (const float one : data.out) {
    uint32_t bits;
    memcpy(&bits, &one, sizeof bits);
    digest = (digest ^ bits) * 0x100000001b3;  // FNV-1a
  }
  const auto channels = static_cast<size_t>(f.channels);
  for (size_t row = 0; row < static_cast<size_t>(f.rows); ++row) {
    const std::vector<double> expected = expected_row(f, data, row);
    double most = 1;
    for (const double one : expected) {
      most = std::max(most, std::fabs(one));
    }
    for (size_t i = 0; i < channels; ++i) {
      const auto made = static_cast<double>(data.out[row * channels + i]);
      if (!(std::fabs(made - expected[i]) <= kNear * most)) {
        printf("wrong: function %d of %g gave %g, not %g\n", f.kind, static_cast<double>(data.x[row * channels + i]), made,
               expected[i]);
        return false;
      }
    }
  }
  return true;
}

bool fuzz_blocks() {
  if (between(0, 1)) {
    ferryman_quant_matmul m = random_matmul();
    spoil(m);
    ferryman_quant_matmul_sizes sizes;
    MatmulData data;
    return !ferryman_quant_matmul_check(&m, &sizes) && std::max({sizes.a, sizes.b, sizes.output}) <= kSmall &&
        run(m, sizes, data) == nullptr;
  }
  ferryman_quant_function f = random_function();
  spoil(f);
  ferryman_quant_function_sizes sizes;
  FunctionData data;
  if (ferryman_quant_function_check(&f, &sizes) || std::max(sizes.input, sizes.output) > kSmall) {
    return false;
  }
  fill(f, data);
  return run(f, sizes, data) == nullptr;
}
