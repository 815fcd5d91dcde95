// Linear layers of rows that are quantized one by one, and tables of rows, with scales to groups of weights.
#include <algorithm>
#include <cstring>

#include "buffer.h"
#include "half.h"
#include "quantized.h"
#include "work.h"

namespace ferryman::kernels {
namespace {

constexpr int64_t kGroupMax = INT32_MAX / (255 * 128);  // the sum of products fits
constexpr int64_t kRowsMax = 1 << 24;
constexpr size_t kTaskRows = 64;
constexpr size_t kTaskBlocks = 2;
constexpr size_t kRowTaskBlocks = 4;  // of a row alone

const char* check_weights(int64_t rows, int64_t channels, int64_t out_channels, int64_t bits, int64_t group) {
  for (const int64_t size : {rows, channels, out_channels}) {
    if (size < 1 || size > kRowsMax) {
      return "sizes must be 1 to 2^24";
    }
  }
  if (bits != 8 && bits != 4 && bits != 2) {
    return "weights must have 8, 4 or 2 bits";
  }
  if (group < 1 || group > channels || (group != channels && group % 32)) {
    return "a group must be a multiple of 32 inputs, or all of them";
  }
  return nullptr;
}

const char* run_linear(const ferryman_quant_linear& linear, const ferryman_quant_linear_call& call) {
  const Isa& own = isa();
  const auto rows = static_cast<size_t>(linear.rows);
  const auto channels = static_cast<size_t>(linear.channels);
  const auto out_channels = static_cast<size_t>(linear.out_channels);
  const auto group = static_cast<size_t>(linear.group);
  const size_t groups = (channels + group - 1) / group;
  const size_t stride = (channels + 3) / 4 * 4;
  const size_t per = 8 / static_cast<size_t>(linear.bits);
  const Buffer<int8_t> x(rows * stride);
  const Buffer<float> x_scale(rows);
  const Buffer<int32_t> sums(rows * groups);
  if (!x || !x_scale || !sums) {
    return kNoMemory;
  }
  for_each(call, rows, [&](size_t row) {
    const float* const from = call.input + row * channels;
    const float scale = own.largest(from, channels) / INT8_MAX;
    const Rounding rounding = {scale == 0 ? 0 : 1 / scale, -INT8_MAX, INT8_MAX, 0};
    int8_t* const to = x.get() + row * stride;
    own.quantize(from, channels, rounding, to);
    memset(to + channels, 0, stride - channels);
    const size_t whole = channels / group;
    own.sums(to, group, whole, group, sums.get() + row * groups);
    own.sums(to + whole * group, 0, groups - whole, channels % group, sums.get() + row * groups + whole);
    x_scale.get()[row] = scale;
  });

  const size_t blocks = (out_channels + kLanes - 1) / kLanes;
  const size_t block = (stride / 4 + per - 1) / per * kVectorBytes;
  const size_t row_runs = (rows + kTaskRows - 1) / kTaskRows;
  const Grouped grouped = {channels, group, groups, linear.bits};
  const size_t task_blocks = rows == 1 ? kRowTaskBlocks : kTaskBlocks;
  const size_t block_runs = (blocks + task_blocks - 1) / task_blocks;
  for_each(call, block_runs * row_runs, [&](size_t task) {
    const size_t n = task / row_runs * task_blocks;
    const size_t first = task % row_runs * kTaskRows;
    const size_t count = std::min(kTaskRows, rows - first);
    const size_t lanes = std::min(task_blocks, blocks - n) * kLanes;
    alignas(kAlignment) float made[kTaskRows * kTaskBlocks * kLanes];
    const size_t scales = n * groups * kLanes;
    own.group_dots(grouped, x.get() + first * stride, stride, sums.get() + first * groups, count,
                   call.weights + n * block, block, lanes / kLanes, call.scale + scales,
                   call.zero ? call.zero + scales : nullptr, made);
    for (size_t row = 0; row < count; ++row) {
      const float scale = x_scale.get()[first + row];
      float* const out = call.output + (first + row) * out_channels + n * kLanes;
      for (size_t lane = 0; lane < std::min(lanes, out_channels - n * kLanes); ++lane) {
        out[lane] = made[row * lanes + lane] * scale + call.bias[n * kLanes + lane];
      }
    }
  });
  return nullptr;
}

const char* run_embedding(const ferryman_quant_embedding& table, const ferryman_quant_embedding_call& call) {
  const auto channels = static_cast<size_t>(table.channels);
  const auto group = static_cast<size_t>(table.group);
  const size_t groups = (channels + group - 1) / group;
  const auto bits = static_cast<size_t>(table.bits);
  const size_t per = 8 / bits;
  const size_t row_bytes = (channels + per - 1) / per;
  for (size_t i = 0; i < static_cast<size_t>(table.count); ++i) {
    int64_t id;
    if (table.id_bytes == 8) {
      id = static_cast<const int64_t*>(call.ids)[i];
    } else {
      id = static_cast<const int32_t*>(call.ids)[i];
    }
    if (id < 0 || id >= table.rows) {
      return "a number is not one of the table's rows";
    }
    const auto row = static_cast<size_t>(id);
    const uint8_t* const from = call.weights + row * row_bytes;
    float* const out = call.output + i * channels;
    for (size_t g = 0; g < groups; ++g) {
      const float scale = float_of_half(call.scale[row * groups + g]);
      const int32_t zero = call.zero ? call.zero[row * groups + g] : 1 << (bits - 1);
      for (size_t d = g * group; d < std::min((g + 1) * group, channels); ++d) {
        const int32_t stored = from[d / per] >> d % per * bits & ((1 << bits) - 1);
        out[d] = static_cast<float>(stored - zero) * scale;
      }
    }
  }
  return nullptr;
}

} // namespace
} // namespace ferryman::kernels

const char* ferryman_quant_linear_check(const ferryman_quant_linear* linear, ferryman_quant_linear_sizes* sizes) {
  using namespace ferryman::kernels;
  const ferryman_quant_linear& l = *linear;
  if (const char* const problem = check_weights(l.rows, l.channels, l.out_channels, l.bits, l.group)) {
    return problem;
  }
  if (l.group > kGroupMax) {
    return "a group must not have more than 65793 inputs";
  }
  const int64_t blocks = ceil_div(l.out_channels, kLanes);
  sizes->input = product({l.rows, l.channels});
  sizes->weights = product({blocks, ceil_div(ceil_div(l.channels, 4), 8 / l.bits), kVectorBytes});
  sizes->scales = product({blocks, ceil_div(l.channels, l.group), kLanes});
  sizes->output = product({l.rows, l.out_channels});
  for (const int64_t size : {sizes->input, sizes->weights, sizes->scales, sizes->output}) {
    if (size > kElementsMax) {
      return "a tensor would hold more than 2^31 elements";
    }
  }
  return nullptr;
}

const char* ferryman_quant_linear_run(const ferryman_quant_linear* linear, const ferryman_quant_linear_call* call) {
  return ferryman::kernels::run_linear(*linear, *call);
}

const char* ferryman_quant_embedding_check(
    const ferryman_quant_embedding* embedding, ferryman_quant_embedding_sizes* sizes) {
  using namespace ferryman::kernels;
  const ferryman_quant_embedding& e = *embedding;
  if (const char* const problem = check_weights(e.rows, e.channels, 1, e.bits, e.group)) {
    return problem;
  }
  if (e.id_bytes != 4 && e.id_bytes != 8) {
    return "numbers must have 4 or 8 bytes";
  }
  if (e.count < 1 || e.count > kElementsMax) {
    return "there must be 1 to 2^31 numbers";
  }
  sizes->weights = product({e.rows, ceil_div(e.channels, 8 / e.bits)});
  sizes->scales = product({e.rows, ceil_div(e.channels, e.group)});
  sizes->output = product({e.count, e.channels});
  for (const int64_t size : {sizes->weights, sizes->scales, sizes->output}) {
    if (size > kElementsMax) {
      return "a tensor would hold more than 2^31 elements";
    }
  }
  return nullptr;
}

const char* ferryman_quant_embedding_run(
    const ferryman_quant_embedding* embedding, const ferryman_quant_embedding_call* call) {
  return ferryman::kernels::run_embedding(*embedding, *call);
}
