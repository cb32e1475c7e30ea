#include "core/dropout.h"

#include <algorithm>
#include <string>

#include "core/arrays.h"
#include "core/error.h"
#include "core/parallel.h"

namespace cattn {

Dropout dropout_of(double dropout, uint64_t seed) {
  if (!(dropout >= 0 && dropout < 1)) {
    value_error("dropout: is " + std::to_string(dropout) + ", expected 0 <= dropout < 1");
  }
  Dropout result{};
  result.on = dropout > 0;
  result.seed = seed;
  result.threshold = static_cast<uint32_t>(dropout * 0x1p32);
  result.kept_scale = 1 / (1 - dropout);
  return result;
}

void dropout_mask(const Dropout& dropout, const cattn_array& mask,
                  void (*dropout_row)(const DropoutRow&)) {
  check_dtype("mask", mask, CATTN_BOOL, "");
  check_array("mask", mask, 2);
  Index contiguous = 1;
  for (int i = mask.ndim - 1; i >= 0; --i) {
    if (mask.shape[i] > 1 && mask.strides[i] != contiguous) {
      value_error("mask: must be contiguous, with the last axis innermost");
    }
    contiguous = checked_multiply(contiguous, mask.shape[i]);
  }
  const Index keys = axis(mask, 1), queries = axis(mask, 2), heads = axis(mask, 3);
  Index rows = 1;
  for (int i = 0; i + 1 < mask.ndim; ++i) rows = checked_multiply(rows, mask.shape[i]);
  constexpr Index span = 16 * kDropoutSpan;
  parallel_items(rows, default_num_threads(), nullptr, [&](Index row, int32_t) {
    uint32_t words[span];
    uint8_t* const to = static_cast<uint8_t*>(mask.data) + row * keys;
    for (Index first = 0; first < keys; first += span) {
      const Index count = std::min(span, keys - first);
      dropout_row({dropout.seed, static_cast<uint32_t>(row / queries / heads),
                   static_cast<uint32_t>(row / queries % heads),
                   static_cast<uint32_t>(row % queries), first, count, words});
      for (Index j = 0; j < count; ++j) to[first + j] = words[j] >= dropout.threshold;
    }
  });
}

}  // namespace cattn
