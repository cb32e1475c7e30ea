// The band's edge as numbers that are added to products, or that products begin with: 0 for what a
// row attends and -inf for what it does not, which makes scores of products that are finite. Each
// row has the numbers of the row before, one column further.
template <class T, Index kRows, Index kCols>
class BandEdge {
 public:
  // For columns [first, first + kCols) of a block of up to kRows rows, which attends some of them
  // and not all: the number at (r, c) of these is at [c - r]. Null if that is not all there is to
  // say: where both edges go through them, or keys end.
  CATTN_INLINE static const T* of(const ScoreBlock& block, Index first) {
    const Index diagonal = block.first_key + first - block.first_query;
    const Index begin = block.band.lo_shift - diagonal, end = block.band.hi_shift - diagonal;
    if (block.cols - first < kCols) return nullptr;
    if (begin <= -kRows) return kNumbers.at + 2 * kMost - end;  // attended are those before `end`
    if (end >= kCols) return kNumbers.at + kMost - begin;       // from `begin` on
    return nullptr;
  }

 private:
  static constexpr Index kMost = kRows + kCols;
  struct Numbers {
    T at[3 * kMost] = {};
    constexpr Numbers() {
      for (Index i = 0; i < kMost; ++i) at[i] = at[2 * kMost + i] = -T(__builtin_inff());
    }
  };
  static constexpr Numbers kNumbers{};
};
