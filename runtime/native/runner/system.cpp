#include "system.h"

#include <dirent.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <map>
#include <vector>

#include "files.h"

namespace ferryman {
namespace {

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
  const int mark = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
  write_all(mark, "5", 1);
  close(mark);
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
