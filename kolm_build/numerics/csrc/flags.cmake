# What the kernels are compiled with. These decide results, so this file is one of the sources whose
# digest a build names.

# No contraction that the source does not write, and nothing that assumes away NaN or infinities.
set(KOLM_IEEE -ffp-contract=off -fno-fast-math -fno-math-errno -fno-trapping-math)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(KOLM_ISAS avx512 avx2 baseline)
  set(KOLM_FLAGS_avx512 -DKOLM_ISA_AVX512 -mavx512f -mavx512vl -mavx512dq -mavx512bw -mfma -mf16c
    -mprefer-vector-width=512)
  set(KOLM_FLAGS_avx2 -DKOLM_ISA_AVX2 -mavx2 -mfma -mf16c)
  # These add an instruction for products of 8-bit integers to a set: dots.cpp alone uses it.
  set(KOLM_DOT_ISAS avx512vnni avx2vnni)
  set(KOLM_FLAGS_avx512vnni ${KOLM_FLAGS_avx512} -DKOLM_ISA_AVX512VNNI -mavx512vnni)
  set(KOLM_FLAGS_avx2vnni ${KOLM_FLAGS_avx2} -DKOLM_ISA_AVX2VNNI -mavxvnni)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  set(KOLM_ISAS neon baseline)
  set(KOLM_FLAGS_neon -DKOLM_ISA_NEON)
  set(KOLM_DOT_ISAS neondot)
  set(KOLM_FLAGS_neondot -DKOLM_ISA_NEON -DKOLM_ISA_NEONDOT -march=armv8.2-a+dotprod)
else()
  set(KOLM_ISAS baseline)
endif()
