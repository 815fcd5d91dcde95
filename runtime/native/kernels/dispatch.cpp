// Which instruction set is used: the best one, or what FERRYMAN_KERNELS_ISA names.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>

#include "isa.h"
#include "kernels.h"

#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace ferryman::kernels {
namespace {

struct Usable {
  const Isa* list[6] = {};
  std::string names;

  void add(const Isa& isa) {
    size_t count = 0;
    while (list[count]) {
      ++count;
    }
    list[count] = &isa;
    names += (count ? " " : "") + std::string(isa.name);
  }

  Usable() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vpopcntdq") &&
        __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma")) {
      add(kAvx512);
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("fma")) {
      add(kAvx2);
    }
    add(kX86_64);
#elif defined(__aarch64__)
    if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) {
      add(kNeonDot);
    }
    add(kNeon);
#endif
    add(kScalar);
  }
};

const Usable& usable() {
  static const Usable* const found = new Usable;  // never destroyed: threads may still compute while the process exits
  return *found;
}

const Isa* find(const char* name) {
  for (const Isa* const* at = usable().list; *at; ++at) {
    if (strcmp((*at)->name, name) == 0) {
      return *at;
    }
  }
  return nullptr;
}

std::atomic<const Isa*>& chosen() {
  static std::atomic<const Isa*> isa = [] {
    const char* const named = std::getenv("FERRYMAN_KERNELS_ISA");
    const Isa* const found = named ? find(named) : nullptr;
    return found ? found : usable().list[0];
  }();
  return isa;
}

} // namespace

const Isa& isa() {
  return *chosen().load(std::memory_order_relaxed);
}

} // namespace ferryman::kernels

int32_t ferryman_kernels_version(void) {
  return FERRYMAN_KERNELS_VERSION;
}

const char* ferryman_kernels_isa(void) {
  return ferryman::kernels::isa().name;
}

const char* ferryman_kernels_isas(void) {
  return ferryman::kernels::usable().names.c_str();
}

int32_t ferryman_kernels_use(const char* isa) {
  const auto* const found = ferryman::kernels::find(isa);
  if (found) {
    ferryman::kernels::chosen().store(found, std::memory_order_relaxed);
  }
  return found ? 0 : -1;
}
