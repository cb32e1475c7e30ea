// Single numbers of any dtype: slopes, sinks and sums that are written one by one.
#pragma once
#include <cstring>

#include "core/types.h"
#include "kernels/half.h"

namespace cattn {

template <class S>
S load_element(const void* p) {
  S x;
  std::memcpy(&x, p, sizeof(x));
  return x;
}

inline double load_scalar(const void* p, Storage storage) {
  switch (storage) {
    case Storage::float64: return load_element<double>(p);
    case Storage::float16: return static_cast<double>(to_float(load_element<Float16>(p)));
    case Storage::bfloat16: return static_cast<double>(to_float(load_element<BFloat16>(p)));
    default: return static_cast<double>(load_element<float>(p));
  }
}

// Rounds once for float32 and float64; the half types are rounded from float32.
inline void store_scalar(void* p, Storage storage, double x) {
  const auto store = [&]<class S>(S element) {
    if constexpr (sizeof(S) == 8) {
      element = x;
    } else {
      from_float(static_cast<float>(x), element);
    }
    std::memcpy(p, &element, sizeof(element));
  };
  switch (storage) {
    case Storage::float64: return store(double{});
    case Storage::float16: return store(Float16{});
    case Storage::bfloat16: return store(BFloat16{});
    default: return store(float{});
  }
}

}  // namespace cattn
