#include "bound.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <type_traits>

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
template <>
Precision precision<Half>() {
  Precision p = precision<float>();
  p.half_u = 0x1p-11;
  p.half_tiny = 0x1p-25;
  return p;
}
template <>
Precision precision<Brain>() {
  Precision p = precision<float>();
  p.half_u = 0x1p-8;
  p.half_tiny = 0x1p-134;
  return p;
}

template <class T>
Multiplied multiplied(const std::string& isa) {
  if (std::is_same_v<T, double>) return Multiplied::by_elements;
  if (isa == "avx512bf16") {
    return std::is_same_v<T, Brain> ? Multiplied::in_pairs : Multiplied::by_elements;
  }
  if (isa == "amx" || isa == "amx_emulated") return Multiplied::in_pairs;
  if (isa == "amx_fp16" || isa == "amx_fp16_emulated") {
    return std::is_same_v<T, Half> ? Multiplied::in_float16_pairs : Multiplied::in_pairs;
  }
  return Multiplied::by_elements;
}
template <class T>
Precision precision(Multiplied how) {
  Precision p = precision<T>();
  if (how == Multiplied::by_elements) return p;
  // Rounded weights are in numerator and denominator of the output.
  if (std::is_same_v<T, Half> && how == Multiplied::in_pairs) {
    p.delta_w = p.delta_g = 1.5 * kOnePart * kOnePart;
  } else if (kIsHalf<T>) {
    p.delta_g = how == Multiplied::in_pairs ? kOnePart : 0x1p-11;
    p.delta_w = 2 * p.delta_g;
    if (how == Multiplied::in_pairs) p.polynomial = 8.7e-5;
  }
  return p;  // a float32 in three parts is as precise as ever
}
#define INSTANTIATE(T)                         \
  template Precision precision<T>(Multiplied); \
  template Multiplied multiplied<T>(const std::string&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(Brain)
#undef INSTANTIATE

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Magnitudes of one row's scores.
struct RowBound {
  RowBound(const reference::Problem& problem, Index query_row, Precision precision)
      : p(problem),
        row(query_row),
        u(precision.u),
        delta_o(precision.delta_o),
        q(problem.q),
        k(problem.k) {
    score_roundings = static_cast<double>(p.head_dim + 8 + (p.softcap != 0 ? 18 : 0) +
                                          (p.slopes.empty() ? 0 : 4));
    double magnitude = p.sink(row) == -kInfinity ? 0 : std::abs(p.sink(row));  // M_i
    double largest = 0;  // of its products alone
    for (Index j = 0; j < p.keys; ++j) {
      if (!p.attends(row, j)) continue;
      const double bias =
          p.bias.empty() ? 0 : std::abs(p.bias[static_cast<size_t>(row * p.keys + j)]);
      magnitude = std::max(magnitude, product(j) + bias + std::abs(p.penalty(row, j)));
      largest = std::max(largest, product(j));
    }
    kappa = 2 * u *
                (score_roundings * magnitude +
                 static_cast<double>(p.keys + 32 + (p.sinks.empty() ? 0 : 8))) +
            2 * delta_o * largest;
  }

  // |scale| sum_d |q_id k_jd|
  double product(Index j) const {
    const double* const a = q.data() + row * p.head_dim;
    const double* const b = k.data() + p.kv_row(row, j) * p.head_dim;
    double sum = 0;
    for (Index d = 0; d < p.head_dim; ++d) sum += std::abs(a[d] * b[d]);
    return std::abs(p.scale) * sum;
  }
  // The error of a softcap's slope.
  double theta(Index j) const {
    if (p.softcap == 0) return 0;
    return (score_roundings * u + delta_o) * product(j) / p.softcap + 36 * u;
  }

  const reference::Problem& p;
  const Index row;
  const double u, delta_o;
  const Array &q, &k;
  double score_roundings, kappa;
};

}  // namespace

Bounds bounds(const reference::Problem& p, const reference::Result& result, const Array& dout,
              const Array& dlse, Precision precision) {
  const double u = precision.u, scale = std::abs(p.scale);
  const double delta_w = precision.delta_w, delta_g = precision.delta_g;
  const Array q = magnitudes(p.q), k = magnitudes(p.k), v = magnitudes(p.v);
  const Array grad = magnitudes(dout);
  const auto zeros = [](const Array& like) { return Array(like.size(), 0.0); };
  Bounds bound{zeros(result.out), zeros(result.lse), zeros(result.weights), zeros(q),
               zeros(k),          zeros(v),          zeros(result.weights), zeros(result.weights),
               zeros(p.sinks)};

  const Index group = p.heads_kv > 0 ? p.heads_q / p.heads_kv : 0;
  const double query_sum = u * static_cast<double>(p.queries * group + 8) + delta_g;
  const double key_sum = u * static_cast<double>(p.keys + 8) + delta_g;
  const double dropped = p.kept.empty() ? 0 : 2;  // roundings that dropout adds
  const double all_rows = u * static_cast<double>(p.batch * p.queries + 8);
  for (Index row = 0; row < p.rows(); ++row) {
    const RowBound of_row(p, row, precision);
    const double kappa = of_row.kappa;
    const double* const q_row = q.data() + row * p.head_dim;
    const double* const grad_row = grad.data() + row * p.value_dim;
    const double* const w = result.weights.data() + row * p.keys;
    double* const out = bound.out.data() + row * p.value_dim;
    const auto k_row = [&](Index j) { return k.data() + p.kv_row(row, j) * p.head_dim; };
    const auto v_row = [&](Index j) { return v.data() + p.kv_row(row, j) * p.value_dim; };

    double weighted_grads = 0;  // sum_j R_ij w_ij G_ij
    for (Index j = 0; j < p.keys; ++j) {
      const double kept = p.kept_factor(row, j);
      if (kept == 0 || !p.attends(row, j)) continue;
      weighted_grads += kept * w[j] * dot(grad_row, v_row(j), p.value_dim);
      add_scaled(out, kept * ((kappa + dropped * u + delta_w) * w[j] + precision.tiny), v_row(j),
                 p.value_dim);
    }
    double from_out = delta_w * weighted_grads;  // what the errors of out do to delta
    if (!dlse.empty()) weighted_grads += std::abs(dlse[static_cast<size_t>(row)]);
    bound.lse[static_cast<size_t>(row)] = kappa;
    for (Index d = 0; d < p.value_dim && precision.half_u > 0; ++d) {
      const double value = std::abs(result.out[static_cast<size_t>(row * p.value_dim + d)]);
      from_out += grad_row[d] * precision.last_rounding(value + out[d]);
    }

    for (Index j = 0; j < p.keys; ++j) {
      if (!p.attends(row, j)) continue;
      const auto at = static_cast<size_t>(row * p.keys + j);
      const Index kv = p.kv_row(row, j);
      const double own_error = kappa * w[j] + precision.tiny, kept = p.kept_factor(row, j);
      const double omega = own_error + precision.polynomial * w[j];
      // H_ij
      const double own = kept == 0 ? 0 : kept * dot(grad_row, v_row(j), p.value_dim);
      const double size = own + weighted_grads;
      const double sigma =
          (2 * omega +
           ((static_cast<double>(p.value_dim + 4) + dropped) * u + precision.delta_o) * w[j]) *
              size +
          (w[j] + omega) * from_out;
      bound.weights[at] = own_error;
      bound.dscore[at] = sigma;
      bound.dscore_size[at] = w[j] * size;
      if (kept != 0) {
        add_scaled(bound.dv.data() + kv * p.value_dim,
                   kept * (omega + (query_sum + dropped * u) * w[j]), grad_row, p.value_dim);
      }
      const double slope = p.slope(row, j), theta = of_row.theta(j);
      const double product = slope * sigma + theta * (w[j] * size + sigma);
      add_scaled(bound.dq.data() + row * p.head_dim, scale * (product + key_sum * w[j] * size),
                 k_row(j), p.head_dim);
      add_scaled(bound.dk.data() + kv * p.head_dim, scale * (product + query_sum * w[j] * size),
                 q_row, p.head_dim);
    }
    if (p.sink(row) != -kInfinity) {
      const double w_sink = std::exp(p.sink(row) - result.lse[static_cast<size_t>(row)]);
      const double factor =
          2 * kappa + (static_cast<double>(p.value_dim + 4) + dropped) * u + all_rows;
      bound.dsinks[static_cast<size_t>(p.head(row))] +=
          (w_sink * factor + precision.tiny) * weighted_grads + w_sink * (1 + kappa) * from_out;
    }
  }
  return bound;
}

Array tangent_bound(const reference::Problem& p, const reference::Result& result, const Array& dq,
                    const Array& dk, const Array& dv, const Array& of_out, Precision precision) {
  const Array q = magnitudes(p.q), k = magnitudes(p.k), v = magnitudes(p.v);
  const Array q_move = magnitudes(dq), k_move = magnitudes(dk), v_move = magnitudes(dv);
  Array bound(result.out.size(), 0.0);
  const double u = precision.u;
  for (Index row = 0; row < p.rows(); ++row) {
    const RowBound of_row(p, row, precision);
    double* const to = bound.data() + row * p.value_dim;
    double mean = 0, mean_error = 0;
    for (Index j = 0; j < p.keys; ++j) {
      if (!p.attends(row, j)) continue;
      const Index kv = p.kv_row(row, j);
      const auto of = [&](const Array& a, const Array& b) {
        return dot(a.data() + row * p.head_dim, b.data() + kv * p.head_dim, p.head_dim);
      };
      const double w = result.weights[static_cast<size_t>(row * p.keys + j)];
      const double size = std::abs(p.scale) * (of(q_move, k) + of(q, k_move));  // T_ij
      const double omega = of_row.kappa * w + precision.tiny;
      const double eps = (of_row.score_roundings * u + of_row.theta(j) + 4 * u) * size;
      const double error = omega * (size + eps) + w * eps;
      mean += w * size;
      mean_error += error;
      const double kept = p.kept_factor(row, j);
      if (kept == 0) continue;
      add_scaled(to, kept * (error + 8 * u * w * size), v.data() + kv * p.value_dim, p.value_dim);
      add_scaled(to, kept * (omega + 8 * u * w), v_move.data() + kv * p.value_dim, p.value_dim);
    }
    for (Index d = 0; d < p.value_dim; ++d) {
      const auto at = static_cast<size_t>(row * p.value_dim + d);
      const double out = std::abs(result.out[at]);
      to[d] += mean * (of_out[at] + 8 * u * out) + mean_error * (out + of_out[at]);
    }
  }
  return bound;
}

void add_last_rounding(Array& bound, const Array& expected, Precision precision) {
  if (precision.half_u == 0) return;
  for (size_t i = 0; i < bound.size(); ++i) {
    if (std::isfinite(expected[i])) {
      bound[i] += precision.last_rounding(std::abs(expected[i]) + bound[i]);
    }
  }
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
