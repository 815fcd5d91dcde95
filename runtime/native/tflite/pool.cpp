#include "pool.h"

namespace ferryman::tflite {

std::shared_ptr<Pool> Pool::make(int threads) {
  return std::shared_ptr<Pool>(new Pool(threads), [](const Pool* pool) {
    if (pool->is_here()) {
      delete pool;
    }
  });
}

Pool::Pool(int threads) {
  try {
    for (int i = 1; i < threads; ++i) {
      workers_.emplace_back([this] { serve(); });
    }
  } catch (...) {
    stop();
    throw;
  }
}

Pool::~Pool() {
  stop();
}

void Pool::stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) {
    worker.join();
  }
}

void Pool::run(void (*body)(void*, size_t), void* argument, size_t tasks) {
  const std::lock_guard<std::mutex> running(running_);
  std::unique_lock<std::mutex> lock(mutex_);
  body_ = body;
  argument_ = argument;
  tasks_ = unfinished_ = tasks;
  next_ = 0;
  wake_.notify_all();
  work(lock);
  done_.wait(lock, [this] { return unfinished_ == 0; });
}

void Pool::serve() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stopping_) {
    work(lock);
    wake_.wait(lock, [this] { return stopping_ || next_ < tasks_; });
  }
}

// Takes tasks until none is left. A worker that wakes late finds none, or those of a later run: body and argument are
// read together with the task.
void Pool::work(std::unique_lock<std::mutex>& lock) {
  while (next_ < tasks_) {
    const size_t task = next_++;
    const auto body = body_;
    void* const argument = argument_;
    lock.unlock();
    body(argument, task);
    lock.lock();
    if (--unfinished_ == 0) {
      done_.notify_one();
    }
  }
}

} // namespace ferryman::tflite
