// Which instruction set this translation unit is compiled for. Each kernel source is compiled once
// for every instruction set, in a namespace of its own.
#pragma once

#if defined(KOLM_ISA_AVX512VNNI)
#define KOLM_ISA avx512vnni
#define KOLM_BASE avx512
#elif defined(KOLM_ISA_AVX2VNNI)
#define KOLM_ISA avx2vnni
#define KOLM_BASE avx2
#elif defined(KOLM_ISA_NEONDOT)
#define KOLM_ISA neondot
#define KOLM_BASE neon
#elif defined(KOLM_ISA_AVX512)
#define KOLM_ISA avx512
#elif defined(KOLM_ISA_AVX2)
#define KOLM_ISA avx2
#elif defined(KOLM_ISA_NEON)
#define KOLM_ISA neon
#else
#define KOLM_ISA baseline
#endif

// A set that adds instructions for 8-bit integers alone has its own dots.cpp; the rest of its table
// is that of the set it adds to.
#if !defined(KOLM_BASE)
#define KOLM_BASE KOLM_ISA
#endif

#define KOLM_TEXT_OF(x) #x
#define KOLM_TEXT(x) KOLM_TEXT_OF(x)

#if defined(__FAST_MATH__)
#error "the portable kernels need IEEE arithmetic: -ffast-math is not allowed"
#endif

// Before a loop whose iterations touch different elements: an output that is an input does not keep
// the compiler from vectorising.
#if defined(__clang__)
#define KOLM_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define KOLM_INDEPENDENT _Pragma("GCC ivdep")
#endif
