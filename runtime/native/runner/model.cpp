#include "model.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

#include "error.h"
#include "files.h"
#include "system.h"
#include "weights.h"

namespace ferryman {
namespace {

struct Kind {
  const char* name;
  int64_t bytes;
};

// By ExecuTorch's ScalarType numbers.
Kind kind_of(int32_t dtype, const std::string& which) {
  constexpr Kind kKinds[] = {
      {"uint8", 1}, {"int8", 1}, {"int16", 2}, {"int32", 4}, {"int64", 8}, {"float16", 2}, {"float32", 4}, {"float64", 8}};
  if (dtype == 11) {
    return {"bool", 1};
  }
  if (dtype < 0 || dtype >= static_cast<int32_t>(sizeof kKinds / sizeof kKinds[0])) {
    blame_package(
        which + ": expected an integer of 8 to 64 bits, float16, float32, float64 or bool, found ExecuTorch's dtype number " +
        std::to_string(dtype));
  }
  return kKinds[dtype];
}

std::string text_of(const int32_t* sizes, size_t count) {
  std::string text;
  for (size_t i = 0; i < count; ++i) {
    text += (i == 0 ? "" : "x") + std::to_string(sizes[i]);
  }
  return text.empty() ? "a scalar" : text;
}

size_t bytes_of(const ferryman_et_tensor& tensor, const int32_t* sizes, const std::string& which) {
  int64_t bytes = kind_of(tensor.dtype, which).bytes;
  for (int32_t i = 0; i < tensor.ndim; ++i) {
    if (sizes[i] < 0 || __builtin_mul_overflow(bytes, sizes[i], &bytes)) {
      blame_package(which + ": the sizes " + text_of(sizes, static_cast<size_t>(tensor.ndim)) + " are no sizes of a tensor");
    }
  }
  if (bytes > 0 && tensor.data == nullptr) {
    blame_package(which + " has no memory");
  }
  return static_cast<size_t>(bytes);
}

std::string name_of(const char* kind, size_t index) {
  return kind + ("_" + std::to_string(index));
}

bool any_dynamic(const ferryman_et_tensor* tensors, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    if (tensors[i].dynamic) {
      return true;
    }
  }
  return false;
}

// Who is at fault: numbers as in session.h, and ExecuTorch's (runtime/core/error.h).
[[noreturn]] void blame(int code, const char* otherwise) {
  const std::string message = ferryman_et_error();
  switch (code) {
    case FERRYMAN_ET_THREADS_BUSY:
    case FERRYMAN_ET_NO_ENTRY:
      blame_caller(message);
    case FERRYMAN_ET_EXCEPTION: // std::bad_alloc
    case 0x21: // memory
    case 0x25: // resources
    case 0x31: // memory of a delegate
      blame_device(message + "; the artifact asks for more memory than there is");
    case 0x14: // operator missing
    case 0x22: // access to the file
      blame_device(message);
    case FERRYMAN_ET_UNSUPPORTED:
    case FERRYMAN_ET_ABORTED:
    case 0x23: // invalid program
      blame_package(message);
    default:
      throw Error{otherwise, message};
  }
}

// Whether each weight has to be packed once: as look_through of ferryman.runtime.weights decides.
bool shares_weights(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat found = {};
  if (file < 0 || fstat(file, &found) != 0 || found.st_size == 0) {
    close(file);
    return false;
  }
  const auto size = static_cast<size_t>(found.st_size);
  void* const bytes = mmap(nullptr, size, PROT_READ, MAP_SHARED, file, 0);
  close(file);
  if (bytes == MAP_FAILED) {
    return false;
  }
  const int32_t flags = ferryman_weights_pte(static_cast<const uint8_t*>(bytes), size);
  munmap(bytes, size);
  return (flags & FERRYMAN_WEIGHTS_PACKED) && (flags & FERRYMAN_WEIGHTS_SHARED) && !(flags & FERRYMAN_WEIGHTS_UNSAFE) &&
      !(flags & FERRYMAN_WEIGHTS_UNKNOWN);
}

} // namespace

std::vector<std::string> entries_of(const std::string& artifact) {
  require_artifact(artifact);
  const char* names = nullptr;
  if (const int code = ferryman_et_entries(artifact.c_str(), &names)) {
    blame(code, "package");
  }
  std::vector<std::string> entries(1);
  for (const char* at = names; *at != '\0'; ++at) {
    if (*at == '\n') {
      entries.emplace_back();
    } else {
      entries.back() += *at;
    }
  }
  return entries;
}

Model::Model(const std::string& artifact, const std::string& entry, int32_t threads) {
  require_artifact(artifact);
  const char* const name = entry.empty() ? nullptr : entry.c_str();
  const int64_t begin_ns = now_ns();
  if (shares_weights(artifact)) {
    // Not closed: the session keeps its weights there.
    const auto memory = static_cast<int>(syscall(SYS_memfd_create, "ferryman-packed-weights", MFD_CLOEXEC));
    const std::string cache = "/proc/self/fd/" + std::to_string(memory);
    packed_once_ =
        memory >= 0 && ferryman_et_open(artifact.c_str(), name, cache.c_str(), threads, 0, &session_) == 0;
  }
  if (!packed_once_) {
    if (const int code = ferryman_et_open(artifact.c_str(), name, nullptr, threads, 0, &session_)) {
      blame(code, "package");
    }
  }
  open_ns_ = now_ns() - begin_ns;
  input_count_ = ferryman_et_inputs(session_, &inputs_);
  output_count_ = ferryman_et_outputs(session_, &outputs_);
  if (any_dynamic(outputs_, output_count_)) {
    output_sizes_.resize(output_count_ * FERRYMAN_ET_MAX_DIMS);
  }
}

Model::~Model() {
  ferryman_et_close(session_);
}

void Model::read_inputs(const std::vector<Input>& given) {
  if (given.size() != input_count_) {
    blame_caller(
        "expected " + std::to_string(input_count_) + " inputs, found " + std::to_string(given.size()) + "; `describe` tells which");
  }
  std::vector<int32_t> all;
  for (size_t i = 0; i < input_count_; ++i) {
    const ferryman_et_tensor& tensor = inputs_[i];
    const std::string which = name_of("input", i);
    const std::vector<int32_t> bounds(tensor.sizes, tensor.sizes + tensor.ndim);
    const std::vector<int32_t>& sizes = given[i].sized ? given[i].sizes : bounds;
    bool fits = sizes.size() == bounds.size();
    for (size_t axis = 0; fits && axis < bounds.size(); ++axis) {
      fits = sizes[axis] == bounds[axis] || (tensor.dynamic && sizes[axis] >= 1 && sizes[axis] <= bounds[axis]);
    }
    if (!fits) {
      blame_caller(
          which + ": expected " + (tensor.dynamic ? "at most " : "") + text_of(bounds.data(), bounds.size()) +
          ", found " + text_of(sizes.data(), sizes.size()));
    }
    try {
      input_bytes_.push_back(read_file(given[i].path, bytes_of(tensor, sizes.data(), which)));
    } catch (const Error& error) {
      throw Error{
          error.party,
          which + " (" + kind_of(tensor.dtype, which).name + ", " + text_of(sizes.data(), sizes.size()) + "): " + error.message};
    }
    all.insert(all.end(), sizes.begin(), sizes.end());
  }
  if (any_dynamic(inputs_, input_count_)) {
    all.push_back(0); // not empty, if all are scalars
    input_sizes_ = all;
  }
}

int64_t Model::run() {
  for (size_t i = 0; i < input_count_; ++i) {
    if (!input_bytes_[i].empty()) {
      memcpy(inputs_[i].data, input_bytes_[i].data(), input_bytes_[i].size());
    }
  }
  const int32_t* const in = input_sizes_.empty() ? nullptr : input_sizes_.data();
  int32_t* const out = output_sizes_.empty() ? nullptr : output_sizes_.data();
  const int64_t begin_ns = now_ns();
  const int code = ferryman_et_run(session_, in, out);
  const int64_t taken_ns = now_ns() - begin_ns;
  if (code) {
    blame(code, "device");
  }
  return taken_ns;
}

void Model::require_outputs(size_t count) const {
  if (count != output_count_) {
    blame_caller("expected " + std::to_string(output_count_) + " outputs, found " + std::to_string(count));
  }
}

std::vector<int32_t> Model::output_shape(size_t index) const {
  size_t start = 0;
  for (size_t i = 0; i < index; ++i) {
    start += static_cast<size_t>(outputs_[i].ndim);
  }
  const int32_t* const sizes = output_sizes_.empty() ? outputs_[index].sizes : output_sizes_.data() + start;
  return {sizes, sizes + outputs_[index].ndim};
}

void Model::write_outputs(const std::vector<std::string>& paths) const {
  for (size_t i = 0; i < output_count_; ++i) {
    const std::string which = name_of("output", i);
    const ferryman_et_tensor& tensor = outputs_[i];
    const size_t bytes = bytes_of(tensor, output_shape(i).data(), which);
    if (bytes > bytes_of(tensor, tensor.sizes, which)) {
      blame_package(which + " is larger than its upper bound");
    }
    write_file(paths[i], tensor.data, bytes);
  }
}

void Model::describe_outputs(Json& json) const {
  json.begin('[');
  for (size_t i = 0; i < output_count_; ++i) {
    json.begin('{').key("dtype").string(kind_of(outputs_[i].dtype, name_of("output", i)).name);
    json.key("shape").numbers(output_shape(i)).end('}');
  }
  json.end(']');
}

void Model::describe(Json& json) const {
  const auto list = [&](const char* kind, const ferryman_et_tensor* tensors, size_t count) {
    json.key(kind + std::string("s")).begin('[');
    for (size_t i = 0; i < count; ++i) {
      const ferryman_et_tensor& tensor = tensors[i];
      json.begin('{').key("dtype").string(kind_of(tensor.dtype, name_of(kind, i)).name);
      json.key("shape").numbers(std::vector<int32_t>(tensor.sizes, tensor.sizes + tensor.ndim));
      json.key("dynamic").boolean(tensor.dynamic).end('}');
    }
    json.end(']');
  };
  list("input", inputs_, input_count_);
  list("output", outputs_, output_count_);
  json.key("planned_bytes").number(ferryman_et_planned_bytes(session_));
}

} // namespace ferryman
