// TFLite's external delegate for ferryman's own operators. Custom options are int32, little-endian:
//   ferryman.binary_conv2d  version, channels, out_channels, kernel_h, kernel_w, stride_h, stride_w, dilation_h,
//                           dilation_w, pad_top, pad_left, pad_bottom, pad_right, groups, pad_value, input, bits_out,
//                           channels_last
//   ferryman.binary_conv2d_tree  the same
//   ferryman.binary_linear  version, channels, out_channels, input, bits_out
// Inputs: x, [N, H, W, C], unless channels_last is 0 [N, C, H, W], or for linear layers [..., C], float32, or packed into
// int32 by pixel; the weights, int32; then scale and bias, float32, or with bits_out a threshold, int32. All but x are constant, and read where the file is mapped.
//
// The artifact is not trusted: everything is checked when the graph is prepared, and what may have changed since then
// (a tensor that several nodes write to, for one) again before it is read or written.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "abi.h"
#include "kernels.h"
#include "pool.h"

namespace ferryman::tflite {
namespace {

constexpr char kPrefix[] = "ferryman.";
constexpr char kConv[] = "ferryman.binary_conv2d";
constexpr char kTree[] = "ferryman.binary_conv2d_tree";
constexpr char kLinear[] = "ferryman.binary_linear";
constexpr int32_t kOptionsVersion = 2;
constexpr size_t kConvOptions = 18;
constexpr size_t kLinearOptions = 5;
constexpr int kThreadsMax = 1024;
constexpr int64_t kElementBytes = 4;  // of every tensor here

using Refused = std::runtime_error;
using Shape = std::vector<int>;

// A node of the artifact.
struct Operator {
  const char* name;
  std::shared_ptr<Pool> pool;  // the delegate may be destroyed before the interpreter
  Shape inputs, outputs;       // tensors, in the node's own order
  int32_t options[kConvOptions];
  size_t options_bytes;        // there may be more than fit above

  // Known after Prepare, when it went well.
  bool prepared;
  ferryman_binary_conv conv;
  ferryman_binary_sizes sizes;
  int64_t weights;             // words: as many as the sizes say, or the tree's own number

  bool tree() const {
    return name == kTree;
  }
  bool linear() const {
    return name == kLinear;
  }
  // Whether a tensor of images, packed or not, has its channels first.
  bool first(bool packed) const {
    return !linear() && !packed && options[17] == 0;
  }
};

// What the delegate owns.
struct Owned {
  std::shared_ptr<Pool> pool;
  size_t claimed;  // nodes, so far
};

struct Free {
  void operator()(void* memory) const {
    free(memory);
  }
};
using OwnedArray = std::unique_ptr<IntArray, Free>;

Shape to_shape(const IntArray* array) {
  return array == nullptr ? Shape() : Shape(array->data, array->data + array->size);
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

std::string type_name(int type) {
  return type == kFloat32 ? "float32" : type == kInt32 ? "int32" : "type " + std::to_string(type);
}

[[noreturn]] void refuse(const std::string& what, const std::string& expected, const std::string& found) {
  throw Refused(what + ": expected " + expected + ", found " + found);
}

// Calls body(); what it throws becomes an error of the interpreter.
template <typename Body>
Status guarded(Context* context, const char* name, const Body& body) {
  try {
    body();
    return kOk;
  } catch (const std::exception& error) {
    context->ReportError(context, "%s: %s. ", name, error.what());  // the interpreter goes on in the same line
    return kError;
  }
}

Tensor& tensor_at(Context* context, int index, const std::string& what, int type) {
  if (index < 0 || static_cast<size_t>(index) >= context->tensors_size) {
    throw Refused(what + " is missing");
  }
  Tensor& tensor = context->tensors[index];
  if (tensor.type != type) {
    refuse(what, type_name(type), type_name(tensor.type));
  }
  return tensor;
}

// The bytes count, not the shape: those of a sparse tensor are fewer.
void check_elements(const Tensor& tensor, const std::string& what, int64_t elements) {
  if (tensor.bytes != static_cast<size_t>(elements * kElementBytes)) {
    const std::string found = std::to_string(tensor.bytes / kElementBytes);
    refuse(what, std::to_string(elements) + " elements", found);
  }
}

bool is_constant(const Tensor& tensor) {
  return tensor.allocation_type == kMmapRo || tensor.allocation_type == kPersistentRo;
}

void check_constant(Context* context, int index, const std::string& what, int type, int64_t elements) {
  const Tensor& tensor = tensor_at(context, index, what, type);
  if (!is_constant(tensor)) {
    throw Refused(what + " must be constant");
  }
  check_elements(tensor, what, elements);
}

void check_options(const Operator& op) {
  const size_t count = op.linear() ? kLinearOptions : kConvOptions;
  if (op.options_bytes < sizeof op.options[0]) {
    refuse("options", std::to_string(count * sizeof op.options[0]) + " bytes", std::to_string(op.options_bytes));
  }
  if (op.options[0] != kOptionsVersion) {
    refuse("options", "version " + std::to_string(kOptionsVersion), "version " + std::to_string(op.options[0]));
  }
  if (op.options_bytes != count * sizeof op.options[0]) {
    refuse("options", std::to_string(count * sizeof op.options[0]) + " bytes", std::to_string(op.options_bytes));
  }
}

int32_t input_kind(const Operator& op) {
  return op.options[op.linear() ? 3 : 15];
}

bool bits_out(const Operator& op) {
  return op.options[op.linear() ? 4 : 16] != 0;
}

// What all dimensions but the last make together; more than any convolution may have when it does not fit.
int32_t product_of_leading(const Shape& shape) {
  int64_t product = 1;
  for (size_t i = 0; i + 1 < shape.size(); ++i) {
    product = std::min<int64_t>(product * std::max(shape[i], 0), INT32_MAX);
  }
  return static_cast<int32_t>(product);
}

ferryman_binary_conv to_conv(const Operator& op, const Shape& x) {
  const int32_t* const o = op.options;
  if (op.linear()) {
    return {product_of_leading(x), 1, 1, o[1], o[2], 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 0, o[3], o[4],
            FERRYMAN_CHANNELS_LAST};
  }
  const size_t height = op.first(input_kind(op) == FERRYMAN_BITS) ? 2 : 1;
  return {x[0], x[height], x[height + 1], o[1], o[2], o[3], o[4], o[5], o[6], o[7], o[8], o[9], o[10], o[11], o[12],
          o[13], o[14], o[15], o[16], o[17] ? FERRYMAN_CHANNELS_LAST : FERRYMAN_CHANNELS_FIRST};
}

int words_for(int32_t channels) {
  return (channels + 31) / 32;
}

// Data of a tensor that prepare has seen; by now it may have another size, or none.
template <typename T>
T* data_of(Context* context, int index, const char* what, int64_t elements) {
  const Tensor& tensor = context->tensors[index];
  check_elements(tensor, what, elements);
  if (tensor.data == nullptr || reinterpret_cast<uintptr_t>(tensor.data) % alignof(T) != 0) {
    throw Refused(std::string(what) + " has no data, or data that is not aligned");
  }
  return static_cast<T*>(tensor.data);
}

void prepare(Context* context, Operator& op) {
  op.prepared = false;
  check_options(op);
  const size_t inputs = bits_out(op) ? 3 : 4;
  if (op.inputs.size() != inputs || op.outputs.size() != 1) {
    refuse("node", std::to_string(inputs) + " inputs and 1 output",
           std::to_string(op.inputs.size()) + " and " + std::to_string(op.outputs.size()));
  }
  const bool packed = input_kind(op) == FERRYMAN_BITS;
  const Tensor& x = tensor_at(context, op.inputs[0], "x", packed ? kInt32 : kFloat32);
  Shape shape = to_shape(x.dims);
  if (op.linear() ? shape.empty() : shape.size() != 4) {
    refuse("x", op.linear() ? "rank 1 or more" : "rank 4", "rank " + std::to_string(shape.size()));
  }
  op.conv = to_conv(op, shape);
  if (const char* const problem = ferryman_binary_check(&op.conv, &op.sizes)) {
    throw Refused(problem);
  }
  const int last = packed ? words_for(op.conv.channels) : op.conv.channels;
  const int found = op.first(packed) ? shape[1] : shape.back();
  if (found != last) {
    refuse("x", (packed ? "words " : "channels ") + std::to_string(last), std::to_string(found));
  }
  check_elements(x, "x", op.sizes.input);
  op.weights = op.sizes.weights;
  if (op.tree()) {
    op.weights = static_cast<int64_t>(tensor_at(context, op.inputs[1], "weights", kInt32).bytes / kElementBytes);
  }
  check_constant(context, op.inputs[1], "weights", kInt32, op.weights);
  if (op.tree()) {  // each run looks again
    const auto* const tree = data_of<uint32_t>(context, op.inputs[1], "weights", op.weights);
    if (const char* const problem = ferryman_tree_check(&op.conv, tree, op.weights)) {
      throw Refused(problem);
    }
  }
  if (bits_out(op)) {
    check_constant(context, op.inputs[2], "threshold", kInt32, op.sizes.per_channel);
  } else {
    check_constant(context, op.inputs[2], "scale", kFloat32, op.sizes.per_channel);
    check_constant(context, op.inputs[3], "bias", kFloat32, op.sizes.per_channel);
  }

  Tensor& output = tensor_at(context, op.outputs[0], "output", bits_out(op) ? kInt32 : kFloat32);
  if (is_constant(output) || op.outputs[0] == op.inputs[0]) {
    throw Refused("the output must be neither constant nor an input");
  }
  const int channels = bits_out(op) ? words_for(op.conv.out_channels) : op.conv.out_channels;
  if (op.linear()) {
    shape.back() = channels;
  } else if (op.first(bits_out(op))) {
    shape = {shape[0], channels, op.sizes.out_height, op.sizes.out_width};
  } else {
    shape = {shape[0], op.sizes.out_height, op.sizes.out_width, channels};
  }
  if (context->ResizeTensor(context, &output, to_array(shape).release()) != kOk) {
    throw Refused("the output cannot be resized");
  }
  op.prepared = true;
}

void run_on_pool(void* pool, void (*body)(void*, size_t), void* argument, size_t tasks) {
  static_cast<Pool*>(pool)->run(body, argument, tasks);
}

void invoke(Context* context, const Operator& op) {
  if (!op.prepared) {
    throw Refused("not prepared");
  }
  ferryman_binary_call call{};
  call.input = data_of<uint32_t>(context, op.inputs[0], "x", op.sizes.input);
  call.weights = data_of<uint32_t>(context, op.inputs[1], "weights", op.weights);
  if (bits_out(op)) {
    call.threshold = data_of<int32_t>(context, op.inputs[2], "threshold", op.sizes.per_channel);
  } else {
    call.scale = data_of<float>(context, op.inputs[2], "scale", op.sizes.per_channel);
    call.bias = data_of<float>(context, op.inputs[3], "bias", op.sizes.per_channel);
  }
  call.output = data_of<uint32_t>(context, op.outputs[0], "output", op.sizes.output);
  call.threads = op.pool->threads();
  if (call.threads > 1) {
    call.parallel = run_on_pool;
    call.pool = op.pool.get();
  }
  const char* const problem =
      op.tree() ? ferryman_tree_run(&op.conv, &call, op.weights) : ferryman_binary_run(&op.conv, &call);
  if (problem != nullptr) {
    throw Refused(problem);
  }
}

// Its name, as one of the constants above; NULL when it is none of ferryman's.
const char* name_of(const Registration& registration) {
  const char* const name = registration.custom_name;
  if (registration.builtin_code != kCustomOperator || name == nullptr ||
      strncmp(name, kPrefix, sizeof kPrefix - 1) != 0) {
    return nullptr;
  }
  for (const char* const known : {kConv, kTree, kLinear}) {
    if (strcmp(name, known) == 0) {
      return known;
    }
  }
  throw Refused(std::string("this installation has no operator ") + name + "; install a later ferryman");
}

Node* node_at(Context* context, int index, Registration** registration) {
  Node* node = nullptr;
  if (context->GetNodeAndRegistration(context, index, &node, registration) != kOk) {
    throw Refused("node " + std::to_string(index) + " cannot be read");
  }
  return node;
}

// Copies the node, which a kernel cannot ask for later. Its own node has the same tensors, but sorted.
void* init_kernel(Context* context, const char* buffer, size_t) {
  const auto* const params = reinterpret_cast<const DelegateParams*>(buffer);
  std::unique_ptr<Operator> op;
  guarded(context, "ferryman", [&] {
    auto* const owned = static_cast<Owned*>(params->delegate->data);
    Registration* registration = nullptr;
    const Node* const node = node_at(context, params->nodes_to_replace->data[0], &registration);
    op = std::make_unique<Operator>();
    op->name = name_of(*registration);
    op->pool = owned->pool;
    op->inputs = to_shape(node->inputs);
    op->outputs = to_shape(node->outputs);
    if (node->custom_initial_data != nullptr && node->custom_initial_data_size > 0) {
      op->options_bytes = static_cast<size_t>(node->custom_initial_data_size);
      memcpy(op->options, node->custom_initial_data, std::min(op->options_bytes, sizeof op->options));
    }
    ++owned->claimed;
  });
  return op.release();
}

void free_kernel(Context*, void* user_data) {
  delete static_cast<Operator*>(user_data);
}

Status prepare_kernel(Context* context, Node* node) {
  auto* const op = static_cast<Operator*>(node->user_data);
  if (op == nullptr) {
    return kError;  // reported when it could not be made
  }
  return guarded(context, op->name, [&] { prepare(context, *op); });
}

Status invoke_kernel(Context* context, Node* node) {
  const auto& op = *static_cast<const Operator*>(node->user_data);
  return guarded(context, op.name, [&] { invoke(context, op); });
}

// Claims ferryman's operators one by one: tensors inside a claim of several nodes would get no memory. Interpreters
// drop a node without a word when its outputs were there before it, so the claims are counted.
Status prepare_delegate(Context* context, Delegate* delegate) {
  return guarded(context, "ferryman", [&] {
    const Owned& owned = *static_cast<const Owned*>(delegate->data);
    IntArray* plan = nullptr;
    if (context->GetExecutionPlan(context, &plan) != kOk) {
      throw Refused("the execution plan cannot be read");
    }
    for (const int index : to_shape(plan)) {
      Registration* found = nullptr;
      node_at(context, index, &found);
      const char* const name = name_of(*found);
      if (name == nullptr) {
        continue;
      }
      Registration registration{};
      registration.init = init_kernel;
      registration.free = free_kernel;
      registration.prepare = prepare_kernel;
      registration.invoke = invoke_kernel;
      registration.custom_name = name;
      registration.version = 1;
      const OwnedArray nodes = to_array({index});
      const size_t before = owned.claimed;
      if (context->ReplaceNodeSubsetsWithDelegateKernels(context, registration, nodes.get(), delegate) != kOk ||
          owned.claimed != before + 1) {
        throw Refused(std::string(name) + " cannot be claimed; its outputs must be written by no other");
      }
    }
  });
}

int read_threads(const char* text) {
  char* end = nullptr;
  const long threads = strtol(text, &end, 10);
  if (end == text || *end != '\0' || threads < 1 || threads > kThreadsMax) {
    refuse("num_threads", "1 to " + std::to_string(kThreadsMax), std::string("'") + text + "'");
  }
  return static_cast<int>(threads);
}

Delegate* create(char** keys, char** values, size_t count) {
  int threads = 1;
  for (size_t i = 0; i < count; ++i) {
    if (strcmp(keys[i], "num_threads") != 0) {
      refuse("options", "num_threads", std::string("'") + keys[i] + "'");
    }
    threads = read_threads(values[i]);
  }
  auto owned = std::make_unique<Owned>(Owned{Pool::make(threads), 0});
  auto* const delegate = new Delegate{};
  delegate->data = owned.release();
  delegate->Prepare = prepare_delegate;
  delegate->flags = kAllowDynamicTensors;
  return delegate;
}

void destroy(Delegate* delegate) {
  if (delegate != nullptr) {
    delete static_cast<Owned*>(delegate->data);
    delete delegate;
  }
}

} // namespace
} // namespace ferryman::tflite

#define FERRYMAN_EXPORT extern "C" __attribute__((visibility("default")))

// NULL when an option is wrong or memory or threads are not to be had; report_error, if given, hears why.
FERRYMAN_EXPORT ferryman::tflite::Delegate* tflite_plugin_create_delegate(
    char** keys, char** values, size_t count, void (*report_error)(const char*)) {
  try {
    return ferryman::tflite::create(keys, values, count);
  } catch (const std::exception& error) {
    if (report_error != nullptr) {
      report_error(error.what());
    }
    return nullptr;
  }
}

FERRYMAN_EXPORT void tflite_plugin_destroy_delegate(ferryman::tflite::Delegate* delegate) {
  ferryman::tflite::destroy(delegate);
}
