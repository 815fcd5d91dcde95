// Products of two tensors that are both quantized in blocks when they are used.
#include <atomic>

#include "quant_rows.h"

namespace ferryman::kernels {
namespace {

// The columns of one matrix as blocks of lanes of 8-bit weights.
class Lanes {
 public:
  Lanes(size_t channels, size_t columns)
      : channels_(channels),
        columns_(columns),
        groups_((channels + kBlock - 1) / kBlock),
        stride_((channels + 3) / 4 * kVectorBytes),
        blocks_((columns + kLanes - 1) / kLanes),
        weights_(blocks_ * stride_),
        scale_(blocks_ * groups_ * kLanes),
        line_(kLanes * (channels + 3)),
        line_scale_(groups_) {}

  explicit operator bool() const {
    return weights_ && scale_ && line_ && line_scale_;
  }

  // From columns that lie one after the other.
  void put(const Isa& isa, const float* from) const {
    constexpr uint32_t kHalves = 0x80808080;  // what is stored for four zeros
    const size_t quads = (channels_ + 3) / 4;
    for (size_t n = 0; n < blocks_ * kLanes; ++n) {
      float* const scale = scale_.get() + n / kLanes * groups_ * kLanes + n % kLanes;
      const bool there = n < columns_;
      memset(line_.get(), 0, 4 * quads);
      std::fill_n(line_scale_.get(), groups_, 0.0f);
      if (there) {
        isa.quantize_blocks(from + n * channels_, channels_, line_.get(), line_scale_.get());
      }
      for (size_t g = 0; g < groups_; ++g) {
        scale[g * kLanes] = line_scale_.get()[g];
      }
      uint8_t* const to = weights_.get() + n / kLanes * stride_ + n % kLanes * 4;
      for (size_t quad = 0; quad < quads; ++quad) {
        uint32_t four;
        memcpy(&four, line_.get() + 4 * quad, sizeof four);
        four ^= kHalves;
        memcpy(to + quad * kVectorBytes, &four, sizeof four);
      }
    }
  }

  void give(Grouped& grouped) const {
    grouped.bits = 8;
    grouped.w = weights_.get();
    grouped.block_stride = stride_;
    grouped.blocks = blocks_;
    grouped.wide_scale = scale_.get();
  }

 private:
  size_t channels_, columns_, groups_, stride_, blocks_;
  Buffer<uint8_t> weights_;
  Buffer<float> scale_;
  Buffer<int8_t> line_;
  Buffer<float> line_scale_;
};

bool run_one(const ferryman_quant_matmul& matmul, const ferryman_quant_matmul_call& call, size_t batch) {
  const Isa& own = isa();
  const auto rows = static_cast<size_t>(matmul.rows);
  const auto channels = static_cast<size_t>(matmul.channels);
  const auto columns = static_cast<size_t>(matmul.columns);
  const Rows a(rows, channels, std::min(kBlock, channels), true);
  const Lanes lanes(channels, columns);
  const Buffer<float> turned(matmul.turned ? 0 : channels * columns);
  if (!a || !lanes || !turned) {
    return false;
  }
  for (size_t row = 0; row < rows; ++row) {
    const size_t at = batch * rows + row;
    if (matmul.input == FERRYMAN_BLOCKS) {
      a.take(own, row, static_cast<const int8_t*>(call.a) + at * blocks_bytes(channels));
    } else {
      a.quantize(own, row, static_cast<const float*>(call.a) + at * channels);
    }
  }
  const float* b = call.b + batch * channels * columns;
  if (!matmul.turned) {
    own.transpose(b, columns, channels, columns, turned.get(), channels);
    b = turned.get();
  }
  lanes.put(own, b);
  Grouped given = a.grouped();
  lanes.give(given);
  for (size_t task = 0; task < tiles(given); ++task) {
    multiply(own, given, task, nullptr, [&](size_t row, size_t n, const float* made, size_t count) {
      std::copy_n(made, std::min(count, columns - n), call.output + (batch * rows + row) * columns + n);
    });
  }
  return true;
}

const char* run_matmul(const ferryman_quant_matmul& matmul, const ferryman_quant_matmul_call& call) {
  std::atomic<bool> failed = false;
  for_each(call, static_cast<size_t>(matmul.batch), [&](size_t batch) {
    if (!run_one(matmul, call, batch)) {
      failed = true;
    }
  });
  return failed ? kNoMemory : nullptr;
}

} // namespace
} // namespace ferryman::kernels

int32_t ferryman_quant_block_channels(int64_t bytes) {
  using namespace ferryman::kernels;
  constexpr int64_t kScale = sizeof(float);
  const int64_t channels = bytes - (bytes + int64_t{kBlock} + kScale - 1) / (int64_t{kBlock} + kScale) * kScale;
  return channels > 0 && channels <= kSizeMax && row_size(channels, FERRYMAN_BLOCKS) == bytes
      ? static_cast<int32_t>(channels)
      : 0;
}

int64_t ferryman_quant_block_bytes(int32_t channels) {
  return ferryman::kernels::row_size(channels, FERRYMAN_BLOCKS);
}

const char* ferryman_quant_matmul_check(const ferryman_quant_matmul* matmul, ferryman_quant_matmul_sizes* sizes) {
  using namespace ferryman::kernels;
  const ferryman_quant_matmul& m = *matmul;
  for (const int64_t size : {m.batch, m.rows, m.channels, m.columns}) {
    if (size < 1 || size > kSizeMax) {
      return "sizes must be 1 to 2^24";
    }
  }
  if (m.input != FERRYMAN_FLOATS && m.input != FERRYMAN_BLOCKS) {
    return "unknown kind of input";
  }
  sizes->a = product({m.batch, m.rows, row_size(m.channels, m.input)});
  sizes->b = product({m.batch, m.channels, m.columns});
  sizes->output = product({m.batch, m.rows, m.columns});
  for (const int64_t size : {sizes->a, sizes->b, sizes->output}) {
    if (size > kElementsMax) {
      return "a tensor would hold more than 2^31 elements";
    }
  }
  return nullptr;
}

const char* ferryman_quant_matmul_run(const ferryman_quant_matmul* matmul, const ferryman_quant_matmul_call* call) {
  return ferryman::kernels::run_matmul(*matmul, *call);
}
