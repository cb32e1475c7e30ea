// The products on pairs of bfloat16 or float16 as the tests call them: one table per vector
// vocabulary and micro-kernel, each in an object compiled for its instruction set.
#pragma once
#include "kernels/kernel_table.h"

namespace cattn::test {

// Types in memory of the two operands, and which parts are multiplied.
enum class PairKind {
  highest,          // float32 by six products
  high,             // float32 by three
  medium,           // float32 by one
  bfloat16,         // one
  float16,          // four
  mixed_float16,    // float32 times float16, five
  mixed_bfloat16,   // float32 times bfloat16, three
  mixed_high,       // the same, two
  whole_float16,    // one, of pairs of float16
  rounded_float16,  // float32 rounded to float16 times float16
};
constexpr int kPairKinds = 10;
constexpr bool needs_float16(PairKind kind) { return kind >= PairKind::whole_float16; }

// c = or += left (rows, depth) right (depth, cols).
struct PairCase {
  PairKind kind;
  Index rows, depth, cols;
  const void* left;  // (rows, depth), or its transpose
  Index left_stride;
  bool left_transposed;
  const void* right;  // (depth, cols), or its transpose
  Index right_stride;
  bool right_transposed;
  void *left_memory, *right_memory;
  Index begin, end;  // of the depth
  bool causal;       // the left operand is zero behind its diagonal
  bool halves;       // how the depth is paired; neither operand is transposed then
  float* c;
  Index c_row, c_panel;
  bool add;
  uint8_t left_flags, right_flags;  // results
};

struct PairKernels {
  const char* name;
  bool tiles;                              // sums as TDPBF16PS does, else as VDPBF16PS
  bool float16;                            // has the kinds that need it
  void (*split)(const float*, uint16_t*);  // 32 numbers to 3 parts of 32
  void (*multiply_add)(const uint16_t* a, const uint16_t* b, float* acc);  // 16 pairs
  // 32 exponents to weights, in pairs (i, i + 16); by way of the last bits: within reach, or -inf
  void (*round_weights)(const float*, bool last_bits, uint16_t*);
  // 16 exponents x to 2^(x - shift - rest) by the table of powers; null: the vectors have none.
  void (*weights_by_table)(const float* x, float shift, float rest, float* weights);
  void (*run)(PairCase&);
};

// Every table that the CPU can run; null behind the last one.
const PairKernels* pair_kernels(int i);

}  // namespace cattn::test
