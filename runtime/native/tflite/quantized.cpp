// Quantized operators. Custom options are little-endian words of 32 bits, floats (f) as their bits:
//   ferryman.quant_conv2d     version, channels, out_channels, kernel_h, kernel_w, stride_h, stride_w, dilation_h,
//                             dilation_w, pad_top, pad_left, pad_bottom, pad_right, groups, channels_last, bits,
//                             x_scale f, x_zero, out_scale f (0: floats), out_zero, out_low, out_high,
//                             add_scale f (0: nothing is added), add_zero, index_bits, unpack
//   ferryman.quant_linear     version, channels, out_channels, bits, group, blocks, index_bits
//   ferryman.quant_embedding  version, rows, channels, bits, group, lanes
//   ferryman.quant_matmul     version, channels, turned
//   ferryman.quant_function   version, channels, kind, epsilon f, blocks
// Inputs:
//   quant_conv2d     x, float32, [N, H, W, C], or unless channels_last [N, C, H, W], or int8 [N, H, W, C]; weights;
//                    scale and bias, float32; with an add_scale what is added, int8 [N, H, W, C]
//   quant_linear     x, float32 [..., C], or int8 in blocks; weights; scale, float16; bias, float32; there may be zeros
//   quant_embedding  ids, int32 or int64; weights; scale, float16; there may be zeros
//   quant_matmul     a, float32 [..., M, C], or int8 in blocks; b, float32 [..., C, N], or turned [..., N, C]
//   quant_function   x, float32 [..., C]; of a layer norm weight and bias, float32
// Weights and zeros are bytes. They, scales and biases are constant, and read where the file is mapped.
#include <algorithm>
#include <cstring>

#include "operator.h"
#include "quantized.h"

namespace ferryman::tflite {
namespace {

constexpr int32_t kVersion = 3;
constexpr size_t kConvOptions = 26;
constexpr size_t kLinearOptions = 7;
constexpr size_t kEmbeddingOptions = 6;
constexpr size_t kMatmulOptions = 3;
constexpr size_t kFunctionOptions = 5;
static_assert(kConvOptions <= kOptionsMost);

// An int64 that may lie anywhere.
struct Bytes8 {
  uint8_t bytes[8];
};

class Conv : public Operator {
 public:
  using Operator::Operator;

 private:
  void check(Context* context) override;
  void run(Context* context) const override;
  ferryman_quant_conv to_conv(const Tensor& x) const;

  bool adds() const {
    return conv_.add_scale != 0;
  }
  Shape output_shape(bool last) const {
    return to_images(conv_.batch, sizes_.out_height, sizes_.out_width, conv_.out_channels, last);
  }

  ferryman_quant_conv conv_ = {};
  ferryman_quant_sizes sizes_ = {};
  int64_t weight_bytes_ = 0;
};

ferryman_quant_conv Conv::to_conv(const Tensor& x) const {
  if (x.type != kFloat32 && x.type != kInt8) {
    refuse("x", "float32 or int8", type_name(x.type));
  }
  const auto o = [this](size_t at) { return option(at); };
  ferryman_quant_conv conv = {
      0, 0, 0, o(1), o(2), o(3), o(4), o(5), o(6), o(7), o(8), o(9), o(10), o(11), o(12), o(13), o(15),
      o(14) ? FERRYMAN_CHANNELS_LAST : FERRYMAN_CHANNELS_FIRST, x.type == kInt8 ? FERRYMAN_INT8 : FERRYMAN_FLOATS,
      FERRYMAN_FLOATS, real_option(16, "x_scale"), o(17), real_option(18, "out_scale"), 0, 0, 0,
      real_option(22, "add_scale"), o(23), o(24), o(25)};
  if (conv.out_scale != 0) {
    conv.output = FERRYMAN_INT8;
    conv.out_zero = o(19);
    conv.out_low = o(20);
    conv.out_high = o(21);
  }
  const Shape shape = shape_of_images(x);
  const bool last = conv.input == FERRYMAN_INT8 || conv.layout == FERRYMAN_CHANNELS_LAST;
  conv.batch = shape[0];
  conv.height = shape[last ? 1 : 2];
  conv.width = shape[last ? 2 : 3];
  check_channels(shape[last ? 3 : 1], conv.channels);
  return conv;
}

void Conv::check(Context* context) {
  check_options(kVersion, kConvOptions);
  check_counts(real_option(22, "add_scale") == 0 ? 4 : 5);
  const Tensor& x = input(context, 0, "x");
  conv_ = to_conv(x);
  require_none(ferryman_quant_conv_check(&conv_, &sizes_));
  check_elements(x, "x", sizes_.input);
  weight_bytes_ = conv_.index_bits ? check_bytes(context, 1, "weights") : sizes_.weights;
  check_bytes(context, 1, "weights", weight_bytes_);
  check_constant(context, 2, "scale", kFloat32, sizes_.per_channel);
  check_constant(context, 3, "bias", kFloat32, sizes_.per_channel);
  if (adds()) {
    const Tensor& add = input(context, 4, "add", kInt8);
    if (to_shape(add.dims) != output_shape(true)) {
      throw Refused("add must have the output's shape, channels last");
    }
    check_elements(add, "add", sizes_.output);
  }
  const bool int8 = conv_.output == FERRYMAN_INT8;
  resize_output(
      context, int8 ? kInt8 : kFloat32, output_shape(int8 || conv_.layout == FERRYMAN_CHANNELS_LAST));
}

void Conv::run(Context* context) const {
  ferryman_quant_call call{};
  call.input = conv_.input == FERRYMAN_INT8 ? static_cast<const void*>(read<int8_t>(context, 0, "x", sizes_.input))
                                            : read<float>(context, 0, "x", sizes_.input);
  call.weights = read<uint8_t>(context, 1, "weights", weight_bytes_);
  call.weight_bytes = weight_bytes_;
  call.scale = read<float>(context, 2, "scale", sizes_.per_channel);
  call.bias = read<float>(context, 3, "bias", sizes_.per_channel);
  if (adds()) {
    call.add = read<int8_t>(context, 4, "add", sizes_.output);
  }
  call.output = conv_.output == FERRYMAN_INT8 ? static_cast<void*>(write<int8_t>(context, sizes_.output))
                                              : write<float>(context, sizes_.output);
  use_pool(call);
  require_none(ferryman_quant_conv_run(&conv_, &call));
}

// Of rows with so many channels.
int32_t kind_of(const Tensor& x) {
  if (x.type != kFloat32 && x.type != kInt8) {
    refuse("x", "float32, or int8 in blocks", type_name(x.type));
  }
  return x.type == kInt8 ? FERRYMAN_BLOCKS : FERRYMAN_FLOATS;
}

void check_row(const Shape& shape, int32_t kind, int32_t channels) {
  const int32_t found = kind == FERRYMAN_BLOCKS ? ferryman_quant_block_channels(shape.back()) : shape.back();
  check_channels(found, channels);
}

class Linear : public Operator {
 public:
  using Operator::Operator;

 private:
  void check(Context* context) override;
  void run(Context* context) const override;

  ferryman_quant_linear linear_ = {};
  ferryman_quant_linear_sizes sizes_ = {};
  int64_t weight_bytes_ = 0;
};

void Linear::check(Context* context) {
  check_options(kVersion, kLinearOptions);
  check_counts(4, 5);
  const Tensor& x = input(context, 0, "x");
  Shape shape = shape_of_rows(x);
  linear_ = {product(shape, 1), option(1), option(2), option(3), option(4), kind_of(x), option(5),
             option(6)};
  check_row(shape, linear_.input, linear_.channels);
  require_none(ferryman_quant_linear_check(&linear_, &sizes_));
  check_elements(x, "x", sizes_.input);
  weight_bytes_ = linear_.index_bits ? check_bytes(context, 1, "weights") : sizes_.weights;
  check_bytes(context, 1, "weights", weight_bytes_);
  check_constant(context, 2, "scale", kFloat16, sizes_.scales);
  check_constant(context, 3, "bias", kFloat32, linear_.out_channels);
  if (inputs() == 5) {
    check_bytes(context, 4, "zero", sizes_.scales);
  }
  shape.back() = linear_.out_channels;
  resize_output(context, kFloat32, shape);
}

void Linear::run(Context* context) const {
  ferryman_quant_linear_call call{};
  call.input = linear_.input == FERRYMAN_BLOCKS ? static_cast<const void*>(read<int8_t>(context, 0, "x", sizes_.input))
                                                : read<float>(context, 0, "x", sizes_.input);
  call.weights = read<uint8_t>(context, 1, "weights", weight_bytes_);
  call.weight_bytes = weight_bytes_;
  call.scale = read<uint16_t>(context, 2, "scale", sizes_.scales);
  call.bias = read<float>(context, 3, "bias", linear_.out_channels);
  if (inputs() == 5) {
    call.zero = read<uint8_t>(context, 4, "zero", sizes_.scales);
  }
  call.output = write<float>(context, sizes_.output);
  use_pool(call);
  require_none(ferryman_quant_linear_run(&linear_, &call));
}

class Embedding : public Operator {
 public:
  using Operator::Operator;

 private:
  void check(Context* context) override;
  void run(Context* context) const override;

  ferryman_quant_embedding embedding_ = {};
  ferryman_quant_embedding_sizes sizes_ = {};
};

void Embedding::check(Context* context) {
  check_options(kVersion, kEmbeddingOptions);
  check_counts(3, 4);
  const Tensor& ids = input(context, 0, "ids");
  if (ids.type != kInt32 && ids.type != kInt64) {
    refuse("ids", "int32 or int64", type_name(ids.type));
  }
  Shape shape = to_shape(ids.dims);
  const int32_t id_bytes = ids.type == kInt64 ? sizeof(int64_t) : sizeof(int32_t);
  embedding_ = {option(1), option(2), option(3), option(4), id_bytes, option(5), product(shape, 0)};
  require_none(ferryman_quant_embedding_check(&embedding_, &sizes_));
  check_elements(ids, "ids", embedding_.count);
  check_bytes(context, 1, "weights", sizes_.weights);
  check_constant(context, 2, "scale", kFloat16, sizes_.scales);
  if (inputs() == 4) {
    check_bytes(context, 3, "zero", sizes_.scales);
  }
  shape.push_back(embedding_.channels);
  resize_output(context, kFloat32, shape);
}

void Embedding::run(Context* context) const {
  ferryman_quant_embedding_call call{};
  std::vector<int64_t> aligned;
  if (embedding_.id_bytes == sizeof(int32_t)) {
    call.ids = read<int32_t>(context, 0, "ids", embedding_.count);
  } else {  // constants lie at any multiple of 4
    aligned.resize(static_cast<size_t>(embedding_.count));
    memcpy(aligned.data(), read<Bytes8>(context, 0, "ids", embedding_.count), aligned.size() * sizeof(int64_t));
    call.ids = aligned.data();
  }
  call.weights = read<uint8_t>(context, 1, "weights", sizes_.weights);
  call.scale = read<uint16_t>(context, 2, "scale", sizes_.scales);
  if (inputs() == 4) {
    call.zero = read<uint8_t>(context, 3, "zero", sizes_.scales);
  }
  call.output = write<float>(context, sizes_.output);
  require_none(ferryman_quant_embedding_run(&embedding_, &call));
}

class Matmul : public Operator {
 public:
  using Operator::Operator;

 private:
  void check(Context* context) override;
  void run(Context* context) const override;

  ferryman_quant_matmul matmul_ = {};
  ferryman_quant_matmul_sizes sizes_ = {};
};

void Matmul::check(Context* context) {
  check_options(kVersion, kMatmulOptions);
  check_counts(2);
  const Tensor& a = input(context, 0, "a");
  const Tensor& b = input(context, 1, "b", kFloat32);
  Shape shape = to_shape(a.dims);
  const Shape other = to_shape(b.dims);
  const size_t rank = shape.size();
  if (rank < 2 || other.size() != rank || !std::equal(shape.begin(), shape.end() - 2, other.begin())) {
    throw Refused("a and b must have the same leading dimensions, and two more each");
  }
  const bool turned = option(2) != 0;
  matmul_ = {product(shape, 2), shape[rank - 2], option(1), other[turned ? rank - 2 : rank - 1], turned, kind_of(a)};
  check_row(shape, matmul_.input, matmul_.channels);
  check_channels(other[turned ? rank - 1 : rank - 2], matmul_.channels);
  require_none(ferryman_quant_matmul_check(&matmul_, &sizes_));
  check_elements(a, "a", sizes_.a);
  check_elements(b, "b", sizes_.b);
  shape.back() = matmul_.columns;
  resize_output(context, kFloat32, shape);
}

void Matmul::run(Context* context) const {
  ferryman_quant_matmul_call call{};
  call.a = matmul_.input == FERRYMAN_BLOCKS ? static_cast<const void*>(read<int8_t>(context, 0, "a", sizes_.a))
                                            : read<float>(context, 0, "a", sizes_.a);
  call.b = read<float>(context, 1, "b", sizes_.b);
  call.output = write<float>(context, sizes_.output);
  use_pool(call);
  require_none(ferryman_quant_matmul_run(&matmul_, &call));
}

class Function : public Operator {
 public:
  using Operator::Operator;

 private:
  void check(Context* context) override;
  void run(Context* context) const override;

  ferryman_quant_function function_ = {};
  ferryman_quant_function_sizes sizes_ = {};
};

void Function::check(Context* context) {
  check_options(kVersion, kFunctionOptions);
  check_counts(option(2) == FERRYMAN_LAYER_NORM ? 3 : 1);
  const Tensor& x = input(context, 0, "x", kFloat32);
  Shape shape = shape_of_rows(x);
  const bool blocks = option(4) != 0;
  function_ = {product(shape, 1), option(1), option(2), blocks ? FERRYMAN_BLOCKS : FERRYMAN_FLOATS,
               real_option(3, "epsilon")};
  check_channels(shape.back(), function_.channels);
  require_none(ferryman_quant_function_check(&function_, &sizes_));
  check_elements(x, "x", sizes_.input);
  if (sizes_.per_channel != 0) {
    check_constant(context, 1, "weight", kFloat32, sizes_.per_channel);
    check_constant(context, 2, "bias", kFloat32, sizes_.per_channel);
  }
  shape.back() = blocks ? static_cast<int>(ferryman_quant_block_bytes(function_.channels)) : function_.channels;
  resize_output(context, blocks ? kInt8 : kFloat32, shape);
}

void Function::run(Context* context) const {
  ferryman_quant_function_call call{};
  call.input = read<float>(context, 0, "x", sizes_.input);
  if (sizes_.per_channel != 0) {
    call.weight = read<float>(context, 1, "weight", sizes_.per_channel);
    call.bias = read<float>(context, 2, "bias", sizes_.per_channel);
  }
  call.output = function_.output == FERRYMAN_BLOCKS ? static_cast<void*>(write<int8_t>(context, sizes_.output))
                                                    : write<float>(context, sizes_.output);
  use_pool(call);
  require_none(ferryman_quant_function_run(&function_, &call));
}

} // namespace

const Kind kQuantizedKinds[] = {
    {"ferryman.quant_conv2d", make<Conv>},
    {"ferryman.quant_linear", make<Linear>},
    {"ferryman.quant_embedding", make<Embedding>},
    {"ferryman.quant_matmul", make<Matmul>},
    {"ferryman.quant_function", make<Function>},
};

} // namespace ferryman::tflite
