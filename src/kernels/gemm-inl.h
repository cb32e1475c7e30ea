// Matrix products of one block, all from one register tile.
//
// The right operand and every accumulator are in panels: a matrix X of (rows, cols) is stored as
// (cols / kPanel, rows, kPanel), so a tile walks contiguous vectors. The left operand is read one
// element at a time and broadcast: from a row-major tile (LeftRows), from its transpose
// (LeftColumns), or from panels, whose rows are kPanel apart (LeftRows<kPanel>).

// Elements in a panel row.
template <class T>
constexpr Index kPanel = Tile::vectors * Vec<T>::width;

CATTN_INLINE Index round_up(Index n, Index multiple) {
  return (n + multiple - 1) / multiple * multiple;
}
CATTN_INLINE Index in_steps_of(Index n, Index step) { return round_up(n, step) / step; }
CATTN_INLINE Index smaller(Index a, Index b) { return a < b ? a : b; }
CATTN_INLINE Index larger(Index a, Index b) { return a > b ? a : b; }
CATTN_INLINE Range whole(Range range, Index step) {
  return {range.begin / step * step, round_up(range.end, step)};
}

// How often a loop turns: kKnown times, or n times if that is 0.
template <int kKnown = 0>
struct Count {
  Index n = kKnown;
  CATTN_INLINE constexpr operator Index() const { return kKnown ? kKnown : n; }
};
// Calls f() `count` times; if the number is known, they stand one behind the other.
template <int kKnown, class F>
CATTN_INLINE void repeat(Count<kKnown> count, F f) {
  if constexpr (kKnown > 0) {
    CATTN_UNROLL
    for (int i = 0; i < kKnown; ++i) f();
  } else {
    for (Index i = 0; i < count; ++i) f();
  }
}

// Calls f(Count<kPanels>) with the whole panels of `cols` columns; the number is known to the
// compiler, and nothing is left over, for the head sizes at which it tells.
template <class T, class F>
CATTN_INLINE auto with_known_panels(Index cols, F f) {
  constexpr int panel = static_cast<int>(kPanel<T>);
  static_assert(32 % panel == 0);
  if (cols == 32) return f(Count<32 / panel>{});
  if (cols == 64) return f(Count<64 / panel>{});
  return f(Count<0>{cols / panel});
}

// Calls f.template operator()<kHeadSteps, kValueSteps>() for a task: its head size in steps of
// M::depth_step and that of values in steps of kValueStep, for the common ones, whose loops take up
// to a tenth less if they are written out; else 0.
template <class M, Index kValueStep, class Task, class F>
CATTN_INLINE void with_known_sizes(const Task& t, F f) {
  const bool whole = M::leftover_steps(t.head_dim) == 0 && M::leftover_steps(t.value_dim) == 0;
  const auto is = [&](Index size) {
    return whole && round_up(t.head_dim, M::depth_step) == size &&
           round_up(t.value_dim, kValueStep) == size;
  };
  if (is(32)) return f.template operator()<32 / M::depth_step, 32 / kValueStep>();
  if (is(64)) return f.template operator()<64 / M::depth_step, 64 / kValueStep>();
  if (is(128)) return f.template operator()<128 / M::depth_step, 128 / kValueStep>();
  f.template operator()<0, 0>();
}

// What takes place between products if nothing does.
struct NothingBeside {
  CATTN_INLINE void step() const {}
};

// So many rounds of work, work(), spread over so many steps of the products beside it.
template <class Work>
class WorkBeside {
 public:
  CATTN_INLINE WorkBeside(const Work& work, Index rounds, Index steps)
      : work_(work), per_step_((kOne * rounds + steps - 1) / steps), left_(rounds) {}
  CATTN_INLINE void step() {
    for (due_ += per_step_; due_ >= kOne && left_ > 0; due_ -= kOne, --left_) work_();
  }
  CATTN_INLINE void finish() {
    for (; left_ > 0; --left_) work_();
  }

 private:
  static constexpr Index kOne = 256;
  Work work_;
  const Index per_step_;
  Index due_ = 0, left_;
};

template <class T>
CATTN_INLINE void fill(T* p, Index count, T value) {
  for (Index i = 0; i < count; ++i) p[i] = value;
}

template <class T, Index kStride>
struct LeftRows {
  const T* p;
  CATTN_INLINE T operator()(Index row, Index k) const { return p[row * kStride + k]; }
  CATTN_INLINE LeftRows at(Index row, Index k) const { return {p + row * kStride + k}; }
};

template <class T, Index kStride>
struct LeftColumns {
  const T* p;
  CATTN_INLINE T operator()(Index row, Index k) const { return p[k * kStride + row]; }
  CATTN_INLINE LeftColumns at(Index row, Index k) const { return {p + k * kStride + row}; }
};

// acc[i][j] += sum over k < depth of left(i, k) * right[k][j]
template <class T, int kRows, int kVectors, class Left>
CATTN_INLINE void multiply_add(typename Vec<T>::V (&acc)[kRows][kVectors], Left left,
                               const T* right, Index depth) {
  using X = Vec<T>;
#pragma GCC unroll 4
  for (Index k = 0; k < depth; ++k) {
    typename X::V b[kVectors];
    CATTN_UNROLL
    for (int j = 0; j < kVectors; ++j) b[j] = X::load(right + k * kPanel<T> + j * X::width);
    CATTN_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const auto a = X::set1(left(i, k));
      CATTN_UNROLL
      for (int j = 0; j < kVectors; ++j) acc[i][j] = X::fma(a, b[j], acc[i][j]);
    }
  }
}

template <class T, int kRows, int kVectors>
CATTN_INLINE void clear(typename Vec<T>::V (&acc)[kRows][kVectors]) {
  CATTN_UNROLL
  for (int i = 0; i < kRows; ++i) {
    CATTN_UNROLL
    for (int j = 0; j < kVectors; ++j) acc[i][j] = Vec<T>::zero();
  }
}

// acc (kRows, kVectors * width) = left panels (depth columns) times right. `left` is in panels
// left_panel elements apart; `right` is one panel of `depth` rows.
template <class T, int kRows, int kVectors>
CATTN_INLINE void product_of_panels(const T* left, Index left_panel, const T* right, Index depth,
                                    typename Vec<T>::V (&acc)[kRows][kVectors]) {
  clear<T>(acc);
  for (Index d = 0; d < depth; d += kPanel<T>) {
    multiply_add<T>(acc, LeftRows<T, kPanel<T>>{left}, right + d * kPanel<T>,
                    smaller(kPanel<T>, depth - d));
    left += left_panel;
  }
}

// Where the tiles of a product go: c (c_rows, cols) += tile in panels, or c = tile without `add`.
// The sum over the depth starts fresh and is added once, which keeps the rounding error of long
// sums small.
template <class T>
struct ToPanels {
  using X = Vec<T>;
  T* c;
  Index c_rows;
  bool add;

  template <int kRows, int kVectors>
  CATTN_INLINE void operator()(const typename X::V (&tile)[kRows][kVectors], Index r,
                               Index col) const {
    CATTN_UNROLL
    for (int i = 0; i < kRows; ++i) {
      CATTN_UNROLL
      for (int j = 0; j < kVectors; ++j) {
        T* const p = at(r + i, col) + j * X::width;
        X::store(p, add ? X::add(X::load(p), tile[i][j]) : tile[i][j]);
      }
    }
  }
  // A tile of zeros.
  template <int kRows>
  CATTN_INLINE void nothing(Index r, Index col) const {
    if (!add) fill(at(r, col), kRows * kPanel<T>, T(0));
  }

 private:
  CATTN_INLINE T* at(Index r, Index col) const { return c + col * c_rows + r * kPanel<T>; }
};

// The same to rows in memory, where they exist: out (rows, cols) = tile times the rows' factors,
// which are factor_stride apart, or 0 if there is one for all.
template <class T>
struct ToRows {
  using X = Vec<T>;
  T* out;
  Index row_stride, rows, cols;
  const T* factors;
  Index factor_stride;

  template <int kRows, int kVectors>
  CATTN_INLINE void operator()(const typename X::V (&tile)[kRows][kVectors], Index r,
                               Index col) const {
    T* const to = out + r * row_stride + col;
    if (r + kRows <= rows && col + kVectors * X::width <= cols) {
      CATTN_UNROLL
      for (int i = 0; i < kRows; ++i) {
        const auto factor = X::set1(factors[(r + i) * factor_stride]);
        CATTN_UNROLL
        for (int j = 0; j < kVectors; ++j)
          X::store(to + i * row_stride + j * X::width, X::mul(tile[i][j], factor));
      }
      return;
    }
    T all[kRows][kVectors * X::width];
    CATTN_UNROLL
    for (int i = 0; i < kRows; ++i) {
      CATTN_UNROLL
      for (int j = 0; j < kVectors; ++j) X::store(all[i] + j * X::width, tile[i][j]);
    }
    const Index count = smaller(kVectors * X::width, cols - col);
    for (Index i = 0; i < smaller(kRows, rows - r); ++i) {
      for (Index c = 0; c < count; ++c)
        to[i * row_stride + c] = all[i][c] * factors[(r + i) * factor_stride];
    }
  }
  template <int kRows>
  CATTN_INLINE void nothing(Index r, Index col) const {
    for (Index i = r; i < smaller(r + kRows, rows); ++i)
      fill(out + i * row_stride + col, smaller(kPanel<T>, cols - col),
           T(0) * factors[i * factor_stride]);
  }
};

// Calls f.template operator()<kRows>(r) for tiles that cover `rows`: full tiles, then one of two
// thirds or one third. The last tile may reach past `rows`, up to the next third.
template <class F>
CATTN_INLINE void for_row_tiles(Index rows, F f) {
  constexpr Index third = Tile::rows / 3;
  Index r = 0;
  for (; rows - r > 2 * third; r += Tile::rows) f.template operator()<Tile::rows>(r);
  if (rows - r > third) {
    f.template operator()<2 * third>(r);
  } else if (rows - r > 0) {
    f.template operator()<third>(r);
  }
}

// Marks a probability or score gradient at a masked position, where the block holds a NaN or inf:
// -0.0 multiplies like 0, and accumulate_skipping leaves it out altogether.
template <class T>
constexpr T kMasked = T(-0.0);

// The product for blocks with a NaN or inf: as multiply_panels over whole rows, but a masked
// element of `left` contributes nothing even where right is not finite. Rare, so plain.
template <class T, class Left>
void accumulate_skipping(Left left, Index rows, const T* right, Index right_rows, Index depth,
                         Index cols, T* c, Index c_rows) {
  using X = Vec<T>;
  for (Index i = 0; i < rows; ++i) {
    for (Index k = 0; k < depth; ++k) {
      const T a = left(i, k);
      if (a == T(0) && __builtin_signbit(a)) continue;
      for (Index panel = 0; panel * kPanel<T> < cols; ++panel) {
        const T* b = right + (panel * right_rows + k) * kPanel<T>;
        T* p = c + (panel * c_rows + i) * kPanel<T>;
        for (Index j = 0; j < kPanel<T>; j += X::width)
          X::store(p + j, X::fma(X::set1(a), X::load(b + j), X::load(p + j)));
      }
    }
  }
}

// c (rows of c_rows, cols) = 0, in panels.
template <class T>
CATTN_INLINE void clear_panels(T* c, Index rows, Index cols, Index c_rows) {
  for (Index col = 0; col < cols; col += kPanel<T>) fill(c + col * c_rows, rows * kPanel<T>, T(0));
}

// All panels of a product, left (rows, depth range) times right (right_rows, cols), row tile by row
// tile, to(tile, row, column): all rows that tiles reach, up to the last vector that has columns.
// depth_range(r, kRows) gives the k that can be nonzero in those rows. The panel is the outer loop:
// it stays in L1 while the rows of `left` pass by. beside.step() before each tile.
template <class T, class Left, class To, class DepthRange, class Beside = NothingBeside>
CATTN_INLINE void multiply_panels(Left left, Index rows, const T* right, Index right_rows,
                                  Index cols, To to, DepthRange depth_range, Beside&& beside = {}) {
  for (Index col = 0; col < cols; col += kPanel<T>) {
    const bool narrow = cols - col <= kPanel<T> - Vec<T>::width;
    for_row_tiles(rows, [&]<int kRows>(Index r) {
      const auto [begin, end] = depth_range(r, kRows);
      if (begin >= end) {
        to.template nothing<kRows>(r, col);
        return;
      }
      beside.step();
      const auto product = [&]<int kVectors>() {
        typename Vec<T>::V tile[kRows][kVectors];
        clear<T>(tile);
        multiply_add<T>(tile, left.at(r, begin), right + begin * kPanel<T>, end - begin);
        to(tile, r, col);
      };
      if (narrow) {
        product.template operator()<Tile::vectors - 1>();
      } else {
        product.template operator()<Tile::vectors>();
      }
    });
    right += right_rows * kPanel<T>;
  }
}
