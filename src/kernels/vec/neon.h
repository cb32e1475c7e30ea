// The vector vocabulary in NEON (aarch64): the plain 16-byte vectors of vec/scalar.h, which
// compilers turn into NEON, with the few operations replaced that they would not find.
// Included inside the ISA's anonymous namespace, after vec/scalar.h's template.

using Words = PlainWords;

template <class T>
struct Vec;

template <>
struct Vec<float> : PlainVec<float, int32_t, 4> {
  CATTN_INLINE static V fma(V a, V b, V c) {
    return reinterpret_cast<V>(vfmaq_f32(reinterpret_cast<float32x4_t>(c),
                                         reinterpret_cast<float32x4_t>(a),
                                         reinterpret_cast<float32x4_t>(b)));
  }
  CATTN_INLINE static V round(V x) {
    return reinterpret_cast<V>(vrndnq_f32(reinterpret_cast<float32x4_t>(x)));
  }
  CATTN_INLINE static V fraction(V x) {
    const V y = clamp(x);
    return y - round(y);
  }
};

template <>
struct Vec<double> : PlainVec<double, int64_t, 2> {
  CATTN_INLINE static V fma(V a, V b, V c) {
    return reinterpret_cast<V>(vfmaq_f64(reinterpret_cast<float64x2_t>(c),
                                         reinterpret_cast<float64x2_t>(a),
                                         reinterpret_cast<float64x2_t>(b)));
  }
  CATTN_INLINE static V round(V x) {
    return reinterpret_cast<V>(vrndnq_f64(reinterpret_cast<float64x2_t>(x)));
  }
  CATTN_INLINE static V fraction(V x) {
    const V y = clamp(x);
    return y - round(y);
  }
};
