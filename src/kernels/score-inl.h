// From products to scores: the transforms are passes over a row of a score tile that sits in L1.
// The plain case (no bias, no mask, a positive scale) skips them: its scale is folded into the
// exponential.

// A block of scores: rows are queries first_query.., columns are keys first_key.., cols of them.
struct ScoreBlock {
  Index rows, first_query;
  Index cols, first_key;
  Band band;

  // Columns that some row in [r, r + count) may attend.
  CATTN_INLINE Range columns(Index r, Index count) const {
    const Index last = smaller(r + count, rows) - 1;
    return {larger(lowest_key(band, first_query + r) - first_key, 0),
            smaller(highest_key(band, first_query + last) - first_key, cols)};
  }
  // Rows that may attend some column in [c, c + count).
  CATTN_INLINE Range rows_of(Index c, Index count) const {
    const Range queries =
        queries_of(band, first_key + c, first_key + smaller(c + count, cols), first_query + rows);
    return {larger(queries.begin - first_query, 0), queries.end - first_query};
  }
  // Whether every row in [r, r + count) attends all of [begin, end).
  CATTN_INLINE bool full(Index r, Index count, Index begin, Index end) const {
    const Index last = smaller(r + count, rows) - 1;
    return lowest_key(band, first_query + last) <= first_key + begin &&
           highest_key(band, first_query + r) >= first_key + end;
  }
};

CATTN_INLINE bool is_plain(const ScoreTerms& terms) {
  return terms.bias.data == nullptr && terms.mask.data == nullptr && terms.scale > 0;
}

// Products times this are scores in units of log2(e).
CATTN_INLINE double exponent_factor(const ScoreTerms& terms) {
  return is_plain(terms) ? terms.scale * kLog2e : kLog2e;
}

// One vector of the bias: elements (i, j) to (i, j + n).
template <class T>
CATTN_INLINE typename Vec<T>::V load_bias(const ScorePlane& bias, Index i, Index j, Index n) {
  using X = Vec<T>;
  const Index at = i * bias.row_stride + j * bias.col_stride;
  if (bias.is_float32) {
    const float* p = static_cast<const float*>(bias.data) + at;
    if (bias.col_stride == 0) return X::set1(static_cast<T>(*p));
    if (bias.col_stride == 1) {
      return n == X::width ? X::load_float32(p) : X::load_float32_n(p, n);
    }
    T lanes[X::width] = {};
    for (Index l = 0; l < n; ++l) lanes[l] = static_cast<T>(p[l * bias.col_stride]);
    return X::load(lanes);
  }
  const T* p = static_cast<const T*>(bias.data) + at;
  if (bias.col_stride == 0) return X::set1(*p);
  if (bias.col_stride == 1) return n == X::width ? X::load(p) : X::load_n(p, n);
  T lanes[X::width] = {};
  for (Index l = 0; l < n; ++l) lanes[l] = p[l * bias.col_stride];
  return X::load(lanes);
}

// Lanes of (i, j) to (i, j + n) that the mask lets through.
template <class T>
CATTN_INLINE typename Vec<T>::Mask load_mask(const ScorePlane& mask, Index i, Index j, Index n) {
  using X = Vec<T>;
  const uint8_t* p =
      static_cast<const uint8_t*>(mask.data) + i * mask.row_stride + j * mask.col_stride;
  if (mask.col_stride == 1) return X::bytes_nonzero(p, n);
  uint8_t bytes[X::width] = {};
  for (Index l = 0; l < n; ++l) bytes[l] = p[l * mask.col_stride];
  return X::bytes_nonzero(bytes, X::width);
}

// s = scale * s
template <class T>
CATTN_INLINE void scale_row(T* s, Index begin, Index end, T scale) {
  using X = Vec<T>;
  for (Index c = begin; c < end; c += X::width)
    X::store(s + c, X::mul(X::load(s + c), X::set1(scale)));
}

// s = s + bias; its derivative with respect to s and to the bias is 1.
template <class T>
CATTN_INLINE void add_bias_row(T* s, Index begin, Index end, const ScorePlane& bias, Index i,
                               Index first_key, Index key_count) {
  using X = Vec<T>;
  for (Index c = begin; c < end; c += X::width) {
    const Index n = smaller(X::width, key_count - first_key - c);
    X::store(s + c, X::add(X::load(s + c), load_bias<T>(bias, i, first_key + c, n)));
  }
}

// s = -inf where the mask says no.
template <class T>
CATTN_INLINE void mask_row(T* s, Index begin, Index end, const ScorePlane& mask, Index i,
                           Index first_key, Index key_count) {
  using X = Vec<T>;
  const auto minus_infinity = X::set1(-T(__builtin_inff()));
  for (Index c = begin; c < end; c += X::width) {
    const Index n = smaller(X::width, key_count - first_key - c);
    const auto seen = load_mask<T>(mask, i, first_key + c, n);
    X::store(s + c, X::select(seen, X::load(s + c), minus_infinity));
  }
}

// s = -inf where the bias is: whatever the product was, even NaN.
template <class T>
CATTN_INLINE void mask_by_bias_row(T* s, Index begin, Index end, const ScorePlane& bias, Index i,
                                   Index first_key, Index key_count) {
  using X = Vec<T>;
  const auto minus_infinity = X::set1(-T(__builtin_inff()));
  for (Index c = begin; c < end; c += X::width) {
    const Index n = smaller(X::width, key_count - first_key - c);
    const auto b = load_bias<T>(bias, i, first_key + c, n);
    X::store(s + c, X::select(X::equal(b, minus_infinity), minus_infinity, X::load(s + c)));
  }
}

// s = -inf outside the band.
template <class T>
CATTN_INLINE void band_row(T* s, Index begin, Index end, const Band& band, Index i,
                           Index first_key) {
  using X = Vec<T>;
  const auto minus_infinity = X::set1(-T(__builtin_inff()));
  const Index lo = lowest_key(band, i) - first_key, hi = highest_key(band, i) - first_key;
  for (Index c = begin; c < end; c += X::width) {
    if (c >= lo && c + X::width <= hi) continue;
    const auto seen = X::lanes_between(lo - c, hi - c);
    X::store(s + c, X::select(seen, X::load(s + c), minus_infinity));
  }
}

// All of a row's transforms, in the documented order. [begin, end) is in whole vectors.
template <class T>
CATTN_INLINE void transform_row(T* s, Index begin, Index end, const ScoreTerms& terms,
                                const ScoreBlock& block, Index r, bool full) {
  const Index i = block.first_query + r;
  const Index key_count = block.band.key_count;
  if (!is_plain(terms)) {
    scale_row(s, begin, end, static_cast<T>(terms.scale));
    if (terms.bias.data) {
      add_bias_row(s, begin, end, terms.bias, i, block.first_key, key_count);
      mask_by_bias_row(s, begin, end, terms.bias, i, block.first_key, key_count);
    }
    if (terms.mask.data) mask_row(s, begin, end, terms.mask, i, block.first_key, key_count);
  }
  if (!full) band_row(s, begin, end, block.band, i, block.first_key);
}

// The products of a block: s (rows, cols; row stride kStride) = left right^T, only where some row
// of the tile may attend. `left` is in panels of left_rows rows, `right` packed transposed.
// If maximum is not null it receives each row's lane-wise maximum over whole panels.
template <class T, Index kStride>
CATTN_INLINE void block_products(const ScoreBlock& block, const T* left, Index left_rows,
                                 const T* right, Index depth, T* s, T* maximum) {
  const Range all = block.columns(0, block.rows);
  const Index first = all.begin / kPanel<T> * kPanel<T>;
  for (Index c = first; c < all.end; c += kPanel<T>) {
    for_row_tiles(block.rows, [&]<int kRows>(Index r) {
      const Range columns = block.columns(r, kRows);
      if (c >= columns.end || c + kPanel<T> <= columns.begin) return;
      product_of_panels<T, kRows, Tile::vectors, kStride>(
          left + r * kPanel<T>, left_rows * kPanel<T>, right + c * depth, depth,
          s + r * kStride + c, maximum ? maximum + r * Vec<T>::width : nullptr, c <= columns.begin);
    });
  }
}
