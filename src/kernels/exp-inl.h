// exp2 by range reduction to [-1/2, 1/2] and a minimax polynomial with p(0) = 1 exactly: relative
// error 2.6e-9 (float32, degree 6) and 1.8e-17 (float64, degree 11) before rounding. Where an
// instruction multiplies by 2^floor(x), float32 is reduced to [0, 1], which saves another one.
// Coefficients by the Remez exchange on the relative error p(x) / 2^x - 1.

constexpr double kLog2e = 1.4426950408889634074;
constexpr double kLn2 = 0.69314718055994530942;
// log2(e) - T(log2(e))
template <class T>
constexpr double kLog2eRest = kLog2e - static_cast<double>(static_cast<T>(kLog2e));
template <>
constexpr double kLog2eRest<double> = 2.0355273740931033e-17;

template <class T>
struct Exp2Polynomial;

template <>
struct Exp2Polynomial<float> {
  static constexpr int degree = 6;
  static constexpr float c[degree + 1] = {1.0f,           0.693147215f,    0.2402265278f,
                                          0.05550310551f, 0.009617692965f, 0.001340664417f,
                                          0.000155946832f};
};

template <>
struct Exp2Polynomial<double> {
  static constexpr int degree = 11;
  static constexpr double c[degree + 1] = {1.0,
                                           0.69314718055994569676,
                                           0.24022650695910098001,
                                           0.055504108664790392983,
                                           0.0096181291076070046525,
                                           0.0013333558153440419234,
                                           0.00015403530441569449913,
                                           0.000015252727384740496593,
                                           1.3215442676553933548e-6,
                                           1.0180647844774274317e-7,
                                           7.0725702206402868234e-9,
                                           4.0780451108401165886e-10};
};

constexpr double power_of_2(int n) { return n == 0 ? 1.0 : 2.0 * power_of_2(n - 1); }

// 2^x for small x >= 0, while compiling.
constexpr double exp2_series(double x) {
  double sum = 1, term = 1;
  for (int k = 1; k < 24; ++k) sum += term *= x * kLn2 / k;
  return sum;
}

// On [0, 1] instead: relative error 2.0e-9.
struct Exp2PolynomialAbove {
  static constexpr int degree = 6;
  static constexpr float c[degree + 1] = {1.0f,
                                          0.6931470444f,
                                          0.2402293056f,
                                          0.05548528062f,
                                          0.009675451567f,
                                          0.001246784645f,
                                          0.0002161291495f};
};

// One degree less, for what is kept in fewer digits than float32's: relative error 8.3e-8.
struct ShortExp2PolynomialAbove {
  static constexpr int degree = 5;
  static constexpr float c[degree + 1] = {1.0f,           0.6931512952f,   0.2401644439f,
                                          0.05579991266f, 0.009017030708f, 0.00186713005f};
};

// The same for what is rounded to bfloat16, 2^-8: relative error 8.6e-5.
struct Exp2PolynomialOfBFloat16 {
  static constexpr int degree = 3;
  static constexpr float c[degree + 1] = {1.0f, 0.695116773f, 0.22764499f, 0.0770670587f};
};

// 2^kShift times the polynomial, which is 2^(f + kShift) for f where it holds: |f| <= 1/2.
template <class T, int kShift = 0, class Poly = Exp2Polynomial<T>>
CATTN_INLINE typename Vec<T>::V exp2_polynomial(typename Vec<T>::V f) {
  using X = Vec<T>;
  constexpr T unit = static_cast<T>(power_of_2(kShift));
  auto p = X::set1(unit * Poly::c[Poly::degree]);
  CATTN_UNROLL
  for (int k = Poly::degree - 1; k >= 0; --k) p = X::fma(p, f, X::set1(unit * Poly::c[k]));
  return p;
}

// Whether there are instructions for x - floor(x) and p 2^floor(x).
template <class T>
constexpr bool kFloors = requires {
  &Vec<T>::fraction_above;
  &Vec<T>::scale2_below;
};

// 2^(x + kShift), the shift without rounding, by a polynomial on [0, 1].
template <class T, int kShift, class Poly>
CATTN_INLINE typename Vec<T>::V exp2_by_floor(typename Vec<T>::V x) {
  return Vec<T>::scale2_below(exp2_polynomial<T, kShift, Poly>(Vec<T>::fraction_above(x)), x);
}

// 2^(x + kShift), the shift without rounding; exp2(-inf) = 0 and NaN stays NaN.
template <class T, int kShift = 0>
CATTN_INLINE typename Vec<T>::V exp2(typename Vec<T>::V x) {
  if constexpr (kFloors<T>) {
    return exp2_by_floor<T, kShift, Exp2PolynomialAbove>(x);
  } else {
    const auto f = Vec<T>::fraction(x);
    return Vec<T>::scale2(exp2_polynomial<T, kShift>(f), x, f);
  }
}

// The same of |x| <= 100 where the result is a normal number.
template <class T, int kShift = 0>
CATTN_INLINE typename Vec<T>::V exp2_small(typename Vec<T>::V x) {
  if constexpr (requires { &Vec<T>::scale2_by_last_bits; }) {
    typename Vec<T>::V n;
    const auto last_bits = Vec<T>::small_integer(x, n);
    return Vec<T>::scale2_by_last_bits(exp2_polynomial<T, kShift>(Vec<T>::sub(x, n)), last_bits);
  } else {
    return exp2<T, kShift>(x);
  }
}

// The same of -inf too, where it is 0.
template <class T, int kShift = 0>
CATTN_INLINE typename Vec<T>::V exp2_small_or_none(typename Vec<T>::V x) {
  if constexpr (requires { &Vec<T>::scale2_by_last_bits; }) {
    return Vec<T>::zero_below(Vec<T>::set1(T(-120)), x, exp2_small<T, kShift>(x));
  } else {
    return exp2<T, kShift>(x);
  }
}

// 2^(x - reference) for an integral reference, without rounding the difference: two references
// give the same digits. x = reference = inf gives NaN. By last bits x - reference is 100 at most.
template <class T, class Poly>
CATTN_INLINE typename Vec<T>::V exp2_above_by_floor(typename Vec<T>::V x,
                                                    typename Vec<T>::V reference) {
  using X = Vec<T>;
  const auto f = X::fraction_above(x);
  return X::scale2_below(exp2_polynomial<T, 0, Poly>(f), X::sub(X::sub(x, f), reference));
}
template <class T>
CATTN_INLINE typename Vec<T>::V exp2_above(typename Vec<T>::V x, typename Vec<T>::V reference) {
  using X = Vec<T>;
  if constexpr (kFloors<T>) {
    return exp2_above_by_floor<T, Exp2PolynomialAbove>(x, reference);
  } else if constexpr (requires { &X::scale2_by_last_bits; }) {
    const auto n = X::nearest(x), exponent = X::sub(n, reference);
    typename X::V same;
    const auto last_bits = X::small_integer(exponent, same);
    // By a product, which leaves a NaN what it is.
    const auto power = X::scale2_by_last_bits(X::set1(T(1)), last_bits);
    return X::zero_below(X::set1(X::below_exponents), exponent,
                         X::mul(exp2_polynomial<T>(X::sub(x, n)), power));
  } else {
    typename X::V n, f;
    X::integer_and_fraction(x, n, f);
    return X::scale2(exp2_polynomial<T>(f), X::sub(n, reference), X::zero());
  }
}

// The factor e^-lse of a row's weights as scale * 2^-shift with an integral shift: the digits of
// the lse are all in `scale`, and 2^(s - shift) is not rounded for it. `rest` is what the shift
// leaves of the exponent, so `scale` is 2^-rest. An empty row, whose lse is -inf, has an infinite
// shift: its weights are 0. So has one whose lse is so large that it does not hold what tells
// weights apart (as of a row that is masked by a bias of -1e9): 2^(s - shift) might be anything.
template <class T>
struct RowScale {
  T shift, scale, rest;
};
static_assert(sizeof(RowScale<float>) == kRowScaleNumbers * sizeof(float));
template <class T>
constexpr RowScale<T> kNoRow{T(__builtin_inff()), T(1), T(0)};
template <class T>
constexpr T kLargestShift = sizeof(T) == 8 ? T(1LL << 53) : T(1 << 24);

template <class T>
struct ScaledRow {
  typename Vec<T>::V shift, scale;
  CATTN_INLINE void set(const RowScale<T>& row) {
    shift = Vec<T>::set1(row.shift);
    scale = Vec<T>::set1(row.scale);
  }
};

// The weight e^(factor ln(2) s - lse) of a row's lse, to all digits of T. One that is no normal
// number may be 0, or anything of its size.
template <class T>
CATTN_INLINE typename Vec<T>::V weight_from_lse(typename Vec<T>::V s, typename Vec<T>::V factor,
                                                const ScaledRow<T>& row) {
  using X = Vec<T>;
  if constexpr (requires { &X::scale2_by_last_bits; }) {
    // The exponent's whole number first, by which what is left of it is rounded once.
    const auto x = X::fms(s, factor, row.shift);
    typename X::V n;
    // Of an x too large for it, which is of another lse, the rest takes the weight to inf.
    const auto last_bits = X::small_integer(X::min(X::set1(X::largest_exponent), x), n);
    const auto f = X::fms(s, factor, X::add(n, row.shift));
    const auto p = X::mul(exp2_polynomial<T>(f), X::scale2_by_last_bits(row.scale, last_bits));
    return X::zero_below(X::set1(X::below_exponents), x, p);
  } else {
    return X::mul(exp2_above<T>(X::mul(s, factor), row.shift), row.scale);
  }
}

// The exponential of the weights, as accurate as they are multiplied: to all digits of T, or by
// one of the shorter polynomials. of<kShift>(x) is 2^(x + kShift), of_small the same of an x that
// is neither infinite nor large, of_small_or_none of -inf too; above(x, reference) is
// 2^(x - reference) for an integral reference and 1 if they are equal, however large;
// from_lse(s, factor, row) is the weight e^(factor ln(2) s - lse) of a row's lse.
template <class T>
struct WholeExponential {
  using V = typename Vec<T>::V;
  template <int kShift>
  CATTN_INLINE static V of(V x) {
    return exp2<T, kShift>(x);
  }
  template <int kShift>
  CATTN_INLINE static V of_small(V x) {
    return exp2_small<T, kShift>(x);
  }
  template <int kShift>
  CATTN_INLINE static V of_small_or_none(V x) {
    return exp2_small_or_none<T, kShift>(x);
  }
  CATTN_INLINE static V above(V x, V reference) { return exp2_above<T>(x, reference); }
  using OfRow = ScaledRow<T>;
  CATTN_INLINE static V from_lse(V s, V factor, const OfRow& row) {
    return weight_from_lse<T>(s, factor, row);
  }
};
// of() is exact where x is an integer.
template <class T>
struct ShortExponential {
  using X = Vec<T>;
  using Poly = ShortExp2PolynomialAbove;
  using V = typename X::V;
  template <int kShift>
  CATTN_INLINE static V of(V x) {
    return exp2_by_floor<T, kShift, Poly>(x);
  }
  template <int kShift>
  CATTN_INLINE static V of_small_or_none(V x) {
    return of<kShift>(x);
  }
  CATTN_INLINE static V above(V x, V reference) {
    return exp2_above_by_floor<T, Poly>(x, reference);
  }
  using OfRow = ScaledRow<T>;
  CATTN_INLINE static V from_lse(V s, V factor, const OfRow& row) {
    return X::mul(of<0>(X::fms(s, factor, row.shift)), row.scale);
  }
};

// Beside products of tiles a multiplication takes as long as two subtractions: the rest of the lse
// is subtracted from the exponent.
template <class T>
struct SubtractedRow {
  using V = typename Vec<T>::V;
  V shift, rest;
  CATTN_INLINE void set(const RowScale<T>& row) {
    shift = Vec<T>::set1(row.shift);
    rest = Vec<T>::set1(row.rest);
  }
  CATTN_INLINE V exponent(V s, V factor) const {
    return Vec<T>::sub(Vec<T>::fms(s, factor, shift), rest);
  }
};
// Of weights that are rounded to bfloat16.
template <class T>
struct RoundedExponential {
  using X = Vec<T>;
  using V = typename X::V;
  using OfRow = SubtractedRow<T>;
  CATTN_INLINE static V from_lse(V s, V factor, const OfRow& row) {
    return exp2_by_floor<T, 0, Exp2PolynomialOfBFloat16>(row.exponent(s, factor));
  }
};
// By a table of the powers of 2^(1/32): half of the multiplications of WholeExponential, and as
// accurate within a digit of float32.
template <class T>
struct TableExponential {
  using X = Vec<T>;
  using V = typename X::V;
  using OfRow = SubtractedRow<T>;
  CATTN_INLINE static V from_lse(V s, V factor, const OfRow& row) {
    // Added to this, a number is rounded to 32nds, which are in its last bits. What is NaN from an
    // exponent of -inf, scale2_below takes to 0.
    const V rounding = X::set1(1.5f * (1 << 18));
    const V x = row.exponent(s, factor), rounded = X::add(x, rounding);
    const V n = X::sub(rounded, rounding), f = X::sub(x, n);
    const V power = X::element(kPowers.of, rounded);
    const V p = X::mul(f, X::fma(f, X::set1(kPolynomial[1]), X::set1(kPolynomial[0])));
    return X::scale2_below(X::fma(power, p, power), n);
  }

 private:
  // 2^f - 1 = f (c0 + c1 f) on [-1/64, 1/64]: relative error of 2^f 5.3e-8.
  static constexpr float kPolynomial[2] = {0.69315733f, 0.2402265f};
  struct Powers {
    alignas(64) float of[32];
    constexpr Powers() : of() {
      for (int k = 0; k < 32; ++k) of[k] = static_cast<float>(exp2_series(k / 32.0));
    }
  };
  static constexpr Powers kPowers{};
};

// x, or if it is NaN one whose last bits are zeros: rounded by whole numbers it stays NaN.
template <class T>
CATTN_INLINE T with_short_nan(T x) {
  return x == x ? x : T(__builtin_nanf(""));
}

// Of `count` rows, a vector of which is lse.
template <class T>
CATTN_INLINE void row_scales(typename Vec<T>::V lse, Index count, RowScale<T>* scales) {
  using X = Vec<T>;
  constexpr T high = static_cast<T>(kLog2e);
  const auto log2e = X::set1(high), log2e_rest = X::set1(static_cast<T>(kLog2eRest<T>));
  const auto exponent = X::mul(lse, log2e);
  const auto n = X::nearest(exponent);
  // What the product lost to rounding, exactly, and log2(e)'s digits beyond T.
  const auto lost = X::fma(lse, log2e_rest, X::fma(lse, log2e, X::sub(X::zero(), exponent)));
  const auto f = X::add(X::sub(exponent, n), lost);
  T shifts[X::width], factors[X::width], rests[X::width];
  X::store(shifts, n);
  X::store(factors, exp2_polynomial<T>(X::sub(X::zero(), f)));
  X::store(rests, f);
  for (Index r = 0; r < count; ++r) {
    const T size = shifts[r] < T(0) ? -shifts[r] : shifts[r];
    scales[r] = size >= kLargestShift<T>
                    ? kNoRow<T>
                    : RowScale<T>{with_short_nan(shifts[r]), with_short_nan(factors[r]),
                                  with_short_nan(rests[r])};
  }
}

// tanh(x) = t / (t + 2) with t = e^(2|x|) - 1 = 2^n (2^f - 1) + (2^n - 1), where 2^f - 1 comes from
// the polynomial without its constant, so that small x keep their relative accuracy.
template <class T>
CATTN_INLINE typename Vec<T>::V tanh(typename Vec<T>::V x) {
  using X = Vec<T>;
  using Poly = Exp2Polynomial<T>;
  const auto one = X::set1(T(1)), zero = X::zero();
  const auto magnitude = X::max(x, X::sub(zero, x));
  // From 20 on it is 1 even in float64; NaN goes through.
  const auto y = X::mul(X::min(X::set1(T(20)), magnitude), X::set1(T(2 * kLog2e)));
  const auto f = X::fraction(y);
  auto p = X::set1(Poly::c[Poly::degree]);
  CATTN_UNROLL
  for (int k = Poly::degree - 1; k >= 1; --k) p = X::fma(p, f, X::set1(Poly::c[k]));
  p = X::mul(p, f);
  const auto power = X::scale2(one, y, f);
  const auto t = X::fma(power, p, X::sub(power, one));
  const auto result = X::div(t, X::add(t, X::set1(T(2))));
  return X::select(X::greater(zero, x), X::sub(zero, result), result);
}

// 2^x for one number.
template <class T>
CATTN_INLINE T exp2_scalar(T x) {
  T lanes[Vec<T>::width];
  Vec<T>::store(lanes, exp2<T>(Vec<T>::set1(x)));
  return lanes[0];
}
