// Vectors of pairs of half numbers in plain C++ for any CPU, and the specification of the
// vocabulary: what VDPBF16PS and TDPBF16PS multiply. Included inside the ISA's anonymous namespace,
// behind a Vec<float> of 16 lanes that is a PlainVec.
//
// A pair is 32 bits: an earlier element in the lower half and the next one in the upper half.
//
// It is for tests, not for speed: what is long is a function, not inlined into every loop.
struct PlainPairs {
  using Half = BFloat16;
  using V = Vec<float>::V;
  typedef uint32_t W __attribute__((vector_size(64)));  // 16 pairs
  typedef uint16_t Halves __attribute__((vector_size(64)));
  static constexpr int width = 16;

  CATTN_INLINE static W load(const uint16_t* p) {
    W a;
    __builtin_memcpy(&a, p, sizeof(a));
    return a;
  }
  CATTN_INLINE static void store(uint16_t* p, W a) { __builtin_memcpy(p, &a, sizeof(a)); }
  CATTN_INLINE static W zero() { return W{}; }
  // One pair in every lane.
  CATTN_INLINE static W broadcast(const uint16_t* p) {
    uint32_t pair;
    __builtin_memcpy(&pair, p, sizeof(pair));
    return W{} + pair;
  }

  // The first n of 32 halves in a row, zeros for the rest (n may be 0 or less, or more than 32).
  CATTN_INLINE static W load_up_to(const uint16_t* p, Index n) {
    W a = zero();
    const Index count = n > 2 * width ? 2 * width : n;
    if (n > 0) __builtin_memcpy(&a, p, static_cast<size_t>(2 * count));
    return a;
  }
  // Lane i is (lower[i], upper[i]), as far as there are that many of either.
  CATTN_INLINE static W load_pairs(const uint16_t* lower, Index lower_count, const uint16_t* upper,
                                   Index upper_count) {
    W a = zero();
    for (int i = 0; i < width; ++i) {
      if (i < lower_count) a[i] = lower[i];
      if (i < upper_count) a[i] |= static_cast<uint32_t>(upper[i]) << 16;
    }
    return a;
  }
  // The same of 32 halves each, in two vectors.
  [[gnu::noinline]] static void interleave(W lower, W upper, W (&pairs)[2]) {
    uint16_t low[2 * width], high[2 * width];
    store(low, lower);
    store(high, upper);
    for (int i = 0; i < 2; ++i)
      pairs[i] = load_pairs(low + i * width, width, high + i * width, width);
  }
  // Lane i is (lower[i], upper[i]), each rounded to nearest even; subnormals become zero.
  [[gnu::noinline]] static W round(V lower, V upper) {
    W a;
    for (int i = 0; i < width; ++i) {
      BFloat16 low, high;
      from_float(without_subnormal(lower[i]), low);
      from_float(without_subnormal(upper[i]), high);
      a[i] = static_cast<uint32_t>(high.bits) << 16 | low.bits;
    }
    return a;
  }
  // The nearest bfloat16, the one away from zero if there are two, of a number that is far from the
  // end of the range; the one that its first 16 bits are; and pairs of these bits of two.
  CATTN_INLINE static V nearest(V x) {
    return reinterpret_cast<V>((reinterpret_cast<W>(x) + 0x8000u) & 0xffff0000u);
  }
  // Of a number whose first 16 bits are then the nearest bfloat16, as above.
  CATTN_INLINE static V round_half_up(V x) {
    return reinterpret_cast<V>(reinterpret_cast<W>(x) + 0x8000u);
  }
  CATTN_INLINE static V first_digits(V x) {
    return reinterpret_cast<V>(reinterpret_cast<W>(x) & 0xffff0000u);
  }
  CATTN_INLINE static W pair(V lower, V upper) {
    return reinterpret_cast<W>(lower) >> 16 | (reinterpret_cast<W>(upper) & 0xffff0000u);
  }
  CATTN_INLINE static V lower(W a) { return reinterpret_cast<V>(a << 16); }
  CATTN_INLINE static V upper(W a) { return reinterpret_cast<V>(a & 0xffff0000u); }

  // Of 32 elements in a row: those with an even and those with an odd place.
  [[gnu::noinline]] static void part_even_odd(V first, V second, V& even, V& odd) {
    V e{}, o{};
    for (int i = 0; i < width / 2; ++i) {
      e[i] = first[2 * i];
      o[i] = first[2 * i + 1];
      e[width / 2 + i] = second[2 * i];
      o[width / 2 + i] = second[2 * i + 1];
    }
    even = e;
    odd = o;
  }

  // 32 elements of a row, rounded as by round(), as 16 pairs.
  [[gnu::noinline]] static W round_row(V first, V second) {
    V even, odd;
    part_even_odd(first, second, even, odd);
    return round(even, odd);
  }

  // Pairs of two numbers as whole ones of 16 bits, rounded: of a negative one and of NaN 0, of one
  // that is too large the largest. They must be below 2^31.
  [[gnu::noinline]] static W whole_pairs(V first, V second) {
    const auto whole = [](float x) {
      const float most = x < 65535 ? x : 65535;
      return x > 0 ? static_cast<uint16_t>(__builtin_rintf(most)) : uint16_t{0};
    };
    W a;
    for (int i = 0; i < width; ++i) {
      a[i] = static_cast<int32_t>(whole(first[i]) | static_cast<uint32_t>(whole(second[i])) << 16);
    }
    return a;
  }
  // Pairs of the bits of a bfloat16 that is NaN where the number is.
  [[gnu::noinline]] static W nan_pairs(V first, V second) {
    W a;
    for (int i = 0; i < width; ++i) {
      a[i] = (first[i] != first[i] ? 0x7fc0 : 0) | (second[i] != second[i] ? 0x7fc00000 : 0);
    }
    return a;
  }
  // Pairs of the last 16 bits of two numbers. (An object, for what vectors of some instruction sets
  // keep in registers for it.)
  struct LastBits {
    CATTN_INLINE W of(V first, V second) const {
      return (reinterpret_cast<W>(first) & 0xffff) | reinterpret_cast<W>(second) << 16;
    }
  };
  // Halves as whole numbers.
  template <int kBits>
  CATTN_INLINE static W shift_halves_right(W a) {
    return reinterpret_cast<W>(reinterpret_cast<Halves>(a) >> kBits);
  }
  CATTN_INLINE static W subtract_halves(W a, W b) {
    return reinterpret_cast<W>(reinterpret_cast<Halves>(a) - reinterpret_cast<Halves>(b));
  }

  // 16 rows of 16 pairs to 16 columns.
  [[gnu::noinline]] static void transpose(W (&r)[16]) {
    W t[16] = {};
    for (int i = 0; i < width; ++i)
      for (int j = 0; j < width; ++j) t[j][i] = r[i][j];
    for (int i = 0; i < width; ++i) r[i] = t[i];
  }

  // acc + a.upper * b.upper, rounded, + a.lower * b.lower, rounded: two fused multiply-adds of
  // pair_product.h, the upper halves first.
  [[gnu::noinline]] static V multiply_add(V acc, W a, W b) {
    const V al = lower(a), au = upper(a), bl = lower(b), bu = upper(b);
    for (int i = 0; i < width; ++i) {
      const float first = multiply_add_flushing(without_subnormal(au[i]), without_subnormal(bu[i]),
                                                without_subnormal(acc[i]));
      acc[i] = multiply_add_flushing(without_subnormal(al[i]), without_subnormal(bl[i]), first);
    }
    return acc;
  }

  // Extremes of the bits of |x|, as whole numbers; `smallest` is of those minus one, so that zero
  // comes out as the largest of all.
  CATTN_INLINE static void track(V x, W& largest, W& smallest) {
    const W bits = reinterpret_cast<W>(x) & 0x7fffffffu, less = bits - 1u;
    largest = bits > largest ? bits : largest;
    smallest = less < smallest ? less : smallest;
  }
  CATTN_INLINE static uint32_t largest_lane(W a) {
    uint32_t x = a[0];
    for (int i = 1; i < width; ++i) x = a[i] > x ? a[i] : x;
    return x;
  }
  CATTN_INLINE static uint32_t smallest_lane(W a) { return ~largest_lane(~a); }
  // The same of halves.
  [[gnu::noinline]] static void track_halves(W x, W& largest, W& smallest) {
    const Halves bits = reinterpret_cast<Halves>(x & 0x7fff7fffu);
    const auto less = bits - static_cast<uint16_t>(1);
    const auto most = reinterpret_cast<Halves>(largest), least = reinterpret_cast<Halves>(smallest);
    largest = reinterpret_cast<W>(bits > most ? bits : most);
    smallest = reinterpret_cast<W>(less < least ? less : least);
  }
  CATTN_INLINE static uint32_t largest_half(W a) {
    const uint32_t low = largest_lane(a & 0xffffu), high = largest_lane(a >> 16);
    return low > high ? low : high;
  }
  CATTN_INLINE static uint32_t smallest_half(W a) { return 0xffffu - largest_half(~a); }
};

// A table of 128 bytes, asked by halves: at(places) holds, for each half of `places`, the byte at
// its lowest 7 bits.
class PlainByteTable {
 public:
  explicit PlainByteTable(const uint8_t* bytes) : bytes_(bytes) {}
  [[gnu::noinline]] PlainPairs::W at(PlainPairs::W places) const {
    uint16_t halves[32];
    PlainPairs::store(halves, places);
    for (uint16_t& half : halves) half = bytes_[half % 128];
    return PlainPairs::load(halves);
  }

 private:
  const uint8_t* bytes_;
};

// The same of float16, whose subnormal numbers count. What does not fit becomes infinite.
struct PlainFloat16Pairs : PlainPairs {
  using Half = Float16;

  [[gnu::noinline]] static W round(V lower, V upper) {
    W a;
    for (int i = 0; i < width; ++i) {
      Float16 low, high;
      from_float(lower[i], low);
      from_float(upper[i], high);
      a[i] = static_cast<uint32_t>(high.bits) << 16 | low.bits;
    }
    return a;
  }
  [[gnu::noinline]] static V lower(W a) {
    V x;
    for (int i = 0; i < width; ++i) x[i] = to_float(Float16{static_cast<uint16_t>(a[i])});
    return x;
  }
  CATTN_INLINE static V upper(W a) { return lower(a >> 16); }
  [[gnu::noinline]] static W round_row(V first, V second) {
    V even, odd;
    part_even_odd(first, second, even, odd);
    return round(even, odd);
  }
};
