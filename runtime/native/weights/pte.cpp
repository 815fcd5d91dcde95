// Weights that XNNPACK packs in a `.pte`: schemas program.fbs and xnnpack's schema.fbs of ExecuTorch 1.5.1. The names
// are its own; fields go by their number.
#include <map>

#include "flatbuffer.h"
#include "uses.h"
#include "weights.h"

namespace ferryman {
namespace {

namespace program {
enum { kPlans = 1, kInlineData = 3, kSegments = 4 };
}
namespace plan {
enum { kDelegates = 7 };
}
namespace delegate {
enum { kId, kProcessed };
}
namespace reference {
enum { kLocation, kIndex };
}
namespace segment {
enum { kOffset, kSize };
}
namespace graph {
enum { kNodes = 1, kValues = 2, kConstants = 8 };
}
namespace in_union {
enum { kType, kTable };
}
namespace tensor {
enum { kDatatype, kRank, kDims, kConstant, kExternal, kFlags, kId };
}
namespace quantized {
enum { kTensor, kType, kParameters };
}
namespace constant {
enum { kName = 2 };
}

enum Datatype : int16_t { kFp32 = 1, kFp16 = 2, kDynamicInt8 = 9, kPackedInt8 = 11, kBf16 = 14 };
enum ValueKind : uint8_t { kQuantizedTensor = 2 };
enum ParametersKind : uint8_t { kPerChannel = 1, kPerTensor = 2, kPerGroup = 4 };
enum NodeKind : uint8_t { kLinear = 2, kConv = 7, kDepthwise = 13, kPrelu = 31, kMatmul = 37, kTransposed = 39 };

constexpr const char kProgramMagic[] = "ET12";
constexpr const char kHeaderMagic[] = "eh00";
constexpr const char kDelegateMagic[] = "XH00";

bool is(const Bytes& bytes, size_t position, const char* magic) {
  return bytes.size() >= position + 4 && bytes.part(position, 4).text() == magic;
}

struct Value {
  std::string weight; // empty: nothing that is kept by name
  std::string how;
  int16_t datatype;
};

// Names of scales, or the numbers themselves.
std::string describe_scales(const Table& value, const Vector& constants) {
  const auto kind = value.number<uint8_t>(quantized::kType, 0);
  if (!value.has(quantized::kParameters)) {
    return raw(kind);
  }
  const Table given = value.table(quantized::kParameters);
  if (kind == kPerTensor) {
    return raw(kind) + raw(given.number<float>(0, 0)) + raw(given.number<int32_t>(1, 0));
  }
  if (kind != kPerChannel && kind != kPerGroup) {
    return raw(kind);
  }
  const bool grouped = kind == kPerGroup;
  const auto scales = given.number<uint32_t>(grouped ? 4 : 2, 0);
  return raw(kind) + given.bytes(0, sizeof(float)).text() + raw(given.number<int32_t>(1, 0)) +
      raw(grouped ? given.number<int32_t>(2, 0) : 0) +
      (scales ? constants[scales].bytes(constant::kName).text() : std::string());
}

std::map<uint32_t, Value> read_values(const Table& graph, const Vector& constants) {
  std::map<uint32_t, Value> values;
  const Vector all = graph.vector(graph::kValues);
  for (size_t i = 0; i < all.size(); ++i) {
    const bool scaled = all[i].number<uint8_t>(in_union::kType, 0) == kQuantizedTensor;
    const Table held = all[i].table(in_union::kTable);
    const Table plain = scaled ? held.table(quantized::kTensor) : held;
    Value value = {{}, {}, plain.number<int16_t>(tensor::kDatatype, 0)};
    if (const auto index = plain.number<uint32_t>(tensor::kConstant, 0)) {
      value.weight = constants[index].bytes(constant::kName).text();
      value.how = raw(value.datatype) + plain.bytes(tensor::kDims, sizeof(uint32_t)).text() +
          (scaled ? describe_scales(held, constants) : std::string());
    }
    values[plain.number<uint32_t>(tensor::kId, 0)] = value;
  }
  return values;
}

// Whether a layer with such an input packs nothing of it.
bool leaves_nothing(int16_t datatype) {
  return datatype == kFp32 || datatype == kFp16 || datatype == kBf16 || datatype == kDynamicInt8 ||
      datatype == kPackedInt8;
}

void read_graph(const Table& graph, Uses& uses) {
  const Vector constants = graph.vector(graph::kConstants);
  const std::map<uint32_t, Value> values = read_values(graph, constants);
  const Vector nodes = graph.vector(graph::kNodes);
  for (size_t i = 0; i < nodes.size(); ++i) {
    const auto kind = nodes[i].number<uint8_t>(in_union::kType, 0);
    const Table node = nodes[i].table(in_union::kTable);
    const bool conv = kind == kConv || kind == kDepthwise || kind == kTransposed;
    if (!conv && kind != kLinear && kind != kMatmul && kind != kPrelu) {
      continue;
    }
    const int input = conv ? 15 : 0; // the weight is the next, and flags come last
    const auto weight = values.find(node.number<uint32_t>(input + 1, 0));
    if (weight == values.end() || weight->second.weight.empty()) {
      continue;
    }
    const int flags = kind == kMatmul || kind == kPrelu ? 3 : input + 4;
    std::string how = raw(kind) + raw(node.number<uint32_t>(flags, 0)) + weight->second.how;
    for (int slot = 0; slot < input; ++slot) { // a convolution's numbers
      how += raw(node.number<uint32_t>(slot, 0));
    }
    const auto read = values.find(node.number<uint32_t>(input, 0));
    const int16_t datatype = read == values.end() ? int16_t{0} : read->second.datatype;
    uses.add(weight->second.weight, how + raw(datatype), !leaves_nothing(datatype));
  }
}

void read_delegate(const Bytes& blob, Uses& uses) {
  if (!is(blob, 4, kDelegateMagic)) {
    throw Broken{}; // an old one, with its constants inside
  }
  read_graph(Table::root(blob.part(blob.at<uint32_t>(10), blob.at<uint32_t>(14))), uses);
}

void read_program(const Bytes& file, Uses& uses) {
  if (!is(file, 4, kProgramMagic)) {
    throw Broken{};
  }
  const size_t segments_start = is(file, 8, kHeaderMagic) ? file.at<uint64_t>(24) : 0;
  const Table root = Table::root(file);
  const Vector segments = root.vector(program::kSegments);
  const Vector inlined = root.vector(program::kInlineData);
  const Vector plans = root.vector(program::kPlans);
  for (size_t i = 0; i < plans.size(); ++i) {
    const Vector delegates = plans[i].vector(plan::kDelegates);
    for (size_t j = 0; j < delegates.size(); ++j) {
      if (delegates[j].bytes(delegate::kId).text() != "XnnpackBackend") {
        continue;
      }
      const Table processed = delegates[j].table(delegate::kProcessed);
      const auto index = processed.number<uint32_t>(reference::kIndex, 0);
      if (processed.number<int8_t>(reference::kLocation, 0) == 0) {
        read_delegate(inlined[index].bytes(0), uses);
        continue;
      }
      const Table segment = segments[index];
      const auto start = segment.number<uint64_t>(segment::kOffset, 0);
      if (start > file.size()) {
        throw Broken{};
      }
      read_delegate(file.part(segments_start, file.size() - segments_start)
                        .part(start, segment.number<uint64_t>(segment::kSize, 0)), uses);
    }
  }
}

} // namespace
} // namespace ferryman

int32_t ferryman_weights_pte(const uint8_t* data, size_t size) {
  ferryman::Uses uses;
  try {
    ferryman::read_program({data, size}, uses);
  } catch (const ferryman::Broken&) {
    return FERRYMAN_WEIGHTS_UNKNOWN;
  } catch (const std::exception&) { // no memory
    return FERRYMAN_WEIGHTS_UNKNOWN;
  }
  return uses.flags();
}
