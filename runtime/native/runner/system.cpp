#include "system.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <map>
#include <vector>

#include "error.h"

namespace ferryman {
namespace {

class Descriptor {
 public:
  // Not blocking: a pipe with nobody at its other end must not keep the runner waiting.
  Descriptor(const std::string& path, int flags) : value_(open(path.c_str(), flags | O_CLOEXEC | O_NONBLOCK, 0666)) {}
  ~Descriptor() {
    close();
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const {
    return value_;
  }
  bool close() {
    const int value = value_;
    value_ = -1;
    return value < 0 || ::close(value) == 0;
  }

 private:
  int value_;
};

// Reads up to `size` bytes; false: an error, of which errno tells.
bool read_up_to(int descriptor, size_t size, std::string& out) {
  out.resize(size);
  size_t done = 0;
  while (done < size) {
    const ssize_t count = read(descriptor, out.data() + done, size - done);
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count < 0) {
      return false;
    }
    if (count == 0) {
      break;
    }
    done += static_cast<size_t>(count);
  }
  out.resize(done);
  return true;
}

// Of a small file of /proc or /sys, without the last line's end.
bool read_text(const std::string& path, std::string& out) {
  constexpr size_t kMost = 65536;
  const Descriptor file(path, O_RDONLY);
  if (file.get() < 0 || !read_up_to(file.get(), kMost, out)) {
    return false;
  }
  while (!out.empty() && (out.back() == '\n' || out.back() == ' ')) {
    out.pop_back();
  }
  return true;
}

bool read_number(const std::string& path, int64_t& out) {
  std::string text;
  if (!read_text(path, text)) {
    return false;
  }
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  if (error != std::errc() || end != text.data() + text.size()) {
    errno = EINVAL;
    return false;
  }
  return true;
}

// Entries PREFIX and a number, in the numbers' order.
std::vector<std::string> numbered(const std::string& folder, const std::string& prefix) {
  std::map<int64_t, std::string> found;
  if (DIR* const directory = opendir(folder.c_str())) {
    while (const dirent* const entry = readdir(directory)) {
      const std::string name = entry->d_name;
      int64_t number = 0;
      const char* const end = name.data() + name.size();
      if (name.compare(0, prefix.size(), prefix) == 0 &&
          std::from_chars(name.data() + prefix.size(), end, number).ptr == end && name.size() > prefix.size()) {
        found[number] = name;
      }
    }
    closedir(directory);
  }
  std::vector<std::string> names;
  for (auto& [number, name] : found) {
    names.push_back(std::move(name));
  }
  return names;
}

// Lines `Name: 12 kB`, in bytes.
std::map<std::string, int64_t> kilobytes(const std::string& text) {
  std::map<std::string, int64_t> found;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    const size_t colon = line.find(':');
    const size_t digit = colon == std::string::npos ? colon : line.find_first_of("0123456789", colon);
    int64_t value = 0;
    if (digit != std::string::npos && line.size() > 3 && line.compare(line.size() - 3, 3, " kB") == 0) {
      std::from_chars(line.data() + digit, line.data() + line.size(), value);
      found[line.substr(0, colon)] = value * 1024;
    }
  }
  return found;
}

int64_t clock_ns(clockid_t clock) {
  timespec now = {};
  clock_gettime(clock, &now);
  return static_cast<int64_t>(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

void write_cores(Json& json) {
  const std::string folder = "/sys/devices/system/cpu";
  const std::vector<std::string> cores = numbered(folder, "cpu");
  std::string reason;
  std::vector<std::pair<std::string, int64_t>> clocks;
  for (const std::string& core : cores) {
    int64_t khz = 0;
    const std::string path = folder + "/" + core + "/cpufreq/scaling_cur_freq";
    if (read_number(path, khz)) {
      clocks.emplace_back(core, khz);
    } else {
      reason = with_errno(path);
    }
  }
  json.key("clocks");
  if (clocks.empty()) {
    json.unavailable(cores.empty() ? folder + ": no cores" : reason);
    return;
  }
  json.begin('[');
  for (const auto& [core, khz] : clocks) {
    json.begin('{').key("core").string(core).key("khz").number(khz);
    std::string governor;
    if (read_text(folder + "/" + core + "/cpufreq/scaling_governor", governor)) {
      json.key("governor").string(governor);
    }
    json.end('}');
  }
  json.end(']');
}

void write_zones(Json& json) {
  const std::string folder = "/sys/class/thermal";
  const std::vector<std::string> zones = numbered(folder, "thermal_zone");
  json.key("zones");
  if (zones.empty()) {
    json.unavailable(folder + ": no thermal zones to be seen");
    return;
  }
  json.begin('[');
  for (const std::string& zone : zones) {
    std::string type;
    int64_t value = 0;
    json.begin('{').key("zone").string(zone);
    if (read_text(folder + "/" + zone + "/type", type)) {
      json.key("type").string(type);
    }
    json.key("millidegrees");
    if (read_number(folder + "/" + zone + "/temp", value)) {
      json.number(value);
    } else {
      json.unavailable(with_errno(folder + "/" + zone + "/temp"));
    }
    json.end('}');
  }
  json.end(']');
}

} // namespace

std::string with_errno(const std::string& what) {
  return what + ": " + strerror(errno);
}

std::string read_file(const std::string& path, size_t size) {
  const Descriptor file(path, O_RDONLY);
  struct stat found = {};
  if (file.get() < 0 || fstat(file.get(), &found) != 0) {
    blame_caller(with_errno(path));
  }
  if (!S_ISREG(found.st_mode)) {
    blame_caller(path + " is no regular file");
  }
  if (static_cast<uint64_t>(found.st_size) != size) {
    blame_caller(
        path + ": expected " + std::to_string(size) + " bytes, found " + std::to_string(found.st_size));
  }
  std::string bytes;
  if (!read_up_to(file.get(), size, bytes)) {
    blame_device(with_errno(path));
  }
  if (bytes.size() != size) {
    blame_caller(path + " became shorter while it was read");
  }
  return bytes;
}

void write_file(const std::string& path, const void* data, size_t size) {
  Descriptor file(path, O_WRONLY | O_CREAT | O_TRUNC);
  if (file.get() < 0) {
    const bool full = errno == ENOSPC || errno == EDQUOT || errno == EROFS || errno == EIO;
    throw Error{full ? "device" : "caller", with_errno(path)};
  }
  struct stat found = {};
  const bool regular = fstat(file.get(), &found) == 0 && S_ISREG(found.st_mode);
  if (!write_all(file.get(), static_cast<const char*>(data), size) || !file.close()) {
    const std::string message = with_errno(path);
    if (regular) {
      unlink(path.c_str());
    }
    blame_device(message);
  }
}

void require_artifact(const std::string& path) {
  struct stat found = {};
  const Descriptor file(path, O_RDONLY);
  if (file.get() < 0 || fstat(file.get(), &found) != 0) {
    blame_caller(with_errno(path));
  }
  if (!S_ISREG(found.st_mode)) {
    blame_caller(path + " is no regular file");
  }
}

bool write_all(int descriptor, const char* data, size_t size) {
  while (size > 0) {
    const ssize_t count = write(descriptor, data, size);
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count < 0) {
      return false;
    }
    data += count;
    size -= static_cast<size_t>(count);
  }
  return true;
}

int64_t now_ns() {
  return clock_ns(CLOCK_MONOTONIC);
}

int64_t boottime_ns() {
  return clock_ns(CLOCK_BOOTTIME);
}

Memory read_memory() {
  Memory memory;
  std::string rollup_text;
  std::string status_text;
  if (!read_text("/proc/self/smaps_rollup", rollup_text)) {
    memory.missing = with_errno("/proc/self/smaps_rollup");
    return memory;
  }
  if (!read_text("/proc/self/status", status_text)) {
    memory.missing = with_errno("/proc/self/status");
    return memory;
  }
  std::map<std::string, int64_t> rollup = kilobytes(rollup_text);
  std::map<std::string, int64_t> status = kilobytes(status_text);
  if (rollup.count("Rss") == 0 || status.count("VmHWM") == 0) {
    memory.missing = "/proc/self: the kernel does not report Rss and VmHWM";
    return memory;
  }
  memory.rss = rollup["Rss"];
  memory.pss = rollup["Pss"];
  memory.uss = rollup["Private_Clean"] + rollup["Private_Dirty"];
  memory.peak_rss = status["VmHWM"];
  memory.anonymous = rollup["Pss_Anon"];
  memory.file = rollup["Pss_File"];
  const Descriptor mark("/proc/self/clear_refs", O_WRONLY);
  write_all(mark.get(), "5", 1);
  return memory;
}

void write_memory(Json& json, const Memory& memory) {
  if (!memory.missing.empty()) {
    json.unavailable(memory.missing);
    return;
  }
  json.begin('{').key("rss_bytes").number(memory.rss).key("pss_bytes").number(memory.pss);
  json.key("uss_bytes").number(memory.uss).key("peak_rss_bytes").number(memory.peak_rss);
  json.key("anonymous_bytes").number(memory.anonymous).key("file_bytes").number(memory.file).end('}');
}

void write_state(Json& json) {
  json.begin('{');
  write_cores(json);
  write_zones(json);
  json.end('}');
}

} // namespace ferryman
