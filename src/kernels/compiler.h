// The two things that C++ has no word for yet: "inline this always" and "unroll this fully".
#pragma once

#if defined(__clang__)
#define CATTN_INLINE [[gnu::always_inline]] inline
#define CATTN_UNROLL _Pragma("clang loop unroll(full)")
#else
#define CATTN_INLINE [[gnu::always_inline]] inline
#define CATTN_UNROLL _Pragma("GCC unroll 32")
#endif
