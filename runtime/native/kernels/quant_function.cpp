// Functions of rows, whose results may be put in blocks.
#include <atomic>
#include <cmath>

#include "quant_rows.h"

namespace ferryman::kernels {
namespace {

constexpr size_t kTaskFloats = 4096;

void compute(const ferryman_quant_function& function, const ferryman_quant_function_call& call, size_t row, float* out) {
  const auto channels = static_cast<size_t>(function.channels);
  const float* const x = call.input + row * channels;
  if (function.kind == FERRYMAN_SOFTMAX) {
    isa().softmax(x, channels, out);
  } else if (function.kind == FERRYMAN_LAYER_NORM) {
    isa().layer_norm(x, channels, function.epsilon, call.weight, call.bias, out);
  } else {
    isa().activate(function.kind, x, channels, out);
  }
}

const char* run_function(const ferryman_quant_function& function, const ferryman_quant_function_call& call) {
  const auto rows = static_cast<size_t>(function.rows);
  const auto channels = static_cast<size_t>(function.channels);
  const bool blocks = function.output == FERRYMAN_BLOCKS;
  const size_t run = std::max<size_t>(kTaskFloats / channels, 1);
  std::atomic<bool> failed = false;
  for_each(call, (rows + run - 1) / run, [&](size_t task) {
    const Buffer<float> made(blocks ? channels : 0);
    const Buffer<float> scale((channels + kBlock - 1) / kBlock);
    if (!made || !scale) {
      failed = true;
      return;
    }
    for (size_t row = task * run; row < std::min(rows, (task + 1) * run); ++row) {
      if (!blocks) {
        compute(function, call, row, static_cast<float*>(call.output) + row * channels);
        continue;
      }
      compute(function, call, row, made.get());
      int8_t* const to = static_cast<int8_t*>(call.output) + row * blocks_bytes(channels);
      isa().quantize_blocks(made.get(), channels, to, scale.get());
      memcpy(to + channels, scale.get(), blocks_bytes(channels) - channels);
    }
  });
  return failed ? kNoMemory : nullptr;
}

} // namespace
} // namespace ferryman::kernels

const char* ferryman_quant_function_check(
    const ferryman_quant_function* function, ferryman_quant_function_sizes* sizes) {
  using namespace ferryman::kernels;
  const ferryman_quant_function& f = *function;
  if (f.rows < 1 || f.channels < 1 || f.channels > kSizeMax) {
    return "there must be rows, of 1 to 2^24 channels";
  }
  if (f.kind < FERRYMAN_GELU || f.kind > FERRYMAN_LAYER_NORM) {
    return "unknown kind of function";
  }
  if (f.output != FERRYMAN_FLOATS && f.output != FERRYMAN_BLOCKS) {
    return "unknown kind of output";
  }
  if (f.kind == FERRYMAN_LAYER_NORM && !(std::isfinite(f.epsilon) && f.epsilon >= 0)) {
    return "epsilon must be finite and not below 0";
  }
  sizes->input = product({f.rows, f.channels});
  sizes->per_channel = f.kind == FERRYMAN_LAYER_NORM ? f.channels : 0;
  sizes->output = product({f.rows, row_size(f.channels, f.output)});
  if (sizes->input > kElementsMax || sizes->output > kElementsMax) {
    return "a tensor would hold more than 2^31 elements";
  }
  return nullptr;
}

const char* ferryman_quant_function_run(
    const ferryman_quant_function* function, const ferryman_quant_function_call* call) {
  return ferryman::kernels::run_function(*function, *call);
}
