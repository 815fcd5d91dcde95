// Memory of a task, which its thread keeps for the next one: new pages would cost as much as what is computed in them.
#pragma once

#include <utility>

#include "buffer.h"

namespace ferryman::kernels {

constexpr size_t kKeptMost = 1 << 21;  // bytes that a thread keeps

class Arena {
 public:
  explicit Arena(size_t bytes) : memory_(0) {
    Kept& kept = of_thread();
    if (bytes <= kept.bytes) {
      memory_ = std::move(kept.memory);
      bytes_ = std::exchange(kept.bytes, 0);  // so that another arena meanwhile has its own
    } else {
      memory_ = Buffer<uint8_t>(bytes);
      bytes_ = bytes;
    }
  }
  ~Arena() {
    Kept& kept = of_thread();
    if (memory_ && bytes_ > kept.bytes && bytes_ <= kKeptMost) {
      kept = {std::move(memory_), bytes_};
    }
  }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  explicit operator bool() const {
    return static_cast<bool>(memory_);
  }
  uint8_t* get() const {
    return memory_.get();
  }

  // Room for `count` of a kind, aligned like the whole.
  template <typename T>
  static constexpr size_t room(size_t count) {
    return (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
  }

 private:
  struct Kept {
    Buffer<uint8_t> memory{0};
    size_t bytes = 0;
  };

  static Kept& of_thread() {
    static thread_local Kept kept;
    return kept;
  }

  Buffer<uint8_t> memory_;
  size_t bytes_;
};

} // namespace ferryman::kernels
