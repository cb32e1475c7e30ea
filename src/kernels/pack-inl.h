// Packing: copies of an operand in panels (see gemm-inl.h), padded with zeros to whole panels, so
// that no product has a ragged edge. Reads exactly the elements of the source.

// Numbers below this can be multiplied by each other and by 2^(2 kReach) and be summed.
template <class T>
constexpr T kModerate = T(1ll << 40);

// The flags of a block whose squares come to `sum`. Numbers whose squares overflow count as not
// finite, which costs time and nothing else.
template <class T>
CATTN_INLINE uint8_t block_flags(T sum) {
  const bool finite = sum < T(__builtin_inff());
  return static_cast<uint8_t>((finite ? kBlockFinite : 0) |
                              (sum < kModerate<T> ? kBlockModerate : 0));
}

// What f makes of the lanes of each of `width` rows, one row per lane of the result.
template <class T, class F>
CATTN_INLINE typename Vec<T>::V combine_rows(typename Vec<T>::V (&rows)[Vec<T>::width], F f) {
  using X = Vec<T>;
  if constexpr (requires { X::combine_rows(rows, f); }) {
    return X::combine_rows(rows, f);
  } else {
    X::transpose(rows);
    auto all = rows[0];
    CATTN_UNROLL
    for (int i = 1; i < X::width; ++i) all = f(rows[i], all);
    return all;
  }
}
template <class T, class F>
CATTN_INLINE typename Vec<T>::V combine_rows(const T* lanes, F f) {
  using X = Vec<T>;
  typename X::V rows[X::width];
  CATTN_UNROLL
  for (int i = 0; i < X::width; ++i) rows[i] = X::load(lanes + i * X::width);
  return combine_rows<T>(rows, f);
}
template <class T>
CATTN_INLINE typename Vec<T>::V sum_rows(const T* lanes) {
  return combine_rows<T>(lanes, [](auto a, auto b) { return Vec<T>::add(a, b); });
}
template <class T>
CATTN_INLINE typename Vec<T>::V maximum_of_rows(const T* lanes) {
  return combine_rows<T>(lanes, [](auto a, auto b) { return Vec<T>::max(a, b); });
}

CATTN_INLINE float square_root(float x) { return __builtin_sqrtf(x); }
CATTN_INLINE double square_root(double x) { return __builtin_sqrt(x); }

// From vectors of rows' sums of squares: the largest norm of a row, and the sum of all.
template <class T>
struct Norms {
  using X = Vec<T>;
  typename X::V largest = X::zero(), total = X::zero();

  CATTN_INLINE void add(typename X::V squares) {
    largest = X::max(squares, largest);
    total = X::add(total, squares);
  }
  // Inf if some number is not finite: a maximum may pass over NaN.
  CATTN_INLINE T norm() const {
    if (!(sum() < T(__builtin_inff()))) return T(__builtin_inff());
    T lanes[X::width];
    X::store(lanes, largest);
    CATTN_UNROLL
    for (int half = X::width / 2; half > 0; half /= 2) {
      CATTN_UNROLL
      for (int i = 0; i < half; ++i)
        lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
    }
    return square_root(lanes[0]);
  }
  CATTN_INLINE T sum() const { return X::sum_lanes(total); }
};

// The largest norm of `rows` rows; inf if a number is not finite. squares(r) gives the squares of
// row r added by lanes.
template <class T, class Squares>
CATTN_INLINE T largest_norm(Index rows, Squares squares) {
  constexpr Index width = Vec<T>::width;
  Norms<T> norms;
  T lanes[width * width];  // those of rows past the last are zeros or repeat others
  fill(lanes + smaller(rows, width) * width, larger(width - rows, 0) * width, T(0));
  for (Index first = 0; first < rows; first += width) {
    for (Index r = first; r < smaller(first + width, rows); ++r) {
      Vec<T>::store(lanes + (r - first) * width, squares(r));
    }
    norms.add(sum_rows<T>(lanes));
  }
  return norms.norm();
}

// f(x) of each vector x of a row of `cols` elements to its place in panels `panel` elements apart;
// zeros fill the last one. The row that is `ahead` elements further is fetched meanwhile. Adds the
// squares of what is written. S is the type in memory, T what is computed in.
template <class T, class S, int kPanels, class F>
CATTN_INLINE void row_to_panels(const S* from, Index cols, Count<kPanels> panels, Index ahead,
                                T* to, Index panel, typename Vec<T>::V (&squares)[Tile::vectors],
                                F f) {
  using X = Vec<T>;
  const auto put = [&](int j, auto x) {
    const auto y = f(x);
    squares[j] = X::fma(y, y, squares[j]);
    X::store(to + j * X::width, y);
  };
  repeat(panels, [&] {
    CATTN_UNROLL
    for (Index c = 0; c < kPanel<T>; c += 64 / static_cast<Index>(sizeof(S)))
      __builtin_prefetch(from + ahead + c, 0, 2);
    CATTN_UNROLL
    for (int j = 0; j < Tile::vectors; ++j) put(j, X::load(from + j * X::width));
    from += kPanel<T>;
    to += panel;
  });
  const Index left = kPanels > 0 ? 0 : cols % kPanel<T>;
  if (left == 0) return;
  __builtin_prefetch(from + ahead, 0, 2);
  CATTN_UNROLL
  for (int j = 0; j < Tile::vectors; ++j) {
    const Index n = left - j * X::width;
    if (n >= X::width) {
      put(j, X::load(from + j * X::width));
    } else if (n > 0) {
      put(j, X::load_n(from + j * X::width, n));
    } else {
      X::store(to + j * X::width, X::zero());
    }
  }
}

template <class T>
CATTN_INLINE typename Vec<T>::V sum_vectors(const typename Vec<T>::V (&x)[Tile::vectors]) {
  auto sum = x[0];
  CATTN_UNROLL
  for (int j = 1; j < Tile::vectors; ++j) sum = Vec<T>::add(sum, x[j]);
  return sum;
}

// (rows, cols) to (cols / kPanel, block_rows, kPanel). Returns its flags.
template <class T, class S>
uint8_t pack_panels(const S* source, Index stride, Index rows, Index cols, T* packed,
                    Index block_rows) {
  using X = Vec<T>;
  typename X::V squares[2][Tile::vectors];  // of even and odd rows: no sum waits for the other
  clear<T>(squares);
  with_known_panels<T>(cols, [&](auto panels) {
    const auto pack_row = [&](Index r, int odd) {
      row_to_panels<T>(source + r * stride, cols, panels, rows * stride, packed + r * kPanel<T>,
                       block_rows * kPanel<T>, squares[odd], [](auto x) { return x; });
    };
    Index r = 0;
    for (; r + 1 < rows; r += 2) {
      pack_row(r, 0);
      pack_row(r + 1, 1);
    }
    if (r < rows) pack_row(r, 0);
  });
  return block_flags(X::sum_lanes(X::add(sum_vectors<T>(squares[0]), sum_vectors<T>(squares[1]))));
}

// (rows, cols) to the panels of the transpose: (rows / kPanel, cols, kPanel). The largest norm of a
// row goes to `norm`.
template <class T, class S>
uint8_t pack_transposed(const S* source, Index stride, Index rows, Index cols, T* packed, T* norm) {
  using X = Vec<T>;
  Norms<T> norms;
  for (Index row = 0; row < round_up(rows, kPanel<T>); row += X::width) {
    T* const to = packed + row / kPanel<T> * cols * kPanel<T> + row % kPanel<T>;
    typename X::V squares[2][2];  // so that one sum does not wait for another
    clear<T>(squares);
    const auto pack_tile = [&]<bool kWhole>(Index col) {
      const Index n = kWhole ? X::width : smaller(X::width, cols - col);
      typename X::V tile[X::width];
      const S* from = source + row * stride + col;
      CATTN_UNROLL
      for (int i = 0; i < X::width; ++i, from += stride) {
        tile[i] = X::zero();
        if (kWhole || row + i < rows) {
          __builtin_prefetch(from + rows * stride, 0, 2);
          tile[i] = n == X::width ? X::load(from) : X::load_n(from, n);
        }
      }
      X::transpose(tile);
      CATTN_UNROLL
      for (int i = 0; i < X::width; ++i) {
        auto& sum = squares[i / 2 % 2][i % 2];
        sum = X::fma(tile[i], tile[i], sum);
        if (kWhole || i < n) X::store(to + (col + i) * kPanel<T>, tile[i]);
      }
    };
    const Index whole = row + X::width <= rows ? cols / X::width * X::width : 0;
    for (Index col = 0; col < whole; col += X::width) pack_tile.template operator()<true>(col);
    for (Index col = whole; col < cols; col += X::width) pack_tile.template operator()<false>(col);
    norms.add(X::add(X::add(squares[0][0], squares[0][1]), X::add(squares[1][0], squares[1][1])));
  }
  *norm = norms.norm();
  return block_flags(norms.sum());
}

CATTN_INLINE bool is_transposed(Operand operand) {
  return operand == Operand::key || operand == Operand::value_t;
}
CATTN_INLINE bool is_query(Operand operand) {
  return operand == Operand::query || operand == Operand::grad_out;
}
CATTN_INLINE Index block_rows(Operand operand, const Tiling& tiling) {
  return is_query(operand) ? tiling.query_block : tiling.key_block;
}

// What is known of a packed block's rows stands in its last cache line.
template <class T>
struct BlockTail {
  T norm;  // of keys of the forward: the largest of a row; inf if a number is not finite
  uint8_t flags;

  CATTN_INLINE static Index offset(Index packed_bytes) { return packed_bytes - 64; }
  CATTN_INLINE static const BlockTail& of(const char* packed, Index packed_bytes) {
    return *reinterpret_cast<const BlockTail*>(packed + offset(packed_bytes));
  }
  CATTN_INLINE static BlockTail& of(char* packed, Index packed_bytes) {
    return *reinterpret_cast<BlockTail*>(packed + offset(packed_bytes));
  }
};

template <class T>
CATTN_INLINE Index panel_bytes(Operand operand, const Tiling& tiling, Index cols) {
  const Index rows = block_rows(operand, tiling);
  const Index elements =
      is_transposed(operand) ? round_up(rows, kPanel<T>) * cols : rows * round_up(cols, kPanel<T>);
  return round_up(elements * static_cast<Index>(sizeof(T)), 64) + 64;
}

template <class T, class S>
CATTN_INLINE uint8_t pack_in_panels(const PackTask& t, const Tiling& tiling, BlockTail<T>& tail) {
  const S* source = static_cast<const S*>(t.source.data);
  T* packed = static_cast<T*>(t.packed);
  const Index stride = t.source.row_stride;
  if (is_transposed(t.operand)) {
    tail.flags = pack_transposed<T>(source, stride, t.rows, t.cols, packed, &tail.norm);
  } else {
    tail.flags =
        pack_panels<T>(source, stride, t.rows, t.cols, packed, block_rows(t.operand, tiling));
  }
  return tail.flags;
}
