// A whole table of kernels by multiply-adds, instantiated from the shared sources. Included behind
// Vec and Tile, inside the ISA's anonymous namespace.

// clang-format off: each uses what stands before it
#include "kernels/exp-inl.h"
#include "kernels/gemm-inl.h"
#include "kernels/pack-inl.h"
#include "kernels/score-inl.h"
#include "kernels/dropout-inl.h"
#include "kernels/queries-inl.h"
#include "kernels/fma_matrices-inl.h"
#include "kernels/forward-inl.h"
#include "kernels/backward-inl.h"
#include "kernels/matrix_kernels-inl.h"
#include "kernels/jvp-inl.h"
#include "kernels/decode-inl.h"
#include "kernels/rope-inl.h"
// clang-format on

// T is what is computed in, S what lies in memory.
template <class T, class S = T>
constexpr KernelSet kernel_set() {
  return {matrix_kernels<FmaMatrices<T>, S>(),
          sizeof(T),
          accumulator_bytes<T>,
          jvp_scratch_bytes<T>,
          jvp<T, S>,
          decode<T, S>,
          merge<T, S>,
          decode_weights<T, S>,
          row_terms<T, S>,
          rope<T, S>};
}

constexpr KernelTable kernel_table(const char* name) {
  return {name,
          kernel_set<float>(),
          kernel_set<float>(),
          kernel_set<float>(),
          kernel_set<double>(),
          kernel_set<float, Float16>(),
          kernel_set<float, BFloat16>(),
          dropout_row,
          nullptr};
}
