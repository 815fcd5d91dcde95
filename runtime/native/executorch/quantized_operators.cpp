// ferryman's quantized operators, for ExecuTorch: as the binary ones do, each checks all it is given, then calls the
// kernels.
//
//   quant_conv2d     (x, weight, scale, bias, add?, channels, kernel_size, stride, padding (top, left, bottom, right),
//                     dilation, groups, channels_last, bits, x_scale, x_zero, out_scale, out_zero, out_low, out_high,
//                     add_scale, add_zero, index_bits, unpack)
//   quant_linear     (x, weight, scale, zero?, bias, bits, group, blocks, index_bits)
//   quant_embedding  (ids, weight, scale, zero?, rows, channels, bits, group, lanes)
//   quant_matmul     (a, b, turned)
//   quant_function   (x, weight?, bias?, kind, epsilon, blocks)
//
// Images are float32 [N, C, H, W], with channels_last [N, H, W, C], or int8 [N, H, W, C]; an out_scale of 0 asks for
// floats. Rows have their channels last, and are float32, or int8 in blocks. Weights and zeros are bytes; scales are float32
// of a convolution, else float16.
#include "operator.h"
#include "quantized.h"

namespace ferryman {
namespace {

constexpr const char* kWeight = "weight must be a tensor of bytes";
constexpr const char* kWeights = "weight has another number of bytes than the numbers ask for";
constexpr const char* kIndexBits = "index_bits must be a number";

// Of sparse weights there are as many bytes as there are, which the run checks.
template <typename Call>
void take_weights(const Tensor& weight, int32_t index_bits, int64_t dense_bytes, Call& call) {
  call.weight_bytes = index_bits ? static_cast<int64_t>(weight.numel()) : dense_bytes;
  call.weights = data_of<uint8_t>(weight, call.weight_bytes, kWeights);
}

void quant_conv2d(et::Span<et::EValue*> stack) {
  Arguments arguments(stack);
  const Tensor& x = arguments.any_tensor("x must be a tensor");
  const Tensor& weight = arguments.bytes(kWeight);
  const Tensor& scale = arguments.tensor(ScalarType::Float, "scale must be a float32 tensor");
  const Tensor& bias = arguments.tensor(ScalarType::Float, "bias must be a float32 tensor");
  const Tensor* const add =
      arguments.none() ? nullptr : &arguments.tensor(ScalarType::Char, "add must be an int8 tensor, or none");
  ferryman_quant_conv conv = {};
  conv.channels = arguments.number("channels must be a number");
  conv.out_channels = static_cast<int32_t>(scale.numel());
  take_window(arguments, conv);
  const bool channels_last = arguments.truth("channels_last must be true or false");
  conv.layout = channels_last ? FERRYMAN_CHANNELS_LAST : FERRYMAN_CHANNELS_FIRST;
  conv.bits = arguments.number("bits must be a number");
  conv.x_scale = arguments.real("x_scale must be a finite float");
  conv.x_zero = arguments.number("x_zero must be a number");
  conv.out_scale = arguments.real("out_scale must be a finite float");
  conv.out_zero = arguments.number("out_zero must be a number");
  conv.out_low = arguments.number("out_low must be a number");
  conv.out_high = arguments.number("out_high must be a number");
  conv.add_scale = arguments.real("add_scale must be a finite float");
  conv.add_zero = arguments.number("add_zero must be a number");
  conv.index_bits = arguments.number(kIndexBits);
  conv.unpack = arguments.truth("unpack must be true or false");
  require((add != nullptr) == (conv.add_scale != 0), "add and add_scale come together");

  const bool int8 = x.scalar_type() == ScalarType::Char;
  require(int8 || x.scalar_type() == ScalarType::Float, "x must be float32 or int8");
  conv.input = int8 ? FERRYMAN_INT8 : FERRYMAN_FLOATS;
  const bool int8_out = conv.out_scale != 0;
  conv.output = int8_out ? FERRYMAN_INT8 : FERRYMAN_FLOATS;
  if (!int8_out) {
    conv.out_zero = conv.out_low = conv.out_high = 0;
  }
  require(
      take_images(x, int8 || channels_last, conv) == conv.channels, "x must have its channels where its layout says");
  ferryman_quant_sizes sizes;
  require_none(ferryman_quant_conv_check(&conv, &sizes));

  ferryman_quant_call call = {};
  constexpr const char* kInput = "x has another number of elements than its channels need";
  call.input = int8 ? static_cast<const void*>(data_of<int8_t>(x, sizes.input, kInput))
                    : data_of<float>(x, sizes.input, kInput);
  take_weights(weight, conv.index_bits, sizes.weights, call);
  call.scale = data_of<float>(scale, sizes.per_channel, "scale must be one an output channel");
  call.bias = data_of<float>(bias, sizes.per_channel, "bias must be one an output channel");
  const auto images = [&](bool last) {
    return Shape::images(conv.batch, sizes.out_height, sizes.out_width, conv.out_channels, last);
  };
  if (add != nullptr) {
    require(images(true).is_of(*add), "add must have the output's shape, channels last");
    call.add = data_of<int8_t>(*add, sizes.output, "add must be as many as outputs");
  }
  Tensor& out = sized(
      arguments.next(), int8_out ? ScalarType::Char : ScalarType::Float, images(int8_out || channels_last), sizes.output);
  for (const Tensor* const read : {&x, &weight, &scale, &bias, add}) {
    require_apart(read, out);
  }
  call.output = out.mutable_data_ptr();
  use_pool(call);
  require_none(ferryman_quant_conv_run(&conv, &call));
}

const uint16_t* take_scale(const Tensor& scale, int64_t count) {
  return data_of<uint16_t>(scale, count, "scale must be one a group");
}

const uint8_t* take_zero(const Tensor* zero, int64_t count) {
  return zero == nullptr ? nullptr : data_of<uint8_t>(*zero, count, "zero must be one a group");
}

constexpr const char* kRows = "x has another number of elements than its channels need";

// Kind and channels of rows.
void take_row(const Tensor& x, int32_t& kind, int32_t& channels) {
  const auto last = static_cast<int64_t>(x.size(x.dim() - 1));
  if (x.scalar_type() == ScalarType::Char) {
    kind = FERRYMAN_BLOCKS;
    channels = ferryman_quant_block_channels(last);
    require(channels > 0, "a row in blocks has another number of bytes");
  } else {
    require(x.scalar_type() == ScalarType::Float, "x must be float32, or int8 in blocks");
    kind = FERRYMAN_FLOATS;
    channels = static_cast<int32_t>(last);
  }
}

const void* row_data(const Tensor& x, int32_t kind, int64_t count) {
  if (kind == FERRYMAN_BLOCKS) {
    return data_of<int8_t>(x, count, kRows);
  }
  return data_of<float>(x, count, kRows);
}

void quant_linear(et::Span<et::EValue*> stack) {
  Arguments arguments(stack);
  const Tensor& x = arguments.any_tensor("x must be a tensor");
  const Tensor& weight = arguments.bytes(kWeight);
  const Tensor& scale = arguments.tensor(ScalarType::Half, "scale must be a float16 tensor");
  const Tensor* const zero = arguments.none() ? nullptr : &arguments.bytes("zero must be a tensor of bytes, or none");
  const Tensor& bias = arguments.tensor(ScalarType::Float, "bias must be a float32 tensor");
  ferryman_quant_linear linear = {};
  linear.rows = rows_of(x);
  take_row(x, linear.input, linear.channels);
  linear.out_channels = static_cast<int32_t>(bias.numel());
  linear.bits = arguments.number("bits must be a number");
  linear.group = arguments.number("group must be a number");
  linear.blocks = arguments.truth("blocks must be true or false");
  linear.index_bits = arguments.number(kIndexBits);
  ferryman_quant_linear_sizes sizes;
  require_none(ferryman_quant_linear_check(&linear, &sizes));

  ferryman_quant_linear_call call = {};
  call.input = row_data(x, linear.input, sizes.input);
  take_weights(weight, linear.index_bits, sizes.weights, call);
  call.scale = take_scale(scale, sizes.scales);
  call.zero = take_zero(zero, sizes.scales);
  call.bias = data_of<float>(bias, linear.out_channels, "bias must be one an output channel");
  const Shape shape = Shape::rows(x, x.dim() - 1, linear.out_channels);
  Tensor& out = sized(arguments.next(), ScalarType::Float, shape, sizes.output);
  for (const Tensor* const read : {&x, &weight, &scale, zero, &bias}) {
    require_apart(read, out);
  }
  call.output = out.mutable_data_ptr<float>();
  use_pool(call);
  require_none(ferryman_quant_linear_run(&linear, &call));
}

void quant_embedding(et::Span<et::EValue*> stack) {
  Arguments arguments(stack);
  const Tensor& ids = arguments.any_tensor("ids must be a tensor");
  const Tensor& weight = arguments.bytes(kWeight);
  const Tensor& scale = arguments.tensor(ScalarType::Half, "scale must be a float16 tensor");
  const Tensor* const zero = arguments.none() ? nullptr : &arguments.bytes("zero must be a tensor of bytes, or none");
  ferryman_quant_embedding embedding = {};
  embedding.rows = arguments.number("rows must be a number");
  embedding.channels = arguments.number("channels must be a number");
  embedding.bits = arguments.number("bits must be a number");
  embedding.group = arguments.number("group must be a number");
  embedding.lanes = arguments.truth("lanes must be true or false");
  const bool wide = ids.scalar_type() == ScalarType::Long;
  require(wide || ids.scalar_type() == ScalarType::Int, "ids must be int32 or int64");
  embedding.id_bytes = wide ? sizeof(int64_t) : sizeof(int32_t);
  embedding.count = static_cast<int64_t>(ids.numel());
  ferryman_quant_embedding_sizes sizes;
  require_none(ferryman_quant_embedding_check(&embedding, &sizes));

  ferryman_quant_embedding_call call = {};
  constexpr const char* kIds = "ids have another number of elements";
  call.ids = wide ? static_cast<const void*>(data_of<int64_t>(ids, embedding.count, kIds))
                  : data_of<int32_t>(ids, embedding.count, kIds);
  call.weights = data_of<uint8_t>(weight, sizes.weights, kWeights);
  call.scale = take_scale(scale, sizes.scales);
  call.zero = take_zero(zero, sizes.scales);
  const Shape shape = Shape::rows(ids, ids.dim(), embedding.channels);
  Tensor& out = sized(arguments.next(), ScalarType::Float, shape, sizes.output);
  for (const Tensor* const read : {&ids, &weight, &scale, zero}) {
    require_apart(read, out);
  }
  call.output = out.mutable_data_ptr<float>();
  require_none(ferryman_quant_embedding_run(&embedding, &call));
}

void quant_matmul(et::Span<et::EValue*> stack) {
  Arguments arguments(stack);
  const Tensor& a = arguments.any_tensor("a must be a tensor");
  const Tensor& b = arguments.tensor(ScalarType::Float, "b must be a float32 tensor");
  ferryman_quant_matmul matmul = {};
  matmul.turned = arguments.truth("turned must be true or false");
  const ssize_t rank = a.dim();
  require(rank >= 2 && b.dim() == rank, "a and b must have as many dimensions, at least two");
  take_row(a, matmul.input, matmul.channels);
  const ssize_t columns = matmul.turned ? rank - 2 : rank - 1;
  require(b.size(columns == rank - 1 ? rank - 2 : rank - 1) == matmul.channels, "b must have a's channels");
  int64_t batch = 1;
  for (ssize_t i = 0; i < rank - 2; ++i) {
    require(a.size(i) == b.size(i), "a and b must have the same leading dimensions");
    batch *= a.size(i);
    require(batch <= INT32_MAX, "a has too many matrices");
  }
  matmul.batch = static_cast<int32_t>(batch);
  matmul.rows = static_cast<int32_t>(a.size(rank - 2));
  matmul.columns = static_cast<int32_t>(b.size(columns));
  ferryman_quant_matmul_sizes sizes;
  require_none(ferryman_quant_matmul_check(&matmul, &sizes));

  ferryman_quant_matmul_call call = {};
  call.a = row_data(a, matmul.input, sizes.a);
  call.b = data_of<float>(b, sizes.b, "b has another number of elements");
  const Shape shape = Shape::rows(a, rank - 1, matmul.columns);
  Tensor& out = sized(arguments.next(), ScalarType::Float, shape, sizes.output);
  require_apart(&a, out);
  require_apart(&b, out);
  call.output = out.mutable_data_ptr<float>();
  use_pool(call);
  require_none(ferryman_quant_matmul_run(&matmul, &call));
}

void quant_function(et::Span<et::EValue*> stack) {
  Arguments arguments(stack);
  constexpr const char* kPerChannel = "weight and bias must be float32, one a channel, of layer norms alone";
  const Tensor& x = arguments.tensor(ScalarType::Float, "x must be a float32 tensor");
  const Tensor* const weight = arguments.none() ? nullptr : &arguments.tensor(ScalarType::Float, kPerChannel);
  const Tensor* const bias = arguments.none() ? nullptr : &arguments.tensor(ScalarType::Float, kPerChannel);
  ferryman_quant_function function = {};
  function.rows = rows_of(x);
  function.channels = static_cast<int32_t>(x.size(x.dim() - 1));
  function.kind = arguments.number("kind must be a number");
  function.epsilon = arguments.real("epsilon must be a finite float");
  const bool blocks = arguments.truth("blocks must be true or false");
  function.output = blocks ? FERRYMAN_BLOCKS : FERRYMAN_FLOATS;
  ferryman_quant_function_sizes sizes;
  require_none(ferryman_quant_function_check(&function, &sizes));
  require((weight != nullptr) == (sizes.per_channel > 0) && (bias != nullptr) == (sizes.per_channel > 0), kPerChannel);

  ferryman_quant_function_call call = {};
  call.input = data_of<float>(x, sizes.input, kRows);
  if (weight != nullptr && bias != nullptr) {
    call.weight = data_of<float>(*weight, sizes.per_channel, kPerChannel);
    call.bias = data_of<float>(*bias, sizes.per_channel, kPerChannel);
  }
  const int64_t last = blocks ? ferryman_quant_block_bytes(function.channels) : function.channels;
  const Shape shape = Shape::rows(x, x.dim() - 1, static_cast<SizesType>(last));
  Tensor& out = sized(arguments.next(), blocks ? ScalarType::Char : ScalarType::Float, shape, sizes.output);
  for (const Tensor* const read : {&x, weight, bias}) {
    require_apart(read, out);
  }
  call.output = out.mutable_data_ptr();
  use_pool(call);
  require_none(ferryman_quant_function_run(&function, &call));
}

enum Kind { kConv, kLinear, kEmbedding, kMatmul, kFunction };
constexpr const char* kNames[] = {"quant_conv2d", "quant_linear", "quant_embedding", "quant_matmul", "quant_function"};
constexpr void (*kCompute[])(et::Span<et::EValue*>) = {
    quant_conv2d, quant_linear, quant_embedding, quant_matmul, quant_function};

template <Kind kKind>
void operate(et::KernelRuntimeContext& context, et::Span<et::EValue*> stack) {
  guarded(context, kNames[kKind], [&] { kCompute[kKind](stack); });
}

const et::Kernel kOperators[] = {
    et::Kernel("ferryman::quant_conv2d.out", operate<kConv>),
    et::Kernel("ferryman::quant_linear.out", operate<kLinear>),
    et::Kernel("ferryman::quant_embedding.out", operate<kEmbedding>),
    et::Kernel("ferryman::quant_matmul.out", operate<kMatmul>),
    et::Kernel("ferryman::quant_function.out", operate<kFunction>),
};

[[maybe_unused]] const bool registered = register_once(kOperators);

} // namespace
} // namespace ferryman
