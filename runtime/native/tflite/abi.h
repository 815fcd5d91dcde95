// The part of TFLite's C interface that a delegate needs, declared anew because no wheel carries the header.
//
// The order of the fields is that of tflite/core/c/common.h in LiteRT (Apache-2.0), read after its version 2.2.0; the
// comments and names here are ours. Run on tflite-runtime 2.14.0 and ai-edge-litert 2.3.0, both with one binary. Where
// the interpreter makes a structure and hands out a pointer, the fields after the last one used are left out.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ferryman::tflite {

enum Status : int { kOk = 0, kError = 1 };

enum Type : int { kFloat32 = 1, kInt32 = 2, kUint8 = 3, kInt64 = 4, kInt8 = 9, kFloat16 = 10 };

enum AllocationType : int { kMmapRo = 1, kPersistentRo = 5 };

constexpr int32_t kCustomOperator = 32;      // builtin_code of a custom operator
constexpr int64_t kAllowDynamicTensors = 1;  // without it, nodes are prepared before the delegate has claimed them

struct IntArray {
  int size;
  int data[1];  // `size` of them
};

// Whole, because the interpreter has an array of them.
struct Tensor {
  int type;
  void* data;
  IntArray* dims;
  float quantization_scale;
  int32_t quantization_zero_point;
  int allocation_type;
  size_t bytes;
  const void* allocation;
  const char* name;
  void* delegate;
  int buffer_handle;
  bool data_is_stale;
  bool is_variable;
  int quantization_type;
  void* quantization_params;
  void* sparsity;
  const IntArray* dims_signature;
};
static_assert(sizeof(void*) != 8 || sizeof(Tensor) == 112);

struct Node {
  IntArray* inputs;
  IntArray* outputs;
  IntArray* intermediates;
  IntArray* temporaries;
  void* user_data;     // what init returned
  void* builtin_data;
  const void* custom_initial_data;  // the custom options; not aligned
  int custom_initial_data_size;
};

struct Context;
struct Delegate;

// Passed by value, so it ends in zeros for what a later interpreter may have added.
struct Registration {
  void* (*init)(Context*, const char* buffer, size_t length);  // of a delegate's node: buffer is its DelegateParams
  void (*free)(Context*, void* user_data);
  Status (*prepare)(Context*, Node*);
  Status (*invoke)(Context*, Node*);
  const char* (*profiling_string)(const Context*, const Node*);
  int32_t builtin_code;
  const char* custom_name;
  int version;
  void* registration_external;
  void* async_kernel;
  uint64_t inplace_operator;
  void* later[4];
};

struct DelegateParams {
  Delegate* delegate;
  IntArray* nodes_to_replace;
  IntArray* input_tensors;
  IntArray* output_tensors;
};

struct Context {
  size_t tensors_size;
  Status (*GetExecutionPlan)(Context*, IntArray** plan);  // the array is the interpreter's, until the plan changes
  Tensor* tensors;
  void* impl;
  Status (*ResizeTensor)(Context*, Tensor*, IntArray* dims);  // frees `dims`, which malloc made
  void (*ReportError)(Context*, const char* format, ...) __attribute__((format(printf, 2, 3)));
  Status (*AddTensors)(Context*, int count, int* first);
  Status (*GetNodeAndRegistration)(Context*, int node, Node**, Registration**);  // for delegates only, not for kernels
  Status (*ReplaceNodeSubsetsWithDelegateKernels)(Context*, Registration, const IntArray* nodes, Delegate*);
};

// Made here and read by the interpreter, so it ends in zeros as well.
struct Delegate {
  void* data;
  Status (*Prepare)(Context*, Delegate*);
  Status (*CopyFromBufferHandle)(Context*, Delegate*, int handle, Tensor*);
  Status (*CopyToBufferHandle)(Context*, Delegate*, int handle, Tensor*);
  void (*FreeBufferHandle)(Context*, Delegate*, int* handle);
  int64_t flags;
  void* opaque_delegate_builder;
  void* later[4];
};

} // namespace ferryman::tflite
