// The half types as numbers that convert from and to double.
#pragma once
#include <type_traits>

#include "kernels/half.h"

namespace cattn::test {

template <class Bits>
struct HalfNumber {
  HalfNumber() = default;
  explicit HalfNumber(double x) { from_float(static_cast<float>(x), value); }
  operator double() const { return static_cast<double>(to_float(value)); }

  Bits value;
};
using Half = HalfNumber<Float16>;
using Brain = HalfNumber<BFloat16>;  // bfloat16

template <class T>
inline constexpr bool kIsHalf = sizeof(T) == 2;
// What a type is computed in.
template <class T>
using Wide = std::conditional_t<kIsHalf<T>, float, T>;

}  // namespace cattn::test
