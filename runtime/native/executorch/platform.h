// What ExecuTorch asks of its platform: where log lines go, how to abort, and the process's thread pool.
#pragma once

#include <cstdint>
#include <exception>
#include <string>

namespace ferryman {

// Thrown through ExecuTorch's frames in place of abort().
struct Aborted final : std::exception {
  const char* what() const noexcept override {
    return "a fatal check failed inside ExecuTorch";
  }
};

// Sets up log lines and abort, and once in a process detects the processor, with its stderr chatter caught.
void init_platform();

// Within its life, this thread's log lines are collected and an abort on this thread throws.
class Call {
 public:
  Call();
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  static const std::string& log();
};

// A session's hold on threads: its own (one thread), or the process's pool at the size asked for.
class Threads {
 public:
  // Returns false when other sessions hold the pool at another size, which is written to `held`.
  bool acquire(int32_t count, int32_t* held);
  ~Threads();
  bool single() const {
    return !pooled_;
  }

 private:
  bool pooled_ = false;
};

// While alive, this thread does all the work of ExecuTorch calls itself if `on`.
class SingleThread {
 public:
  explicit SingleThread(bool on);
  ~SingleThread();
  SingleThread(const SingleThread&) = delete;
  SingleThread& operator=(const SingleThread&) = delete;

 private:
  const bool before_;
};

} // namespace ferryman
