// The vector vocabulary in NEON (aarch64). Included inside the ISA's anonymous namespace.
// See vec/scalar.h for what each operation means.

// Words of 32 random bits, for dropout.
struct Words {
  using V = uint32x4_t;
  static constexpr int width = 4;
  CATTN_INLINE static V set1(uint32_t x) { return vdupq_n_u32(x); }
  CATTN_INLINE static V iota(uint32_t first) {
    const V lanes = {0, 1, 2, 3};
    return vaddq_u32(lanes, set1(first));
  }
  CATTN_INLINE static V exclusive_or(V a, V b) { return veorq_u32(a, b); }
  CATTN_INLINE static void multiply(V a, uint32_t by, V& high, V& low) {
    const uint64x2_t first = vmull_n_u32(vget_low_u32(a), by);
    const uint64x2_t last = vmull_n_u32(vget_high_u32(a), by);
    low = vuzp1q_u32(vreinterpretq_u32_u64(first), vreinterpretq_u32_u64(last));
    high = vuzp2q_u32(vreinterpretq_u32_u64(first), vreinterpretq_u32_u64(last));
  }
  CATTN_INLINE static void store(uint32_t* p, V a) { vst1q_u32(p, a); }
};

template <class T>
struct Vec;

template <>
struct Vec<float> {
  using Elem = float;
  using V = float32x4_t;
  using Mask = uint32x4_t;
  static constexpr int width = 4;

  CATTN_INLINE static V zero() { return vdupq_n_f32(0); }
  CATTN_INLINE static V set1(float x) { return vdupq_n_f32(x); }
  CATTN_INLINE static V load(const float* p) { return vld1q_f32(p); }
  CATTN_INLINE static V load_n(const float* p, Index n) {
    V a = zero();
    if (n > 0) a = vld1q_lane_f32(p, a, 0);
    if (n > 1) a = vld1q_lane_f32(p + 1, a, 1);
    if (n > 2) a = vld1q_lane_f32(p + 2, a, 2);
    return a;
  }
  CATTN_INLINE static void store(float* p, V a) { vst1q_f32(p, a); }
  CATTN_INLINE static void store_n(float* p, V a, Index n) {
    if (n >= width) return store(p, a);
    if (n > 0) vst1q_lane_f32(p, a, 0);
    if (n > 1) vst1q_lane_f32(p + 1, a, 1);
    if (n > 2) vst1q_lane_f32(p + 2, a, 2);
  }
  CATTN_INLINE static V add(V a, V b) { return vaddq_f32(a, b); }
  CATTN_INLINE static V sub(V a, V b) { return vsubq_f32(a, b); }
  CATTN_INLINE static V mul(V a, V b) { return vmulq_f32(a, b); }
  CATTN_INLINE static V div(V a, V b) { return vdivq_f32(a, b); }
  CATTN_INLINE static V fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
  // fmax would give NaN where either is, and fmaxnm a where b is.
  CATTN_INLINE static V max(V a, V b) { return select(greater(a, b), a, b); }
  CATTN_INLINE static V min(V a, V b) { return select(greater(b, a), a, b); }
  CATTN_INLINE static V iota() { return V{0, 1, 2, 3}; }
  CATTN_INLINE static float sum_lanes(V a) { return vaddvq_f32(a); }

  // Clamped so that the exponent bits of scale2 stay in range; NaN goes through.
  CATTN_INLINE static V clamp(V x) { return vminq_f32(vmaxq_f32(x, set1(-127.0f)), set1(128.0f)); }
  CATTN_INLINE static V nearest(V x) { return vrndnq_f32(x); }
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
    // 2^n by exponent bits: n = -127 gives 0 and n = 128 gives inf.
    const int32x4_t biased = vaddq_s32(vcvtnq_s32_f32(clamp(x)), vdupq_n_s32(127));
    return mul(p, vreinterpretq_f32_s32(vshlq_n_s32(biased, 23)));
  }

  CATTN_INLINE static Mask lanes_between(Index begin, Index end) {
    const int b = begin < 0 ? 0 : begin > width ? width : static_cast<int>(begin);
    const int e = end < 0 ? 0 : end > width ? width : static_cast<int>(end);
    const int32x4_t lane = {0, 1, 2, 3};
    return vandq_u32(vcgeq_s32(lane, vdupq_n_s32(b)), vcltq_s32(lane, vdupq_n_s32(e)));
  }
  CATTN_INLINE static Mask bytes_nonzero(const uint8_t* p, Index n) {
    uint32_t raw = 0;
    if (n == width) {
      __builtin_memcpy(&raw, p, width);
    } else {
      for (Index l = 0; l < n; ++l) raw |= static_cast<uint32_t>(p[l]) << (8 * l);
    }
    const uint32x4_t bytes = vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(raw))));
    return vtstq_u32(bytes, bytes);
  }
  CATTN_INLINE static Mask equal(V a, V b) { return vceqq_f32(a, b); }
  CATTN_INLINE static Mask greater(V a, V b) { return vcgtq_f32(a, b); }
  CATTN_INLINE static Mask same_bits(V a, V b) {
    return vceqq_u32(vreinterpretq_u32_f32(a), vreinterpretq_u32_f32(b));
  }
  CATTN_INLINE static V select(Mask m, V yes, V no) { return vbslq_f32(m, yes, no); }
  CATTN_INLINE static bool any(Mask m) { return vmaxvq_u32(m) != 0; }

  CATTN_INLINE static Mask words_at_least(const uint32_t* p, uint32_t threshold) {
    return vcgeq_u32(vld1q_u32(p), vdupq_n_u32(threshold));
  }

  // Half types.
  CATTN_INLINE static V widen(uint16x4_t bits, Float16) {
    return vcvt_f32_f16(vreinterpret_f16_u16(bits));
  }
  CATTN_INLINE static V widen(uint16x4_t bits, BFloat16) {
    return vreinterpretq_f32_u32(vshll_n_u16(bits, 16));
  }
  CATTN_INLINE static uint16x4_t narrow(V a, Float16) {
    return vreinterpret_u16_f16(vcvt_f16_f32(a));
  }
  CATTN_INLINE static uint16x4_t narrow(V a, BFloat16) {
    const uint32x4_t bits = vreinterpretq_u32_f32(a);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
    const uint32x4_t nan = vorrq_u32(bits, vdupq_n_u32(0x400000));
    return vshrn_n_u32(vbslq_u32(vceqq_f32(a, a), rounded, nan), 16);
  }
  template <class S>
  CATTN_INLINE static V load(const S* p) {
    return widen(vld1_u16(&p->bits), S{});
  }
  template <class S>
  CATTN_INLINE static V load_n(const S* p, Index n) {
    S lanes[width] = {};
    for (Index i = 0; i < n; ++i) lanes[i] = p[i];
    return load(lanes);
  }
  template <class S>
  CATTN_INLINE static void store(S* p, V a) {
    vst1_u16(&p->bits, narrow(a, S{}));
  }
  template <class S>
  CATTN_INLINE static void store_n(S* p, V a, Index n) {
    S lanes[width];
    store(lanes, a);
    for (Index i = 0; i < n; ++i) p[i] = lanes[i];
  }

  CATTN_INLINE static void transpose(V (&r)[4]) {
    const float64x2_t a = vreinterpretq_f64_f32(vtrn1q_f32(r[0], r[1]));
    const float64x2_t b = vreinterpretq_f64_f32(vtrn2q_f32(r[0], r[1]));
    const float64x2_t c = vreinterpretq_f64_f32(vtrn1q_f32(r[2], r[3]));
    const float64x2_t d = vreinterpretq_f64_f32(vtrn2q_f32(r[2], r[3]));
    r[0] = vreinterpretq_f32_f64(vtrn1q_f64(a, c));
    r[1] = vreinterpretq_f32_f64(vtrn1q_f64(b, d));
    r[2] = vreinterpretq_f32_f64(vtrn2q_f64(a, c));
    r[3] = vreinterpretq_f32_f64(vtrn2q_f64(b, d));
  }
};

template <>
struct Vec<double> {
  using Elem = double;
  using V = float64x2_t;
  using Mask = uint64x2_t;
  static constexpr int width = 2;

  CATTN_INLINE static V zero() { return vdupq_n_f64(0); }
  CATTN_INLINE static V set1(double x) { return vdupq_n_f64(x); }
  CATTN_INLINE static V load(const double* p) { return vld1q_f64(p); }
  CATTN_INLINE static V load_n(const double* p, Index n) {
    return n > 0 ? vld1q_lane_f64(p, zero(), 0) : zero();
  }
  CATTN_INLINE static void store(double* p, V a) { vst1q_f64(p, a); }
  CATTN_INLINE static void store_n(double* p, V a, Index n) {
    if (n >= width) return store(p, a);
    if (n > 0) vst1q_lane_f64(p, a, 0);
  }
  CATTN_INLINE static V add(V a, V b) { return vaddq_f64(a, b); }
  CATTN_INLINE static V sub(V a, V b) { return vsubq_f64(a, b); }
  CATTN_INLINE static V mul(V a, V b) { return vmulq_f64(a, b); }
  CATTN_INLINE static V div(V a, V b) { return vdivq_f64(a, b); }
  CATTN_INLINE static V fma(V a, V b, V c) { return vfmaq_f64(c, a, b); }
  CATTN_INLINE static V max(V a, V b) { return select(greater(a, b), a, b); }
  CATTN_INLINE static V min(V a, V b) { return select(greater(b, a), a, b); }
  CATTN_INLINE static V iota() { return V{0, 1}; }
  CATTN_INLINE static double sum_lanes(V a) { return vaddvq_f64(a); }

  CATTN_INLINE static V clamp(V x) { return vminq_f64(vmaxq_f64(x, set1(-1023.0)), set1(1024.0)); }
  CATTN_INLINE static V nearest(V x) { return vrndnq_f64(x); }
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
    const int64x2_t biased = vaddq_s64(vcvtnq_s64_f64(clamp(x)), vdupq_n_s64(1023));
    return mul(p, vreinterpretq_f64_s64(vshlq_n_s64(biased, 52)));
  }

  CATTN_INLINE static Mask lanes_between(Index begin, Index end) {
    const int64x2_t lane = {0, 1};
    return vandq_u64(vcgeq_s64(lane, vdupq_n_s64(begin)), vcltq_s64(lane, vdupq_n_s64(end)));
  }
  CATTN_INLINE static Mask bytes_nonzero(const uint8_t* p, Index n) {
    const uint64x2_t bytes = {n > 0 ? p[0] : uint64_t{0}, n > 1 ? p[1] : uint64_t{0}};
    return vtstq_u64(bytes, bytes);
  }
  CATTN_INLINE static Mask equal(V a, V b) { return vceqq_f64(a, b); }
  CATTN_INLINE static Mask greater(V a, V b) { return vcgtq_f64(a, b); }
  CATTN_INLINE static Mask same_bits(V a, V b) {
    return vceqq_u64(vreinterpretq_u64_f64(a), vreinterpretq_u64_f64(b));
  }
  CATTN_INLINE static V select(Mask m, V yes, V no) { return vbslq_f64(m, yes, no); }
  CATTN_INLINE static bool any(Mask m) { return vmaxvq_u32(vreinterpretq_u32_u64(m)) != 0; }

  CATTN_INLINE static Mask words_at_least(const uint32_t* p, uint32_t threshold) {
    return vcgeq_u64(vmovl_u32(vld1_u32(p)), vdupq_n_u64(threshold));
  }

  CATTN_INLINE static V load(const float* p) { return vcvt_f64_f32(vld1_f32(p)); }
  CATTN_INLINE static V load_n(const float* p, Index n) {
    return n > 0 ? vcvt_f64_f32(vld1_lane_f32(p, vdup_n_f32(0), 0)) : zero();
  }

  CATTN_INLINE static void transpose(V (&r)[2]) {
    const V a = vtrn1q_f64(r[0], r[1]), b = vtrn2q_f64(r[0], r[1]);
    r[0] = a;
    r[1] = b;
  }
};
