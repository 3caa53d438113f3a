// Which tables this machine can run.
#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace kolm {

namespace baseline { extern const Kernels kernels; }
#if defined(__x86_64__)
namespace avx2 { extern const Kernels kernels; }
namespace avx2vnni { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }
namespace avx512vnni { extern const Kernels kernels; }
#elif defined(__aarch64__)
namespace neon { extern const Kernels kernels; }
namespace neondot { extern const Kernels kernels; }
#endif

namespace {

#if defined(__x86_64__)
// Leaf 7, subleaf 1; the operating system saves what AVX2 needs, and this needs no more.
bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
}
#elif defined(__aarch64__)
bool has_dot_product() {
#if defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
  return false;
#endif
}
#endif

struct Available {
  const Kernels* tables[6] = {};

  Available() {
    int count = 0;
#if defined(__x86_64__)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl");
    if (avx512 && __builtin_cpu_supports("avx512vnni")) tables[count++] = &avx512vnni::kernels;
    if (avx512) tables[count++] = &avx512::kernels;
    if (avx2 && has_avx_vnni()) tables[count++] = &avx2vnni::kernels;
    if (avx2) tables[count++] = &avx2::kernels;
#elif defined(__aarch64__)
    if (has_dot_product()) tables[count++] = &neondot::kernels;
    tables[count++] = &neon::kernels;
#endif
    tables[count++] = &baseline::kernels;
  }
};

}  // namespace

const Kernels* const* available_kernels() {
  static const Available available;
  return available.tables;
}

}  // namespace kolm
