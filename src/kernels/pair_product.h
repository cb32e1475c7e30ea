// The arithmetic of the instructions that multiply pairs of bfloat16 (VDPBF16PS and TDPBF16PS) or
// float16 (TDPFP16PS), one number at a time and bit for bit as Intel documents it: fused
// multiply-adds in float32, rounded to nearest even, where subnormal inputs count as zero and
// subnormal results become zero, whatever the floating-point state says. Internal linkage, as in
// half.h.
//
// Computed in double: a product of two half numbers is exact there, and rounding a sum of two
// numbers of 24 bits to 53 bits and then to 24 is the same as rounding it once (53 >= 2 * 24 + 2).
// Which NaN comes out is not specified here.
#pragma once
#include "kernels/half.h"

namespace cattn {

// Subnormal inputs are zero: a bfloat16's bits in the upper half of a float's, or a float.
static inline float without_subnormal(float x) {
  const uint32_t bits = float_bits(x);
  return float_from_bits((bits & 0x7f800000u) == 0 ? bits & 0x80000000u : bits);
}

// Rounds to float32. A result is subnormal if it is below 2^-126 after rounding to 24 bits, that
// is from the middle between 2^-126 and its lower neighbour of 24 bits downwards.
static inline float round_flushing(double x) {
  constexpr double kLowest = 0x1p-126 - 0x1p-151;
  const double magnitude = __builtin_fabs(x);
  return static_cast<float>(magnitude < kLowest ? __builtin_copysign(0.0, x) : x);
}

// a * b + c for numbers without subnormals; a and b are numbers of a half type.
static inline float multiply_add_flushing(float a, float b, float c) {
  return round_flushing(static_cast<double>(a) * static_cast<double>(b) + static_cast<double>(c));
}

}  // namespace cattn
