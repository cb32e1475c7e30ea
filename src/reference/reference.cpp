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
  const auto at = static_cast<size_t>(row * keys + j);
  if (j >= keys_of(entry(row))) return false;
  if (!mask.empty() && mask[at] == 0) return false;
  if (!bias.empty() && bias[at] == -kInfinity) return false;
  // j - i against the offset: i + offset might overflow.
  const Index away = j - row % queries, centre = offset(entry(row));
  if (causal && away > centre) return false;
  const double from = static_cast<double>(away) - static_cast<double>(centre);
  if (window_left >= 0 && from < -static_cast<double>(window_left)) return false;
  return window_right < 0 || from <= static_cast<double>(window_right);
}

double Problem::product(Index row, Index j) const {
  return scale * dot(q.data() + row * head_dim, k.data() + kv_row(row, j) * head_dim, head_dim);
}

double Problem::slope(Index row, Index j) const {
  if (softcap == 0) return 1;
  const double cosine = std::cosh(product(row, j) / softcap);
  return 1 / (cosine * cosine);
}

double Problem::penalty(Index row, Index j) const {
  if (slopes.empty()) return 0;
  const double distance =
      static_cast<double>(j - row % queries) - static_cast<double>(offset(entry(row)));
  return slopes[static_cast<size_t>(row / queries)] * std::abs(distance);
}

double Problem::sink(Index row) const {
  return sinks.empty() ? -kInfinity : sinks[static_cast<size_t>(head(row))];
}

double Problem::kept_factor(Index row, Index j) const {
  if (kept.empty()) return 1;
  return kept[static_cast<size_t>(row * keys + j)] ? 1 / (1 - dropout) : 0;
}

Result forward(const Problem& p) {
  Result result{zeros(p.rows() * p.value_dim), zeros(p.rows()), zeros(p.rows() * p.keys)};
  for (Index row = 0; row < p.rows(); ++row) {
    double* const w = result.weights.data() + row * p.keys;
    double* const out = result.out.data() + row * p.value_dim;
    double& lse = result.lse[static_cast<size_t>(row)];

    // s_j = softcap(scale (q . k_j)) + bias_j - penalty_j
    double maximum = p.sink(row);
    for (Index j = 0; j < p.keys; ++j) {
      if (!p.attends(row, j)) continue;
      w[j] = p.product(row, j);
      if (p.softcap != 0) w[j] = p.softcap * std::tanh(w[j] / p.softcap);
      if (!p.bias.empty()) w[j] += p.bias[static_cast<size_t>(row * p.keys + j)];
      w[j] -= p.penalty(row, j);
      maximum = std::max(maximum, w[j]);
    }
    // lse = log (e^sink + sum_j e^s_j), with m the largest of them taken out
    double sum = p.sink(row) == -kInfinity ? 0 : std::exp(p.sink(row) - maximum);
    for (Index j = 0; j < p.keys; ++j) {
      if (!p.attends(row, j)) continue;
      w[j] = std::exp(w[j] - maximum);
      sum += w[j];
    }
    lse = sum == 0 ? -kInfinity : maximum + std::log(sum);
    // w_j = e^(s_j - lse), out = sum_j w_j v_j over what dropout keeps
    for (Index j = 0; j < p.keys; ++j) {
      if (!p.attends(row, j)) continue;
      w[j] /= sum;
      const double kept = p.kept_factor(row, j);
      if (kept == 0) continue;
      add_scaled(out, kept * w[j], p.v.data() + p.kv_row(row, j) * p.value_dim, p.value_dim);
    }
    // 0 / NaN, though dropout may have left nothing to add up
    if (std::isnan(lse)) std::fill(out, out + p.value_dim, lse);
  }
  return result;
}

Gradients backward(const Problem& p, const Result& result, const Array& dout, const Array& dlse) {
  const Index kv_rows = p.batch * p.heads_kv * p.keys;
  Gradients g{zeros(p.rows() * p.head_dim), zeros(kv_rows * p.head_dim),
              zeros(kv_rows * p.value_dim), zeros(p.rows() * p.keys), Array(p.sinks.size(), 0.0)};
  for (Index row = 0; row < p.rows(); ++row) {
    const double* const dout_row = dout.data() + row * p.value_dim;
    // delta = dout . out - dlse = sum_j w_j (dw_j) - dlse
    double delta = dot(dout_row, result.out.data() + row * p.value_dim, p.value_dim);
    if (!dlse.empty()) delta -= dlse[static_cast<size_t>(row)];
    if (p.sink(row) != -kInfinity) {
      const double of_sink = std::exp(p.sink(row) - result.lse[static_cast<size_t>(row)]);
      g.dsinks[static_cast<size_t>(p.head(row))] -= of_sink * delta;
    }
    for (Index j = 0; j < p.keys; ++j) {
      if (!p.attends(row, j)) continue;
      const auto at = static_cast<size_t>(row * p.keys + j);
      const Index kv = p.kv_row(row, j);
      // dv_j += w_j dout, dw_j = dout . v_j where dropout keeps it, ds_j = w_j (dw_j - delta)
      const double w = result.weights[at], kept = p.kept_factor(row, j);
      double dw = 0;
      if (kept != 0) {
        add_scaled(g.dv.data() + kv * p.value_dim, kept * w, dout_row, p.value_dim);
        dw = kept * dot(dout_row, p.v.data() + kv * p.value_dim, p.value_dim);
      }
      const double ds = w * (dw - delta);
      // dbias_j = ds_j, dq += scale slope_j ds_j k_j, dk_j += scale slope_j ds_j q
      g.dbias[at] = ds;
      const double of_product = p.scale * p.slope(row, j) * ds;
      add_scaled(g.dq.data() + row * p.head_dim, of_product, p.k.data() + kv * p.head_dim,
                 p.head_dim);
      add_scaled(g.dk.data() + kv * p.head_dim, of_product, p.q.data() + row * p.head_dim,
                 p.head_dim);
    }
  }
  return g;
}

Array tangent(const Problem& p, const Result& result, const Array& dq, const Array& dk,
              const Array& dv) {
  Array moved = zeros(p.rows() * p.value_dim);
  for (Index row = 0; row < p.rows(); ++row) {
    double* const out = moved.data() + row * p.value_dim;
    double mean = 0;  // sum_j w_j ds_j
    for (Index j = 0; j < p.keys; ++j) {
      if (!p.attends(row, j)) continue;
      // ds_j = scale slope_j (dq . k_j + q . dk_j), dout = sum_j w_j (ds_j v_j + dv_j) - mean out
      const Index kv = p.kv_row(row, j), at = row * p.head_dim, to = kv * p.head_dim;
      const double sum = dot(dq.data() + at, p.k.data() + to, p.head_dim) +
                         dot(p.q.data() + at, dk.data() + to, p.head_dim);
      const double w = result.weights[static_cast<size_t>(row * p.keys + j)];
      const double ds = p.scale * p.slope(row, j) * sum;
      mean += w * ds;
      const double kept = p.kept_factor(row, j);
      if (kept == 0) continue;
      add_scaled(out, kept * w * ds, p.v.data() + kv * p.value_dim, p.value_dim);
      add_scaled(out, kept * w, dv.data() + kv * p.value_dim, p.value_dim);
    }
    add_scaled(out, -mean, result.out.data() + row * p.value_dim, p.value_dim);
  }
  return moved;
}

}  // namespace cattn::reference
