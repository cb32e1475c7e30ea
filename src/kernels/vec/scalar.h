// The vector vocabulary in plain C++ for any CPU, and its specification: an ISA may replace these
// operations by instructions but not change what they mean. Included inside the ISA's anonymous
// namespace.
//
// A vector is a GCC/Clang 16-byte vector type, which the compiler maps to whatever the baseline
// has (SSE2, NEON) or to scalar code. Every ISA provides the same names as Vec<float> and
// Vec<double>.

// Words of 32 random bits, for dropout.
struct PlainWords {
  typedef uint32_t V __attribute__((vector_size(16)));
  static constexpr int width = 4;
  CATTN_INLINE static V set1(uint32_t x) { return V{x, x, x, x}; }
  // first, first + 1, ...
  CATTN_INLINE static V iota(uint32_t first) { return V{0, 1, 2, 3} + first; }
  CATTN_INLINE static V exclusive_or(V a, V b) { return a ^ b; }
  // The two halves of the 64-bit products.
  CATTN_INLINE static void multiply(V a, uint32_t by, V& high, V& low) {
    for (int i = 0; i < width; ++i) {
      const uint64_t product = static_cast<uint64_t>(a[i]) * by;
      high[i] = static_cast<uint32_t>(product >> 32);
      low[i] = static_cast<uint32_t>(product);
    }
  }
  CATTN_INLINE static void store(uint32_t* p, V a) { __builtin_memcpy(p, &a, sizeof(a)); }
};

template <class T, class I, int kWidth>
struct PlainVec {
  using Elem = T;
  typedef T V __attribute__((vector_size(sizeof(T) * kWidth)));
  typedef I Mask __attribute__((vector_size(sizeof(T) * kWidth)));  // lanes 0 or -1
  static constexpr int width = kWidth;

  CATTN_INLINE static V zero() { return V{}; }
  CATTN_INLINE static V set1(T x) {
    V a{};  // V{} + x would lose the sign of -0
    for (int i = 0; i < width; ++i) a[i] = x;
    return a;
  }

  // Unaligned loads and stores; the _n forms touch only the first n elements (n < width) and load
  // zeros into the others.
  CATTN_INLINE static V load(const T* p) {
    V a;
    __builtin_memcpy(&a, p, sizeof(a));
    return a;
  }
  CATTN_INLINE static void store(T* p, V a) { __builtin_memcpy(p, &a, sizeof(a)); }
  // Other types in memory: the half types, or float for double.
  template <class S>
  CATTN_INLINE static V load(const S* p) {
    return load_n(p, width);
  }
  template <class S>
  CATTN_INLINE static V load_n(const S* p, Index n) {
    V a{};
    for (int i = 0; i < width; ++i)
      if (i < n) a[i] = widen(p[i]);
    return a;
  }
  template <class S>
  CATTN_INLINE static void store(S* p, V a) {
    store_n(p, a, width);
  }
  template <class S>
  CATTN_INLINE static void store_n(S* p, V a, Index n) {
    for (int i = 0; i < width; ++i)
      if (i < n) narrow(a[i], p[i]);
  }
  CATTN_INLINE static T widen(T x) { return x; }
  template <class S>
  CATTN_INLINE static T widen(S x) {
    return static_cast<T>(to_float(x));
  }
  CATTN_INLINE static void narrow(T x, T& to) { to = x; }
  template <class S>
  CATTN_INLINE static void narrow(T x, S& to) {
    from_float(static_cast<float>(x), to);
  }

  CATTN_INLINE static V add(V a, V b) { return a + b; }
  CATTN_INLINE static V sub(V a, V b) { return a - b; }
  CATTN_INLINE static V mul(V a, V b) { return a * b; }
  CATTN_INLINE static V div(V a, V b) { return a / b; }
  CATTN_INLINE static V fma(V a, V b, V c) { return a * b + c; }  // fused where the CPU can
  // The larger; b where either is NaN.
  CATTN_INLINE static V max(V a, V b) { return a > b ? a : b; }
  // The smaller; b where either is NaN.
  CATTN_INLINE static V min(V a, V b) { return a < b ? a : b; }
  // 0, 1, 2, ...
  CATTN_INLINE static V iota() {
    V a{};
    for (int i = 0; i < width; ++i) a[i] = T(i);
    return a;
  }
  CATTN_INLINE static T sum_lanes(V a) {
    T x = a[0];
    for (int i = 1; i < width; ++i) x += a[i];
    return x;
  }

  // The two halves of exp2: x = n + fraction(x) with n integral and |fraction| <= 1/2, and
  // scale2(p, x, fraction(x)) = p * 2^n. For x = -inf the result is 0, above the range inf, and
  // NaN stays NaN. A result below the normal range may be 0.
  static constexpr int kBias = sizeof(T) == 4 ? 127 : 1023;
  static constexpr int kMantissa = sizeof(T) == 4 ? 23 : 52;
  CATTN_INLINE static V clamp(V x) {
    const V low = set1(T(-kBias - 24)), high = set1(T(kBias + 1));
    const V y = x < low ? low : x;
    return y > high ? high : y;
  }
  // The nearest integer, ties to even.
  CATTN_INLINE static V nearest(V x) {
    // Adding 1.5 * 2^mantissa leaves no fraction bits; from 2^(mantissa - 1) on there are none.
    const T limit = T(Index(1) << (kMantissa - 1));
    const V magic = set1(3 * limit);
    const V magnitude = x < zero() ? zero() - x : x;
    return magnitude < set1(limit) ? (x + magic) - magic : x;
  }
  // x = n + f with n integral and |f| <= 1/2, of any size; f = 0 for x = -inf.
  CATTN_INLINE static void integer_and_fraction(V x, V& n, V& f) {
    n = nearest(x);
    f = select(equal(x, set1(-T(__builtin_inff()))), zero(), sub(x, n));
  }
  CATTN_INLINE static V fraction(V x) {
    const V y = clamp(x);
    return y - nearest(y);
  }
  CATTN_INLINE static V scale2(V p, V x, V) {
    const V n = nearest(clamp(x));
    const V limited = n < set1(T(-kBias)) ? set1(T(-kBias)) : n;
    const V finite = limited == limited ? limited : zero();  // p is NaN already
    const Mask bits = (__builtin_convertvector(finite, Mask) + I(kBias)) << kMantissa;
    return p * reinterpret_cast<V>(bits);
  }

  // Lanes l with begin <= l < end; both may lie outside the vector.
  CATTN_INLINE static Mask lanes_between(Index begin, Index end) {
    Mask m;
    for (int i = 0; i < width; ++i) m[i] = i >= begin && i < end ? -1 : 0;
    return m;
  }
  // Lanes whose byte is nonzero; reads n bytes only, further lanes are off.
  CATTN_INLINE static Mask bytes_nonzero(const uint8_t* p, Index n) {
    Mask m;
    for (int i = 0; i < width; ++i) m[i] = i < n && p[i] != 0 ? -1 : 0;
    return m;
  }
  CATTN_INLINE static Mask equal(V a, V b) { return a == b; }
  CATTN_INLINE static Mask greater(V a, V b) { return a > b; }
  CATTN_INLINE static Mask same_bits(V a, V b) {
    return reinterpret_cast<Mask>(a) == reinterpret_cast<Mask>(b);
  }
  CATTN_INLINE static V select(Mask m, V yes, V no) { return m ? yes : no; }
  CATTN_INLINE static bool any(Mask m) {
    bool some = false;
    for (int i = 0; i < width; ++i) some |= m[i] != 0;
    return some;
  }

  // Lanes whose random word is at least the threshold.
  CATTN_INLINE static Mask words_at_least(const uint32_t* p, uint32_t threshold) {
    Mask m;
    for (int i = 0; i < width; ++i) m[i] = p[i] >= threshold ? -1 : 0;
    return m;
  }

  // `width` rows to `width` columns.
  CATTN_INLINE static void transpose(V (&r)[kWidth]) {
    V t[kWidth] = {};
    for (int i = 0; i < width; ++i)
      for (int j = 0; j < width; ++j) t[j][i] = r[i][j];
    for (int i = 0; i < width; ++i) r[i] = t[i];
  }
};
