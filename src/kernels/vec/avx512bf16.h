// Vectors of pairs of bfloat16 in AVX512-BF16, behind vec/avx512.h. Included inside the ISA's
// anonymous namespace. See vec/pairs.h for what each operation means: the instructions do exactly
// that, and none of them consults or changes the floating-point state.
struct Pairs {
  using Half = BFloat16;
  using V = __m512;
  using W = __m512i;
  static constexpr int width = 16;

  CATTN_INLINE static W load(const uint16_t* p) { return _mm512_loadu_si512(p); }
  CATTN_INLINE static void store(uint16_t* p, W a) { _mm512_storeu_si512(p, a); }
  CATTN_INLINE static W zero() { return _mm512_setzero_si512(); }
  CATTN_INLINE static W broadcast(const uint16_t* p) {
    int32_t pair;
    __builtin_memcpy(&pair, p, sizeof(pair));
    return _mm512_set1_epi32(pair);
  }

  CATTN_INLINE static __mmask32 first(Index n) {
    return n >= 32 ? ~__mmask32{0} : n <= 0 ? 0 : (__mmask32{1} << n) - 1;
  }
  CATTN_INLINE static W load_up_to(const uint16_t* p, Index n) {
    return _mm512_maskz_loadu_epi16(first(n), p);
  }
  CATTN_INLINE static W load_pairs(const uint16_t* lower, Index lower_count, const uint16_t* upper,
                                   Index upper_count) {
    const auto load_half = [](const uint16_t* p, Index n) {
      return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(static_cast<__mmask16>(first(n)), p));
    };
    return _mm512_or_si512(load_half(lower, lower_count),
                           _mm512_slli_epi32(load_half(upper, upper_count), 16));
  }

  CATTN_INLINE static void interleave(W lower, W upper, W (&pairs)[2]) {
    const W first = _mm512_setr_epi32(0x200000, 0x210001, 0x220002, 0x230003, 0x240004, 0x250005,
                                      0x260006, 0x270007, 0x280008, 0x290009, 0x2a000a, 0x2b000b,
                                      0x2c000c, 0x2d000d, 0x2e000e, 0x2f000f);
    const W second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
    pairs[0] = _mm512_permutex2var_epi16(lower, first, upper);
    pairs[1] = _mm512_permutex2var_epi16(lower, second, upper);
  }

  CATTN_INLINE static W round(V lower, V upper) {
    // The instruction puts all of `lower` before all of `upper`; one permutation makes pairs.
    const W order = _mm512_setr_epi32(0x100000, 0x110001, 0x120002, 0x130003, 0x140004, 0x150005,
                                      0x160006, 0x170007, 0x180008, 0x190009, 0x1a000a, 0x1b000b,
                                      0x1c000c, 0x1d000d, 0x1e000e, 0x1f000f);
    return _mm512_permutexvar_epi16(order, (W)_mm512_cvtne2ps_pbh(upper, lower));
  }
  CATTN_INLINE static W round_row(V first, V second) {
    return (W)_mm512_cvtne2ps_pbh(second, first);
  }
  CATTN_INLINE static W whole_pairs(V first, V second) {
    // The instruction puts four of the first and four of the second in turn.
    const W order = _mm512_set4_epi32(0x0f0e0706, 0x0d0c0504, 0x0b0a0302, 0x09080100);
    const W quads = _mm512_packus_epi32(_mm512_cvtps_epi32(first), _mm512_cvtps_epi32(second));
    return _mm512_shuffle_epi8(quads, order);
  }
  CATTN_INLINE static W nan_pairs(V first, V second) {
    const auto nan = [](V x, int bits) {
      return _mm512_maskz_set1_epi32(_mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), bits);
    };
    return _mm512_or_si512(nan(first, 0x7fc0), nan(second, 0x7fc00000));
  }
  // A mask that the compiler keeps in a register: as the constant that it is it may be loaded anew
  // each time, beside the shuffles.
  template <class Mask>
  CATTN_INLINE static Mask kept(Mask mask) {
    __asm__("" : "+Yk"(mask));
    return mask;
  }
  class LastBits {
   public:
    CATTN_INLINE W of(V first, V second) const {
      return _mm512_mask_blend_epi16(upper_, _mm512_castps_si512(first),
                                     _mm512_slli_epi32(_mm512_castps_si512(second), 16));
    }

   private:
    __mmask32 upper_ = kept<__mmask32>(0xaaaaaaaa);
  };
  template <int kBits>
  CATTN_INLINE static W shift_halves_right(W a) {
    return _mm512_srli_epi16(a, kBits);
  }
  CATTN_INLINE static W subtract_halves(W a, W b) { return _mm512_sub_epi16(a, b); }
  CATTN_INLINE static V nearest(V x) {
    const W half = _mm512_set1_epi32(0x8000), bfloat16 = _mm512_set1_epi32(-0x10000);
    return _mm512_castsi512_ps(
        _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(x), half), bfloat16));
  }
  CATTN_INLINE static V round_half_up(V x) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000)));
  }
  CATTN_INLINE static V first_digits(V x) {
    return _mm512_castsi512_ps(
        _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(-0x10000)));
  }
  CATTN_INLINE static W pair(V lower, V upper) {
    constexpr int a_and_b_or_c = 0xea;
    return _mm512_ternarylogic_epi32(_mm512_castps_si512(upper), _mm512_set1_epi32(-0x10000),
                                     _mm512_srli_epi32(_mm512_castps_si512(lower), 16),
                                     a_and_b_or_c);
  }
  CATTN_INLINE static V lower(W a) { return _mm512_castsi512_ps(_mm512_slli_epi32(a, 16)); }
  CATTN_INLINE static V upper(W a) {
    return _mm512_castsi512_ps(_mm512_and_si512(a, _mm512_set1_epi32(-0x10000)));
  }

  CATTN_INLINE static void transpose(W (&r)[16]) {
    V t[16];
    CATTN_UNROLL
    for (int i = 0; i < 16; ++i) t[i] = _mm512_castsi512_ps(r[i]);
    Vec<float>::transpose(t);
    CATTN_UNROLL
    for (int i = 0; i < 16; ++i) r[i] = _mm512_castps_si512(t[i]);
  }

  CATTN_INLINE static V multiply_add(V acc, W a, W b) {
    return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b);
  }

  CATTN_INLINE static void track(V x, W& largest, W& smallest) {
    const W bits = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
    largest = _mm512_max_epu32(largest, bits);
    smallest = _mm512_min_epu32(smallest, _mm512_add_epi32(bits, _mm512_set1_epi32(-1)));
  }
  CATTN_INLINE static uint32_t largest_lane(W a) { return _mm512_reduce_max_epu32(a); }
  CATTN_INLINE static uint32_t smallest_lane(W a) { return _mm512_reduce_min_epu32(a); }
  CATTN_INLINE static void track_halves(W x, W& largest, W& smallest) {
    const W bits = _mm512_and_si512(x, _mm512_set1_epi16(0x7fff));
    largest = _mm512_max_epu16(largest, bits);
    smallest = _mm512_min_epu16(smallest, _mm512_add_epi16(bits, _mm512_set1_epi16(-1)));
  }
  CATTN_INLINE static uint32_t largest_half(W a) {
    const W low = _mm512_and_si512(a, _mm512_set1_epi32(0xffff)), high = _mm512_srli_epi32(a, 16);
    return largest_lane(_mm512_max_epu32(low, high));
  }
  CATTN_INLINE static uint32_t smallest_half(W a) {
    const W low = _mm512_and_si512(a, _mm512_set1_epi32(0xffff)), high = _mm512_srli_epi32(a, 16);
    return smallest_lane(_mm512_min_epu32(low, high));
  }
};

// Of float16, for AMX-FP16. The conversions are those of AVX-512: they keep subnormal float16
// whatever the floating-point state says.
struct Float16Pairs : Pairs {
  using Half = Float16;

  CATTN_INLINE static W round(V lower, V upper) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(narrow(lower)),
                           _mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow(upper)), 16));
  }
  CATTN_INLINE static W round_row(V first, V second) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(narrow(first)), narrow(second), 1);
  }
  CATTN_INLINE static V lower(W a) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(a)); }
  CATTN_INLINE static V upper(W a) { return lower(_mm512_srli_epi32(a, 16)); }

 private:
  CATTN_INLINE static __m256i narrow(V x) {
    return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
};
