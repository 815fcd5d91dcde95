#include "geometry.h"

#include <algorithm>

namespace {

constexpr int64_t kDepthMax = 1 << 24;         // a float holds every count exactly
constexpr int32_t kDimMax = 1 << 24;
constexpr int64_t kFrameFree = 1 << 24;        // elements of frames that any convolution may have,
constexpr int64_t kFrameTimes = 64;            // and how many times what it reads and writes they may be beyond

// Positions a window takes; 0 where it does not fit.
int64_t positions(int64_t size, int64_t before, int64_t after, int64_t kernel, int64_t dilation, int64_t stride) {
  const int64_t room = size + before + after - (dilation * (kernel - 1) + 1);
  return room < 0 ? 0 : room / stride + 1;
}

} // namespace

namespace ferryman::kernels {

int64_t product(std::initializer_list<int64_t> factors) {
  int64_t total = 1;
  for (const int64_t factor : factors) {
    if (factor > kElementsMax / total) {
      return kElementsMax + 1;
    }
    total *= factor;
  }
  return total;
}

bool frame_fits(int64_t frame, int64_t read_and_written) {
  return frame <= std::max(kFrameFree, kFrameTimes * read_and_written);
}

Geometry::Geometry(const ferryman_binary_conv& given) : conv(given) {
  ferryman_binary_sizes sizes;
  ferryman_binary_check(&given, &sizes);
  channels = static_cast<size_t>(given.channels / given.groups);
  out_channels = static_cast<size_t>(given.out_channels / given.groups);
  taps = static_cast<size_t>(given.kernel_h) * static_cast<size_t>(given.kernel_w);
  depth = taps * channels;
  words = words_for(depth);
  blocks = (out_channels + kLanes - 1) / kLanes;
  in_words = words_for(static_cast<size_t>(given.channels));
  out_words = words_for(static_cast<size_t>(given.out_channels));
  in_pixels = static_cast<size_t>(given.height) * static_cast<size_t>(given.width);
  out_height = static_cast<size_t>(sizes.out_height);
  out_width = static_cast<size_t>(sizes.out_width);
  out_pixels = out_height * out_width;
  depthwise = channels == 1 && given.groups > 1;
  const bool border = !depthwise;  // depthwise leaves taps out instead
  frame_width = static_cast<size_t>(given.width + (border ? given.pad_left + given.pad_right : 0));
  frame_height = static_cast<size_t>(given.height + (border ? given.pad_top + given.pad_bottom : 0));
}

} // namespace ferryman::kernels

using ferryman::kernels::ceil_div;
using ferryman::kernels::kElementsMax;
using ferryman::kernels::product;

const char* ferryman_binary_check(const ferryman_binary_conv* conv, ferryman_binary_sizes* sizes) {
  const ferryman_binary_conv& c = *conv;
  for (const int32_t size : {c.batch, c.height, c.width, c.channels, c.out_channels, c.kernel_h, c.kernel_w, c.stride_h,
                             c.stride_w, c.dilation_h, c.dilation_w, c.groups}) {
    if (size < 1 || size > kDimMax) {
      return "sizes, strides, dilations and groups must be 1 to 2^24";
    }
  }
  for (const int32_t pad : {c.pad_top, c.pad_left, c.pad_bottom, c.pad_right}) {
    if (pad < 0 || pad > kDimMax) {
      return "padding must be 0 to 2^24";
    }
  }
  if (std::max(c.pad_top, c.pad_bottom) > int64_t{c.dilation_h} * (c.kernel_h - 1) ||
      std::max(c.pad_left, c.pad_right) > int64_t{c.dilation_w} * (c.kernel_w - 1)) {
    return "padding must be less than the kernel's extent; a window that lies wholly in the padding computes nothing";
  }
  if (c.channels % c.groups || c.out_channels % c.groups) {
    return "groups must divide the channels and the output channels";
  }
  if (c.pad_value < -1 || c.pad_value > 1) {
    return "the padding's value must be -1, 0 or 1";
  }
  if (c.input < FERRYMAN_SIGNS || c.input > FERRYMAN_REALS || c.bits_out < 0 || c.bits_out > 1 ||
      (c.layout != FERRYMAN_CHANNELS_FIRST && c.layout != FERRYMAN_CHANNELS_LAST)) {
    return "unknown kind of input, output or layout";
  }
  if (c.input == FERRYMAN_REALS && c.bits_out) {
    return "real activations have no exact threshold, so their output cannot be packed";
  }
  const int64_t in = c.channels / c.groups;
  const int64_t out = c.out_channels / c.groups;
  const int64_t depth = product({c.kernel_h, c.kernel_w, in});
  if (depth > kDepthMax) {
    return "an output must not depend on more than 2^24 inputs";
  }
  const int64_t height = positions(c.height, c.pad_top, c.pad_bottom, c.kernel_h, c.dilation_h, c.stride_h);
  const int64_t width = positions(c.width, c.pad_left, c.pad_right, c.kernel_w, c.dilation_w, c.stride_w);
  if (height < 1 || width < 1) {
    return "the kernel does not fit the padded input";
  }
  if (height > kDimMax || width > kDimMax) {
    return "the output is too large";
  }
  const bool depthwise = in == 1 && c.groups > 1;
  sizes->out_height = static_cast<int32_t>(height);
  sizes->out_width = static_cast<int32_t>(width);
  sizes->input = product({c.batch, c.height, c.width, c.input == FERRYMAN_BITS ? ceil_div(c.channels, 32) : c.channels});
  sizes->weights = depthwise ? product({depth, ceil_div(c.out_channels, 32)})
                             : product({c.groups, ceil_div(out, 16), ceil_div(depth, 32), 16});
  sizes->per_channel = c.out_channels;
  sizes->output = product({c.batch, height, width, c.bits_out ? ceil_div(c.out_channels, 32) : c.out_channels});
  // What is packed, bordered, widened or turned on the way has its own size.
  const int64_t real = product({c.batch, c.height, c.width, c.channels});
  const int64_t frame =
      product({c.batch, c.height + c.pad_top + c.pad_bottom, c.width + c.pad_left + c.pad_right, ceil_div(c.channels, 32)});
  const int64_t widened = product({c.batch, c.height, c.width, c.out_channels});
  for (const int64_t size : {sizes->input, sizes->weights, sizes->output, real, frame, depthwise ? widened : 1}) {
    if (size > kElementsMax) {
      return "a tensor would hold more than 2^31 elements";
    }
  }
  const bool framed = !depthwise && c.input != FERRYMAN_REALS;
  if (framed && !ferryman::kernels::frame_fits(frame, sizes->input + sizes->output)) {
    return ferryman::kernels::kFrameTooLarge;
  }
  return nullptr;
}
