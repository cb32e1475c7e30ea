// The kernels for aarch64.
#include <arm_neon.h>

#include "kernels/band.h"
#include "kernels/compiler.h"
#include "kernels/half.h"
#include "kernels/kernel_table.h"

namespace cattn::neon {
namespace {

#include "kernels/vec/neon.h"

// 32 registers: 12 x 2 accumulators, 2 right operands, 1 left, taken by its lane.
struct Tile {
  static constexpr int rows = 12, vectors = 2;
  static constexpr bool loops_by_kind = true;
  template <class T>
  struct Forward {
    static constexpr Index query_block = 96, key_block = 64;
  };
  template <class T>
  struct Backward {
    static constexpr Index query_block = 96, key_block = 64;
  };
};

#include "kernels/table-inl.h"

}  // namespace

extern const KernelTable table;
const KernelTable table = kernel_table("neon");

}  // namespace cattn::neon
