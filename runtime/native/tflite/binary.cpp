// Binary operators. Custom options are int32, little-endian:
//   ferryman.binary_conv2d  version, channels, out_channels, kernel_h, kernel_w, stride_h, stride_w, dilation_h,
//                           dilation_w, pad_top, pad_left, pad_bottom, pad_right, groups, pad_value, input, bits_out,
//                           channels_last
//   ferryman.binary_conv2d_tree  the same
//   ferryman.binary_linear  version, channels, out_channels, input, bits_out
// Inputs: x, [N, H, W, C], unless channels_last is 0 [N, C, H, W], or for linear layers [..., C], float32, or packed into
// int32 by pixel; the weights, int32; then scale and bias, float32, or with bits_out a threshold, int32. All but x are
// constant, and read where the file is mapped.
#include "kernels.h"
#include "operator.h"

namespace ferryman::tflite {
namespace {

constexpr int32_t kVersion = 2;
constexpr size_t kConvOptions = 18;
constexpr size_t kLinearOptions = 5;
static_assert(kConvOptions <= kOptionsMost);

enum Form { kConv, kTree, kLinear };

int words_for(int32_t channels) {
  return (channels + 31) / 32;
}

template <Form kForm>
class Binary : public Operator {
 public:
  using Operator::Operator;

 private:
  void check(Context* context) override;
  void run(Context* context) const override;

  ferryman_binary_conv to_conv(const Shape& x) const;

  bool bits_in() const {
    return option(kForm == kLinear ? 3 : 15) == FERRYMAN_BITS;
  }
  bool bits_out() const {
    return option(kForm == kLinear ? 4 : 16) != 0;
  }
  // Whether a tensor of images, packed or not, has its channels first.
  bool first(bool packed) const {
    return kForm != kLinear && !packed && option(17) == 0;
  }

  ferryman_binary_conv conv_ = {};
  ferryman_binary_sizes sizes_ = {};
  int64_t weights_ = 0;  // words: as many as the sizes say, or the tree's own number
};

template <Form kForm>
ferryman_binary_conv Binary<kForm>::to_conv(const Shape& x) const {
  const auto o = [this](size_t at) { return option(at); };
  if (kForm == kLinear) {
    return {product(x, 1), 1, 1, o(1), o(2), 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 0, o(3), o(4), FERRYMAN_CHANNELS_LAST};
  }
  const size_t height = first(bits_in()) ? 2 : 1;
  return {x[0], x[height], x[height + 1], o(1), o(2), o(3), o(4), o(5), o(6), o(7), o(8), o(9), o(10), o(11), o(12),
          o(13), o(14), o(15), o(16), o(17) ? FERRYMAN_CHANNELS_LAST : FERRYMAN_CHANNELS_FIRST};
}

template <Form kForm>
void Binary<kForm>::check(Context* context) {
  check_options(kVersion, kForm == kLinear ? kLinearOptions : kConvOptions);
  check_counts(bits_out() ? 3 : 4);
  const bool packed = bits_in();
  const Tensor& x = input(context, 0, "x", packed ? kInt32 : kFloat32);
  Shape shape = kForm == kLinear ? shape_of_rows(x) : shape_of_images(x);
  conv_ = to_conv(shape);
  require_none(ferryman_binary_check(&conv_, &sizes_));
  const int last = packed ? words_for(conv_.channels) : conv_.channels;
  const int found = first(packed) ? shape[1] : shape.back();
  if (found != last) {
    refuse("x", (packed ? "words " : "channels ") + std::to_string(last), std::to_string(found));
  }
  check_elements(x, "x", sizes_.input);
  weights_ = sizes_.weights;
  if (kForm == kTree) {
    weights_ = static_cast<int64_t>(input(context, 1, "weights", kInt32).bytes / sizeof(uint32_t));
  }
  check_constant(context, 1, "weights", kInt32, weights_);
  if (kForm == kTree) {  // each run looks again
    require_none(ferryman_tree_check(&conv_, read<uint32_t>(context, 1, "weights", weights_), weights_));
  }
  if (bits_out()) {
    check_constant(context, 2, "threshold", kInt32, sizes_.per_channel);
  } else {
    check_constant(context, 2, "scale", kFloat32, sizes_.per_channel);
    check_constant(context, 3, "bias", kFloat32, sizes_.per_channel);
  }

  const int channels = bits_out() ? words_for(conv_.out_channels) : conv_.out_channels;
  if (kForm == kLinear) {
    shape.back() = channels;
  } else {
    shape = to_images(conv_.batch, sizes_.out_height, sizes_.out_width, channels, !first(bits_out()));
  }
  resize_output(context, bits_out() ? kInt32 : kFloat32, shape);
}

template <Form kForm>
void Binary<kForm>::run(Context* context) const {
  ferryman_binary_call call{};
  call.input = read<uint32_t>(context, 0, "x", sizes_.input);
  call.weights = read<uint32_t>(context, 1, "weights", weights_);
  if (bits_out()) {
    call.threshold = read<int32_t>(context, 2, "threshold", sizes_.per_channel);
  } else {
    call.scale = read<float>(context, 2, "scale", sizes_.per_channel);
    call.bias = read<float>(context, 3, "bias", sizes_.per_channel);
  }
  call.output = write<uint32_t>(context, sizes_.output);
  use_pool(call);
  require_none(
      kForm == kTree ? ferryman_tree_run(&conv_, &call, weights_) : ferryman_binary_run(&conv_, &call));
}

} // namespace

const Kind kBinaryKinds[] = {
    {"ferryman.binary_conv2d", make<Binary<kConv>>},
    {"ferryman.binary_conv2d_tree", make<Binary<kTree>>},
    {"ferryman.binary_linear", make<Binary<kLinear>>},
};

} // namespace ferryman::tflite
