// The things that C++ has no word for yet: "inline this always", of a lambda too, "never this
// lambda", and "unroll this fully".
#pragma once

#define CATTN_INLINE [[gnu::always_inline]] inline
#define CATTN_INLINE_LAMBDA __attribute__((always_inline))
#define CATTN_APART_LAMBDA __attribute__((noinline))

#if defined(__clang__)
#define CATTN_UNROLL _Pragma("clang loop unroll(full)")
#else
#define CATTN_UNROLL _Pragma("GCC unroll 32")
#endif
