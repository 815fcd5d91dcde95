// Weights that XNNPACK packs in a `.tflite`: TFLite's schema.fbs; fields go by their number.
#include <algorithm>

#include "flatbuffer.h"
#include "uses.h"
#include "weights.h"

namespace ferryman {
namespace {

namespace model {
enum { kOperatorCodes = 1, kSubgraphs = 2, kBuffers = 4 };
}
namespace code {
enum { kOld = 0, kCode = 3 };
}
namespace subgraph {
enum { kTensors = 0, kOperators = 3 };
}
namespace tensor {
enum { kShape, kType, kBuffer, kName, kQuantization, kVariable, kSparsity, kShapeSignature };
}
namespace quantization {
enum { kScale = 2, kZeroPoint = 3 };
}
namespace op {
enum { kCode = 0, kInputs = 1, kOptions = 4 };
}
namespace buffer {
enum { kData = 0, kOffset = 1, kSize = 2 };
}

enum Type : int8_t { kFloat32 = 0, kFloat16 = 1, kBfloat16 = 18 };
enum Operator : int32_t { kConv = 3, kDepthwise = 4, kLinear = 9, kPrelu = 54, kTransposed = 67, kMatmul = 126 };

constexpr const char kMagic[] = "TFL3";
constexpr int kStrideSlots[] = {1, 2}; // of every convolution's options

bool packs(int32_t code) {
  return code == kConv || code == kDepthwise || code == kLinear || code == kTransposed || code == kMatmul ||
      code == kPrelu;
}

bool is_constant(const Vector& buffers, uint32_t index) {
  const Table held = buffers[index];
  return held.bytes(buffer::kData).size() > 0 || held.number<uint64_t>(buffer::kOffset, 0) > 1;
}

bool varies(const Table& tensor) {
  const Bytes shape = tensor.bytes(tensor::kShapeSignature, sizeof(int32_t));
  for (size_t at = 0; at < shape.size(); at += sizeof(int32_t)) {
    if (shape.at<int32_t>(at) < 0) {
      return true;
    }
  }
  return false;
}

std::string describe(const Table& weight) {
  std::string how = raw(weight.number<int8_t>(tensor::kType, 0)) + weight.bytes(tensor::kShape, sizeof(int32_t)).text();
  if (weight.has(tensor::kQuantization)) {
    const Table scales = weight.table(tensor::kQuantization);
    how += scales.bytes(quantization::kScale, sizeof(float)).text() +
        scales.bytes(quantization::kZeroPoint, sizeof(int64_t)).text();
  }
  return how;
}

void read_operator(int32_t code, const Table& op, const Vector& tensors, const Vector& buffers, Uses& uses) {
  const Bytes inputs = op.bytes(op::kInputs, sizeof(int32_t));
  const auto weight_at = inputs.at<int32_t>(sizeof(int32_t));
  const auto input_at = inputs.at<int32_t>(code == kTransposed ? 2 * sizeof(int32_t) : 0);
  if (weight_at < 0 || input_at < 0) {
    return;
  }
  const Table weight = tensors[static_cast<size_t>(weight_at)];
  const auto index = weight.number<uint32_t>(tensor::kBuffer, 0);
  if (!is_constant(buffers, index)) {
    return;
  }
  const auto type = tensors[static_cast<size_t>(input_at)].number<int8_t>(tensor::kType, 0);
  std::string how = raw(code) + raw(type) + describe(weight);
  if ((code == kConv || code == kDepthwise || code == kTransposed) && op.has(op::kOptions)) {
    const Table options = op.table(op::kOptions);
    for (const int slot : kStrideSlots) {
      how += raw(options.number<int32_t>(slot, 0));
    }
  }
  uses.add(raw(index), how, type != kFloat32 && type != kFloat16 && type != kBfloat16);
}

void read_model(const Bytes& file, Uses& uses) {
  if (file.size() < 8 || file.part(4, 4).text() != kMagic) {
    throw Broken{};
  }
  const Table root = Table::root(file);
  const Vector codes = root.vector(model::kOperatorCodes);
  const Vector buffers = root.vector(model::kBuffers);
  const Vector subgraphs = root.vector(model::kSubgraphs);
  for (size_t i = 0; i < subgraphs.size(); ++i) {
    const Vector tensors = subgraphs[i].vector(subgraph::kTensors);
    for (size_t j = 0; j < tensors.size(); ++j) {
      uses.mark(varies(tensors[j]) ? FERRYMAN_WEIGHTS_DYNAMIC : 0);
    }
    const Vector operators = subgraphs[i].vector(subgraph::kOperators);
    for (size_t j = 0; j < operators.size(); ++j) {
      const Table named = codes[operators[j].number<uint32_t>(op::kCode, 0)];
      const int32_t code = // the newer field holds it too, where both are there
          std::max<int32_t>(named.number<int8_t>(code::kOld, 0), named.number<int32_t>(code::kCode, 0));
      if (packs(code)) {
        read_operator(code, operators[j], tensors, buffers, uses);
      }
    }
  }
}

} // namespace
} // namespace ferryman

int32_t ferryman_weights_tflite(const uint8_t* data, size_t size) {
  ferryman::Uses uses;
  try {
    ferryman::read_model({data, size}, uses);
  } catch (const ferryman::Broken&) {
    return FERRYMAN_WEIGHTS_UNKNOWN;
  } catch (const std::exception&) { // no memory
    return FERRYMAN_WEIGHTS_UNKNOWN;
  }
  return uses.flags();
}
