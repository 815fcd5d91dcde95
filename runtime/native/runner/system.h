// The device around the model: files, clocks, memory of this process, clock rates and heat.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "json.h"

namespace ferryman {

// A regular file's bytes, which must be `size`. Throws Error.
std::string read_file(const std::string& path, size_t size);

// Throws Error of party device or caller; what was written of a regular file is removed then.
void write_file(const std::string& path, const void* data, size_t size);

// Throws Error unless `path` is a regular file that can be read: a pipe without a writer would keep ExecuTorch waiting.
void require_artifact(const std::string& path);

// Whether all of it could be written; errno tells why not.
bool write_all(int descriptor, const char* data, size_t size);

// `what`: and what errno says.
std::string with_errno(const std::string& what);

int64_t now_ns(); // CLOCK_MONOTONIC
int64_t boottime_ns(); // CLOCK_BOOTTIME: goes on while the device sleeps; meters and logs of Android count by it

// Of this process, from /proc/self; the peak since the phase before where the kernel lets the mark be reset.
struct Memory {
  std::string missing; // why there is none
  int64_t rss = 0, pss = 0, uss = 0, peak_rss = 0, anonymous = 0, file = 0;
};
Memory read_memory();
void write_memory(Json& json, const Memory& memory);

// Clock rates and governors of all cores, and thermal zones, as /sys has them.
void write_state(Json& json);

} // namespace ferryman
