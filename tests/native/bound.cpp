#include "bound.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

namespace cattn::test {
namespace {

using reference::Array;
using reference::Index;

Array magnitudes(Array a) {
  for (double& x : a) x = std::abs(x);
  return a;
}

double dot(const double* a, const double* b, Index n) {
  double sum = 0;
  for (Index d = 0; d < n; ++d) sum += a[d] * b[d];
  return sum;
}

void add_scaled(double* y, double a, const double* x, Index n) {
  for (Index d = 0; d < n; ++d) y[d] += a * x[d];
}

}  // namespace

template <class T>
Precision precision() {
  return {std::numeric_limits<T>::epsilon() / 2 + std::numeric_limits<double>::epsilon() / 2,
          std::numeric_limits<T>::min()};
}
template Precision precision<float>();
template Precision precision<double>();

Bounds bounds(const reference::Problem& p, const reference::Result& result, const Array& dout,
              const Array& dlse, Precision precision) {
  const double u = precision.u, scale = std::abs(p.scale);
  const Array q = magnitudes(p.q), k = magnitudes(p.k), v = magnitudes(p.v);
  const Array grad = magnitudes(dout);
  const auto zeros = [](const Array& like) { return Array(like.size(), 0.0); };
  Bounds bound{zeros(result.out), zeros(result.lse), zeros(result.weights), zeros(q),
               zeros(k),          zeros(v),          zeros(result.weights), zeros(result.weights)};

  const Index group = p.heads_kv > 0 ? p.heads_q / p.heads_kv : 0;
  const double query_sum = u * static_cast<double>(p.queries * group + 8);
  const double key_sum = u * static_cast<double>(p.keys + 8);
  for (Index row = 0; row < p.rows(); ++row) {
    const double* const q_row = q.data() + row * p.head_dim;
    const double* const grad_row = grad.data() + row * p.value_dim;
    const double* const w = result.weights.data() + row * p.keys;
    const auto k_row = [&](Index j) { return k.data() + p.kv_row(row, j) * p.head_dim; };
    const auto v_row = [&](Index j) { return v.data() + p.kv_row(row, j) * p.value_dim; };

    double magnitude = 0;       // M_i
    double weighted_grads = 0;  // sum_j w_ij G_ij
    for (Index j = 0; j < p.keys; ++j) {
      if (!p.attends(row, j)) continue;
      const double bias =
          p.bias.empty() ? 0 : std::abs(p.bias[static_cast<size_t>(row * p.keys + j)]);
      magnitude = std::max(magnitude, scale * dot(q_row, k_row(j), p.head_dim) + bias);
      weighted_grads += w[j] * dot(grad_row, v_row(j), p.value_dim);
    }
    if (!dlse.empty()) weighted_grads += std::abs(dlse[static_cast<size_t>(row)]);
    const double kappa =
        2 * u *
        (static_cast<double>(p.head_dim + 8) * magnitude + static_cast<double>(p.keys + 32));
    bound.lse[static_cast<size_t>(row)] = kappa;

    for (Index j = 0; j < p.keys; ++j) {
      if (!p.attends(row, j)) continue;
      const auto at = static_cast<size_t>(row * p.keys + j);
      const Index kv = p.kv_row(row, j);
      const double omega = kappa * w[j] + precision.tiny;
      const double size = dot(grad_row, v_row(j), p.value_dim) + weighted_grads;  // H_ij
      const double sigma = (2 * omega + static_cast<double>(p.value_dim + 4) * u * w[j]) * size;
      bound.weights[at] = omega;
      bound.dscore[at] = sigma;
      bound.dscore_size[at] = w[j] * size;
      add_scaled(bound.out.data() + row * p.value_dim, omega, v_row(j), p.value_dim);
      add_scaled(bound.dv.data() + kv * p.value_dim, omega + query_sum * w[j], grad_row,
                 p.value_dim);
      add_scaled(bound.dq.data() + row * p.head_dim, scale * (sigma + key_sum * w[j] * size),
                 k_row(j), p.head_dim);
      add_scaled(bound.dk.data() + kv * p.head_dim, scale * (sigma + query_sum * w[j] * size),
                 q_row, p.head_dim);
    }
  }
  return bound;
}

double largest_ratio(const Array& got, const Array& expected, const Array& bound) {
  constexpr double kHuge = 1e300;
  if (got.size() != expected.size() || bound.size() != expected.size()) return kHuge;
  double largest = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    if (got[i] == expected[i] || (std::isnan(got[i]) && std::isnan(expected[i]))) continue;
    const double ratio = std::abs(got[i] - expected[i]) / bound[i];
    largest = std::max(largest, std::isfinite(ratio) ? ratio : kHuge);
  }
  return largest;
}

std::string ratio_text(double ratio) {
  char text[32];
  std::snprintf(text, sizeof(text), "err/bound %.3g", ratio);
  return text;
}

}  // namespace cattn::test
