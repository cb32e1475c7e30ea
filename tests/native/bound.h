// How far a kernel in arithmetic of unit roundoff u may be from the float64 reference: a
// first-order worst-case analysis, computed next to the reference with absolute values in place of
// products.
//
//   M_i     = max_j (|scale| sum_d |q_id k_jd| + |bias_ij|)      magnitude of the scores
//   kappa_i = 2u ((D + 8) M_i + Lk + 32)       relative error of the weights of row i
//   omega   = kappa_i w_ij + tiny              their absolute error, underflow included
//   G_ij    = sum_d |dout_id v_jd|             magnitude of dw
//   H_ij    = G_ij + sum_j w_ij G_ij + |dlse_i|                  magnitude of dw - delta
//   sigma   = (2 omega + (Dv + 4) u w_ij) H_ij                   error of the dscores
//
// D + 8: D rounded products of a score, then scale, bias, the change of base and the subtraction of
// the maximum. Lk + 32: the sum of the weights, the exponential, the division. Every sum of n terms
// adds n u of its terms' sizes.
//
// A softcap costs 18 roundings more of a score, ALiBi 4 and |slope| |distance| in M_i, a sink
// |sink| in M_i and one more term (Lk + 40); dropout multiplies w on its way to the values by a
// factor R, in two roundings. The slope 1 - tanh^2 of a softcap is off by
//
//   theta = n_s u |scale| sum_d |q_id k_jd| / softcap + 36 u      with n_s = D + 26,
//
// which dq and dk add to sigma. Forward mode: ds = scale slope (dq . k + q . dk), of magnitude
// T_ij, is off by eps = n_s u T_ij + theta T_ij, and w ds by omega T_ij + w (eps + 4 u T_ij).
//
// Matrix products from parts of numbers (src/kernels/parts-inl.h) leave something out, relative to
// the magnitudes that they add: delta_o where two operands are multiplied, scores and dw; delta_w
// where w is with v; delta_g where w or the dscores are for gradients. Then
//
//   kappa_i = 2u ((D + 8) M_i + Lk + 32) + 2 delta_o max_j |scale| sum_d |q_id k_jd|,
//
// sigma has a term of delta_o w_ij H_ij, theta one of delta_o where it has n_s u, and sums of w or
// dscores with an operand have delta_w or delta_g beside their n u. What out is off by thus adds
// delta_w sum_j w_ij G_ij to dw - delta. The small products are summed first; their roundings are
// of second order. Forward mode does not multiply parts.
//
// Half types are computed in float32 and rounded once, which adds half an ulp; so does `out` to
// dw - delta, as the backward reads the rounded one.
#pragma once
#include <string>

#include "half.h"
#include "reference/reference.h"

namespace cattn::test {

struct Precision {
  double u;     // unit roundoff of the kernel plus that of the reference
  double tiny;  // the smallest normal number
  // The rounding of results to a half type: its unit roundoff and half its smallest number.
  double half_u = 0, half_tiny = 0;
  double delta_o = 0, delta_w = 0, delta_g = 0;
  double polynomial = 0;  // of weights for gradients

  double last_rounding(double value) const { return half_u * value + half_tiny; }
};
template <class T>
Precision precision();
template <>
Precision precision<Half>();
template <>
Precision precision<Brain>();

// Products of parts: of one and of two parts of float32 numbers, and those of half types, whose
// operands are one or two parts exactly.
constexpr double kOnePart = 0x1p-8;
inline Precision in_one_part(Precision p) {
  p.delta_o = p.delta_w = p.delta_g = 2 * kOnePart;
  return p;
}
inline Precision in_two_parts(Precision p) {
  p.delta_o = p.delta_w = p.delta_g = 2 * kOnePart * kOnePart;
  return p;
}

// How an instruction set multiplies matrices of a type, except in forward mode.
enum class Multiplied { by_elements, in_pairs, in_float16_pairs };
constexpr int kWaysToMultiply = 3;
template <class T>
Multiplied multiplied(const std::string& isa);
template <class T>
Precision precision(Multiplied how);

struct Bounds {
  reference::Array out, lse, weights;
  reference::Array dq, dk, dv;
  // For the gradient of a bias, which sums n of them: sum of dscore + n u sum of dscore_size.
  reference::Array dscore, dscore_size;
  reference::Array dsinks;
};

Bounds bounds(const reference::Problem& p, const reference::Result& result,
              const reference::Array& dout, const reference::Array& dlse, Precision precision);

// Of the tangent of out; `of_out` is the bound of out.
reference::Array tangent_bound(const reference::Problem& p, const reference::Result& result,
                               const reference::Array& dq, const reference::Array& dk,
                               const reference::Array& dv, const reference::Array& of_out,
                               Precision precision);

// Adds the last rounding of `expected` to a bound, where there is one.
void add_last_rounding(reference::Array& bound, const reference::Array& expected,
                       Precision precision);

// The largest error over its bound; huge where one of the two is NaN or infinite and the other not.
double largest_ratio(const reference::Array& got, const reference::Array& expected,
                     const reference::Array& bound);
std::string ratio_text(double ratio);

}  // namespace cattn::test
