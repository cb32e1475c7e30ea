#include "reference/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace cattn::reference {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double dot(const double* a, const double* b, Index n) {
  double sum = 0;
  for (Index d = 0; d < n; ++d) sum += a[d] * b[d];
  return sum;
}

// y += a x
void add_scaled(double* y, double a, const double* x, Index n) {
  for (Index d = 0; d < n; ++d) y[d] += a * x[d];
}

Array zeros(Index n) { return Array(static_cast<size_t>(n), 0.0); }

}  // namespace

bool Problem::attends(Index row, Index j) const {
  const Index i = row % queries, b = row / (heads_q * queries);
  const auto at = static_cast<size_t>(row * keys + j);
  if (!mask.empty() && mask[at] == 0) return false;
  if (!bias.empty() && bias[at] == -kInfinity) return false;
  if (!causal) return true;
  const Index offset =
      causal_offset.empty() ? keys - queries : causal_offset[static_cast<size_t>(b)];
  return j - i <= offset;  // i + offset might overflow
}

Result forward(const Problem& p) {
  Result result{zeros(p.rows() * p.value_dim), zeros(p.rows()), zeros(p.rows() * p.keys)};
  for (Index row = 0; row < p.rows(); ++row) {
    double* const w = result.weights.data() + row * p.keys;
    double* const out = result.out.data() + row * p.value_dim;
    double& lse = result.lse[static_cast<size_t>(row)];

    // s_j = scale (q . k_j) + bias_j
    double maximum = -kInfinity;
    for (Index j = 0; j < p.keys; ++j) {
      if (!p.attends(row, j)) continue;
      const double* const k = p.k.data() + p.kv_row(row, j) * p.head_dim;
      w[j] = p.scale * dot(p.q.data() + row * p.head_dim, k, p.head_dim);
      if (!p.bias.empty()) w[j] += p.bias[static_cast<size_t>(row * p.keys + j)];
      maximum = std::max(maximum, w[j]);
    }
    // lse = log sum_j e^s_j = m + log sum_j e^(s_j - m)
    double sum = 0;
    for (Index j = 0; j < p.keys; ++j) {
      if (!p.attends(row, j)) continue;
      w[j] = std::exp(w[j] - maximum);
      sum += w[j];
    }
    lse = sum == 0 ? -kInfinity : maximum + std::log(sum);
    // w_j = e^(s_j - lse), out = sum_j w_j v_j
    for (Index j = 0; j < p.keys; ++j) {
      if (!p.attends(row, j)) continue;
      w[j] /= sum;
      add_scaled(out, w[j], p.v.data() + p.kv_row(row, j) * p.value_dim, p.value_dim);
    }
  }
  return result;
}

Gradients backward(const Problem& p, const Result& result, const Array& dout, const Array& dlse) {
  const Index kv_rows = p.batch * p.heads_kv * p.keys;
  Gradients g{zeros(p.rows() * p.head_dim), zeros(kv_rows * p.head_dim),
              zeros(kv_rows * p.value_dim), zeros(p.rows() * p.keys)};
  for (Index row = 0; row < p.rows(); ++row) {
    const double* const dout_row = dout.data() + row * p.value_dim;
    // delta = dout . out - dlse = sum_j w_j (dw_j) - dlse
    double delta = dot(dout_row, result.out.data() + row * p.value_dim, p.value_dim);
    if (!dlse.empty()) delta -= dlse[static_cast<size_t>(row)];
    for (Index j = 0; j < p.keys; ++j) {
      if (!p.attends(row, j)) continue;
      const auto at = static_cast<size_t>(row * p.keys + j);
      const Index kv = p.kv_row(row, j);
      // dv_j += w_j dout, dw_j = dout . v_j, ds_j = w_j (dw_j - delta)
      const double w = result.weights[at];
      add_scaled(g.dv.data() + kv * p.value_dim, w, dout_row, p.value_dim);
      const double dw = dot(dout_row, p.v.data() + kv * p.value_dim, p.value_dim);
      const double ds = w * (dw - delta);
      // dbias_j = ds_j, dq += scale ds_j k_j, dk_j += scale ds_j q
      g.dbias[at] = ds;
      add_scaled(g.dq.data() + row * p.head_dim, p.scale * ds, p.k.data() + kv * p.head_dim,
                 p.head_dim);
      add_scaled(g.dk.data() + kv * p.head_dim, p.scale * ds, p.q.data() + row * p.head_dim,
                 p.head_dim);
    }
  }
  return g;
}

}  // namespace cattn::reference
