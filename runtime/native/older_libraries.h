// Included before every unit of a cross-build: what GCC 12 takes from glibc 2.32 and from its own C++ library's last
// versions, without which the wheel runs where ExecuTorch's libraries do (glibc 2.28, the C++ library of GCC 8).
#pragma once
#include <new>

#if defined(__GLIBC__) && !defined(__clang__)
// glibc 2.32 tells whether there is one thread only, so that shared_ptr may count without atomics. Always with them, here.
extern "C" {
__attribute__((weak, visibility("hidden"))) char __libc_single_threaded = 0;
}

namespace std {
// GLIBCXX_3.4.29: what new[] throws for a negative size.
__attribute__((weak, visibility("hidden"), noreturn)) void __throw_bad_array_new_length() { throw bad_array_new_length(); }
}  // namespace std

// GLIBCXX_3.4.30 is the same function, noexcept.
__asm__(".symver _ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE, "
        "_ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE@GLIBCXX_3.4.11");
#endif
