// Weights of bfloat16, 2^(factor s - reference) <= 1, from scores that are finite or -inf, without
// the detour by float32.
//
// The bits of 2^n (1 + m) as a bfloat16 are the whole number 128 (n + 127 + m), rounded. For
// x = n + f, with f the fraction of x, that is 128 (x + 127) plus 128 (2^f - 1 - f), which is small
// and the same in every octave: a polynomial of degree 3 without a constant, so that 1 is exact,
// gives it to 8.6e-5 of the weight, a 45th of what rounding takes. Coefficients as in exp-inl.h.
//
// What is below 2^-127 is a negative number and becomes 0. No operation is lost on exponents: 7
// for 16 weights, where a float32 and its rounding take 10.
class BFloat16Weights {
  using X = Vec<float>;
  static constexpr float kUnits = 128, kBias = 127;  // of a bfloat16's bits
  static constexpr float c[4] = {0, -39.025053f, 29.1385587f, 9.86458351f};

 public:
  CATTN_INLINE BFloat16Weights(float factor, float reference)
      : factor_(X::set1(factor)),
        reference_(X::set1(reference)),
        factor_in_units_(X::set1(kUnits * factor)),
        reference_in_units_(X::set1(kUnits * (reference - kBias))) {}

  // Of 32 scores in a row.
  CATTN_INLINE Pairs::W operator()(Pairs::V first, Pairs::V second) const {
    return Pairs::bits_in_a_row(bits(first), bits(second));
  }

 private:
  CATTN_INLINE Pairs::V bits(Pairs::V s) const {
    const auto f = X::fraction_above(X::fms(s, factor_, reference_));
    const auto p = X::fma(X::fma(X::set1(c[3]), f, X::set1(c[2])), f, X::set1(c[1]));
    return X::fma(p, f, X::fms(s, factor_in_units_, reference_in_units_));
  }

  Pairs::V factor_, reference_, factor_in_units_, reference_in_units_;
};
