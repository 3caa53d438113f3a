// Which tables this machine can run.
#include "kernels.h"

namespace kolm {

namespace baseline { extern const Kernels kernels; }
#if defined(__x86_64__)
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }
#elif defined(__aarch64__)
namespace neon { extern const Kernels kernels; }
#endif

namespace {

struct Available {
  const Kernels* tables[4] = {};

  Available() {
    int count = 0;
#if defined(__x86_64__)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
      tables[count++] = &avx512::kernels;
    if (avx2) tables[count++] = &avx2::kernels;
#elif defined(__aarch64__)
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
