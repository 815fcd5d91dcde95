// TFLite's external delegate for ferryman's own operators: claims them in a graph, and hands each to its kind.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "abi.h"
#include "operator.h"
#include "pool.h"

namespace ferryman::tflite {
namespace {

constexpr char kPrefix[] = "ferryman.";
constexpr int kThreadsMax = 1024;

// A claimed node.
struct Claimed {
  const char* name;
  std::unique_ptr<Operator> op;
};

// What the delegate owns.
struct Owned {
  std::shared_ptr<Pool> pool;
  size_t claimed;  // nodes, so far
};

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

// NULL when it is none of ferryman's.
const Kind* kind_of(const Registration& registration) {
  const char* const name = registration.custom_name;
  if (registration.builtin_code != kCustomOperator || name == nullptr ||
      strncmp(name, kPrefix, sizeof kPrefix - 1) != 0) {
    return nullptr;
  }
  const auto named = [name](const Kind& kind) { return strcmp(name, kind.name) == 0; };
  if (const auto* const kind = std::find_if(std::begin(kBinaryKinds), std::end(kBinaryKinds), named);
      kind != std::end(kBinaryKinds)) {
    return kind;
  }
  if (const auto* const kind = std::find_if(std::begin(kQuantizedKinds), std::end(kQuantizedKinds), named);
      kind != std::end(kQuantizedKinds)) {
    return kind;
  }
  if (const auto* const kind = std::find_if(std::begin(kSparseKinds), std::end(kSparseKinds), named);
      kind != std::end(kSparseKinds)) {
    return kind;
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

// tflite-runtime dies while it parts a graph in which a node waits for its own output, by itself or through others.
void check_order(Context* context, const Shape& plan) {
  std::vector<bool> awaited(context->tensors_size);
  Registration* registration = nullptr;
  const auto mark_outputs = [&](int index, bool is_awaited) {
    for (const int tensor : to_shape(node_at(context, index, &registration)->outputs)) {
      if (tensor >= 0) {
        awaited.at(static_cast<size_t>(tensor)) = is_awaited;
      }
    }
  };
  for (const int index : plan) {
    mark_outputs(index, true);
  }
  for (const int index : plan) {
    for (const int tensor : to_shape(node_at(context, index, &registration)->inputs)) {
      if (tensor >= 0 && awaited.at(static_cast<size_t>(tensor))) {
        throw Refused("node " + std::to_string(index) + " reads a tensor that it or a later node writes");
      }
    }
    mark_outputs(index, false);
  }
}

void* init_kernel(Context* context, const char* buffer, size_t) {
  const auto* const params = reinterpret_cast<const DelegateParams*>(buffer);
  std::unique_ptr<Claimed> claimed;
  guarded(context, "ferryman", [&] {
    auto* const owned = static_cast<Owned*>(params->delegate->data);
    Registration* registration = nullptr;
    const Node* const node = node_at(context, params->nodes_to_replace->data[0], &registration);
    Claim claim{owned->pool, to_shape(node->inputs), to_shape(node->outputs), {}, 0};
    if (node->custom_initial_data != nullptr && node->custom_initial_data_size > 0) {
      claim.options_bytes = static_cast<size_t>(node->custom_initial_data_size);
      memcpy(claim.options, node->custom_initial_data, std::min(claim.options_bytes, sizeof claim.options));
    }
    const Kind& kind = *kind_of(*registration);
    claimed.reset(new Claimed{kind.name, kind.make(std::move(claim))});
    ++owned->claimed;
  });
  return claimed.release();
}

void free_kernel(Context*, void* user_data) {
  delete static_cast<Claimed*>(user_data);
}

Status prepare_kernel(Context* context, Node* node) {
  auto* const claimed = static_cast<Claimed*>(node->user_data);
  if (claimed == nullptr) {
    return kError;  // reported when it could not be made
  }
  return guarded(context, claimed->name, [&] { claimed->op->prepare(context); });
}

Status invoke_kernel(Context* context, Node* node) {
  const auto& claimed = *static_cast<const Claimed*>(node->user_data);
  return guarded(context, claimed.name, [&] { claimed.op->invoke(context); });
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
    const Shape nodes_in_order = to_shape(plan);  // a claim changes the plan
    check_order(context, nodes_in_order);
    for (const int index : nodes_in_order) {
      Registration* found = nullptr;
      node_at(context, index, &found);
      const Kind* const kind = kind_of(*found);
      if (kind == nullptr) {
        continue;
      }
      Registration registration{};
      registration.init = init_kernel;
      registration.free = free_kernel;
      registration.prepare = prepare_kernel;
      registration.invoke = invoke_kernel;
      registration.custom_name = kind->name;
      registration.version = 1;
      const OwnedArray nodes = to_array({index});
      const size_t before = owned.claimed;
      if (context->ReplaceNodeSubsetsWithDelegateKernels(context, registration, nodes.get(), delegate) != kOk ||
          owned.claimed != before + 1) {
        throw Refused(std::string(kind->name) + " cannot be claimed; its outputs must be written by no other");
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
