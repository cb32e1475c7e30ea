// A float32 as a sum of bfloat16 parts: x = hi + mid + lo. Each part is what is left, rounded to
// nearest: truncation would leave remainders of one sign, which add up in a sum.
//
// What is left after each part, for x with 2^e <= |x| < 2^(e+1), in ulps u = 2^(e-23) of a float32:
// hi has 8 bits, so |x - hi| <= 2^15 u <= 2^-8 |x|; mid has 8 bits of that, so
// |x - hi - mid| <= 2^6 u <= 2^-17 |x|, which has 7 bits and is lo. So three parts are exact, and
// so are two of a float16 (11 bits) and one of a bfloat16. The subtractions are exact.
//
// Range. The instructions take subnormal bfloat16 for zero and flush subnormal results, so parts
// and products have to stay away from both ends. A nonzero element is inside when
// 2^-48 <= |x| < 2^48:
// - the last part is at least one ulp, 2^(-48-23) = 2^-71, far above 2^-126: the split is exact;
// - a result that is flushed is wrong by less than 2^-126, and that happens only where a nonzero
//   x y is added, |x y| >= 2^-96: relative to |x y| the error is below 2^-30, and below 2^-27 for
//   the six products together, where float32 itself rounds by 2^-24;
// - hi grows by no more than a factor of 1 + 2^-8, a product stays below 2^97, and a sum of
//   2^30 of them below 2^127: nothing overflows.
// Every finite float16 is inside (2^-24 to 65504). Zeros, of either sign, are inside. Infinity, NaN
// and what remains is outside: such blocks take the float32 products.
//
// Probabilities and score gradients may be small without harm: below 2^-103 they lose their lower
// parts and below 2^-126 everything, an absolute error of less than 2^-126 in an element.
//
// A format F says what the parts are: Pairs (bfloat16) or Float16Pairs. A float16 is one part of
// float16, exactly, down to the subnormal ones. Weights and score gradients fit into its range when
// a power of 2 brings the largest of them next to its end; those below 2^-29 of that lose digits,
// 2^-40 of it at most.

// A block has kBlockSplits if every element is zero or inside the range.
template <class F>
constexpr uint32_t kSmallestSplitBits = (127u - 48u) << 23;  // 2^-48
template <class F>
constexpr uint32_t kLargestSplitBits = ((127u + 48u) << 23) - 1u;
template <>
constexpr uint32_t kSmallestSplitBits<Float16Pairs> = (127u - 24u) << 23;  // 2^-24
template <>
constexpr uint32_t kLargestSplitBits<Float16Pairs> = ((127u + 16u) << 23) - (1u << 13);  // 65504

// Whether what is computed has to be scaled to fit, and the exponent that the largest may have.
template <class F>
constexpr bool kIsLimited = false;
template <class F>
constexpr int kLargestExponent = 0;
template <>
constexpr bool kIsLimited<Float16Pairs> = true;
template <>
constexpr int kLargestExponent<Float16Pairs> = 15;

template <class F>
constexpr uint16_t kOne = 0x3f80;
template <>
constexpr uint16_t kOne<Float16Pairs> = 0x3c00;

CATTN_INLINE float largest_lane(Pairs::V x) {
  float lanes[Pairs::width], largest = 0;
  Vec<float>::store(lanes, x);
  for (const float lane : lanes) largest = lane > largest ? lane : largest;
  return largest;
}

// The exponent n for which 2^n x has room below the end of the range, for x >= 0; 2^n and 2^-n are
// normal numbers.
template <class F>
CATTN_INLINE int fitting_exponent(float x) {
  const int exponent = static_cast<int>(float_bits(x) >> 23) - 127;
  return kLargestExponent<F> - 1 - (exponent > -112 ? exponent : -112);
}
CATTN_INLINE float float_power_of_2(int n) {
  return float_from_bits(static_cast<uint32_t>(n + 127) << 23);
}

// From 2^-40 to 2^20, which squared is kModerate: where the block splits, products with weights of
// scores within reach are normal numbers.
constexpr uint32_t kLeastModerateBits = (127u - 40u) << 23, kModerateBits = (127u + 20u) << 23;
// From here on a number is infinite or NaN, or rounds to that in one part of the format.
template <class F>
constexpr uint32_t kInfiniteBits = 0x7f7f8000u;
template <>
constexpr uint32_t kInfiniteBits<Float16Pairs> = 0x7f800000u;

// What is known of a packed block: its flags, and a bound of its largest element.
struct PackedRange {
  uint8_t flags;
  float largest;  // inf if an element is not finite
};

// From the extremes of the bits of |x| and of those less one.
template <class F>
CATTN_INLINE PackedRange packed_range(uint32_t high, uint32_t low) {
  const bool finite = high < kInfiniteBits<F>;
  const bool moderate = high < kModerateBits && low >= kLeastModerateBits - 1u;
  const bool splits = high <= kLargestSplitBits<F> && low >= kSmallestSplitBits<F> - 1u;
  return {static_cast<uint8_t>((finite ? kBlockFinite : 0) | (moderate ? kBlockModerate : 0) |
                               (splits ? kBlockSplits : 0)),
          finite ? float_from_bits(high) : __builtin_inff()};
}

// The extremes of the elements seen.
struct PartsRange {
  Pairs::W largest = Pairs::zero(), smallest = ~Pairs::zero();

  CATTN_INLINE void see(Pairs::V x) { Pairs::track(x, largest, smallest); }
  template <class F>
  CATTN_INLINE PackedRange range() const {
    return packed_range<F>(Pairs::largest_lane(largest), Pairs::smallest_lane(smallest));
  }
};
// The same of bfloat16 that are packed as they are.
struct HalvesRange {
  Pairs::W largest = Pairs::zero(), smallest = ~Pairs::zero();

  CATTN_INLINE void see(Pairs::W x) { Pairs::track_halves(x, largest, smallest); }
  template <class F>
  CATTN_INLINE PackedRange range() const {
    const uint32_t low = Pairs::smallest_half(smallest) + 1u;  // 2^16 if all are zeros
    return packed_range<F>(Pairs::largest_half(largest) << 16, (low << 16) - 1u);
  }
};

// Whether an element in memory is its one part as it is.
template <class F, int kParts, class S>
constexpr bool kIsPart = false;
template <>
constexpr bool kIsPart<Pairs, 1, BFloat16> = true;

template <bool kHalves>
struct RangeType {
  using Type = PartsRange;
};
template <>
struct RangeType<true> {
  using Type = HalvesRange;
};
template <class F, int kParts, class S>
using RangeOf = typename RangeType<kIsPart<F, kParts, S>>::Type;

// How parts are found but for the last. What is computed may be cut off where it comes in three
// parts, which saves an addition for each: what its products then leave out, 2^-23 at most, has the
// signs of what the other operand's rounding has left. Of two cut operands all would have one sign.
enum class Splitting { rounded, cut };
template <int kParts>
constexpr Splitting kOfComputed = kParts == 3 ? Splitting::cut : Splitting::rounded;

// The parts of a vector as float32. What a part is taken from is a float32 again; the last one is
// what remains, not rounded yet. The others are rounded by whole numbers, which is as good as by
// the instruction and has them as float32 too.
template <class F, int kParts, Splitting kSplitting>
CATTN_INLINE void take_parts(Pairs::V x, Pairs::V (&parts)[kParts]) {
  static_assert(kParts == 1 || !kIsLimited<F>, "nearest() is of bfloat16");
  CATTN_UNROLL
  for (int p = 0; p + 1 < kParts; ++p) {
    parts[p] = kSplitting == Splitting::cut ? F::first_digits(x) : F::nearest(x);
    x = Vec<float>::sub(x, parts[p]);
  }
  parts[kParts - 1] = x;
}

// parts[p] holds part p of two vectors: put together by round(), or by join() what needs no
// rounding, as the third part, which is exact.
template <class F, int kParts, Splitting kSplitting, class Join, class Round>
CATTN_INLINE void split_into(Pairs::W (&parts)[kParts], Pairs::V a, Pairs::V b, Join join,
                             Round round) {
  Pairs::V of_a[kParts], of_b[kParts];
  take_parts<F, kParts, kSplitting>(a, of_a);
  take_parts<F, kParts, kSplitting>(b, of_b);
  CATTN_UNROLL
  for (int p = 0; p < kParts; ++p) {
    if constexpr (kParts == 3) {
      parts[p] = join(of_a[p], of_b[p]);
    } else {
      parts[p] = p + 1 < kParts ? join(of_a[p], of_b[p]) : round(of_a[p], of_b[p]);
    }
  }
}

// As pairs of an element of `lower` and one of `upper`.
template <class F, int kParts, Splitting kSplitting = Splitting::rounded>
CATTN_INLINE void split(Pairs::V lower, Pairs::V upper, Pairs::W (&parts)[kParts]) {
  split_into<F, kParts, kSplitting>(
      parts, lower, upper, [](auto l, auto u) { return F::pair(l, u); },
      [](auto l, auto u) { return F::round(l, u); });
}

// Which two elements of 32 along the depth are a pair (pairs-inl.h): neighbours in a row, or k and
// k + 16.
enum class Pairing { neighbours, halves };

// As pairs of 32 elements in a row.
template <class F, int kParts, Pairing kPairing = Pairing::neighbours,
          Splitting kSplitting = Splitting::rounded>
CATTN_INLINE void split_row(Pairs::V first, Pairs::V second, Pairs::W (&parts)[kParts]) {
  if constexpr (kPairing == Pairing::halves) {
    split<F, kParts, kSplitting>(first, second, parts);
  } else {
    const auto in_a_row = [](auto a, auto b) { return F::round_row(a, b); };
    split_into<F, kParts, kSplitting>(parts, first, second, in_a_row, in_a_row);
  }
}
