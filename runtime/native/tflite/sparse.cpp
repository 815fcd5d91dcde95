// Sparse operators. Custom options are little-endian words of 32 bits, floats (f) as their bits:
//   ferryman.sparse_conv2d  version, channels, out_channels, kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w,
//                           pad_top, pad_left, pad_bottom, pad_right, groups, last_in, last_out, index_bits, add, low f,
//                           high f
//   ferryman.sparse_linear  version, channels, out_channels, index_bits, low f, high f
// Inputs:
//   sparse_conv2d  x, float32, [N, C, H, W] or with last_in [N, H, W, C]; values, index and bias; with add what is added,
//                  float32, of the output's shape
//   sparse_linear  x, float32 [..., C]; values, index and bias
// Values and bias are float32, the index is bytes, of which there are some even where it is not read. They are constant, and
// read where the file is mapped.
#include "operator.h"
#include "sparse.h"

namespace ferryman::tflite {
namespace {

constexpr int32_t kVersion = 1;
constexpr size_t kConvOptions = 20;
constexpr size_t kLinearOptions = 6;
constexpr size_t kAdd = 4;  // the input

// What both kinds are.
class Sparse : public Operator {
 public:
  using Operator::Operator;

 protected:
  void check_all(Context* context, const Tensor& x, const Shape& output);
  void run(Context* context) const override;

  ferryman_sparse_conv conv_ = {};
  ferryman_sparse_sizes sizes_ = {};

 private:
  int64_t values_ = 0, index_bytes_ = 0;
};

// After conv_ and sizes_ are known.
void Sparse::check_all(Context* context, const Tensor& x, const Shape& output) {
  check_elements(x, "x", sizes_.input);
  values_ = static_cast<int64_t>(input(context, 1, "values").bytes / sizeof(float));
  check_constant(context, 1, "values", kFloat32, values_);
  index_bytes_ = check_bytes(context, 2, "index");
  check_constant(context, 3, "bias", kFloat32, sizes_.per_channel);
  if (conv_.add) {
    const Tensor& add = input(context, kAdd, "add", kFloat32);
    if (to_shape(add.dims) != output) {
      throw Refused("add must have the output's shape");
    }
    check_elements(add, "add", sizes_.output);
  }
  resize_output(context, kFloat32, output);
}

void Sparse::run(Context* context) const {
  ferryman_sparse_call call{};
  call.input = read<float>(context, 0, "x", sizes_.input);
  call.value_count = values_;
  call.values = values_ ? read<float>(context, 1, "values", values_) : nullptr;
  call.index_bytes = index_bytes_;
  call.index = read<uint8_t>(context, 2, "index", index_bytes_);
  call.bias = read<float>(context, 3, "bias", sizes_.per_channel);
  if (conv_.add) {
    call.add = read<float>(context, kAdd, "add", sizes_.output);
  }
  call.output = write<float>(context, sizes_.output);
  use_pool(call);
  require_none(ferryman_sparse_conv_run(&conv_, &call));
}

class Conv : public Sparse {
 public:
  using Sparse::Sparse;

 private:
  void check(Context* context) override;
};

void Conv::check(Context* context) {
  check_options(kVersion, kConvOptions);
  check_counts(option(17) ? kAdd + 1 : kAdd);
  const Tensor& x = input(context, 0, "x", kFloat32);
  const auto o = [this](size_t at) { return option(at); };
  const auto layout = [this](size_t at) { return option(at) ? FERRYMAN_CHANNELS_LAST : FERRYMAN_CHANNELS_FIRST; };
  conv_ = {0, 0, 0, o(1), o(2), o(3), o(4), o(5), o(6), o(7), o(8), o(9), o(10), o(11), o(12), o(13), o(16), layout(14),
           layout(15), o(17), real_option(18, "low"), real_option(19, "high")};
  const Shape shape = shape_of_images(x);
  const bool last = conv_.input_layout == FERRYMAN_CHANNELS_LAST;
  conv_.batch = shape[0];
  conv_.height = shape[last ? 1 : 2];
  conv_.width = shape[last ? 2 : 3];
  check_channels(shape[last ? 3 : 1], conv_.channels);
  require_none(ferryman_sparse_conv_check(&conv_, &sizes_));
  check_all(context, x, to_images(conv_.batch, sizes_.out_height, sizes_.out_width, conv_.out_channels,
                                  conv_.output_layout == FERRYMAN_CHANNELS_LAST));
}

class Linear : public Sparse {
 public:
  using Sparse::Sparse;

 private:
  void check(Context* context) override;
};

void Linear::check(Context* context) {
  check_options(kVersion, kLinearOptions);
  check_counts(kAdd);
  const Tensor& x = input(context, 0, "x", kFloat32);
  Shape shape = shape_of_rows(x);
  check_channels(shape.back(), option(1));
  conv_ = {1, 1, product(shape, 1), option(1), option(2), 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, option(3), FERRYMAN_CHANNELS_LAST,
           FERRYMAN_CHANNELS_LAST, 0, real_option(4, "low"), real_option(5, "high")};
  require_none(ferryman_sparse_conv_check(&conv_, &sizes_));
  shape.back() = conv_.out_channels;
  check_all(context, x, shape);
}

} // namespace

const Kind kSparseKinds[] = {
    {"ferryman.sparse_conv2d", make<Conv>},
    {"ferryman.sparse_linear", make<Linear>},
};

} // namespace ferryman::tflite
