// The half types, one number at a time, for core/ and the plain vectors. Internal linkage: nothing
// here may be shared between ISA files at link time.
#pragma once
#include "kernels/kernel_table.h"

namespace cattn {

static inline uint32_t float_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  return bits;
}
static inline float float_from_bits(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof(x));
  return x;
}

static inline float to_float(float x) { return x; }
static inline float to_float(BFloat16 x) {
  return float_from_bits(static_cast<uint32_t>(x.bits) << 16);
}
static inline float to_float(Float16 x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // infinity or NaN
    return float_from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  }
  if (magnitude >= 0x400u) return float_from_bits(sign | ((magnitude << 13) + (112u << 23)));
  const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;
  return float_from_bits(sign | float_bits(subnormal));
}

// Rounds to nearest, ties to even; NaN stays NaN.
static inline void from_float(float x, float& to) { to = x; }
static inline void from_float(float x, BFloat16& to) {
  const uint32_t bits = float_bits(x);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  to.bits = static_cast<uint16_t>(is_nan ? bits >> 16 | 0x40u
                                         : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
static inline void from_float(float x, Float16& to) {
  const uint32_t bits = float_bits(x), sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude >= 0x47800000u) {  // from 2^16 on: infinity or NaN
    half = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  } else if (magnitude < 0x38800000u) {
    // Below 2^-14 the half is subnormal: adding 1/2 leaves its bits at the low end of the sum.
    half = float_bits(float_from_bits(magnitude) + 0.5f) - float_bits(0.5f);
  } else {
    half = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  }
  to.bits = static_cast<uint16_t>(sign | half);
}

}  // namespace cattn
