// From products to scores: the transforms are passes over a row of a score tile that sits in L1, or
// most of them over a tile that is in registers. The plain case (a positive scale and nothing else)
// skips them.

// A block of scores: rows are queries first_query.., columns are keys first_key.., cols of them.
struct ScoreBlock {
  Index rows, first_query;
  Index cols, first_key;
  Band band;

  // Its rows [r, r + count), as far as they exist.
  CATTN_INLINE ScoreBlock rows_from(Index r, Index count) const {
    return {smaller(count, rows - r), first_query + r, cols, first_key, band};
  }
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
  // Whether every row attends some column.
  CATTN_INLINE bool every_row_attends() const {
    const Index last = first_query + rows - 1;
    return lowest_key(band, last) < first_key + cols &&
           highest_key(band, first_query) > first_key && band.lo_shift < band.hi_shift;
  }
  // Whether every row in [r, r + count) attends all of [begin, end).
  CATTN_INLINE bool full(Index r, Index count, Index begin, Index end) const {
    const Index last = smaller(r + count, rows) - 1;
    return lowest_key(band, first_query + last) <= first_key + begin &&
           highest_key(band, first_query + r) >= first_key + end;
  }
};

// What tiles of a block attend. Of most blocks all is attended, which is asked for only once.
class AttendedTiles {
 public:
  CATTN_INLINE explicit AttendedTiles(const ScoreBlock& block)
      : block_(block), all_(block.full(0, block.rows, 0, block.cols)) {}
  CATTN_INLINE Range columns(Index r, Index count) const {
    return all_ ? Range{0, block_.cols} : block_.columns(r, count);
  }
  CATTN_INLINE Range rows_of(Index c, Index count) const {
    return all_ ? Range{0, block_.rows} : block_.rows_of(c, count);
  }

 private:
  const ScoreBlock& block_;
  const bool all_;
};

// Where the scale is a factor of the whole score it is folded into the exponential, unless it is so
// small that float32 might take it for 0, which -inf cannot be multiplied by.
constexpr double kLeastFolded = 1e-30;
CATTN_INLINE bool folds_scale(const ScoreTerms& terms) {
  return terms.scale >= kLeastFolded && terms.softcap == 0 && !terms.bias.data &&
         terms.alibi_slope == 0;
}

// Products that are scores as they are: no pass but the band's.
CATTN_INLINE bool is_plain(const ScoreTerms& terms) {
  return folds_scale(terms) && !terms.mask.data;
}

// Products times this are scores in units of log2(e). Up to 1 it may be multiplied into q, where
// it cannot overflow.
CATTN_INLINE double exponent_factor(const ScoreTerms& terms) {
  return folds_scale(terms) ? terms.scale * kLog2e : kLog2e;
}

// ---- the transforms, each with its derivative ----
// Rows [begin, end) in whole vectors. `scale` is what has not been multiplied yet.

// Calls f with a pointer of the type in which a bias lies.
template <class T, class F>
CATTN_INLINE void with_storage(const ScorePlane& plane, F f) {
  switch (plane.storage) {
    case Storage::float32: f(static_cast<const float*>(plane.data)); break;
    case Storage::float64:
      if constexpr (sizeof(T) == 8) f(static_cast<const double*>(plane.data));
      break;
    case Storage::float16:
      if constexpr (sizeof(T) == 4) f(static_cast<const Float16*>(plane.data));
      break;
    case Storage::bfloat16:
      if constexpr (sizeof(T) == 4) f(static_cast<const BFloat16*>(plane.data));
      break;
  }
}

// n elements, `stride` apart, of any storage.
template <class T, class S>
CATTN_INLINE typename Vec<T>::V load_strided(const S* p, Index stride, Index n) {
  using X = Vec<T>;
  if (stride == 1) return n >= X::width ? X::load(p) : X::load_n(p, larger(n, 0));
  S lanes[X::width] = {};
  for (Index l = 0; l < smaller(n, X::width); ++l) lanes[l] = p[l * stride];
  return X::load(lanes);
}

// s = scale * s; ds = scale * ds' is applied when dq and dk go to memory.
template <class T>
CATTN_INLINE void scale_row(T* s, Index begin, Index end, T scale) {
  using X = Vec<T>;
  for (Index c = begin; c < end; c += X::width)
    X::store(s + c, X::mul(X::load(s + c), X::set1(scale)));
}

template <class T>
CATTN_INLINE void shift_row(T* s, Index begin, Index end, T shift) {
  using X = Vec<T>;
  for (Index c = begin; c < end; c += X::width)
    X::store(s + c, X::add(X::load(s + c), X::set1(shift)));
}

// s = cap tanh(scale s / cap). Its derivative by scale s, 1 - tanh^2, goes to `slope` if given.
template <class T>
CATTN_INLINE void softcap_row(T* s, Index begin, Index end, T scale, T cap, T* slope) {
  using X = Vec<T>;
  constexpr T largest = sizeof(T) == 8 ? T(__DBL_MAX__) : T(__FLT_MAX__);
  const T steep = scale / cap;
  const auto inner = X::min(X::set1(largest), X::max(X::set1(-largest), X::set1(steep)));
  const auto outer = X::set1(cap), one = X::set1(T(1));
  for (Index c = begin; c < end; c += X::width) {
    const auto t = tanh<T>(X::mul(X::load(s + c), inner));
    X::store(s + c, X::mul(t, outer));
    if (slope) X::store(slope + c, X::fma(X::sub(X::zero(), t), t, one));
  }
}

// s = scale s + bias, and -inf where the bias is, even if the product was NaN. Derivative by the
// bias: 1.
template <class T>
CATTN_INLINE typename Vec<T>::V with_bias(typename Vec<T>::V s, typename Vec<T>::V scale,
                                          typename Vec<T>::V bias) {
  using X = Vec<T>;
  const auto minus_infinity = X::set1(-T(__builtin_inff()));
  return X::select(X::equal(bias, minus_infinity), minus_infinity, X::fma(s, scale, bias));
}
template <class T>
CATTN_INLINE void bias_row(T* s, Index begin, Index end, T scale, const ScorePlane& bias, Index i,
                           Index first_key, Index key_count) {
  using X = Vec<T>;
  const auto factor = X::set1(scale);
  with_storage<T>(bias, [&](const auto* data) {
    const auto* const row = data + i * bias.row_stride + first_key * bias.col_stride;
    const Index stride = bias.col_stride;
    for (Index c = begin; c < end; c += X::width) {
      const auto b = load_strided<T>(row + c * stride, stride, key_count - first_key - c);
      X::store(s + c, with_bias<T>(X::load(s + c), factor, b));
    }
  });
}

// s = scale s - slope |i + shift - j|. Its derivative by s is 1. `ahead`: how far the first of
// these keys lies before i + shift.
template <class T>
CATTN_INLINE typename Vec<T>::V with_alibi(typename Vec<T>::V s, typename Vec<T>::V scale,
                                           typename Vec<T>::V minus_slope, Index ahead) {
  using X = Vec<T>;
  const auto away = X::sub(X::set1(static_cast<T>(ahead)), X::iota());
  const auto distance = X::max(away, X::sub(X::zero(), away));
  // Not mul(): a compiler that fuses might take either product for it, here this and there that.
  return X::fma(distance, minus_slope, X::fma(s, scale, X::zero()));
}
template <class T>
CATTN_INLINE void alibi_row(T* s, Index begin, Index end, T scale, T slope, Index centre) {
  using X = Vec<T>;
  const auto factor = X::set1(scale), down = X::set1(-slope);
  for (Index c = begin; c < end; c += X::width)
    X::store(s + c, with_alibi<T>(X::load(s + c), factor, down, centre - c));
}

// s = -inf where the mask says no.
template <class T>
CATTN_INLINE void mask_row(T* s, Index begin, Index end, const ScorePlane& mask, Index i,
                           Index first_key, Index key_count) {
  using X = Vec<T>;
  const auto minus_infinity = X::set1(-T(__builtin_inff()));
  const Index stride = mask.col_stride;
  const uint8_t* const row =
      static_cast<const uint8_t*>(mask.data) + i * mask.row_stride + first_key * stride;
  for (Index c = begin; c < end; c += X::width) {
    const Index n = smaller(X::width, key_count - first_key - c);
    uint8_t bytes[X::width] = {};
    const uint8_t* p = row + c * stride;
    if (stride != 1) {
      for (Index l = 0; l < n; ++l) bytes[l] = p[l * stride];
      p = bytes;
    }
    const auto seen = X::bytes_nonzero(p, larger(n, 0));
    X::store(s + c, X::select(seen, X::load(s + c), minus_infinity));
  }
}

// s = -inf outside the band. Only the vectors at its two edges and beyond are touched.
template <class T>
CATTN_INLINE void band_row(T* s, Index begin, Index end, const Band& band, Index i,
                           Index first_key) {
  using X = Vec<T>;
  const auto minus_infinity = X::set1(-T(__builtin_inff()));
  const Index lo = lowest_key(band, i) - first_key, hi = highest_key(band, i) - first_key;
  const auto hide = [&](Index c) {
    const auto seen = X::lanes_between(lo - c, hi - c);
    X::store(s + c, X::select(seen, X::load(s + c), minus_infinity));
  };
  for (Index c = begin; c < smaller(lo, end); c += X::width) hide(c);
  for (Index c = larger(hi, begin) / X::width * X::width; c < end; c += X::width) hide(c);
}

// All of a row's transforms, in the documented order. [begin, end) is in whole vectors; `full`: the
// band cuts nothing off. `slope` receives the derivative of a softcap if not null.
template <class T>
CATTN_INLINE void transform_row(T* s, Index begin, Index end, const ScoreTerms& terms,
                                const ScoreBlock& block, Index r, bool full, T* slope) {
  const Index i = block.first_query + r;
  const Index key_count = block.band.key_count;
  if (!folds_scale(terms)) {
    T scale = static_cast<T>(terms.scale);
    if (terms.softcap != 0) {
      softcap_row(s, begin, end, scale, static_cast<T>(terms.softcap), slope);
      scale = 1;
    }
    if (terms.bias.data) {
      bias_row(s, begin, end, scale, terms.bias, i, block.first_key, key_count);
      scale = 1;
    }
    if (terms.alibi_slope != 0) {
      alibi_row(s, begin, end, scale, static_cast<T>(terms.alibi_slope),
                i + terms.alibi_shift - block.first_key);
      scale = 1;
    }
    if (scale != 1) scale_row(s, begin, end, scale);
  }
  if (terms.mask.data) mask_row(s, begin, end, terms.mask, i, block.first_key, key_count);
  if (!full) band_row(s, begin, end, block.band, i, block.first_key);
}

// Whether transform_tile() serves: a bias or mask whose rows lie there as they are used.
template <class T>
CATTN_INLINE bool transforms_tiles(const ScoreTerms& terms) {
  constexpr Storage own = sizeof(T) == 8 ? Storage::float64 : Storage::float32;
  const bool bias = !terms.bias.data || (terms.bias.storage == own && terms.bias.col_stride == 1);
  return bias && terms.softcap == 0 && (!terms.mask.data || terms.mask.col_stride == 1);
}

// The same as transform_row() of a tile of products that is in registers, from row r and column c
// of the block on, but not what the band cuts off. Of rows that do not exist it makes anything.
// kCut: keys may end within the tile, which has one row then.
template <bool kCut, class T, int kRows, int kVectors>
CATTN_INLINE void transform_tile(typename Vec<T>::V (&tile)[kRows][kVectors],
                                 const ScoreTerms& terms, const ScoreBlock& block, Index r,
                                 Index c) {
  using X = Vec<T>;
  constexpr Index cols = kVectors * X::width;
  const auto minus_infinity = X::set1(-T(__builtin_inff()));
  const Index key = block.first_key + c;
  const auto query = [&](int i) { return block.first_query + smaller(r + i, block.rows - 1); };
  static_assert(!kCut || kRows == 1);
  const auto left = [&](Index at) {
    return kCut ? larger(smaller(block.cols - c - at, X::width), 0) : X::width;
  };
  const auto of_all = [&](auto f) CATTN_INLINE_LAMBDA {
    CATTN_UNROLL
    for (int i = 0; i < kRows; ++i) {
      CATTN_UNROLL
      for (int j = 0; j < kVectors; ++j) tile[i][j] = f(tile[i][j], i, j * X::width);
    }
  };
  // Where row i of a plane has its number of the tile's first column. The next tile's are fetched,
  // which has its turn when all rows had theirs: rows are too far apart for a processor to see it.
  // Those at the end of a line: rows that begin anywhere have reached into its first line already.
  const auto row_of = [&](const ScorePlane& plane, auto* data, int i)
                          CATTN_INLINE_LAMBDA { return data + query(i) * plane.row_stride + key; };
  const auto fetch = [&](const ScorePlane& plane, auto* data) CATTN_INLINE_LAMBDA {
    constexpr Index line = 64 / static_cast<Index>(sizeof(*data));
    if (plane.row_stride == 0) return;
    CATTN_UNROLL
    for (int i = 0; i < kRows; ++i) {
      for (Index at = 2 * cols - 1; at >= cols; at -= line)
        __builtin_prefetch(row_of(plane, data, i) + at, 0, 2);
    }
  };
  if (!folds_scale(terms)) {
    auto scale = X::set1(static_cast<T>(terms.scale));
    if (terms.bias.data) {
      const T* const bias = static_cast<const T*>(terms.bias.data);
      fetch(terms.bias, bias);
      of_all([&](auto s, int i, Index at) CATTN_INLINE_LAMBDA {
        const T* const p = row_of(terms.bias, bias, i) + at;
        const auto b = kCut ? load_strided<T>(p, 1, left(at)) : X::load(p);
        return with_bias<T>(s, scale, b);
      });
      scale = X::set1(T(1));
    }
    if (terms.alibi_slope != 0) {
      const auto down = X::set1(static_cast<T>(-terms.alibi_slope));
      of_all([&](auto s, int i, Index at) CATTN_INLINE_LAMBDA {
        return with_alibi<T>(s, scale, down, query(i) + terms.alibi_shift - key - at);
      });
    } else if (!terms.bias.data) {
      of_all([&](auto s, int, Index) CATTN_INLINE_LAMBDA { return X::mul(s, scale); });
    }
  }
  if (terms.mask.data) {
    const uint8_t* const mask = static_cast<const uint8_t*>(terms.mask.data);
    fetch(terms.mask, mask);
    of_all([&](auto s, int i, Index at) CATTN_INLINE_LAMBDA {
      const auto seen = X::bytes_nonzero(row_of(terms.mask, mask, i) + at, left(at));
      return X::select(seen, s, minus_infinity);
    });
  }
}

// Scores of a row: -inf outside some of its columns.
template <class T, int kVectors>
CATTN_INLINE void cut_row(typename Vec<T>::V (&row)[kVectors], Range columns) {
  using X = Vec<T>;
  CATTN_UNROLL
  for (int j = 0; j < kVectors; ++j) {
    const Index at = j * X::width;
    const auto kept = X::lanes_between(columns.begin - at, columns.end - at);
    row[j] = X::select(kept, row[j], X::set1(-T(__builtin_inff())));
  }
}

// The same outside the band, from row r and column c of the block on.
template <class T, int kVectors>
CATTN_INLINE void cut_row(typename Vec<T>::V (&row)[kVectors], const ScoreBlock& block, Index r,
                          Index c) {
  const Index query = block.first_query + r, key = block.first_key + c;
  cut_row<T>(row, {lowest_key(block.band, query) - key, highest_key(block.band, query) - key});
}

// What becomes of a tile of products while it is still in registers: a functor that is called with
// the tile, its first row and column in the block, and the columns that its rows attend.

// Keeps them: s (rows, cols; row stride kStride). If maximum is not null it receives each row's
// lane-wise maximum over whole panels; NaN is passed over.
template <class T, Index kStride>
struct StoreScores {
  static constexpr Index stride = kStride;
  T* s;
  T* maximum;

  template <int kRows, int kVectors>
  CATTN_INLINE void operator()(const typename Vec<T>::V (&tile)[kRows][kVectors], Index r, Index c,
                               Range columns) const {
    using X = Vec<T>;
    CATTN_UNROLL
    for (int i = 0; i < kRows; ++i) {
      CATTN_UNROLL
      for (int j = 0; j < kVectors; ++j)
        X::store(s + (r + i) * kStride + c + j * X::width, tile[i][j]);
    }
    if (!maximum) return;
    const bool first = c <= columns.begin;
    CATTN_UNROLL
    for (int i = 0; i < kRows; ++i) {
      T* const p = maximum + (r + i) * X::width;
      auto m = first ? X::set1(-T(__builtin_inff())) : X::load(p);
      CATTN_UNROLL
      for (int j = 0; j < kVectors; ++j) m = X::max(tile[i][j], m);
      X::store(p, m);
    }
  }
};

// One tile of the products of a block, if it lies in `columns`.
template <int kRows, class T, class Finish, class Beside>
CATTN_INLINE void product_tile(const T* left, Index left_rows, const T* right, Index depth, Index r,
                               Index c, Range columns, Finish& finish, Beside& beside) {
  if (c >= columns.end || c + kPanel<T> <= columns.begin) return;
  beside.step();
  typename Vec<T>::V tile[kRows][Tile::vectors];
  product_of_panels<T>(left + r * kPanel<T>, left_rows * kPanel<T>, right + c * depth, depth, tile);
  finish(tile, r, c, columns);
}

// The products of a block, left right^T, tile by tile and only in columns_of(row, count). `left` is
// in panels of left_rows rows, `right` packed transposed. beside.step() before each tile.
template <class T, class Finish, class Beside, class ColumnsOf>
CATTN_INLINE void block_products(const ScoreBlock& block, const T* left, Index left_rows,
                                 const T* right, Index depth, Finish finish, Beside&& beside,
                                 ColumnsOf columns_of) {
  const Range all = block.columns(0, block.rows);
  const Index first = all.begin / kPanel<T> * kPanel<T>;
  for (Index c = first; c < all.end; c += kPanel<T>) {
    if constexpr (requires { Finish::stands_in_loop; }) {
      for_row_tiles(block.rows, [&]<int kRows>(Index r) CATTN_INLINE_LAMBDA {
        product_tile<kRows>(left, left_rows, right, depth, r, c, columns_of(r, kRows), finish,
                            beside);
      });
    } else {
      for_row_tiles(block.rows, [&]<int kRows>(Index r) {
        product_tile<kRows>(left, left_rows, right, depth, r, c, columns_of(r, kRows), finish,
                            beside);
      });
    }
  }
}

// In the columns that some row of the tile attends.
template <class T, class Finish, class Beside = NothingBeside>
CATTN_INLINE void block_products(const ScoreBlock& block, const T* left, Index left_rows,
                                 const T* right, Index depth, Finish finish, Beside&& beside = {}) {
  const AttendedTiles attended(block);
  block_products<T>(block, left, left_rows, right, depth, finish, beside,
                    [&](Index r, Index count) { return attended.columns(r, count); });
}
