// Weights of bfloat16, 2^x of x <= 0, without the detour by float32.
//
// The bits of 2^n (1 + m) as a bfloat16 are the whole number 128 (n + 127 + m), rounded. For
// x = n + f, with f the fraction of x, that is 128 (x + 127) plus 128 (2^f - 1 - f), which is small
// and the same in every octave: a polynomial of degree 3 without a constant, so that 1 is exact,
// gives it to 8.6e-5 of the weight, a 45th of what rounding takes. Coefficients as in exp-inl.h.
//
// What is below 2^-127 is a negative number and becomes 0. Nothing is spent on exponents: with the
// multiplication of the score 7 operations for 16 weights, where a float32 and its rounding take
// 10.
struct BFloat16Weights {
  using X = Vec<float>;
  static constexpr float c[4] = {0, -39.025053f, 29.1385587f, 9.86458351f};

  // Of 32 exponents in a row; kFinite: none of them is NaN.
  template <bool kFinite>
  CATTN_INLINE static Pairs::W of(Pairs::V first, Pairs::V second) {
    return Pairs::bits_in_a_row(bits<kFinite>(first), bits<kFinite>(second));
  }

 private:
  template <bool kFinite>
  CATTN_INLINE static Pairs::V bits(Pairs::V x) {
    constexpr float units = 128, of_one = 127 * units, of_nan = 0x7fc0;
    const auto f = X::fraction_above(x);
    const auto p = X::fma(X::fma(X::set1(c[3]), f, X::set1(c[2])), f, X::set1(c[1]));
    const auto all = X::fma(p, f, X::fma(x, X::set1(units), X::set1(of_one)));
    if constexpr (kFinite) return all;
    return X::min(all, X::set1(of_nan));  // of NaN and a number it is the number
  }
};
