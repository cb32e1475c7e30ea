// Which keys a query may attend, for core/ and the kernels alike. Internal linkage: nothing here
// may be shared between ISA files at link time.
#pragma once
#include "kernels/kernel_table.h"

namespace cattn {

static inline Index clamp_key(const Band& band, Index key) {
  return key < 0 ? 0 : key > band.key_count ? band.key_count : key;
}
static inline Index lowest_key(const Band& band, Index query) {
  return clamp_key(band, query + band.lo_shift);
}
static inline Index highest_key(const Band& band, Index query) {
  return clamp_key(band, query + band.hi_shift);
}

struct Range {
  Index begin, end;
};

// The queries in [0, queries) that may attend some key of [begin, end): a query i attends j iff
// i + lo_shift <= j < i + hi_shift.
static inline Range queries_of(const Band& band, Index begin, Index end, Index queries) {
  const Index first = begin - band.hi_shift + 1, last = end - band.lo_shift;
  return {first < 0 ? 0 : first, last > queries ? queries : last};
}

}  // namespace cattn
