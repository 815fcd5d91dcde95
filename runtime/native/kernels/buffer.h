// Scratch memory that may run out, in which case it says so.
#pragma once

#include <cstdlib>
#include <memory>

namespace ferryman::kernels {

constexpr size_t kAlignment = 64;

template <typename T>
class Buffer {
 public:
  explicit Buffer(size_t count)
      : memory_(static_cast<T*>(std::aligned_alloc(kAlignment, (count * sizeof(T) / kAlignment + 1) * kAlignment))) {}

  T* get() const {
    return memory_.get();
  }
  explicit operator bool() const {
    return memory_ != nullptr;
  }

 private:
  struct Free {
    void operator()(T* memory) const {
      std::free(memory);
    }
  };
  std::unique_ptr<T, Free> memory_;
};

} // namespace ferryman::kernels
