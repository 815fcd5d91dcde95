// ferryman's binary operators, for ExecuTorch: each checks what the artifact and its caller give, then calls the kernels.
//
//   binary_conv2d       (x, weight, scale, bias, WINDOW, real)
//   binary_conv2d_sign  (x, weight, threshold, WINDOW)
//   binary_conv2d_tree       (x, tree, scale, bias, WINDOW)
//   binary_conv2d_tree_sign  (x, tree, threshold, WINDOW)
//   binary_linear       (x, weight, scale, bias, channels, real)
//   binary_linear_sign  (x, weight, threshold, channels)
//
// WINDOW is channels, kernel_size, stride, padding (top, left, bottom, right), dilation, groups, pad_value,
// channels_last. x is float32 [N, C, H, W], with channels_last [N, H, W, C], or packed int32 [N, H, W, words]; of a
// linear, channels or words last. Those that end in _sign answer packed signs, the others float32.
#include "kernels.h"
#include "operator.h"

namespace ferryman {
namespace {

enum Kind { kConv, kTree, kLinear };

void take_binary_window(Arguments& arguments, ferryman_binary_conv& conv) {
  take_window(arguments, conv);
  conv.pad_value = arguments.number("pad_value must be a number");
  const bool channels_last = arguments.truth("channels_last must be true or false");
  conv.layout = channels_last ? FERRYMAN_CHANNELS_LAST : FERRYMAN_CHANNELS_FIRST;
}

void take_x(const Tensor& x, bool linear, ferryman_binary_conv& conv) {
  const bool bits = conv.input == FERRYMAN_BITS;
  if (linear) {
    conv.batch = rows_of(x);
    conv.height = conv.width = conv.kernel_h = conv.kernel_w = 1;
    conv.stride_h = conv.stride_w = conv.dilation_h = conv.dilation_w = conv.groups = 1;
    require(bits || x.size(x.dim() - 1) == conv.channels, "x must have its channels last");
    return;
  }
  const bool last = bits || conv.layout == FERRYMAN_CHANNELS_LAST;
  require(
      take_images(x, last, conv) == conv.channels || bits, "x must have its channels where channels_last says");
}

Shape shape_of_output(
    const Tensor& x, bool linear, const ferryman_binary_conv& conv, const ferryman_binary_sizes& sizes) {
  const SizesType channels = conv.bits_out ? (conv.out_channels + 31) / 32 : conv.out_channels;
  if (linear) {
    return Shape::rows(x, x.dim() - 1, channels);
  }
  const bool last = conv.bits_out || conv.layout == FERRYMAN_CHANNELS_LAST;
  return Shape::images(conv.batch, sizes.out_height, sizes.out_width, channels, last);
}

template <Kind kKind, bool kSign>
void compute(et::Span<et::EValue*> stack) {
  Arguments arguments(stack);
  const Tensor& x = arguments.any_tensor("x must be a tensor");
  const Tensor& weight = arguments.tensor(ScalarType::Int, "weight must be an int32 tensor");
  const Tensor* threshold = nullptr;
  const Tensor* scale = nullptr;
  const Tensor* bias = nullptr;
  if (kSign) {
    threshold = &arguments.tensor(ScalarType::Int, "threshold must be an int32 tensor");
  } else {
    scale = &arguments.tensor(ScalarType::Float, "scale must be a float32 tensor");
    bias = &arguments.tensor(ScalarType::Float, "bias must be a float32 tensor");
  }
  ferryman_binary_conv conv = {};
  conv.channels = arguments.number("channels must be a number");
  conv.out_channels = static_cast<int32_t>((kSign ? threshold : scale)->numel());
  conv.bits_out = kSign;
  conv.layout = FERRYMAN_CHANNELS_LAST;
  if (kKind != kLinear) {
    take_binary_window(arguments, conv);
  }
  const bool real = kSign || kKind == kTree ? false : arguments.truth("real must be true or false");
  if (x.scalar_type() == ScalarType::Int) {
    require(!real, "packed signs are not real activations");
    conv.input = FERRYMAN_BITS;
  } else {
    require(x.scalar_type() == ScalarType::Float, "x must be float32, or packed signs in int32");
    conv.input = real ? FERRYMAN_REALS : FERRYMAN_SIGNS;
  }
  take_x(x, kKind == kLinear, conv);
  ferryman_binary_sizes sizes;
  require_none(ferryman_binary_check(&conv, &sizes));
  ferryman_binary_call call = {};
  call.input = data_of<uint32_t>(x, sizes.input, "x has another number of elements than its channels need");
  const int64_t words = kKind == kTree ? static_cast<int64_t>(weight.numel()) : sizes.weights;  // a tree says its own
  call.weights = reinterpret_cast<const uint32_t*>(
      data_of<int32_t>(weight, words, "weight has another number of words than the numbers ask for"));
  if (kSign) {
    call.threshold = data_of<int32_t>(*threshold, sizes.per_channel, "threshold must be one an output channel");
  } else {
    call.scale = data_of<float>(*scale, sizes.per_channel, "scale must be one an output channel");
    call.bias = data_of<float>(*bias, sizes.per_channel, "bias must be one an output channel");
  }
  const Shape shape = shape_of_output(x, kKind == kLinear, conv, sizes);
  Tensor& out = sized(arguments.next(), kSign ? ScalarType::Int : ScalarType::Float, shape, sizes.output);
  for (const Tensor* const read : {&x, &weight, threshold, scale, bias}) {
    require_apart(read, out);
  }
  call.output = out.mutable_data_ptr();
  use_pool(call);
  require_none(kKind == kTree ? ferryman_tree_run(&conv, &call, words) : ferryman_binary_run(&conv, &call));
}

constexpr const char* kNames[][2] = {
    {"binary_conv2d", "binary_conv2d_sign"},
    {"binary_conv2d_tree", "binary_conv2d_tree_sign"},
    {"binary_linear", "binary_linear_sign"},
};

template <Kind kKind, bool kSign>
void operate(et::KernelRuntimeContext& context, et::Span<et::EValue*> stack) {
  guarded(context, kNames[kKind][kSign], [&] { compute<kKind, kSign>(stack); });
}

const et::Kernel kOperators[] = {
    et::Kernel("ferryman::binary_conv2d.out", operate<kConv, false>),
    et::Kernel("ferryman::binary_conv2d_sign.out", operate<kConv, true>),
    et::Kernel("ferryman::binary_conv2d_tree.out", operate<kTree, false>),
    et::Kernel("ferryman::binary_conv2d_tree_sign.out", operate<kTree, true>),
    et::Kernel("ferryman::binary_linear.out", operate<kLinear, false>),
    et::Kernel("ferryman::binary_linear_sign.out", operate<kLinear, true>),
};

[[maybe_unused]] const bool registered = register_once(kOperators);

} // namespace
} // namespace ferryman
