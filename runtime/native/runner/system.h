// The device around the model: clocks, memory of this process, clock rates and heat.
#pragma once

#include <cstdint>
#include <string>

#include "json.h"

namespace ferryman {

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
