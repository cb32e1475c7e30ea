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
#pragma once
#include <string>

#include "reference/reference.h"

namespace cattn::test {

struct Precision {
  double u;     // unit roundoff of the kernel plus that of the reference
  double tiny;  // the smallest normal number
};
template <class T>
Precision precision();

struct Bounds {
  reference::Array out, lse, weights;
  reference::Array dq, dk, dv;
  // For the gradient of a bias, which sums n of them: sum of dscore + n u sum of dscore_size.
  reference::Array dscore, dscore_size;
};

Bounds bounds(const reference::Problem& p, const reference::Result& result,
              const reference::Array& dout, const reference::Array& dlse, Precision precision);

// The largest error over its bound; huge where one of the two is NaN or infinite and the other not.
double largest_ratio(const reference::Array& got, const reference::Array& expected,
                     const reference::Array& bound);
std::string ratio_text(double ratio);

}  // namespace cattn::test
