// ferryman's sparse operators, for ExecuTorch: as the others do, each checks all it is given, then calls the kernels.
//
//   sparse_conv2d  (x, values, index, bias, add?, channels, kernel_size, stride, padding (top, left, bottom, right),
//                   dilation, groups, last_in, last_out, index_bits, low, high)
//   sparse_linear  (x, values, index, bias, index_bits, low, high)
//
// Images are float32 [N, C, H, W], or [N, H, W, C] where last_in or last_out says so; rows have their channels last. Values
// are float32, an index is bytes, of which there are some even where it is not read.
#include "operator.h"
#include "sparse.h"

namespace ferryman {
namespace {

// Values, index and bias, and what comes with them.
struct Weights {
  const Tensor& values;
  const Tensor& index;
  const Tensor& bias;

  explicit Weights(Arguments& arguments)
      : values(arguments.tensor(ScalarType::Float, "values must be a float32 tensor")),
        index(arguments.bytes("index must be a tensor of bytes")),
        bias(arguments.tensor(ScalarType::Float, "bias must be a float32 tensor")) {}
};

void take_ends(Arguments& arguments, ferryman_sparse_conv& conv) {
  conv.index_bits = arguments.number("index_bits must be a number");
  conv.low = arguments.real("low must be a finite float");
  conv.high = arguments.real("high must be a finite float");
}

void compute(
    const Tensor& x,
    const Weights& weights,
    const Tensor* add,
    const ferryman_sparse_conv& conv,
    const ferryman_sparse_sizes& sizes,
    const Shape& shape,
    et::EValue& out_value) {
  ferryman_sparse_call call = {};
  call.input = data_of<float>(x, sizes.input, "x has another number of elements than its channels need");
  call.value_count = static_cast<int64_t>(weights.values.numel());
  call.values = data_of<float>(weights.values, call.value_count, "values have another number of elements");
  call.index_bytes = static_cast<int64_t>(weights.index.numel());
  call.index = data_of<uint8_t>(weights.index, call.index_bytes, "index has another number of bytes");
  call.bias = data_of<float>(weights.bias, sizes.per_channel, "bias must be one an output channel");
  if (add != nullptr) {
    require(shape.is_of(*add), "add must have the output's shape");
    call.add = data_of<float>(*add, sizes.output, "add must be as many as outputs");
  }
  Tensor& out = sized(out_value, ScalarType::Float, shape, sizes.output);
  for (const Tensor* const read : {&x, &weights.values, &weights.index, &weights.bias, add}) {
    require_apart(read, out);
  }
  call.output = out.mutable_data_ptr<float>();
  use_pool(call);
  require_none(ferryman_sparse_conv_run(&conv, &call));
}

void sparse_conv2d(et::Span<et::EValue*> stack) {
  Arguments arguments(stack);
  const Tensor& x = arguments.tensor(ScalarType::Float, "x must be a float32 tensor");
  const Weights weights(arguments);
  const Tensor* const add =
      arguments.none() ? nullptr : &arguments.tensor(ScalarType::Float, "add must be a float32 tensor, or none");
  ferryman_sparse_conv conv = {};
  conv.channels = arguments.number("channels must be a number");
  conv.out_channels = static_cast<int32_t>(weights.bias.numel());
  take_window(arguments, conv);
  const bool last_in = arguments.truth("last_in must be true or false");
  const bool last_out = arguments.truth("last_out must be true or false");
  conv.input_layout = last_in ? FERRYMAN_CHANNELS_LAST : FERRYMAN_CHANNELS_FIRST;
  conv.output_layout = last_out ? FERRYMAN_CHANNELS_LAST : FERRYMAN_CHANNELS_FIRST;
  conv.add = add != nullptr;
  take_ends(arguments, conv);
  require(take_images(x, last_in, conv) == conv.channels, "x must have its channels where its layout says");
  ferryman_sparse_sizes sizes;
  require_none(ferryman_sparse_conv_check(&conv, &sizes));
  const Shape shape = Shape::images(conv.batch, sizes.out_height, sizes.out_width, conv.out_channels, last_out);
  compute(x, weights, add, conv, sizes, shape, arguments.next());
}

void sparse_linear(et::Span<et::EValue*> stack) {
  Arguments arguments(stack);
  const Tensor& x = arguments.tensor(ScalarType::Float, "x must be a float32 tensor");
  const Weights weights(arguments);
  ferryman_sparse_conv conv = {};
  conv.batch = conv.height = conv.kernel_h = conv.kernel_w = conv.groups = 1;
  conv.stride_h = conv.stride_w = conv.dilation_h = conv.dilation_w = 1;
  conv.input_layout = conv.output_layout = FERRYMAN_CHANNELS_LAST;
  conv.width = rows_of(x);
  conv.channels = static_cast<int32_t>(x.size(x.dim() - 1));
  conv.out_channels = static_cast<int32_t>(weights.bias.numel());
  take_ends(arguments, conv);
  ferryman_sparse_sizes sizes;
  require_none(ferryman_sparse_conv_check(&conv, &sizes));
  compute(x, weights, nullptr, conv, sizes, Shape::rows(x, x.dim() - 1, conv.out_channels), arguments.next());
}

enum Kind { kConv, kLinear };
constexpr const char* kNames[] = {"sparse_conv2d", "sparse_linear"};
constexpr void (*kCompute[])(et::Span<et::EValue*>) = {sparse_conv2d, sparse_linear};

template <Kind kKind>
void operate(et::KernelRuntimeContext& context, et::Span<et::EValue*> stack) {
  guarded(context, kNames[kKind], [&] { kCompute[kKind](stack); });
}

const et::Kernel kOperators[] = {
    et::Kernel("ferryman::sparse_conv2d.out", operate<kConv>),
    et::Kernel("ferryman::sparse_linear.out", operate<kLinear>),
};

[[maybe_unused]] const bool registered = register_once(kOperators);

} // namespace
} // namespace ferryman
