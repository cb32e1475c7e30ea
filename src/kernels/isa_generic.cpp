// The kernels for any CPU.
#include "kernels/band.h"
#include "kernels/compiler.h"
#include "kernels/half.h"
#include "kernels/kernel_table.h"

namespace cattn::generic {
namespace {

#include "kernels/vec/scalar.h"
using Words = PlainWords;
template <class T>
struct Vec;
template <>
struct Vec<float> : PlainVec<float, int32_t, 4> {};
template <>
struct Vec<double> : PlainVec<double, int64_t, 2> {};

// 16 registers of 16 bytes (SSE2): 6 x 2 accumulators, 2 right operands, 1 left.
struct Tile {
  static constexpr int rows = 6, vectors = 2;
  static constexpr bool loops_by_kind = false;
  template <class T>
  struct Forward {
    static constexpr Index query_block = 48, key_block = 64;
  };
  template <class T>
  struct Backward {
    static constexpr Index query_block = 48, key_block = 64;
  };
};

#include "kernels/table-inl.h"

}  // namespace

extern const KernelTable table;
const KernelTable table = kernel_table("generic");

}  // namespace cattn::generic
