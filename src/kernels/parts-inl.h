// A float32 as a sum of bfloat16 parts: x = hi + mid + lo. Each part is what is left, rounded to
// nearest even: truncation would leave remainders of one sign, which add up in a sum.
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

// A block has kBlockSplits if every element is zero or inside the range.
constexpr uint32_t kSmallestSplitBits = (127u - 48u) << 23;  // 2^-48
constexpr uint32_t kLargestSplitBits = ((127u + 48u) << 23) - 1u;
constexpr uint32_t kModerateBits = (127u + 20u) << 23;  // 2^20: kModerate, squared
constexpr uint32_t kInfinityBits = 0x7f800000u;

// The extremes of the elements seen.
struct PartsRange {
  Pairs::W largest = Pairs::zero(), smallest = ~Pairs::zero();

  CATTN_INLINE void see(Pairs::V x) { Pairs::track(x, largest, smallest); }
  CATTN_INLINE uint8_t flags() const {
    const uint32_t high = Pairs::largest_lane(largest), low = Pairs::smallest_lane(smallest);
    const bool splits = high <= kLargestSplitBits && low >= kSmallestSplitBits - 1u;
    return static_cast<uint8_t>((high < kInfinityBits ? kBlockFinite : 0) |
                                (high < kModerateBits ? kBlockModerate : 0) |
                                (splits ? kBlockSplits : 0));
  }
};

// parts[p] holds part p of `lower` and `upper` as pairs.
template <int kParts>
CATTN_INLINE void split(Pairs::V lower, Pairs::V upper, Pairs::W (&parts)[kParts]) {
  using X = Vec<float>;
  CATTN_UNROLL
  for (int p = 0; p < kParts; ++p) {
    parts[p] = Pairs::round(lower, upper);
    if (p + 1 == kParts) break;
    lower = X::sub(lower, Pairs::lower(parts[p]));
    upper = X::sub(upper, Pairs::upper(parts[p]));
  }
}
