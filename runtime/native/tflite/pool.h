// Threads that share the tasks of one operator at a time.
#pragma once

#include <unistd.h>

#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace ferryman::tflite {

class Pool {
 public:
  // `threads` counts the one that calls run. Throws std::system_error when they cannot be started. A forked process has
  // none of them and nothing to wait for, so there the pool is never destroyed.
  static std::shared_ptr<Pool> make(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // 1 in a forked process.
  int threads() const {
    return is_here() ? static_cast<int>(workers_.size()) + 1 : 1;
  }

  // Not in a forked process. Runs body(argument, task) for every task below `tasks`; returns when all are done.
  // Callers wait for each other: an application may give one delegate to several interpreters.
  void run(void (*body)(void*, size_t), void* argument, size_t tasks);

 private:
  explicit Pool(int threads);
  bool is_here() const {
    return getpid() == process_;
  }
  void stop();
  void serve();
  void work(std::unique_lock<std::mutex>& lock);

  const pid_t process_ = getpid();  // the one that has the threads
  std::mutex running_;  // held by the one whose tasks these are
  std::mutex mutex_;    // of everything below
  std::condition_variable wake_, done_;
  void (*body_)(void*, size_t) = nullptr;
  void* argument_ = nullptr;
  size_t tasks_ = 0, next_ = 0, unfinished_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> workers_;
};

} // namespace ferryman::tflite
