// Linear layers of rows that are quantized one by one, and tables of rows, with scales to groups of weights.
#include <algorithm>
#include <atomic>

#include "half.h"
#include "quant_rows.h"
#include "quant_sparse.h"
#include "quantized.h"

namespace ferryman::kernels {
namespace {

constexpr int64_t kGroupMax = INT32_MAX / (255 * 128);  // the sum of products fits

const char* check_weights(int64_t rows, int64_t channels, int64_t out_channels, int64_t bits, int64_t group) {
  for (const int64_t size : {rows, channels, out_channels}) {
    if (size < 1 || size > kSizeMax) {
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

const char* run_linear(
    const ferryman_quant_linear& linear, const ferryman_quant_linear_call& call, const SparseWeights* sparse) {
  const Isa& own = isa();
  const auto rows = static_cast<size_t>(linear.rows);
  const auto out_channels = static_cast<size_t>(linear.out_channels);
  const bool blocks = linear.blocks || linear.input == FERRYMAN_BLOCKS;
  const Rows x(rows, static_cast<size_t>(linear.channels), static_cast<size_t>(linear.group), blocks);
  if (!x) {
    return kNoMemory;
  }
  for_each(call, rows, [&](size_t row) {
    if (linear.input == FERRYMAN_BLOCKS) {
      x.take(own, row, static_cast<const int8_t*>(call.input) + row * blocks_bytes(x.channels));
    } else {
      x.quantize(own, row, static_cast<const float*>(call.input) + row * x.channels);
    }
  });
  const size_t per = 8 / static_cast<size_t>(linear.bits);
  Grouped given = x.grouped();
  given.bits = linear.bits;
  given.w = call.weights;
  given.block_stride = (x.stride / 4 + per - 1) / per * kVectorBytes;
  given.blocks = (out_channels + kLanes - 1) / kLanes;
  given.scale = call.scale;
  given.zero = call.zero;
  std::atomic<const char*> problem = nullptr;
  for_each(call, tiles(given), [&](size_t task) {
    const size_t first = first_block(given, task);
    const size_t many = sparse ? std::min(task_blocks(given), given.blocks - first) : 0;
    const Buffer<uint8_t> w(many * given.block_stride);
    const size_t n = first * kLanes;
    if (!w || (sparse && !sparse->unpack(n, std::min(many * kLanes, out_channels - n), w.get()))) {
      problem = w ? kBadIndex : kNoMemory;
      return;
    }
    multiply(own, given, task, sparse ? w.get() : nullptr, [&](size_t row, size_t n, const float* made, size_t lanes) {
      float* const out = call.output + row * out_channels + n;
      const float scale = blocks ? 1 : x.scale.get()[row];
      for (size_t lane = 0; lane < std::min(lanes, out_channels - n); ++lane) {
        out[lane] = (blocks ? made[lane] : made[lane] * scale) + call.bias[n + lane];
      }
    });
  });
  return problem;
}

const char* run_sparse_linear(const ferryman_quant_linear& linear, const ferryman_quant_linear_call& call) {
  if (call.zero) {
    return "weights with an index must have no zeros";
  }
  const SparseWeights weights(
      linear.index_bits, linear.bits, call.weights, call.weight_bytes, static_cast<size_t>(linear.out_channels),
      static_cast<size_t>(linear.channels));
  return weights.problem() ? weights.problem() : run_linear(linear, call, &weights);
}

const char* run_embedding(const ferryman_quant_embedding& table, const ferryman_quant_embedding_call& call) {
  const auto channels = static_cast<size_t>(table.channels);
  const auto group = static_cast<size_t>(table.group);
  const size_t groups = (channels + group - 1) / group;
  const auto bits = static_cast<size_t>(table.bits);
  const size_t per = 8 / bits;
  const size_t row_bytes = (channels + per - 1) / per;
  const size_t block_bytes = ((channels + 3) / 4 + per - 1) / per * kVectorBytes;
  const auto field = [&](size_t row, size_t d) -> uint32_t {
    if (!table.lanes) {
      return static_cast<uint32_t>(call.weights[row * row_bytes + d / per] >> d % per * bits);
    }
    const size_t quad = d / 4;
    const uint8_t* const from = call.weights + row / kLanes * block_bytes + row % kLanes * 4;
    return static_cast<uint32_t>(from[quad / per * kVectorBytes + d % 4] >> quad % per * bits);
  };
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
    float* const out = call.output + i * channels;
    for (size_t g = 0; g < groups; ++g) {
      const size_t at = table.lanes ? (row / kLanes * groups + g) * kLanes + row % kLanes : row * groups + g;
      const float scale = float_of_half(call.scale[at]);
      const int32_t zero = call.zero ? call.zero[at] : 1 << (bits - 1);
      for (size_t d = g * group; d < std::min((g + 1) * group, channels); ++d) {
        const auto stored = static_cast<int32_t>(field(row, d) & ((1u << bits) - 1));
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
  if (l.input != FERRYMAN_FLOATS && l.input != FERRYMAN_BLOCKS) {
    return "unknown kind of input";
  }
  const bool in_blocks = l.input == FERRYMAN_BLOCKS;
  if ((l.blocks || in_blocks) && l.group != std::min<int32_t>(kBlock, l.channels)) {
    return "rows in blocks need groups of 32, or all of fewer";
  }
  const int64_t blocks = ceil_div(l.out_channels, kLanes);
  sizes->input = product({l.rows, row_size(l.channels, l.input)});
  sizes->weights = product({blocks, ceil_div(ceil_div(l.channels, 4), 8 / l.bits), kVectorBytes});
  sizes->scales = product({blocks, ceil_div(l.channels, l.group), kLanes});
  sizes->output = product({l.rows, l.out_channels});
  for (const int64_t size : {sizes->input, sizes->weights, sizes->scales, sizes->output}) {
    if (size > kElementsMax) {
      return "a tensor would hold more than 2^31 elements";
    }
  }
  if (!is_index(l.index_bits)) {
    return "an index must have 0, 1, 4 or 8 bits";
  }
  if (l.index_bits) {
    sizes->weights = 0;
    return l.channels <= kSparseDepthMax ? nullptr : "weights with an index must be at most 65535 to an output channel";
  }
  return nullptr;
}

const char* ferryman_quant_linear_run(const ferryman_quant_linear* linear, const ferryman_quant_linear_call* call) {
  using namespace ferryman::kernels;
  return linear->index_bits ? run_sparse_linear(*linear, *call) : run_linear(*linear, *call, nullptr);
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
  const int64_t per = 8 / e.bits, groups = ceil_div(e.channels, e.group);
  const int64_t blocks = ceil_div(e.rows, kLanes);
  sizes->weights = e.lanes ? product({blocks, ceil_div(ceil_div(e.channels, 4), per), kVectorBytes})
                           : product({e.rows, ceil_div(e.channels, per)});
  sizes->scales = e.lanes ? product({blocks, groups, kLanes}) : product({e.rows, groups});
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
