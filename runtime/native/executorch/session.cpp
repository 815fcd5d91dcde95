#include "session.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <executorch/devtools/etdump/etdump_flatcc.h>
#include <executorch/extension/data_loader/mmap_data_loader.h>
#include <executorch/extension/memory_allocator/malloc_memory_allocator.h>
#include <executorch/runtime/backend/backend_options_map.h>
#include <executorch/runtime/backend/options.h>
#include <executorch/runtime/core/exec_aten/util/tensor_dimension_limit.h>
#include <executorch/runtime/core/exec_aten/util/tensor_util.h>
#include <executorch/runtime/executor/method.h>
#include <executorch/runtime/executor/program.h>

#include "platform.h"

namespace et = executorch::runtime;
using executorch::aten::Tensor;
using executorch::aten::TensorShapeDynamism;
using executorch::etdump::ETDumpGen;
using executorch::extension::MallocMemoryAllocator;
using executorch::extension::MmapDataLoader;

static_assert(FERRYMAN_ET_MAX_DIMS == et::kTensorDimensionLimit);

namespace {

// XNNPACK reads a few bytes past the end of its operands.
constexpr size_t kSlackBytes = 128;

thread_local std::string last_error;

struct Failure {
  int code;
  std::string text;
};

[[noreturn]] void fail(et::Error error, const std::string& what) {
  throw Failure{static_cast<int>(error), what + ": " + et::to_string(error)};
}

void check(et::Error error, const char* what) {
  if (error != et::Error::Ok) {
    fail(error, what);
  }
}

template <typename T>
T take(et::Result<T>&& result, const std::string& what) {
  if (!result.ok()) {
    fail(result.error(), what);
  }
  return std::move(result.get());
}

std::string tag_name(et::Tag tag) {
  char name[et::kTagNameBufferSize];
  et::tag_to_string(tag, name, sizeof name);
  return name;
}

// A cache line: vectors of floats that cross two are slower, by a quarter for a binary convolution.
struct alignas(64) Line {
  uint8_t bytes[64];
};

std::unique_ptr<Line[]> lines(size_t bytes) {
  return std::unique_ptr<Line[]>(new Line[(bytes + kSlackBytes) / sizeof(Line) + 1]);
}

struct PlannedMemory {
  std::vector<std::unique_ptr<Line[]>> buffers;
  std::vector<et::Span<uint8_t>> spans;
};

PlannedMemory plan_memory(const et::MethodMeta& meta) {
  PlannedMemory memory;
  for (size_t i = 0; i < meta.num_memory_planned_buffers(); ++i) {
    const int64_t size = take(meta.memory_planned_buffer_size(i), "size of planned memory");
    if (size < 0) {
      fail(et::Error::InvalidProgram, "size of planned memory");
    }
    const auto bytes = static_cast<size_t>(size);
    memory.buffers.push_back(lines(bytes));
    memory.spans.emplace_back(memory.buffers.back()[0].bytes, bytes);
  }
  return memory;
}

ferryman_et_tensor describe(const et::TensorInfo& info, const Tensor& tensor, const std::string& which) {
  ferryman_et_tensor out = {};
  out.dtype = static_cast<int32_t>(info.scalar_type());
  out.ndim = static_cast<int32_t>(info.sizes().size());
  if (info.sizes().size() > FERRYMAN_ET_MAX_DIMS) {
    throw Failure{FERRYMAN_ET_UNSUPPORTED, which + " has too many dimensions"};
  }
  for (size_t i = 0; i < info.sizes().size(); ++i) {
    out.sizes[i] = info.sizes()[i];
    if (info.dim_order()[i] != i) {
      throw Failure{
          FERRYMAN_ET_UNSUPPORTED,
          which + " is not in default dimension order (channels-last?); lower the model with contiguous inputs and outputs"};
    }
  }
  const TensorShapeDynamism dynamism = tensor.shape_dynamism();
  if (dynamism == TensorShapeDynamism::DYNAMIC_UNBOUND) {
    throw Failure{FERRYMAN_ET_UNSUPPORTED, which + " has no upper bound on its size"};
  }
  out.dynamic = dynamism == TensorShapeDynamism::DYNAMIC_BOUND;
  out.data = const_cast<void*>(tensor.const_data_ptr());
  return out;
}

void require_tensor(et::Tag tag, const std::string& which) {
  if (tag != et::Tag::Tensor) {
    throw Failure{FERRYMAN_ET_UNSUPPORTED, which + " is of kind " + tag_name(tag) + ", and only tensors are carried"};
  }
}

std::vector<std::string> method_names(const et::Program& program) {
  std::vector<std::string> names;
  for (size_t i = 0; i < program.num_methods(); ++i) {
    names.emplace_back(take(program.get_method_name(i), "name of a method"));
  }
  return names;
}

std::string joined(const std::vector<std::string>& names, const char* between) {
  std::string all;
  for (const std::string& name : names) {
    all += (all.empty() ? "" : between) + name;
  }
  return all;
}

std::string choose_entry(const std::vector<std::string>& names, const char* asked) {
  if (asked == nullptr && names.size() == 1) {
    return names[0];
  }
  const std::string entry = asked ? asked : "forward";
  if (std::find(names.begin(), names.end(), entry) == names.end()) {
    const std::string what =
        asked ? "no entry `" + entry + "`" : "several entries, and none is `forward`: name one";
    throw Failure{FERRYMAN_ET_NO_ENTRY, what + "; there are: " + joined(names, ", ")};
  }
  return entry;
}

// Of the XNNPACK backend of ExecuTorch (its XNNPACKBackend.h, which the wheel lacks).
constexpr char kXnnpack[] = "XnnpackBackend";
constexpr char kWeightCache[] = "weight_cache_enabled";
constexpr char kCachePath[] = "packed_cache_path";

} // namespace

struct ferryman_et_session {
  ferryman::Threads threads;
  std::unique_ptr<MmapDataLoader> loader;
  std::unique_ptr<et::Program> program;
  MallocMemoryAllocator method_allocator;
  MallocMemoryAllocator temp_allocator;
  PlannedMemory planned;
  std::unique_ptr<et::HierarchicalAllocator> planned_allocator;
  std::unique_ptr<et::MemoryManager> memory;
  et::BackendOptions<2> xnnpack_options;
  et::LoadBackendOptionsMap options;
  std::unique_ptr<ETDumpGen> tracer;
  std::unique_ptr<void, decltype(&std::free)> dump{nullptr, &std::free};
  std::unique_ptr<et::Method> method;
  std::vector<et::EValue> input_values;
  std::vector<ferryman_et_tensor> inputs;
  std::vector<ferryman_et_tensor> outputs;
  bool broken = false;

  void read_program(const char* path);
  void load(const char* path, const char* asked, const char* cache, bool etdump);
  void use_cache(const char* path);
  void read_inputs(const et::MethodMeta& meta);
  void read_outputs(const et::MethodMeta& meta);
  uint8_t* own_memory(size_t bytes);
  void run(const int32_t* in_sizes, int32_t* out_sizes);
};

void ferryman_et_session::read_program(const char* path) {
  loader = std::make_unique<MmapDataLoader>(
      take(MmapDataLoader::from(path, MmapDataLoader::MlockConfig::NoMlock), "open the file"));
  program = std::make_unique<et::Program>(
      take(et::Program::load(loader.get(), et::Program::Verification::InternalConsistency), "read the program"));
}

void ferryman_et_session::load(const char* path, const char* asked, const char* cache, bool etdump) {
  read_program(path);
  const std::string entry = choose_entry(method_names(*program), asked);
  planned = plan_memory(take(program->method_meta(entry.c_str()), "find method `" + entry + "`"));
  planned_allocator = std::make_unique<et::HierarchicalAllocator>(
      et::Span<et::Span<uint8_t>>(planned.spans.data(), planned.spans.size()));
  memory = std::make_unique<et::MemoryManager>(&method_allocator, planned_allocator.get(), &temp_allocator);
  if (etdump) {
    tracer = std::make_unique<ETDumpGen>();
  }
  if (cache != nullptr) {
    use_cache(cache);
  }
  method = std::make_unique<et::Method>(
      take(program->load_method(entry.c_str(), memory.get(), tracer.get(), nullptr, &options),
           "load method `" + entry + "`"));
  read_inputs(method->method_meta());
  read_outputs(method->method_meta());
}

void ferryman_et_session::use_cache(const char* path) {
  if (strlen(path) >= et::kMaxOptionValueLength) {
    fail(et::Error::InvalidArgument, "path of the cache");
  }
  check(xnnpack_options.set_option(kWeightCache, true), "switch the weight cache on");
  check(xnnpack_options.set_option(kCachePath, path), "path of the cache");
  check(options.set_options(kXnnpack, xnnpack_options.view()), "options of the backend");
}

// For an input or output that the artifact's memory plan leaves to its caller.
uint8_t* ferryman_et_session::own_memory(size_t bytes) {
  planned.buffers.push_back(lines(bytes));
  return planned.buffers.back()[0].bytes;
}

void ferryman_et_session::read_inputs(const et::MethodMeta& meta) {
  for (size_t i = 0; i < meta.num_inputs(); ++i) {
    require_tensor(take(meta.input_tag(i), "input"), "input " + std::to_string(i));
  }
  input_values.resize(meta.num_inputs());
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations" // set_input would copy once more
  check(method->get_inputs(input_values.data(), input_values.size()), "inputs");
#pragma GCC diagnostic pop
  for (size_t i = 0; i < meta.num_inputs(); ++i) {
    const std::string which = "input " + std::to_string(i);
    const et::TensorInfo info = take(meta.input_tensor_meta(i), which);
    auto& tensor = input_values[i].toTensor();
    if (!info.is_memory_planned()) {
      check(et::internal::set_tensor_data(tensor, own_memory(info.nbytes()), info.nbytes()), "memory of an input");
    }
    inputs.push_back(describe(info, tensor, which));
  }
}

void ferryman_et_session::read_outputs(const et::MethodMeta& meta) {
  for (size_t i = 0; i < meta.num_outputs(); ++i) {
    const std::string which = "output " + std::to_string(i);
    require_tensor(take(meta.output_tag(i), which), which);
    const et::TensorInfo info = take(meta.output_tensor_meta(i), which);
    const auto& tensor = method->get_output(i).toTensor();
    // An output that is an input as well has its memory already.
    if (!info.is_memory_planned() && tensor.const_data_ptr() == nullptr) {
      check(method->set_output_data_ptr(own_memory(info.nbytes()), info.nbytes(), i), "memory of an output");
    }
    outputs.push_back(describe(info, tensor, which));
  }
}

void ferryman_et_session::run(const int32_t* in_sizes, int32_t* out_sizes) {
  for (size_t i = 0; in_sizes && i < inputs.size(); ++i) {
    const auto ndim = static_cast<size_t>(inputs[i].ndim);
    check(et::resize_tensor(input_values[i].toTensor(), {in_sizes, ndim}), "resize an input");
    in_sizes += ndim;
  }
  check(method->execute(), "run");
  for (size_t i = 0; i < outputs.size(); ++i) {
    const auto& tensor = method->get_output(i).toTensor();
    outputs[i].data = const_cast<void*>(tensor.const_data_ptr()); // a branch may have put another tensor here
    if (out_sizes) {
      memcpy(out_sizes, tensor.sizes().data(), tensor.sizes().size() * sizeof(int32_t));
      out_sizes += tensor.sizes().size();
    }
  }
}

namespace {

// Runs `body`, turning whatever leaves it into a code and this thread's error text.
template <typename Body>
int guarded(Body&& body) {
  int code = 0;
  ferryman::Call call;
  try {
    body();
    return 0;
  } catch (const Failure& failure) {
    code = failure.code;
    last_error = failure.text;
  } catch (const ferryman::Aborted& aborted) {
    code = FERRYMAN_ET_ABORTED;
    last_error = aborted.what();
  } catch (const std::exception& error) {
    code = FERRYMAN_ET_EXCEPTION;
    last_error = error.what();
  }
  if (!ferryman::Call::log().empty()) {
    last_error += "\n" + ferryman::Call::log();
  }
  return code;
}

} // namespace

const char* ferryman_et_version(void) {
  return FERRYMAN_EXECUTORCH_VERSION;
}

const char* ferryman_et_error(void) {
  return last_error.c_str();
}

int ferryman_et_open(
    const char* path,
    const char* entry,
    const char* cache,
    int32_t threads,
    int32_t etdump,
    ferryman_et_session** out) {
  ferryman::init_platform();
  return guarded([&] {
    auto session = std::make_unique<ferryman_et_session>();
    int32_t held = 0;
    if (!session->threads.acquire(threads, &held)) {
      throw Failure{
          FERRYMAN_ET_THREADS_BUSY,
          "ExecuTorch has one thread pool in a process, and open sessions hold it at " + std::to_string(held) +
              " threads; close them first, or ask for " + std::to_string(held) + " threads or for 1"};
    }
    const ferryman::SingleThread single(session->threads.single());
    session->load(path, entry, cache, etdump != 0);
    *out = session.release();
  });
}

int ferryman_et_entries(const char* path, const char** names) {
  static thread_local std::string found;
  ferryman::init_platform();
  return guarded([&] {
    ferryman_et_session session;
    session.read_program(path);
    found = joined(method_names(*session.program), "\n");
    *names = found.c_str();
  });
}

size_t ferryman_et_inputs(const ferryman_et_session* session, const ferryman_et_tensor** out) {
  *out = session->inputs.data();
  return session->inputs.size();
}

size_t ferryman_et_outputs(const ferryman_et_session* session, const ferryman_et_tensor** out) {
  *out = session->outputs.data();
  return session->outputs.size();
}

int ferryman_et_run(ferryman_et_session* session, const int32_t* input_sizes, int32_t* output_sizes) {
  const int code = guarded([&] {
    if (session->broken) {
      throw Failure{FERRYMAN_ET_ABORTED, "a fatal check failed in an earlier run of this session; open it again"};
    }
    const ferryman::SingleThread single(session->threads.single());
    session->run(input_sizes, output_sizes);
  });
  session->broken = session->broken || code == FERRYMAN_ET_ABORTED;
  return code;
}

int ferryman_et_etdump(ferryman_et_session* session, const void** data, size_t* size) {
  return guarded([&] {
    if (!session->tracer) {
      throw Failure{FERRYMAN_ET_UNSUPPORTED, "the session was opened without etdump"};
    }
    const executorch::etdump::ETDumpResult result = session->tracer->get_etdump_data();
    session->dump.reset(result.buf);
    session->tracer->reset();
    if (result.buf == nullptr) {
      throw Failure{static_cast<int>(et::Error::InvalidState), "nothing was recorded: no run since the last call"};
    }
    *data = result.buf;
    *size = result.size;
  });
}

int64_t ferryman_et_planned_bytes(const ferryman_et_session* session) {
  int64_t bytes = 0;
  for (const auto& span : session->planned.spans) {
    bytes += static_cast<int64_t>(span.size());
  }
  return bytes;
}

void ferryman_et_close(ferryman_et_session* session) {
  const ferryman::SingleThread single(session->threads.single());
  delete session;
}
