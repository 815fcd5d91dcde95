// ExecuTorch's thread pool: the wheel exports it, but ships no header for it.
#pragma once

#include <cstddef>
#include <cstdint>

#define ET_USE_THREADPOOL
#include <executorch/runtime/kernel/thread_parallel_interface.h>

namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  size_t get_thread_count() const;
  bool _unsafe_reset_threadpool(uint32_t count);
};
ThreadPool* get_threadpool();
} // namespace executorch::extension::threadpool
