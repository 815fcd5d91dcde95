#include "operator.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

namespace ferryman::tflite {
namespace {

size_t element_bytes(int type) {
  switch (type) {
    case kUint8:
    case kInt8:
      return 1;
    case kFloat16:
      return 2;
    case kInt64:
      return 8;
    default:
      return 4;
  }
}

Tensor& tensor_at(Context* context, int index, const char* what) {
  if (index < 0 || static_cast<size_t>(index) >= context->tensors_size) {
    throw Refused(std::string(what) + " is missing");
  }
  return context->tensors[index];
}

void check_type(const Tensor& tensor, const char* what, Type type) {
  if (tensor.type != type) {
    refuse(what, type_name(type), type_name(tensor.type));
  }
}

bool is_constant(const Tensor& tensor) {
  return tensor.allocation_type == kMmapRo || tensor.allocation_type == kPersistentRo;
}

} // namespace

void Operator::prepare(Context* context) {
  prepared_ = false;
  check(context);
  prepared_ = true;
}

void Operator::invoke(Context* context) const {
  if (!prepared_) {
    throw Refused("not prepared");
  }
  const Tensor& output = context->tensors[claim_.outputs[0]];
  const auto out = reinterpret_cast<uintptr_t>(output.data);
  for (const int index : claim_.inputs) {  // what is read while the output is written must lie elsewhere
    const Tensor& tensor = context->tensors[index];
    const auto begin = reinterpret_cast<uintptr_t>(tensor.data);
    if (begin < out + output.bytes && out < begin + tensor.bytes) {
      throw Refused("the output shares memory with an input");
    }
  }
  run(context);
}

void Operator::check_options(int32_t version, size_t count) const {
  const size_t found = claim_.options_bytes;
  const std::string expected = std::to_string(count * sizeof claim_.options[0]) + " bytes";
  if (found < sizeof claim_.options[0]) {
    refuse("options", expected, std::to_string(found));
  }
  if (option(0) != version) {
    refuse("options", "version " + std::to_string(version), "version " + std::to_string(option(0)));
  }
  if (found != count * sizeof claim_.options[0]) {
    refuse("options", expected, std::to_string(found));
  }
}

void Operator::check_counts(size_t expected) const {
  check_counts(expected, expected);
}

void Operator::check_counts(size_t expected, size_t or_else) const {
  if ((inputs() != expected && inputs() != or_else) || claim_.outputs.size() != 1) {
    const std::string other = or_else == expected ? "" : " or " + std::to_string(or_else);
    refuse("node", std::to_string(expected) + other + " inputs and 1 output",
           std::to_string(inputs()) + " and " + std::to_string(claim_.outputs.size()));
  }
}

float Operator::real_option(size_t at, const char* what) const {
  float value;
  memcpy(&value, &claim_.options[at], sizeof value);
  if (!std::isfinite(value)) {
    throw Refused(std::string(what) + " is not finite");
  }
  return value;
}

const Tensor& Operator::input(Context* context, size_t at, const char* what) const {
  return tensor_at(context, claim_.inputs[at], what);
}

const Tensor& Operator::input(Context* context, size_t at, const char* what, Type type) const {
  const Tensor& tensor = input(context, at, what);
  check_type(tensor, what, type);
  return tensor;
}

void Operator::check_constant(Context* context, size_t at, const char* what, Type type, int64_t elements) const {
  const Tensor& tensor = input(context, at, what, type);
  if (!is_constant(tensor)) {
    throw Refused(std::string(what) + " must be constant");
  }
  check_elements(tensor, what, elements);
}

void Operator::check_bytes(Context* context, size_t at, const char* what, int64_t elements) const {
  check_constant(context, at, what, input(context, at, what).type == kInt8 ? kInt8 : kUint8, elements);
}

int64_t Operator::check_bytes(Context* context, size_t at, const char* what) const {
  const auto bytes = static_cast<int64_t>(input(context, at, what).bytes);
  check_bytes(context, at, what, bytes);
  return bytes;
}

void Operator::resize_output(Context* context, Type type, const Shape& shape) const {
  const int index = claim_.outputs[0];
  Tensor& output = tensor_at(context, index, "output");
  check_type(output, "output", type);
  if (is_constant(output) || std::count(claim_.inputs.begin(), claim_.inputs.end(), index) != 0) {
    throw Refused("the output must be neither constant nor an input");
  }
  if (context->ResizeTensor(context, &output, to_array(shape).release()) != kOk) {
    throw Refused("the output cannot be resized");
  }
}

void* Operator::data_of(const Tensor& tensor, const char* what, int64_t elements, size_t bytes, size_t alignment) {
  check_elements(tensor, what, elements, bytes);
  if (tensor.data == nullptr || reinterpret_cast<uintptr_t>(tensor.data) % alignment != 0) {
    throw Refused(std::string(what) + " has no data, or data that is not aligned");
  }
  return tensor.data;
}

void Operator::run_on_pool(void* pool, void (*body)(void*, size_t), void* argument, size_t tasks) {
  static_cast<Pool*>(pool)->run(body, argument, tasks);
}

void refuse(const std::string& what, const std::string& expected, const std::string& found) {
  throw Refused(what + ": expected " + expected + ", found " + found);
}

void require_none(const char* problem) {
  if (problem != nullptr) {
    throw Refused(problem);
  }
}

void check_elements(const Tensor& tensor, const char* what, int64_t elements) {
  check_elements(tensor, what, elements, element_bytes(tensor.type));
}

void check_elements(const Tensor& tensor, const char* what, int64_t elements, size_t bytes) {
  if (tensor.bytes != static_cast<size_t>(elements) * bytes) {
    refuse(what, std::to_string(elements) + " elements", std::to_string(tensor.bytes / bytes));
  }
}

std::string type_name(int type) {
  switch (type) {
    case kFloat32:
      return "float32";
    case kInt32:
      return "int32";
    case kUint8:
      return "uint8";
    case kInt64:
      return "int64";
    case kInt8:
      return "int8";
    case kFloat16:
      return "float16";
    default:
      return "type " + std::to_string(type);
  }
}

Shape to_shape(const IntArray* array) {
  return array == nullptr ? Shape() : Shape(array->data, array->data + array->size);
}

Shape shape_of_images(const Tensor& x) {
  Shape shape = to_shape(x.dims);
  if (shape.size() != 4) {
    refuse("x", "rank 4", "rank " + std::to_string(shape.size()));
  }
  return shape;
}

Shape shape_of_rows(const Tensor& x) {
  Shape shape = to_shape(x.dims);
  if (shape.empty()) {
    refuse("x", "rank 1 or more", "rank 0");
  }
  return shape;
}

Shape to_images(int batch, int height, int width, int channels, bool last) {
  return last ? Shape{batch, height, width, channels} : Shape{batch, channels, height, width};
}

void check_channels(int found, int32_t expected) {
  if (found != expected) {
    refuse("x", "channels " + std::to_string(expected), std::to_string(found));
  }
}

int32_t product(const Shape& shape, size_t skipped) {
  int64_t product = 1;
  for (size_t i = 0; i + skipped < shape.size(); ++i) {
    product = std::min<int64_t>(product * std::max(shape[i], 0), INT32_MAX);
  }
  return static_cast<int32_t>(product);
}

void Free::operator()(void* memory) const {
  free(memory);
}

OwnedArray to_array(const Shape& values) {
  OwnedArray array(static_cast<IntArray*>(malloc(sizeof(IntArray) + values.size() * sizeof(int))));
  if (!array) {
    throw std::bad_alloc();
  }
  array->size = static_cast<int>(values.size());
  std::copy(values.begin(), values.end(), array->data);
  return array;
}

} // namespace ferryman::tflite
