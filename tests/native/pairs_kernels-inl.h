// One table of pairs_kernels.h. Included inside the object's anonymous namespace, behind Vec and
// Pairs and Tile.

// clang-format off: each uses what stands before it
#include "kernels/exp-inl.h"
#include "kernels/gemm-inl.h"
#include "kernels/parts-inl.h"
#include "kernels/pairs-inl.h"
#include "kernels/amx/tile_products-inl.h"
#include "kernels/rounded_weights-inl.h"
// clang-format on

template <class Micro, class L, class R, class P>
void run_as(PairCase& t) {
  const LeftPairs left = LeftPairs::make(t.left_memory, t.rows, t.depth);
  const RightPairs right = RightPairs::make(t.right_memory, t.depth, t.cols);
  const L* const left_source = static_cast<const L*>(t.left);
  const R* const right_source = static_cast<const R*>(t.right);
  using Format = typename P::Format;
  if constexpr (!kIsPart<Format, P::left_parts, L>) {
    if (t.halves) {
      t.left_flags = pack_left<Format, P::left_parts, Pairing::halves>(left_source, t.left_stride,
                                                                       t.rows, t.depth, left)
                         .flags;
      t.right_flags = pack_right<Format, P::right_parts, Pairing::halves>(
                          right_source, t.right_stride, t.depth, t.cols, right)
                          .flags;
    }
  }
  if (!t.halves) {
    const PackedRange left_range =
        t.left_transposed
            ? pack_left_transposed<Format, P::left_parts>(left_source, t.left_stride, t.depth,
                                                          t.rows, left)
            : pack_left<Format, P::left_parts>(left_source, t.left_stride, t.rows, t.depth, left);
    const PackedRange right_range = t.right_transposed
                                        ? pack_right_transposed<Format, P::right_parts>(
                                              right_source, t.right_stride, t.cols, t.depth, right)
                                        : pack_right<Format, P::right_parts>(
                                              right_source, t.right_stride, t.depth, t.cols, right);
    t.left_flags = left_range.flags;
    t.right_flags = right_range.flags;
  }
  Micro micro;
  multiply_pairs<P>(micro, left, t.rows, right, t.cols, PairOutput{t.c, t.c_row, t.c_panel, t.add},
                    [&](Index row, Index count, Index) {
                      const Index seen = round_up(row + count, 2);
                      return whole({t.begin, t.causal ? smaller(t.end, seen) : t.end},
                                   t.halves ? kPairDepth : Micro::depth_step);
                    });
  micro.flush();
}

template <class Micro>
void run(PairCase& t) {
  if constexpr (Micro::multiplies_float16) {
    using Whole = Products<1, 1, 1, Float16Pairs>;
    if (t.kind == PairKind::whole_float16) return run_as<Micro, Float16, Float16, Whole>(t);
    if (t.kind == PairKind::rounded_float16) return run_as<Micro, float, Float16, Whole>(t);
  }
  switch (t.kind) {
    case PairKind::highest: return run_as<Micro, float, float, Products<3, 3, 3>>(t);
    case PairKind::high: return run_as<Micro, float, float, Products<2, 2, 2>>(t);
    case PairKind::medium: return run_as<Micro, float, float, Products<1, 1, 1>>(t);
    case PairKind::bfloat16: return run_as<Micro, BFloat16, BFloat16, Products<1, 1, 1>>(t);
    case PairKind::float16: return run_as<Micro, Float16, Float16, Products<2, 2, 3>>(t);
    case PairKind::mixed_float16: return run_as<Micro, float, Float16, Products<3, 2, 3>>(t);
    case PairKind::mixed_bfloat16: return run_as<Micro, float, BFloat16, Products<3, 1, 3>>(t);
    case PairKind::mixed_high: return run_as<Micro, float, BFloat16, Products<2, 1, 2>>(t);
    case PairKind::whole_float16:
    case PairKind::rounded_float16: break;  // above, if at all
  }
}

void split_32(const float* x, uint16_t* to) {
  PartsRange range;
  Pairs::W parts[3];
  split_row<Pairs, 3>(x, 32, range, parts);
  for (int p = 0; p < 3; ++p) Pairs::store(to + 32 * p, parts[p]);
}

void multiply_add_16(const uint16_t* a, const uint16_t* b, float* acc) {
  using X = Vec<float>;
  X::store(acc, Pairs::multiply_add(X::load(acc), Pairs::load(a), Pairs::load(b)));
}

void round_weights_32(const float* exponents, bool last_bits, uint16_t* weights) {
  using X = Vec<float>;
  const float zero = BFloat16Weights::place(0) + (last_bits ? BFloat16Weights::in_last_bits : 0);
  const auto place = [&](Index i) {
    return X::fma(X::load(exponents + i), X::set1(BFloat16Weights::units), X::set1(zero));
  };
  const BFloat16Weights rounded;
  Pairs::store(weights, last_bits ? rounded.at_last_bits(place(0), place(16))
                                  : rounded.at<false>(place(0), place(16)));
}

template <class T>
void weights_by_table_16(const T* x, T shift, T rest, T* weights) {
  using X = Vec<T>;
  typename TableExponential<T>::OfRow row;
  row.set({shift, T(1), rest});
  X::store(weights, TableExponential<T>::from_lse(X::load(x), X::set1(T(1)), row));
}

template <class Micro, class T = float>
constexpr PairKernels table_of(const char* name, bool tiles, bool float16) {
  decltype(PairKernels::weights_by_table) weights_by_table = nullptr;
  if constexpr (requires { &Vec<T>::element; }) weights_by_table = weights_by_table_16<T>;
  return {name,      tiles, float16, split_32, multiply_add_16, round_weights_32, weights_by_table,
          run<Micro>};
}
