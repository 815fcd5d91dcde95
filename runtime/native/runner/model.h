// An open artifact with its inputs at hand, over ../executorch/session.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "arguments.h"
#include "json.h"
#include "session.h"

namespace ferryman {

// Names of the artifact's methods. Throws Error.
std::vector<std::string> entries_of(const std::string& artifact);

class Model {
 public:
  // Throws Error.
  Model(const std::string& artifact, const std::string& entry, int32_t threads);
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  // Reads all inputs; they stay in memory, for every run needs them anew. Throws Error.
  void read_inputs(const std::vector<Input>& given);

  // Writes the inputs, and runs: nanoseconds of the run alone. Throws Error.
  int64_t run();

  // Throws Error of party caller.
  void require_outputs(size_t count) const;

  // Of the last run. Throws Error.
  void write_outputs(const std::vector<std::string>& paths) const;
  void describe_outputs(Json& json) const;

  void describe(Json& json) const;
  int64_t open_ns() const {
    return open_ns_;
  }
  // Each weight that layers share is packed once, as in ferryman.runtime.sessions.executorch.
  bool packed_once() const {
    return packed_once_;
  }

 private:
  std::vector<int32_t> output_shape(size_t index) const;

  ferryman_et_session* session_ = nullptr;
  int64_t open_ns_ = 0;
  bool packed_once_ = false;
  const ferryman_et_tensor* inputs_ = nullptr;
  const ferryman_et_tensor* outputs_ = nullptr;
  size_t input_count_ = 0;
  size_t output_count_ = 0;
  std::vector<std::string> input_bytes_;
  std::vector<int32_t> input_sizes_; // empty: none is dynamic
  std::vector<int32_t> output_sizes_;
};

} // namespace ferryman
