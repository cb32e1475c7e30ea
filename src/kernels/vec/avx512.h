// The vector vocabulary in AVX-512 (F, BW, DQ, VL). Included inside the ISA's anonymous namespace.
// See vec/scalar.h for what each operation means.

// Words of 32 random bits, for dropout.
struct Words {
  using V = __m512i;
  static constexpr int width = 16;
  CATTN_INLINE static V set1(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
  CATTN_INLINE static V iota(uint32_t first) {
    return _mm512_add_epi32(
        set1(first), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  }
  CATTN_INLINE static V exclusive_or(V a, V b) { return _mm512_xor_si512(a, b); }
  CATTN_INLINE static void multiply(V a, uint32_t by, V& high, V& low) {
    const V m = set1(by);
    const V even = _mm512_mul_epu32(a, m), odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), m);
    high = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
    low = _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
  }
  CATTN_INLINE static void store(uint32_t* p, V a) { _mm512_storeu_si512(p, a); }
};

template <class T>
struct Vec;

template <>
struct Vec<float> {
  using Elem = float;
  using V = __m512;
  using Mask = __mmask16;
  static constexpr int width = 16;

  CATTN_INLINE static Mask first(Index n) { return static_cast<Mask>((1u << n) - 1u); }
  CATTN_INLINE static V zero() { return _mm512_setzero_ps(); }
  CATTN_INLINE static V set1(float x) { return _mm512_set1_ps(x); }
  CATTN_INLINE static V load(const float* p) { return _mm512_loadu_ps(p); }
  CATTN_INLINE static V load_n(const float* p, Index n) {
    return _mm512_maskz_loadu_ps(first(n), p);
  }
  CATTN_INLINE static void store(float* p, V a) { _mm512_storeu_ps(p, a); }
  CATTN_INLINE static void store_n(float* p, V a, Index n) {
    _mm512_mask_storeu_ps(p, first(n), a);
  }
  CATTN_INLINE static V add(V a, V b) { return _mm512_add_ps(a, b); }
  CATTN_INLINE static V sub(V a, V b) { return _mm512_sub_ps(a, b); }
  CATTN_INLINE static V mul(V a, V b) { return _mm512_mul_ps(a, b); }
  CATTN_INLINE static V div(V a, V b) { return _mm512_div_ps(a, b); }
  CATTN_INLINE static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  CATTN_INLINE static V max(V a, V b) { return _mm512_max_ps(a, b); }
  CATTN_INLINE static V min(V a, V b) { return _mm512_min_ps(a, b); }
  CATTN_INLINE static V iota() {
    return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  }
  CATTN_INLINE static float sum_lanes(V a) { return _mm512_reduce_add_ps(a); }

  CATTN_INLINE static V nearest(V x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  CATTN_INLINE static V fraction(V x) { return _mm512_reduce_ps(x, 0); }
  CATTN_INLINE static V scale2(V p, V x, V fraction) {
    return _mm512_scalef_ps(p, _mm512_sub_ps(x, fraction));
  }

  // Only here: x - floor(x), 0 for an infinity, so that exp2(-inf) needs no clamp; p * 2^floor(x),
  // 0 if x is -inf, even if p is NaN. For kernels on pairs: a b - c; of a table of 32 those
  // elements whose numbers are in the last bits of `number`.
  CATTN_INLINE static V fraction_above(V x) {
    return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  }
  CATTN_INLINE static V scale2_below(V p, V x) { return _mm512_scalef_ps(p, x); }
  CATTN_INLINE static V fms(V a, V b, V c) { return _mm512_fmsub_ps(a, b, c); }
  CATTN_INLINE static V element(const float* table, V number) {
    return _mm512_permutex2var_ps(load(table), _mm512_castps_si512(number), load(table + width));
  }

  // Lanes l with begin <= l < end.
  CATTN_INLINE static Mask lanes_between(Index begin, Index end) {
    const unsigned upper = end >= width ? 0xffffu : end <= 0 ? 0u : (1u << end) - 1u;
    const unsigned lower = begin >= width ? 0xffffu : begin <= 0 ? 0u : (1u << begin) - 1u;
    return static_cast<Mask>(upper & ~lower);
  }
  CATTN_INLINE static Mask bytes_nonzero(const uint8_t* p, Index n) {
    const __m128i bytes = _mm_maskz_loadu_epi8(first(n), p);
    return _mm_test_epi8_mask(bytes, bytes);
  }
  CATTN_INLINE static Mask equal(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
  CATTN_INLINE static Mask greater(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  CATTN_INLINE static Mask same_bits(V a, V b) {
    return _mm512_cmpeq_epi32_mask(_mm512_castps_si512(a), _mm512_castps_si512(b));
  }
  CATTN_INLINE static V select(Mask m, V yes, V no) { return _mm512_mask_blend_ps(m, no, yes); }
  CATTN_INLINE static bool any(Mask m) { return m != 0; }
  CATTN_INLINE static unsigned bits(Mask m) { return m; }  // one per lane

  CATTN_INLINE static Mask words_at_least(const uint32_t* p, uint32_t threshold) {
    return _mm512_cmpge_epu32_mask(_mm512_loadu_si512(p),
                                   _mm512_set1_epi32(static_cast<int>(threshold)));
  }

  // Half types.
  CATTN_INLINE static V widen(__m256i bits, Float16) { return _mm512_cvtph_ps(bits); }
  CATTN_INLINE static V widen(__m256i bits, BFloat16) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  CATTN_INLINE static __m256i narrow(V a, Float16) {
    return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  CATTN_INLINE static __m256i narrow(V a, BFloat16) {
#if defined(__AVX512BF16__)
    // The instruction takes subnormal numbers for zero; whatever else there is it rounds the same.
    constexpr int subnormal = 0x20;
    if (__builtin_expect(_mm512_fpclass_ps_mask(a, subnormal) == 0, 1))
      return (__m256i)_mm512_cvtneps_pbh(a);
#endif
    const __m512i bits = _mm512_castps_si512(a), top = _mm512_srli_epi32(bits, 16);
    const __m512i odd = _mm512_and_si512(top, _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    rounded =
        _mm512_mask_or_epi32(_mm512_srli_epi32(rounded, 16), _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q),
                             top, _mm512_set1_epi32(0x40));
    return _mm512_cvtepi32_epi16(rounded);
  }
  template <class S>
  CATTN_INLINE static V load(const S* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), S{});
  }
  template <class S>
  CATTN_INLINE static V load_n(const S* p, Index n) {
    return widen(_mm256_maskz_loadu_epi16(first(n), p), S{});
  }
  template <class S>
  CATTN_INLINE static void store(S* p, V a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(a, S{}));
  }
  template <class S>
  CATTN_INLINE static void store_n(S* p, V a, Index n) {
    _mm256_mask_storeu_epi16(p, first(n), narrow(a, S{}));
  }

  // Lane r is what f(a, b) makes of the lanes of row r, in any order.
  template <class F>
  CATTN_INLINE static V combine_rows(const V (&r)[16], F f) {
    V pairs[8], fours[4], halves[2];
    CATTN_UNROLL
    for (int i = 0; i < 8; ++i) {
      const V a = r[2 * i], b = r[2 * i + 1];
      pairs[i] = f(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    }
    CATTN_UNROLL
    for (int i = 0; i < 4; ++i) {
      const __m512d a = _mm512_castps_pd(pairs[2 * i]), b = _mm512_castps_pd(pairs[2 * i + 1]);
      fours[i] =
          f(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    // Each 128-bit lane holds four rows: now the four lanes of each.
    const auto lanes = [&](V a, V b) {
      return f(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    };
    CATTN_UNROLL
    for (int i = 0; i < 2; ++i) halves[i] = lanes(fours[2 * i], fours[2 * i + 1]);
    return lanes(halves[0], halves[1]);
  }

  // 16 rows of 16 to 16 columns of 16.
  CATTN_INLINE static void transpose(V (&r)[16]) {
    V t[16];
    CATTN_UNROLL
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    CATTN_UNROLL
    for (int i = 0; i < 16; i += 4) {
      const __m512d a = _mm512_castps_pd(t[i]), b = _mm512_castps_pd(t[i + 1]);
      const __m512d c = _mm512_castps_pd(t[i + 2]), d = _mm512_castps_pd(t[i + 3]);
      r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
      r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
      r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
      r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
    // r[4g + c] holds column c (mod 4) of rows 4g..4g+3 in each 128-bit lane: transpose the lanes.
    CATTN_UNROLL
    for (int c = 0; c < 4; ++c) {
      const V ab_low = _mm512_shuffle_f32x4(r[c], r[4 + c], 0x88);
      const V ab_high = _mm512_shuffle_f32x4(r[c], r[4 + c], 0xdd);
      const V cd_low = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0x88);
      const V cd_high = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0xdd);
      t[c] = _mm512_shuffle_f32x4(ab_low, cd_low, 0x88);
      t[8 + c] = _mm512_shuffle_f32x4(ab_low, cd_low, 0xdd);
      t[4 + c] = _mm512_shuffle_f32x4(ab_high, cd_high, 0x88);
      t[12 + c] = _mm512_shuffle_f32x4(ab_high, cd_high, 0xdd);
    }
    CATTN_UNROLL
    for (int i = 0; i < 16; ++i) r[i] = t[i];
  }
};

template <>
struct Vec<double> {
  using Elem = double;
  using V = __m512d;
  using Mask = __mmask8;
  static constexpr int width = 8;

  CATTN_INLINE static Mask first(Index n) { return static_cast<Mask>((1u << n) - 1u); }
  CATTN_INLINE static V zero() { return _mm512_setzero_pd(); }
  CATTN_INLINE static V set1(double x) { return _mm512_set1_pd(x); }
  CATTN_INLINE static V load(const double* p) { return _mm512_loadu_pd(p); }
  CATTN_INLINE static V load_n(const double* p, Index n) {
    return _mm512_maskz_loadu_pd(first(n), p);
  }
  CATTN_INLINE static void store(double* p, V a) { _mm512_storeu_pd(p, a); }
  CATTN_INLINE static void store_n(double* p, V a, Index n) {
    _mm512_mask_storeu_pd(p, first(n), a);
  }
  CATTN_INLINE static V add(V a, V b) { return _mm512_add_pd(a, b); }
  CATTN_INLINE static V sub(V a, V b) { return _mm512_sub_pd(a, b); }
  CATTN_INLINE static V mul(V a, V b) { return _mm512_mul_pd(a, b); }
  CATTN_INLINE static V div(V a, V b) { return _mm512_div_pd(a, b); }
  CATTN_INLINE static V fma(V a, V b, V c) { return _mm512_fmadd_pd(a, b, c); }
  CATTN_INLINE static V max(V a, V b) { return _mm512_max_pd(a, b); }
  CATTN_INLINE static V min(V a, V b) { return _mm512_min_pd(a, b); }
  CATTN_INLINE static V iota() { return _mm512_setr_pd(0, 1, 2, 3, 4, 5, 6, 7); }
  CATTN_INLINE static double sum_lanes(V a) { return _mm512_reduce_add_pd(a); }

  CATTN_INLINE static V nearest(V x) {
    return _mm512_roundscale_pd(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  CATTN_INLINE static V fraction(V x) { return _mm512_reduce_pd(x, 0); }
  CATTN_INLINE static void integer_and_fraction(V x, V& n, V& f) {
    f = fraction(x);
    n = sub(x, f);
  }
  CATTN_INLINE static V scale2(V p, V x, V fraction) {
    return _mm512_scalef_pd(p, _mm512_sub_pd(x, fraction));
  }

  CATTN_INLINE static Mask lanes_between(Index begin, Index end) {
    const unsigned upper = end >= width ? 0xffu : end <= 0 ? 0u : (1u << end) - 1u;
    const unsigned lower = begin >= width ? 0xffu : begin <= 0 ? 0u : (1u << begin) - 1u;
    return static_cast<Mask>(upper & ~lower);
  }
  CATTN_INLINE static Mask bytes_nonzero(const uint8_t* p, Index n) {
    const __m128i bytes = _mm_maskz_loadu_epi8(first(n), p);
    return static_cast<Mask>(_mm_test_epi8_mask(bytes, bytes));
  }
  CATTN_INLINE static Mask equal(V a, V b) { return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ); }
  CATTN_INLINE static Mask greater(V a, V b) { return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ); }
  CATTN_INLINE static Mask same_bits(V a, V b) {
    return _mm512_cmpeq_epi64_mask(_mm512_castpd_si512(a), _mm512_castpd_si512(b));
  }
  CATTN_INLINE static V select(Mask m, V yes, V no) { return _mm512_mask_blend_pd(m, no, yes); }
  CATTN_INLINE static bool any(Mask m) { return m != 0; }

  CATTN_INLINE static Mask words_at_least(const uint32_t* p, uint32_t threshold) {
    return _mm256_cmpge_epu32_mask(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
                                   _mm256_set1_epi32(static_cast<int>(threshold)));
  }

  CATTN_INLINE static V load(const float* p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
  CATTN_INLINE static V load_n(const float* p, Index n) {
    return _mm512_cvtps_pd(_mm256_maskz_loadu_ps(first(n), p));
  }

  CATTN_INLINE static void transpose(V (&r)[8]) {
    V t[8];
    CATTN_UNROLL
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm512_unpacklo_pd(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_pd(r[i], r[i + 1]);
    }
    CATTN_UNROLL
    for (int c = 0; c < 2; ++c) {
      const V ab_low = _mm512_shuffle_f64x2(t[c], t[2 + c], 0x88);
      const V ab_high = _mm512_shuffle_f64x2(t[c], t[2 + c], 0xdd);
      const V cd_low = _mm512_shuffle_f64x2(t[4 + c], t[6 + c], 0x88);
      const V cd_high = _mm512_shuffle_f64x2(t[4 + c], t[6 + c], 0xdd);
      r[c] = _mm512_shuffle_f64x2(ab_low, cd_low, 0x88);
      r[4 + c] = _mm512_shuffle_f64x2(ab_low, cd_low, 0xdd);
      r[2 + c] = _mm512_shuffle_f64x2(ab_high, cd_high, 0x88);
      r[6 + c] = _mm512_shuffle_f64x2(ab_high, cd_high, 0xdd);
    }
  }
};
