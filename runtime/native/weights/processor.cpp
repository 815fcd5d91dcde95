#include <array>

#include "weights.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#else
#include <sys/auxv.h>
#endif

namespace {

#if defined(__x86_64__) || defined(__i386__)

// Features alone: other fields tell cores of one processor apart.
std::array<uint32_t, 8> features() {
  std::array<uint32_t, 8> found{};
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx)) {
    found[0] = ecx;
    found[1] = edx;
    if (ecx & bit_OSXSAVE) {
      uint32_t high = 0;
      __asm__ volatile("xgetbv" : "=a"(found[2]), "=d"(high) : "c"(0));  // registers that the system saves
    }
  }
  if (__get_cpuid_count(7, 0, &eax, &found[3], &found[4], &found[5]) && eax >= 1) {
    __get_cpuid_count(7, 1, &found[6], &ebx, &ecx, &found[7]);
  }
  return found;
}

#else

std::array<unsigned long, 2> features() { return {getauxval(AT_HWCAP), getauxval(AT_HWCAP2)}; }

#endif

}  // namespace

uint64_t ferryman_weights_processor(void) {
  const auto found = features();
  return ferryman_weights_checksum(reinterpret_cast<const uint8_t*>(found.data()), sizeof found);
}
