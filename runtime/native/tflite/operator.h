// One node of an artifact that is ours: what every kind of operator does, and what they check with.
//
// The artifact is not trusted: everything is checked when the graph is prepared, and what may have changed since then
// (a tensor that several nodes write to, for one) again before it is read or written.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "abi.h"
#include "pool.h"

namespace ferryman::tflite {

using Refused = std::runtime_error;
using Shape = std::vector<int>;

constexpr size_t kOptionsMost = 26;  // of any operator

// A copy of the node, which a kernel cannot ask for later. Its own node has the same tensors, but sorted.
struct Claim {
  std::shared_ptr<Pool> pool;  // the delegate may be destroyed before the interpreter
  Shape inputs, outputs;       // tensors, in the node's own order
  int32_t options[kOptionsMost];
  size_t options_bytes;        // there may be more than fit above
};

class Operator {
 public:
  explicit Operator(Claim claim) : claim_(std::move(claim)) {}
  virtual ~Operator() = default;

  // Throw what is wrong.
  void prepare(Context* context);
  void invoke(Context* context) const;

 protected:
  virtual void check(Context* context) = 0;  // resizes the output as well
  virtual void run(Context* context) const = 0;

  void check_options(int32_t version, size_t count) const;
  void check_counts(size_t inputs) const;                 // and one output
  void check_counts(size_t inputs, size_t or_else) const;
  size_t inputs() const {
    return claim_.inputs.size();
  }
  int32_t option(size_t at) const {
    return claim_.options[at];
  }
  float real_option(size_t at, const char* what) const;

  const Tensor& input(Context* context, size_t at, const char* what) const;
  const Tensor& input(Context* context, size_t at, const char* what, Type type) const;
  void check_constant(Context* context, size_t at, const char* what, Type type, int64_t elements) const;
  // uint8, or int8 from converters that write no constants of uint8.
  void check_bytes(Context* context, size_t at, const char* what, int64_t elements) const;
  // As many as there are.
  int64_t check_bytes(Context* context, size_t at, const char* what) const;
  void resize_output(Context* context, Type type, const Shape& shape) const;

  // Data of tensors that `check` has seen; by now they may have another size, or none.
  template <typename T>
  const T* read(Context* context, size_t at, const char* what, int64_t elements) const {
    const Tensor& tensor = context->tensors[claim_.inputs[at]];
    return static_cast<const T*>(data_of(tensor, what, elements, sizeof(T), alignof(T)));
  }
  template <typename T>
  T* write(Context* context, int64_t elements) const {
    const Tensor& tensor = context->tensors[claim_.outputs[0]];
    return static_cast<T*>(data_of(tensor, "output", elements, sizeof(T), alignof(T)));
  }

  template <typename Call>
  void use_pool(Call& call) const {
    call.threads = claim_.pool->threads();
    if (call.threads > 1) {
      call.parallel = run_on_pool;
      call.pool = claim_.pool.get();
    }
  }

 private:
  static void* data_of(const Tensor& tensor, const char* what, int64_t elements, size_t bytes, size_t alignment);
  static void run_on_pool(void* pool, void (*body)(void*, size_t), void* argument, size_t tasks);

  const Claim claim_;
  bool prepared_ = false;
};

// What an artifact may name.
struct Kind {
  const char* name;
  std::unique_ptr<Operator> (*make)(Claim claim);
};

template <typename Made>
std::unique_ptr<Operator> make(Claim claim) {
  return std::make_unique<Made>(std::move(claim));
}

extern const Kind kBinaryKinds[3];
extern const Kind kQuantizedKinds[5];
extern const Kind kSparseKinds[2];

[[noreturn]] void refuse(const std::string& what, const std::string& expected, const std::string& found);

// NULL: nothing is wrong.
void require_none(const char* problem);

// The bytes count, not the shape: those of a sparse tensor are fewer.
void check_elements(const Tensor& tensor, const char* what, int64_t elements, size_t bytes_of_each);
void check_elements(const Tensor& tensor, const char* what, int64_t elements);

std::string type_name(int type);
Shape to_shape(const IntArray* array);
Shape shape_of_images(const Tensor& x);  // of rank 4
Shape shape_of_rows(const Tensor& x);    // of rank 1 or more

Shape to_images(int batch, int height, int width, int channels, bool last);
void check_channels(int found, int32_t expected);

// What dimensions make together, without the last `skipped`; more than any operator may have when it does not fit.
int32_t product(const Shape& shape, size_t skipped);

struct Free {
  void operator()(void* memory) const;
};
using OwnedArray = std::unique_ptr<IntArray, Free>;  // made by malloc
OwnedArray to_array(const Shape& values);

} // namespace ferryman::tflite
