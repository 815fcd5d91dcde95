// ferryman's operators, for ExecuTorch: each checks what the artifact and its caller give, then calls the kernels.
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
#include <cstring>

#include <executorch/runtime/core/exec_aten/util/tensor_util.h>
#include <executorch/runtime/kernel/kernel_runtime_context.h>
#include <executorch/runtime/kernel/operator_registry.h>
#include <executorch/extension/threadpool/threadpool_guard.h>

#include "kernels.h"
#include "threadpool.h"

namespace et = executorch::runtime;
using executorch::aten::ScalarType;
using executorch::aten::SizesType;
using executorch::aten::Tensor;
using executorch::extension::threadpool::NoThreadPoolGuard;

namespace ferryman {
namespace {

constexpr size_t kImageRank = 4;

enum Kind { kConv, kTree, kLinear };
constexpr const char* kNames[] = {"conv2d", "conv2d_tree", "linear"};

// What is wrong, thrown within an operator and reported by it.
struct Refused {
  const char* what;
};

void require(bool holds, const char* what) {
  if (!holds) {
    throw Refused{what};
  }
}

// An operator's arguments, taken one by one.
class Arguments {
 public:
  explicit Arguments(et::Span<et::EValue*> stack) : stack_(stack) {}

  Tensor& tensor(ScalarType type, const char* what) {
    Tensor& found = any_tensor(what);
    require(found.scalar_type() == type, what);
    return found;
  }

  Tensor& any_tensor(const char* what) {
    et::EValue& value = next();
    require(value.isTensor(), what);
    Tensor& found = value.toTensor();
    require(et::tensor_is_default_dim_order(found), "tensors must be contiguous, in default dimension order");
    return found;
  }

  int32_t number(const char* what) {
    et::EValue& value = next();
    require(value.isInt(), what);
    return narrow(value.toInt());
  }

  bool truth(const char* what) {
    et::EValue& value = next();
    require(value.isBool(), what);
    return value.toBool();
  }

  template <size_t kCount>
  void numbers(int32_t* const (&to)[kCount], const char* what) {
    et::EValue& value = next();
    require(value.isIntList(), what);
    const auto list = value.toIntList();
    require(list.size() == kCount, what);
    for (size_t i = 0; i < kCount; ++i) {
      *to[i] = narrow(list[i]);
    }
  }

  // The one after the last taken.
  et::EValue& next() {
    require(at_ < stack_.size() && stack_[at_] != nullptr, "too few arguments");
    return *stack_[at_++];
  }

 private:
  static int32_t narrow(int64_t value) {
    require(value >= INT32_MIN && value <= INT32_MAX, "a number does not fit 32 bits");
    return static_cast<int32_t>(value);
  }

  et::Span<et::EValue*> stack_;
  size_t at_ = 0;
};

void run_in_pool(void*, void (*body)(void*, size_t), void* argument, size_t tasks) {
  executorch::extension::parallel_for(0, static_cast<int64_t>(tasks), 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      body(argument, static_cast<size_t>(task));
    }
  });
}

template <typename T>
const T* data_of(const Tensor& tensor, int64_t count, const char* what) {
  require(static_cast<int64_t>(tensor.numel()) == count, what);
  const T* const data = tensor.const_data_ptr<T>();
  require(data != nullptr || count == 0, "a tensor has no memory");
  return data;
}

void take_window(Arguments& arguments, ferryman_binary_conv& conv) {
  arguments.numbers({&conv.kernel_h, &conv.kernel_w}, "kernel_size must be two numbers");
  arguments.numbers({&conv.stride_h, &conv.stride_w}, "stride must be two numbers");
  arguments.numbers(
      {&conv.pad_top, &conv.pad_left, &conv.pad_bottom, &conv.pad_right}, "padding must be four numbers");
  arguments.numbers({&conv.dilation_h, &conv.dilation_w}, "dilation must be two numbers");
  conv.groups = arguments.number("groups must be a number");
  conv.pad_value = arguments.number("pad_value must be a number");
  const bool channels_last = arguments.truth("channels_last must be true or false");
  conv.layout = channels_last ? FERRYMAN_CHANNELS_LAST : FERRYMAN_CHANNELS_FIRST;
}

// Numbers of the images, from x.
void take_images(const Tensor& x, bool linear, ferryman_binary_conv& conv) {
  const bool bits = conv.input == FERRYMAN_BITS;
  if (linear) {
    require(x.dim() >= 1, "x must have a dimension");
    int64_t rows = 1;
    for (ssize_t i = 0; i + 1 < x.dim(); ++i) {
      rows *= x.size(i);
      require(rows <= INT32_MAX, "x has too many rows");
    }
    conv.batch = static_cast<int32_t>(rows);
    conv.height = conv.width = conv.kernel_h = conv.kernel_w = 1;
    conv.stride_h = conv.stride_w = conv.dilation_h = conv.dilation_w = conv.groups = 1;
    require(bits || x.size(x.dim() - 1) == conv.channels, "x must have its channels last");
    return;
  }
  require(x.dim() == static_cast<ssize_t>(kImageRank), "x must have four dimensions");
  conv.batch = static_cast<int32_t>(x.size(0));
  const bool last = bits || conv.layout == FERRYMAN_CHANNELS_LAST;
  conv.height = static_cast<int32_t>(x.size(last ? 1 : 2));
  conv.width = static_cast<int32_t>(x.size(last ? 2 : 3));
  require(bits || x.size(last ? 3 : 1) == conv.channels, "x must have its channels where channels_last says");
}

// Resizes out to what is computed.
void* sized(et::EValue& value, const Tensor& x, bool linear, const ferryman_binary_conv& conv, const ferryman_binary_sizes& sizes) {
  require(value.isTensor(), "out must be a tensor");
  Tensor& out = value.toTensor();
  require(out.scalar_type() == (conv.bits_out ? ScalarType::Int : ScalarType::Float), "out has another dtype");
  SizesType shape[et::kTensorDimensionLimit];
  size_t rank = static_cast<size_t>(x.dim());
  require(rank <= et::kTensorDimensionLimit, "x has too many dimensions");
  const SizesType channels = conv.bits_out ? (conv.out_channels + 31) / 32 : conv.out_channels;
  if (linear) {
    for (size_t i = 0; i + 1 < rank; ++i) {
      shape[i] = static_cast<SizesType>(x.size(static_cast<ssize_t>(i)));
    }
    shape[rank - 1] = channels;
  } else {
    shape[0] = conv.batch;
    const bool last = conv.bits_out || conv.layout == FERRYMAN_CHANNELS_LAST;
    shape[last ? 3 : 1] = channels;
    shape[last ? 1 : 2] = sizes.out_height;
    shape[last ? 2 : 3] = sizes.out_width;
  }
  require(et::resize_tensor(out, {shape, rank}) == et::Error::Ok, "out cannot take the output's shape");
  require(et::tensor_is_default_dim_order(out), "out must be in default dimension order");
  require(static_cast<int64_t>(out.numel()) == sizes.output, "out has another size");
  void* const data = out.mutable_data_ptr();
  require(data != nullptr, "out has no memory");
  return data;
}

// An artifact's memory plan says where tensors lie. What is read while out is written must lie elsewhere: a tree is
// checked before it is followed.
void require_apart(const Tensor& tensor, const void* out, int64_t elements) {
  const auto begin = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  const auto out_begin = reinterpret_cast<uintptr_t>(out);
  const uintptr_t out_end = out_begin + static_cast<uintptr_t>(elements) * sizeof(uint32_t);
  require(begin + tensor.nbytes() <= out_begin || out_end <= begin, "out shares memory with an input");
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
    take_window(arguments, conv);
  }
  const bool real = kSign || kKind == kTree ? false : arguments.truth("real must be true or false");
  if (x.scalar_type() == ScalarType::Int) {
    require(!real, "packed signs are not real activations");
    conv.input = FERRYMAN_BITS;
  } else {
    require(x.scalar_type() == ScalarType::Float, "x must be float32, or packed signs in int32");
    conv.input = real ? FERRYMAN_REALS : FERRYMAN_SIGNS;
  }
  take_images(x, kKind == kLinear, conv);
  ferryman_binary_sizes sizes;
  if (const char* const problem = ferryman_binary_check(&conv, &sizes)) {
    throw Refused{problem};
  }
  ferryman_binary_call call = {};
  require(static_cast<int64_t>(x.numel()) == sizes.input, "x has another number of elements than its channels need");
  call.input = x.const_data_ptr();
  const int64_t words = kKind == kTree ? static_cast<int64_t>(weight.numel()) : sizes.weights;  // a tree says its own
  call.weights = reinterpret_cast<const uint32_t*>(
      data_of<int32_t>(weight, words, "weight has another number of words than the numbers ask for"));
  if (kSign) {
    call.threshold = data_of<int32_t>(*threshold, sizes.per_channel, "threshold must be one an output channel");
  } else {
    call.scale = data_of<float>(*scale, sizes.per_channel, "scale must be one an output channel");
    call.bias = data_of<float>(*bias, sizes.per_channel, "bias must be one an output channel");
  }
  call.output = sized(arguments.next(), x, kKind == kLinear, conv, sizes);
  for (const Tensor* const read : {&x, &weight, threshold, scale, bias}) {
    if (read != nullptr) {
      require_apart(*read, call.output, sizes.output);
    }
  }
  call.threads = 1;
  if (!NoThreadPoolGuard::is_enabled()) {
    call.parallel = run_in_pool;
    call.threads = static_cast<int32_t>(executorch::extension::threadpool::get_threadpool()->get_thread_count());
  }
  const char* const problem =
      kKind == kTree ? ferryman_tree_run(&conv, &call, words) : ferryman_binary_run(&conv, &call);
  if (problem) {
    throw Refused{problem};
  }
}

template <Kind kKind, bool kSign>
void guarded(et::KernelRuntimeContext& context, et::Span<et::EValue*> stack) {
  try {
    compute<kKind, kSign>(stack);
  } catch (const Refused& refused) {
    ET_LOG(Error, "ferryman::binary_%s%s: %s", kNames[kKind], kSign ? "_sign" : "", refused.what);
    context.fail(et::Error::InvalidArgument);
  }
}

const et::Kernel kOperators[] = {
    et::Kernel("ferryman::binary_conv2d.out", guarded<kConv, false>),
    et::Kernel("ferryman::binary_conv2d_sign.out", guarded<kConv, true>),
    et::Kernel("ferryman::binary_conv2d_tree.out", guarded<kTree, false>),
    et::Kernel("ferryman::binary_conv2d_tree_sign.out", guarded<kTree, true>),
    et::Kernel("ferryman::binary_linear.out", guarded<kLinear, false>),
    et::Kernel("ferryman::binary_linear_sign.out", guarded<kLinear, true>),
};

// Once in a process: registering a name again is fatal, and another copy of this library may have been loaded.
bool register_operators() {
  for (const et::Kernel& kernel : et::get_registered_kernels()) {
    if (strcmp(kernel.name_, kOperators[0].name_) == 0) {
      return true;
    }
  }
  return et::register_kernels({kOperators, sizeof kOperators / sizeof *kOperators}) == et::Error::Ok;
}

[[maybe_unused]] const bool registered = register_operators();

} // namespace
} // namespace ferryman
