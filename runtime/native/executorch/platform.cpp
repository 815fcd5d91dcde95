#include "platform.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>

#include <executorch/extension/threadpool/threadpool_guard.h>
#include <executorch/runtime/platform/platform.h>
#include <executorch/runtime/platform/runtime.h>

#include "session.h"
#include "threadpool.h"

extern "C" bool cpuinfo_initialize(void);

using executorch::extension::threadpool::get_threadpool;
using executorch::extension::threadpool::NoThreadPoolGuard;

volatile int32_t ferryman_et_log_pending = 0;

namespace ferryman {
namespace {

constexpr size_t kMaxLines = 256;
constexpr size_t kMaxCallLog = 8192;

struct Line {
  char level;
  std::string text;
};

struct Log {
  std::mutex mutex;
  std::deque<Line> lines;
};

// Never destroyed: pool threads may still log while the process exits.
Log& the_log() {
  static Log* const log = new Log;
  return *log;
}

thread_local int calls = 0;
thread_local std::string call_log;

void put_line(char level, std::string text) {
  if (calls > 0 && level != 'D' && level != 'I' && call_log.size() + text.size() < kMaxCallLog) {
    if (!call_log.empty()) {
      call_log += '\n';
    }
    call_log += text;
  }
  Log& log = the_log();
  const std::lock_guard<std::mutex> lock(log.mutex);
  if (log.lines.size() == kMaxLines) {
    log.lines.pop_front();
  }
  log.lines.push_back({level, std::move(text)});
  ferryman_et_log_pending = static_cast<int32_t>(log.lines.size());
}

void on_log(
    et_timestamp_t,
    et_pal_log_level_t level,
    const char* file,
    const char*,
    size_t line,
    const char* message,
    size_t length) {
  try {
    put_line(
        static_cast<char>(level),
        std::string(message, length) + " (" + file + ":" + std::to_string(line) + ")");
  } catch (...) { // no memory for a log line: the caller is a C hook and must not see it
  }
}

[[noreturn]] void on_abort() {
  if (calls > 0) {
    throw Aborted{};
  }
  std::abort();
}

// The processor detection library writes its complaints straight to file descriptor 2.
void detect_processor() {
  const int saved = dup(STDERR_FILENO);
  const int caught = memfd_create("cpuinfo", MFD_CLOEXEC);
  if (saved < 0 || caught < 0 || dup2(caught, STDERR_FILENO) < 0) {
    cpuinfo_initialize();
  } else {
    cpuinfo_initialize();
    dup2(saved, STDERR_FILENO);
    char text[4096];
    const ssize_t size = pread(caught, text, sizeof text, 0);
    const char* const end = text + (size > 0 ? size : 0);
    for (const char* at = text; at < end;) {
      const auto* stop = static_cast<const char*>(memchr(at, '\n', static_cast<size_t>(end - at)));
      stop = stop ? stop : end;
      put_line('I', "cpuinfo: " + std::string(at, stop));
      at = stop + 1;
    }
  }
  if (saved >= 0) {
    close(saved);
  }
  if (caught >= 0) {
    close(caught);
  }
}

struct Pool {
  std::mutex mutex;
  int users = 0;
};

Pool& the_pool() {
  static Pool* const pool = new Pool;
  return *pool;
}

} // namespace

void init_platform() {
  static std::mutex mutex;
  static bool detected = false;
  const std::lock_guard<std::mutex> lock(mutex);
  // The executorch Python package, if it is in this process, shares our ExecuTorch and puts its own hooks there.
  if (executorch::runtime::get_pal_impl()->emit_log_message != on_log) {
    executorch::runtime::register_pal(executorch::runtime::PalImpl::create(
        nullptr, on_abort, nullptr, nullptr, on_log, nullptr, nullptr, "ferryman"));
    executorch::runtime::runtime_init();
  }
  if (!detected) {
    detected = true;
    detect_processor();
  }
}

Call::Call() {
  if (calls++ == 0) {
    call_log.clear();
  }
}

Call::~Call() {
  --calls;
}

const std::string& Call::log() {
  return call_log;
}

// Resetting destroys the pool that XNNPACK programs loaded earlier point to, so it waits until nobody uses it.
bool Threads::acquire(int32_t count, int32_t* held) {
  if (count == 1) {
    return true;
  }
  Pool& pool = the_pool();
  const std::lock_guard<std::mutex> lock(pool.mutex);
  auto* const threads = get_threadpool();
  *held = static_cast<int32_t>(threads->get_thread_count());
  if (*held != count) {
    if (pool.users > 0 || !threads->_unsafe_reset_threadpool(static_cast<uint32_t>(count))) {
      return false;
    }
  }
  ++pool.users;
  pooled_ = true;
  return true;
}

Threads::~Threads() {
  if (pooled_) {
    Pool& pool = the_pool();
    const std::lock_guard<std::mutex> lock(pool.mutex);
    --pool.users;
  }
}

SingleThread::SingleThread(bool on) : before_(NoThreadPoolGuard::is_enabled()) {
  NoThreadPoolGuard::set_enabled(on || before_);
}

SingleThread::~SingleThread() {
  NoThreadPoolGuard::set_enabled(before_);
}

} // namespace ferryman

int ferryman_et_log_take(char* line, size_t size) {
  ferryman::Log& log = ferryman::the_log();
  const std::lock_guard<std::mutex> lock(log.mutex);
  if (log.lines.empty() || size == 0) {
    return 0;
  }
  const ferryman::Line& oldest = log.lines.front();
  const int level = oldest.level;
  const size_t length = oldest.text.size() < size ? oldest.text.size() : size - 1;
  memcpy(line, oldest.text.data(), length);
  line[length] = '\0';
  log.lines.pop_front();
  ferryman_et_log_pending = static_cast<int32_t>(log.lines.size());
  return level;
}
