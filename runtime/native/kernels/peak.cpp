// How fast a thread of this processor multiplies and reads at most.
#include <chrono>
#include <cstring>
#include <vector>

#include "isa.h"
#include "kernels.h"

namespace {

using Clock = std::chrono::steady_clock;

volatile uint32_t kept;  // what nobody reads would not be computed

// Work a second in the fastest of some turns, which other work on the machine disturbs least.
template <typename Turn>
double fastest(double seconds, double work, const Turn& turn) {
  double best = 0;
  turn();
  for (const auto begin = Clock::now(); std::chrono::duration<double>(Clock::now() - begin).count() < seconds;) {
    const auto start = Clock::now();
    turn();
    const double took = std::chrono::duration<double>(Clock::now() - start).count();
    best = took > 0 && work / took > best ? work / took : best;
  }
  return best;
}

constexpr size_t kRounds = 4000;

} // namespace

double ferryman_peak_floats(double seconds) {
  const auto& isa = ferryman::kernels::isa();
  const std::vector<float> x(4096, 0.5f);
  return fastest(seconds, static_cast<double>(kRounds * isa.peak_float_macs), [&] {
    const float sum = isa.peak_floats(x.data(), kRounds);
    uint32_t bits;
    memcpy(&bits, &sum, sizeof bits);
    kept = bits;
  });
}

double ferryman_peak_int8(double seconds) {
  const auto& isa = ferryman::kernels::isa();
  const std::vector<int8_t> x(16384, 1);
  return fastest(seconds, static_cast<double>(kRounds * isa.peak_byte_macs),
                 [&] { kept = static_cast<uint32_t>(isa.peak_bytes(x.data(), kRounds)); });
}

double ferryman_peak_read(const uint32_t* words, size_t count, size_t times, double seconds) {
  const auto& isa = ferryman::kernels::isa();
  return fastest(seconds, static_cast<double>(times * count * sizeof *words), [&] {
    for (size_t i = 0; i < times; ++i) {
      kept = isa.peak_read(words, count);
    }
  });
}
