// The vector vocabulary in AVX2 and FMA. Included inside the ISA's anonymous namespace.
// See vec/scalar.h for what each operation means.

// Loading `width` elements at kTailMask + 8 - n gives a mask with the first n lanes set.
alignas(32) constexpr int32_t kTailMask[16] = {-1, -1, -1, -1, -1, -1, -1, -1,
                                               0,  0,  0,  0,  0,  0,  0,  0};
alignas(32) constexpr int64_t kTailMask64[8] = {-1, -1, -1, -1, 0, 0, 0, 0};

// Words of 32 random bits, for dropout.
struct Words {
  using V = __m256i;
  static constexpr int width = 8;
  CATTN_INLINE static V set1(uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
  CATTN_INLINE static V iota(uint32_t first) {
    return _mm256_add_epi32(set1(first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  CATTN_INLINE static V exclusive_or(V a, V b) { return _mm256_xor_si256(a, b); }
  CATTN_INLINE static void multiply(V a, uint32_t by, V& high, V& low) {
    const V m = set1(by);
    const V even = _mm256_mul_epu32(a, m), odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), m);
    high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
    low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
  }
  CATTN_INLINE static void store(uint32_t* p, V a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a);
  }
};

template <class T>
struct Vec;

template <>
struct Vec<float> {
  using Elem = float;
  using V = __m256;
  using Mask = __m256i;
  static constexpr int width = 8;

  CATTN_INLINE static Mask first(Index n) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kTailMask + 8 - n));
  }
  CATTN_INLINE static V zero() { return _mm256_setzero_ps(); }
  CATTN_INLINE static V set1(float x) { return _mm256_set1_ps(x); }
  CATTN_INLINE static V load(const float* p) { return _mm256_loadu_ps(p); }
  CATTN_INLINE static V load_n(const float* p, Index n) { return _mm256_maskload_ps(p, first(n)); }
  CATTN_INLINE static void store(float* p, V a) { _mm256_storeu_ps(p, a); }
  CATTN_INLINE static void store_n(float* p, V a, Index n) { _mm256_maskstore_ps(p, first(n), a); }
  CATTN_INLINE static V add(V a, V b) { return _mm256_add_ps(a, b); }
  CATTN_INLINE static V sub(V a, V b) { return _mm256_sub_ps(a, b); }
  CATTN_INLINE static V mul(V a, V b) { return _mm256_mul_ps(a, b); }
  CATTN_INLINE static V div(V a, V b) { return _mm256_div_ps(a, b); }
  CATTN_INLINE static V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  CATTN_INLINE static V fms(V a, V b, V c) { return _mm256_fmsub_ps(a, b, c); }
  CATTN_INLINE static V max(V a, V b) { return _mm256_max_ps(a, b); }
  CATTN_INLINE static V min(V a, V b) { return _mm256_min_ps(a, b); }
  CATTN_INLINE static V iota() { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }
  CATTN_INLINE static float sum_lanes(V a) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
  }

  // Clamped so that the exponent arithmetic of scale2 stays in range; max and min return their
  // second argument for a NaN, so NaN goes through.
  CATTN_INLINE static V clamp(V x) {
    return _mm256_min_ps(set1(128.0f), _mm256_max_ps(set1(-151.0f), x));
  }
  CATTN_INLINE static V nearest(V x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // x = n + f with n integral and |f| <= 1/2, of any size; f = 0 for x = -inf.
  CATTN_INLINE static void integer_and_fraction(V x, V& n, V& f) {
    n = nearest(x);
    f = select(equal(x, set1(-__builtin_inff())), zero(), sub(x, n));
  }
  CATTN_INLINE static V fraction(V x) {
    const V y = clamp(x);
    return sub(y, nearest(y));
  }
  CATTN_INLINE static V scale2(V p, V x, V) {
    // 2^n by exponent bits; n <= -127 gives +0 and n = 128 gives inf.
    const __m256i n = _mm256_max_epi32(_mm256_cvtps_epi32(clamp(x)), _mm256_set1_epi32(-127));
    const __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23);
    return mul(p, _mm256_castsi256_ps(bits));
  }
  // Between these an exponent rounds to one of a normal number.
  static constexpr float below_exponents = -126.5f, largest_exponent = 127;
  // The integer n nearest to x for |x| <= 2^21, anything for others, and p 2^n if it is a normal
  // number as p is: half of the instructions that fraction() and scale2() take. Returns n in the
  // last bits of a float.
  CATTN_INLINE static V small_integer(V x, V& n) {
    const V rounding = set1(1.5f * (1 << 23)), last_bits = add(x, rounding);
    n = sub(last_bits, rounding);
    return last_bits;
  }
  CATTN_INLINE static V scale2_by_last_bits(V p, V last_bits) {
    return _mm256_castsi256_ps(_mm256_add_epi32(
        _mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(last_bits), 23)));
  }

  // p, but 0 where x < least; NaN goes through.
  CATTN_INLINE static V zero_below(V least, V x, V p) {
    return _mm256_and_ps(p, _mm256_cmp_ps(x, least, _CMP_NLT_UQ));
  }

  CATTN_INLINE static Mask lanes_between(Index begin, Index end) {
    const auto up_to = [](Index n) { return first(n < 0 ? 0 : n > width ? width : n); };
    return _mm256_andnot_si256(up_to(begin), up_to(end));
  }
  CATTN_INLINE static Mask bytes_nonzero(const uint8_t* p, Index n) {
    uint64_t raw = 0;
    if (n == width) {
      __builtin_memcpy(&raw, p, width);
    } else {
      for (Index l = 0; l < n; ++l) raw |= static_cast<uint64_t>(p[l]) << (8 * l);
    }
    const __m256i bytes = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(raw)));
    return _mm256_cmpgt_epi32(bytes, _mm256_setzero_si256());
  }
  CATTN_INLINE static Mask equal(V a, V b) {
    return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_EQ_OQ));
  }
  CATTN_INLINE static Mask greater(V a, V b) {
    return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_GT_OQ));
  }
  CATTN_INLINE static Mask same_bits(V a, V b) {
    return _mm256_cmpeq_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b));
  }
  CATTN_INLINE static V select(Mask m, V yes, V no) {
    return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(m));
  }
  CATTN_INLINE static bool any(Mask m) { return _mm256_movemask_epi8(m) != 0; }

  CATTN_INLINE static Mask words_at_least(const uint32_t* p, uint32_t threshold) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    const __m256i limit = _mm256_set1_epi32(static_cast<int>(threshold));
    return _mm256_cmpeq_epi32(_mm256_max_epu32(words, limit), words);
  }

  // Half types.
  CATTN_INLINE static V widen(__m128i bits, Float16) { return _mm256_cvtph_ps(bits); }
  CATTN_INLINE static V widen(__m128i bits, BFloat16) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  CATTN_INLINE static __m128i narrow(V a, Float16) {
    return _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  CATTN_INLINE static __m128i narrow(V a, BFloat16) {
    const __m256i bits = _mm256_castps_si256(a), top = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(top, _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_srli_epi32(
        _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
    const __m256i nan = _mm256_or_si256(top, _mm256_set1_epi32(0x40));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    const __m256i chosen = _mm256_blendv_epi8(rounded, nan, is_nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(chosen), _mm256_extracti128_si256(chosen, 1));
  }
  template <class S>
  CATTN_INLINE static V load(const S* p) {
    return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), S{});
  }
  template <class S>
  CATTN_INLINE static V load_n(const S* p, Index n) {
    S lanes[width] = {};
    for (Index i = 0; i < n; ++i) lanes[i] = p[i];
    return load(lanes);
  }
  template <class S>
  CATTN_INLINE static void store(S* p, V a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(a, S{}));
  }
  template <class S>
  CATTN_INLINE static void store_n(S* p, V a, Index n) {
    S lanes[width];
    store(lanes, a);
    for (Index i = 0; i < n; ++i) p[i] = lanes[i];
  }

  CATTN_INLINE static void transpose(V (&r)[8]) {
    V t[8];
    CATTN_UNROLL
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    CATTN_UNROLL
    for (int i = 0; i < 8; i += 4) {
      const __m256d a = _mm256_castps_pd(t[i]), b = _mm256_castps_pd(t[i + 1]);
      const __m256d c = _mm256_castps_pd(t[i + 2]), d = _mm256_castps_pd(t[i + 3]);
      r[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c));
      r[i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
      r[i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d));
      r[i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
    }
    CATTN_UNROLL
    for (int c = 0; c < 4; ++c) {
      t[c] = _mm256_permute2f128_ps(r[c], r[4 + c], 0x20);
      t[4 + c] = _mm256_permute2f128_ps(r[c], r[4 + c], 0x31);
    }
    CATTN_UNROLL
    for (int i = 0; i < 8; ++i) r[i] = t[i];
  }
};

template <>
struct Vec<double> {
  using Elem = double;
  using V = __m256d;
  using Mask = __m256i;
  static constexpr int width = 4;

  CATTN_INLINE static Mask first(Index n) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kTailMask64 + 4 - n));
  }
  CATTN_INLINE static V zero() { return _mm256_setzero_pd(); }
  CATTN_INLINE static V set1(double x) { return _mm256_set1_pd(x); }
  CATTN_INLINE static V load(const double* p) { return _mm256_loadu_pd(p); }
  CATTN_INLINE static V load_n(const double* p, Index n) { return _mm256_maskload_pd(p, first(n)); }
  CATTN_INLINE static void store(double* p, V a) { _mm256_storeu_pd(p, a); }
  CATTN_INLINE static void store_n(double* p, V a, Index n) { _mm256_maskstore_pd(p, first(n), a); }
  CATTN_INLINE static V add(V a, V b) { return _mm256_add_pd(a, b); }
  CATTN_INLINE static V sub(V a, V b) { return _mm256_sub_pd(a, b); }
  CATTN_INLINE static V mul(V a, V b) { return _mm256_mul_pd(a, b); }
  CATTN_INLINE static V div(V a, V b) { return _mm256_div_pd(a, b); }
  CATTN_INLINE static V fma(V a, V b, V c) { return _mm256_fmadd_pd(a, b, c); }
  CATTN_INLINE static V fms(V a, V b, V c) { return _mm256_fmsub_pd(a, b, c); }
  CATTN_INLINE static V max(V a, V b) { return _mm256_max_pd(a, b); }
  CATTN_INLINE static V min(V a, V b) { return _mm256_min_pd(a, b); }
  CATTN_INLINE static V iota() { return _mm256_setr_pd(0, 1, 2, 3); }
  CATTN_INLINE static double sum_lanes(V a) {
    const __m128d x = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(x, _mm_unpackhi_pd(x, x)));
  }

  CATTN_INLINE static V clamp(V x) {
    return _mm256_min_pd(set1(1024.0), _mm256_max_pd(set1(-1080.0), x));
  }
  CATTN_INLINE static V nearest(V x) {
    return _mm256_round_pd(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // x = n + f with n integral and |f| <= 1/2, of any size; f = 0 for x = -inf.
  CATTN_INLINE static void integer_and_fraction(V x, V& n, V& f) {
    n = nearest(x);
    f = select(equal(x, set1(-__builtin_inff())), zero(), sub(x, n));
  }
  CATTN_INLINE static V fraction(V x) {
    const V y = clamp(x);
    return sub(y, nearest(y));
  }
  CATTN_INLINE static V scale2(V p, V x, V) {
    const __m128i n = _mm_max_epi32(_mm256_cvtpd_epi32(clamp(x)), _mm_set1_epi32(-1023));
    const __m256i biased = _mm256_cvtepi32_epi64(_mm_add_epi32(n, _mm_set1_epi32(1023)));
    return mul(p, _mm256_castsi256_pd(_mm256_slli_epi64(biased, 52)));
  }
  // As of float32; |x| <= 2^50.
  static constexpr double below_exponents = -1022.5, largest_exponent = 1023;
  CATTN_INLINE static V small_integer(V x, V& n) {
    const V rounding = set1(1.5 * (1LL << 52)), last_bits = add(x, rounding);
    n = sub(last_bits, rounding);
    return last_bits;
  }
  CATTN_INLINE static V scale2_by_last_bits(V p, V last_bits) {
    return _mm256_castsi256_pd(_mm256_add_epi64(
        _mm256_castpd_si256(p), _mm256_slli_epi64(_mm256_castpd_si256(last_bits), 52)));
  }
  CATTN_INLINE static V zero_below(V least, V x, V p) {
    return _mm256_and_pd(p, _mm256_cmp_pd(x, least, _CMP_NLT_UQ));
  }

  CATTN_INLINE static Mask lanes_between(Index begin, Index end) {
    const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
    return _mm256_and_si256(_mm256_cmpgt_epi64(lane, _mm256_set1_epi64x(begin - 1)),
                            _mm256_cmpgt_epi64(_mm256_set1_epi64x(end), lane));
  }
  CATTN_INLINE static Mask bytes_nonzero(const uint8_t* p, Index n) {
    uint32_t raw = 0;
    if (n == width) {
      __builtin_memcpy(&raw, p, width);
    } else {
      for (Index l = 0; l < n; ++l) raw |= static_cast<uint32_t>(p[l]) << (8 * l);
    }
    const __m256i bytes = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(static_cast<int32_t>(raw)));
    return _mm256_cmpgt_epi64(bytes, _mm256_setzero_si256());
  }
  CATTN_INLINE static Mask equal(V a, V b) {
    return _mm256_castpd_si256(_mm256_cmp_pd(a, b, _CMP_EQ_OQ));
  }
  CATTN_INLINE static Mask greater(V a, V b) {
    return _mm256_castpd_si256(_mm256_cmp_pd(a, b, _CMP_GT_OQ));
  }
  CATTN_INLINE static Mask same_bits(V a, V b) {
    return _mm256_cmpeq_epi64(_mm256_castpd_si256(a), _mm256_castpd_si256(b));
  }
  CATTN_INLINE static V select(Mask m, V yes, V no) {
    return _mm256_blendv_pd(no, yes, _mm256_castsi256_pd(m));
  }
  CATTN_INLINE static bool any(Mask m) { return _mm256_movemask_epi8(m) != 0; }

  CATTN_INLINE static Mask words_at_least(const uint32_t* p, uint32_t threshold) {
    const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m128i limit = _mm_set1_epi32(static_cast<int>(threshold));
    return _mm256_cvtepi32_epi64(_mm_cmpeq_epi32(_mm_max_epu32(words, limit), words));
  }

  CATTN_INLINE static V load(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
  CATTN_INLINE static V load_n(const float* p, Index n) {
    const __m128i mask = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kTailMask + 8 - n));
    return _mm256_cvtps_pd(_mm_maskload_ps(p, mask));
  }

  CATTN_INLINE static void transpose(V (&r)[4]) {
    const V a = _mm256_unpacklo_pd(r[0], r[1]), b = _mm256_unpackhi_pd(r[0], r[1]);
    const V c = _mm256_unpacklo_pd(r[2], r[3]), d = _mm256_unpackhi_pd(r[2], r[3]);
    r[0] = _mm256_permute2f128_pd(a, c, 0x20);
    r[1] = _mm256_permute2f128_pd(b, d, 0x20);
    r[2] = _mm256_permute2f128_pd(a, c, 0x31);
    r[3] = _mm256_permute2f128_pd(b, d, 0x31);
  }
};
