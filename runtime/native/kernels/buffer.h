// Scratch memory that may run out, in which case it says so.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

namespace ferryman::kernels {

constexpr size_t kAlignment = 64;

template <typename T>
class Buffer {
 public:
  explicit Buffer(size_t count) : memory_(std::malloc(count * sizeof(T) + kAlignment)) {}

  T* get() const {
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    return reinterpret_cast<T*>((address + kAlignment - 1) / kAlignment * kAlignment);
  }
  explicit operator bool() const {
    return memory_ != nullptr;
  }

 private:
  struct Free {
    void operator()(void* memory) const {
      std::free(memory);
    }
  };
  std::unique_ptr<void, Free> memory_;
};

} // namespace ferryman::kernels
