// How layers use weights: gathered from an artifact, then judged.
#pragma once

#include <string>
#include <unordered_map>

#include "weights.h"

namespace ferryman {

class Uses {
 public:
  // weight: what the runtime knows it by. how: all else that goes into what is packed of it. fixed: the layer's
  // activations are quantized by numbers of their own, which are packed too.
  void add(const std::string& weight, const std::string& how, bool fixed) {
    flags_ |= FERRYMAN_WEIGHTS_PACKED;
    const auto [found, first] = uses_.try_emplace(weight, Use{how, fixed});
    if (first) {
      return;
    }
    flags_ |= FERRYMAN_WEIGHTS_SHARED;
    if (fixed || found->second.fixed || found->second.how != how) {
      flags_ |= FERRYMAN_WEIGHTS_UNSAFE;
    }
  }

  void mark(int32_t flags) {
    flags_ |= flags;
  }

  int32_t flags() const {
    return flags_;
  }

 private:
  struct Use {
    std::string how;
    bool fixed;
  };

  std::unordered_map<std::string, Use> uses_;
  int32_t flags_ = 0;
};

// A number's bytes, to be put together with others.
template <typename T>
std::string raw(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

} // namespace ferryman
