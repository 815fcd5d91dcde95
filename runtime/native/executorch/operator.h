// What ferryman's operators for ExecuTorch share: taking what an artifact gives, checked, and saying what is wrong with it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include <executorch/extension/threadpool/threadpool_guard.h>
#include <executorch/runtime/core/exec_aten/util/tensor_util.h>
#include <executorch/runtime/kernel/kernel_runtime_context.h>
#include <executorch/runtime/kernel/operator_registry.h>

#include "threadpool.h"

namespace ferryman {

namespace et = executorch::runtime;
using executorch::aten::ScalarType;
using executorch::aten::SizesType;
using executorch::aten::Tensor;

constexpr size_t kImageRank = 4;

// What is wrong, thrown within an operator and reported by it.
struct Refused {
  const char* what;
};

inline void require(bool holds, const char* what) {
  if (!holds) {
    throw Refused{what};
  }
}

// NULL: nothing is wrong.
inline void require_none(const char* problem) {
  if (problem != nullptr) {
    throw Refused{problem};
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

  // uint8, or int8 from converters that write no constants of uint8.
  Tensor& bytes(const char* what) {
    Tensor& found = any_tensor(what);
    require(found.scalar_type() == ScalarType::Byte || found.scalar_type() == ScalarType::Char, what);
    return found;
  }

  // Whether nothing is given for an optional argument; that is then taken.
  bool none() {
    const bool is_none = at_ < stack_.size() && stack_[at_] != nullptr && stack_[at_]->isNone();
    at_ += is_none;
    return is_none;
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

  float real(const char* what) {
    et::EValue& value = next();
    require(value.isDouble(), what);
    const auto narrowed = static_cast<float>(value.toDouble());
    require(std::isfinite(narrowed), what);
    return narrowed;
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

// kernel_size, stride, padding and dilation, of either kind of convolution.
template <typename Conv>
void take_window(Arguments& arguments, Conv& conv) {
  arguments.numbers({&conv.kernel_h, &conv.kernel_w}, "kernel_size must be two numbers");
  arguments.numbers({&conv.stride_h, &conv.stride_w}, "stride must be two numbers");
  arguments.numbers(
      {&conv.pad_top, &conv.pad_left, &conv.pad_bottom, &conv.pad_right}, "padding must be four numbers");
  arguments.numbers({&conv.dilation_h, &conv.dilation_w}, "dilation must be two numbers");
  conv.groups = arguments.number("groups must be a number");
}

// What all dimensions but the last make together.
inline int32_t rows_of(const Tensor& x) {
  require(x.dim() >= 1, "x must have a dimension");
  int64_t rows = 1;
  for (ssize_t i = 0; i + 1 < x.dim(); ++i) {
    rows *= x.size(i);
    require(rows <= INT32_MAX, "x has too many rows");
  }
  return static_cast<int32_t>(rows);
}

// Numbers of the images from x, [N, C, H, W] or [N, H, W, C]; its channels are for the caller to compare.
template <typename Conv>
ssize_t take_images(const Tensor& x, bool last, Conv& conv) {
  require(x.dim() == static_cast<ssize_t>(kImageRank), "x must have four dimensions");
  conv.batch = static_cast<int32_t>(x.size(0));
  conv.height = static_cast<int32_t>(x.size(last ? 1 : 2));
  conv.width = static_cast<int32_t>(x.size(last ? 2 : 3));
  return x.size(last ? 3 : 1);
}

// A memory plan may put a tensor anywhere.
template <typename T>
const T* data_of(const Tensor& tensor, int64_t count, const char* what) {
  require(static_cast<int64_t>(tensor.numel()) == count, what);
  const T* const data = tensor.const_data_ptr<T>();
  require(data != nullptr || count == 0, "a tensor has no memory");
  require(reinterpret_cast<uintptr_t>(data) % alignof(T) == 0, "a tensor's memory is not aligned");
  return data;
}

// A tensor's shape while it is put together.
struct Shape {
  SizesType sizes[et::kTensorDimensionLimit];
  size_t rank;

  // [N, H, W, C], or [N, C, H, W].
  static Shape images(SizesType batch, SizesType height, SizesType width, SizesType channels, bool last) {
    if (last) {
      return {{batch, height, width, channels}, kImageRank};
    }
    return {{batch, channels, height, width}, kImageRank};
  }

  // The first `leading` dimensions of x, and one more.
  static Shape rows(const Tensor& x, ssize_t leading, SizesType channels) {
    Shape shape = {{}, static_cast<size_t>(leading) + 1};
    require(shape.rank <= et::kTensorDimensionLimit, "x has too many dimensions");
    for (ssize_t i = 0; i < leading; ++i) {
      shape.sizes[i] = static_cast<SizesType>(x.size(i));
    }
    shape.sizes[leading] = channels;
    return shape;
  }

  bool is_of(const Tensor& tensor) const {
    const auto& found = tensor.sizes();
    return found.size() == rank && std::equal(found.begin(), found.end(), sizes);
  }
};

// Resizes out to what is computed.
inline Tensor& sized(et::EValue& value, ScalarType type, const Shape& shape, int64_t elements) {
  require(value.isTensor(), "out must be a tensor");
  Tensor& out = value.toTensor();
  require(out.scalar_type() == type, "out has another dtype");
  require(et::resize_tensor(out, {shape.sizes, shape.rank}) == et::Error::Ok, "out cannot take the output's shape");
  require(et::tensor_is_default_dim_order(out), "out must be in default dimension order");
  require(static_cast<int64_t>(out.numel()) == elements, "out has another size");
  const auto address = reinterpret_cast<uintptr_t>(out.mutable_data_ptr());
  require(address != 0, "out has no memory");
  require(address % out.element_size() == 0, "out's memory is not aligned");
  return out;
}

// An artifact's memory plan says where tensors lie. What is read while out is written must lie elsewhere: a tree is
// checked before it is followed. NULL: a tensor that is not given.
inline void require_apart(const Tensor* tensor, const Tensor& out) {
  if (tensor == nullptr) {
    return;
  }
  const auto begin = reinterpret_cast<uintptr_t>(tensor->const_data_ptr());
  const auto out_begin = reinterpret_cast<uintptr_t>(out.const_data_ptr());
  require(
      begin + tensor->nbytes() <= out_begin || out_begin + out.nbytes() <= begin,
      "out shares memory with an input");
}

inline void run_in_pool(void*, void (*body)(void*, size_t), void* argument, size_t tasks) {
  executorch::extension::parallel_for(0, static_cast<int64_t>(tasks), 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      body(argument, static_cast<size_t>(task));
    }
  });
}

template <typename Call>
void use_pool(Call& call) {
  namespace threadpool = executorch::extension::threadpool;
  call.threads = 1;
  if (!threadpool::NoThreadPoolGuard::is_enabled()) {
    call.parallel = run_in_pool;
    call.threads = static_cast<int32_t>(threadpool::get_threadpool()->get_thread_count());
  }
}

// Calls compute(); what it refuses becomes an error of the runtime.
template <typename Compute>
void guarded(et::KernelRuntimeContext& context, const char* name, const Compute& compute) {
  try {
    compute();
  } catch (const Refused& refused) {
    ET_LOG(Error, "ferryman::%s: %s", name, refused.what);
    context.fail(et::Error::InvalidArgument);
  }
}

// Once in a process: registering a name again is fatal, and another copy of this library may have been loaded.
template <size_t kCount>
bool register_once(const et::Kernel (&kernels)[kCount]) {
  for (const et::Kernel& kernel : et::get_registered_kernels()) {
    if (strcmp(kernel.name_, kernels[0].name_) == 0) {
      return true;
    }
  }
  return et::register_kernels({kernels, kCount}) == et::Error::Ok;
}

} // namespace ferryman
