// Backward: one key block against one query block of one head. With s, p, o as in forward and
// D_i = rowsum(dO_i * O_i) - dlse_i:
//   dV += P^T dO      dP = dO V^T      dS = P * (dP - D)      dK += dS^T Q      dQ += dS K
// P is recomputed from the lse, so nothing of size Lq x Lk is kept. Dropout drops P in dV and dP in
// dS; a softcap multiplies dS by its slope on the way to dK and dQ. The factors `scale` of dQ and
// dK and 1 / (1 - dropout) of dV are applied when accumulators are flushed, or gradients written
// without them.

template <class M, class T = typename M::T>
struct BackwardScratch {
  using Tiles = typename M::BackwardTiles;
  // Three tiles of scores.
  T *probability, *dscore, *slope, *end;

  CATTN_INLINE explicit BackwardScratch(void* scratch) {
    constexpr Index tile = Tiles::query_block * Tiles::key_block;
    probability = static_cast<T*>(scratch);
    dscore = probability + tile;
    slope = dscore + tile;
    end = slope + tile;
  }
};

template <class M>
Index backward_scratch_bytes(Index head_dim, Index value_dim) {
  return bytes_up_to(BackwardScratch<M>(nullptr).end) +
         M::Backward::scratch_bytes(head_dim, value_dim);
}

template <class T>
Index accumulator_bytes(Index block_rows, Index cols) {
  return block_rows * round_up(cols, kPanel<T>) * static_cast<Index>(sizeof(T));
}

// ds = p (dp - delta) in place of dp; masked positions give kMasked whatever dp is.
template <class T>
CATTN_INLINE void score_gradient_row(const T* p, T* dp, Index begin, Index end, T delta,
                                     bool masked) {
  using X = Vec<T>;
  const auto d = X::set1(delta), mark = X::set1(kMasked<T>);
  if (!masked) {
    for (Index c = begin; c < end; c += X::width)
      X::store(dp + c, X::mul(X::load(p + c), X::sub(X::load(dp + c), d)));
    return;
  }
  for (Index c = begin; c < end; c += X::width) {
    const auto probability = X::load(p + c);
    const auto ds = X::mul(probability, X::sub(X::load(dp + c), d));
    X::store(dp + c, X::select(X::same_bits(probability, mark), mark, ds));
  }
}

// ds = ds * slope, the derivative of a softcap; marks of masked positions stay.
template <class T>
CATTN_INLINE void apply_slope_row(T* ds, const T* slope, Index begin, Index end) {
  using X = Vec<T>;
  const auto mark = X::set1(kMasked<T>);
  for (Index c = begin; c < end; c += X::width) {
    const auto x = X::load(ds + c);
    X::store(ds + c, X::select(X::same_bits(x, mark), x, X::mul(x, X::load(slope + c))));
  }
}

// The products run over rectangles that reach outside the band: marks what was not computed.
template <class M, class T>
CATTN_INLINE void mark_outside(const ScoreBlock& block, T* tile) {
  using X = Vec<T>;
  constexpr Index stride = Tile::Backward<T>::key_block;
  M::row_tiles(block.rows, [&]<int kRows>(Index r) {
    const Range columns = block.columns(r, kRows);
    const auto [begin, end] = columns.begin < columns.end ? whole_vectors<T>(columns) : Range{0, 0};
    for (Index row = r; row < smaller(r + kRows, block.rows); ++row) {
      T* const s = tile + row * stride;
      fill(s, begin, kMasked<T>);
      fill(s + end, larger(round_up(block.cols, X::width) - end, 0), kMasked<T>);
    }
  });
}

// Adds the score gradients of a block to a tile like it.
template <class T>
void add_score_gradients(const ScoreBlock& block, const T* ds, T* sum) {
  using X = Vec<T>;
  constexpr Index stride = Tile::Backward<T>::key_block;
  for (Index r = 0; r < block.rows; ++r) {
    for (Index c = 0; c < block.cols; c += X::width) {
      T* const to = sum + r * stride + c;
      X::store(to, X::add(X::load(to), X::load(ds + r * stride + c)));
    }
  }
}

// Probabilities of a tile of products, e^(s - lse), while they are in registers. kPlain: every row
// attends all of the block, by plain scores; otherwise masked positions become kMasked.
template <class T, bool kPlain>
struct StoreProbabilities {
  using X = Vec<T>;
  T* p;
  T factor;
  const RowScale<T>* row_scales;
  const ScoreBlock& block;
  const ScoreTerms& terms;
  const Index rows = block.rows;

  template <int kRows, int kVectors>
  CATTN_INLINE void operator()(typename X::V (&tile)[kRows][kVectors], Index r, Index c,
                               Range columns) const {
    if constexpr (!kPlain) {
      if (!block.full(r, kRows, c, c + kPanel<T>)) {
        StoreScores<T, stride>{p, nullptr}(tile, r, c, columns);
        return store_cut_rows(r, smaller(r + kRows, block.rows), c);
      }
      transform_tile<false, T>(tile, terms, block, r, c);
    }
    store(tile, r, c);
  }

 private:
  static constexpr Index stride = Tile::Backward<T>::key_block;

  template <int kRows, int kVectors>
  CATTN_INLINE void store(const typename X::V (&tile)[kRows][kVectors], Index r, Index c) const {
    const auto by = X::set1(factor);
    CATTN_UNROLL
    for (int i = 0; i < kRows; ++i) {
      ScaledRow<T> row;
      row.set(row_scales[smaller(r + i, rows - 1)]);
      CATTN_UNROLL
      for (int j = 0; j < kVectors; ++j) {
        const auto s = tile[i][j];
        auto weight = weight_from_lse<T>(s, by, row);
        if constexpr (!kPlain) {
          const auto masked = X::equal(s, X::set1(-T(__builtin_inff())));
          weight = X::select(masked, X::set1(kMasked<T>), weight);
        }
        X::store(p + (r + i) * stride + c + j * X::width, weight);
      }
    }
  }
  // Products of a panel that are in memory, of which rows may attend a part. A function of its own:
  // the loop over whole tiles keeps its registers.
  [[gnu::noinline]] void store_cut_rows(Index r, Index end, Index c) const {
    for (; r < end; ++r) {
      typename X::V row[1][kPanel<T> / X::width];
      CATTN_UNROLL
      for (int j = 0; j < kPanel<T> / X::width; ++j)
        row[0][j] = X::load(p + r * stride + c + j * X::width);
      transform_tile<true, T>(row, terms, block, r, c);
      cut_row<T>(row[0], block, r, c);
      store(row, r, c);
    }
  }
};

// Score gradients of a tile of dP, p (dP - delta), from the probabilities p; without kPlain those
// of masked positions are kMasked whatever dP is.
template <class T, bool kPlain>
struct StoreScoreGradients {
  T* ds;
  const T* p;
  const T* delta;  // one per row
  Index rows;

  template <int kRows, int kVectors>
  CATTN_INLINE void operator()(const typename Vec<T>::V (&tile)[kRows][kVectors], Index r, Index c,
                               Range) const {
    using X = Vec<T>;
    constexpr Index stride = Tile::Backward<T>::key_block;
    CATTN_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const auto d = X::set1(delta[smaller(r + i, rows - 1)]);
      CATTN_UNROLL
      for (int j = 0; j < kVectors; ++j) {
        const Index at = (r + i) * stride + c + j * X::width;
        const auto weight = X::load(p + at);
        auto gradient = X::mul(weight, X::sub(tile[i][j], d));
        if constexpr (!kPlain) {
          const auto mark = X::set1(kMasked<T>);
          gradient = X::select(X::same_bits(weight, mark), mark, gradient);
        }
        X::store(ds + at, gradient);
      }
    }
  }
};

// From the products s and dp of two rows to their probabilities and score gradients, in registers:
// two vectors of each. A row that is missing comes to 0.
template <class M>
class TwoRows {
  using T = typename M::T;
  using X = Vec<T>;
  static constexpr Index stride = kPanel<T>;

 public:
  using V = typename X::V;

  CATTN_INLINE TwoRows(T factor, const RowScale<T>* row_scales, const T* delta, Index count)
      : by_(X::set1(factor)) {
    CATTN_UNROLL
    for (Index i = 0; i < 2; ++i) {
      of_row_[i].set(i < count ? row_scales[i] : kNoRow<T>);
      d_[i] = X::set1(i < count ? delta[i] : T(0));
    }
  }
  CATTN_INLINE void probabilities(const T* s, V (&p)[2][2]) const {
    of_all([&](int i, int j, Index at) CATTN_INLINE_LAMBDA {
      p[i][j] = M::GradientExponential::from_lse(X::load(s + at), by_, of_row_[i]);
    });
  }
  CATTN_INLINE void gradients(const V (&p)[2][2], const T* dp, V (&ds)[2][2]) const {
    of_all([&](int i, int j, Index at) CATTN_INLINE_LAMBDA {
      ds[i][j] = X::mul(p[i][j], X::sub(X::load(dp + at), d_[i]));
    });
  }
  template <class F>
  CATTN_INLINE static void of_all(F f) {
    CATTN_UNROLL
    for (int i = 0; i < 2; ++i) {
      CATTN_UNROLL
      for (int j = 0; j < 2; ++j) f(i, j, i * stride + j * X::width);
    }
  }

 private:
  typename M::GradientExponential::OfRow of_row_[2];
  V by_, d_[2];
};

// The panels of columns that groups of rows attend, or some of their rows, group by group.
template <class M>
class PanelsOfBlock {
 public:
  CATTN_INLINE explicit PanelsOfBlock(const ScoreBlock& block)
      : block_(block),
        all_full_(block.full(0, block.rows, 0, block.cols) && block.rows % M::row_group == 0 &&
                  block.cols % kCols == 0) {
    begin_group(0);
  }
  CATTN_INLINE bool has_one() const { return row_ < block_.rows; }
  CATTN_INLINE void next() {
    col_ += kCols;
    if (col_ >= columns_.end) begin_group(row_ + M::row_group);
  }
  CATTN_INLINE Index row() const { return row_; }
  CATTN_INLINE Index col() const { return col_; }
  CATTN_INLINE ScoreBlock group() const { return block_.rows_from(row_, M::row_group); }
  CATTN_INLINE bool is_first() const { return col_ == columns_.begin; }
  CATTN_INLINE bool is_last() const { return col_ + kCols >= columns_.end; }
  // Whether there are all rows, and they attend all of the panel.
  CATTN_INLINE bool is_full() const {
    if (all_full_) return true;
    const ScoreBlock group = this->group();
    return group.rows == M::row_group && group.full(0, group.rows, col_, col_ + kCols);
  }

 private:
  static constexpr Index kCols = kPanel<typename M::T>;
  CATTN_INLINE void begin_group(Index row) {
    for (row_ = row; row_ < block_.rows; row_ += M::row_group) {
      const ScoreBlock group = this->group();
      const Range attended = group.columns(0, group.rows);
      if (attended.begin >= attended.end) continue;
      columns_ = whole(attended, kCols);
      col_ = columns_.begin;
      return;
    }
  }
  const ScoreBlock& block_;
  const bool all_full_;
  Index row_ = 0, col_ = 0;
  Range columns_{0, 0};
};

// The rows of a panel that is full, two at a time, to `matrices`, which keeps them for the products
// that add.
template <class M>
class RowsKept {
  using T = typename M::T;
  using X = Vec<T>;

 public:
  static constexpr Index pairs = M::row_group / 2;

  // s and dp: products of the panel.
  CATTN_INLINE RowsKept(const BackwardTask& t, const typename M::Backward& matrices,
                        const PanelsOfBlock<M>& panel, T factor, T* s, const T* dp)
      : keeper_(matrices.row_keeper(panel.col())),
        s_(s),
        dp_(dp),
        factor_(factor),
        row_scales_(static_cast<const RowScale<T>*>(t.row_scales) + panel.row()),
        delta_(static_cast<const T*>(t.delta) + panel.row()) {}

  CATTN_INLINE void keep() {
    typename X::V p[2][2], ds[2][2];
    const TwoRows<M> rows = next();
    rows.probabilities(s_, p);
    keeper_.keep_weights(p);
    rows.gradients(p, dp_, ds);
    keeper_.keep_gradients(ds);
    advance();
  }
  // The same in two goes over the rows: the first one leaves probabilities in place of s.
  CATTN_INLINE void keep_weights() {
    typename X::V p[2][2];
    next().probabilities(s_, p);
    TwoRows<M>::of_all([&](int i, int j, Index at)
                           CATTN_INLINE_LAMBDA { X::store(s_ + at, p[i][j]); });
    keeper_.keep_weights(p);
    advance();
  }
  CATTN_INLINE void keep_gradients() {
    typename X::V p[2][2], ds[2][2];
    TwoRows<M>::of_all([&](int i, int j, Index at)
                           CATTN_INLINE_LAMBDA { p[i][j] = X::load(s_ + at); });
    next().gradients(p, dp_, ds);
    keeper_.keep_gradients(ds);
    advance();
  }

 private:
  CATTN_INLINE TwoRows<M> next() const { return {factor_, row_scales_, delta_, 2}; }
  CATTN_INLINE void advance() {
    keeper_.next_rows();
    s_ += 2 * kPanel<T>;
    dp_ += 2 * kPanel<T>;
    row_scales_ += 2;
    delta_ += 2;
  }
  typename M::Backward::RowKeeper keeper_;
  T* s_;
  const T* dp_;
  const T factor_;
  const RowScale<T>* row_scales_;
  const T* delta_;
};

// Any panel: 0 where it is not attended, or where there is no row and the products are of anything.
template <class M, class T = typename M::T>
[[gnu::noinline]] void keep_attended(const BackwardTask& t, const typename M::Backward& matrices,
                                     const PanelsOfBlock<M>& panel, T factor, const T* s,
                                     const T* dp) {
  using X = Vec<T>;
  const ScoreBlock group = panel.group();
  const auto* const row_scales = static_cast<const RowScale<T>*>(t.row_scales) + panel.row();
  const T* const delta = static_cast<const T*>(t.delta) + panel.row();
  auto keeper = matrices.row_keeper(panel.col());
  for (Index r = 0; r < M::row_group; r += 2, keeper.next_rows()) {
    if (r == M::row_group / 2) M::stay_awake();
    const TwoRows<M> rows(factor, row_scales + r, delta + r, group.rows - r);
    typename X::V p[2][2], ds[2][2];
    rows.probabilities(s + r * kPanel<T>, p);
    rows.gradients(p, dp + r * kPanel<T>, ds);
    CATTN_UNROLL
    for (int i = 0; i < 2; ++i) {
      const Range attended = r + i < group.rows ? group.columns(r + i, 1) : Range{0, 0};
      CATTN_UNROLL
      for (int j = 0; j < 2; ++j) {
        const Index at = panel.col() + j * X::width;
        const auto lanes = X::lanes_between(attended.begin - at, attended.end - at);
        p[i][j] = X::select(lanes, p[i][j], X::zero());
        ds[i][j] = X::select(lanes, ds[i][j], X::zero());
      }
    }
    keeper.keep_weights(p);
    keeper.keep_gradients(ds);
  }
}

// What both ways of keeping a block have in common. `group_rows`: room for score gradients of a
// group as a left operand.
template <class M, int kHeadSteps, int kValueSteps>
class KeptPanels {
  using T = typename M::T;

 public:
  static constexpr Index tile = M::row_group * kPanel<T>;
  // Whether so many tiles of products, and behind them the rows of a group, are no larger than a
  // tile of scores.
  static constexpr bool fits(Index tiles) {
    using Tiles = typename M::BackwardTiles;
    return tiles * tile + M::row_group * Tiles::key_block * M::gradient_parts / 2 <=
           Tiles::query_block * Tiles::key_block;
  }

  CATTN_INLINE KeptPanels(typename M::Backward& matrices, const BackwardTask& t, T factor,
                          T* group_rows)
      : matrices_(matrices),
        t_(t),
        factor_(factor),
        group_rows_(group_rows),
        head_steps_{M::operand_steps(t.head_dim)},
        value_steps_{M::operand_steps(t.value_dim)} {}

  // The products s and dp of a panel, if there is one.
  template <class Beside>
  CATTN_INLINE void multiply_scores(const PanelsOfBlock<M>& panel, T* s, Beside& beside) const {
    if (!panel.has_one()) return;
    matrices_.scores_beside(panel.row(), panel.col(), head_steps_, s, beside);
  }
  template <class Beside>
  CATTN_INLINE void multiply_gradients(const PanelsOfBlock<M>& panel, T* dp, Beside& beside) const {
    if (!panel.has_one()) return;
    matrices_.gradients_beside(panel.row(), panel.col(), value_steps_, dp, beside);
  }
  // How often these call beside.step().
  CATTN_INLINE Index score_steps() const {
    return matrices_.steps_beside(head_steps_, t_.head_dim);
  }
  CATTN_INLINE Index gradient_steps() const {
    return matrices_.steps_beside(value_steps_, t_.value_dim);
  }

  CATTN_INLINE RowsKept<M> rows(const PanelsOfBlock<M>& panel, T* s, const T* dp) const {
    return {t_, matrices_, panel, factor_, s, dp};
  }
  // To be called before the rows of a panel are kept, and behind it.
  CATTN_INLINE void begin(const PanelsOfBlock<M>& panel) const {
    if (panel.is_first()) matrices_.keep_rows(panel.row(), group_rows_);
  }
  CATTN_INLINE void end(const PanelsOfBlock<M>& panel) const {
    if (panel.is_last() && t_.dq) matrices_.add_kept_dq(panel.group());
  }

 private:
  typename M::Backward& matrices_;
  const BackwardTask& t_;
  const T factor_;
  T* const group_rows_;
  const Count<kHeadSteps> head_steps_;
  const Count<kValueSteps> value_steps_;
};

// Keeps the probabilities and score gradients of a block, and adds to dq: panel by panel, each
// while products are on their way. Scores are plain. `room` is a tile of scores.
//
// Of one part: beside the products of the next panel.
template <class M, int kHeadSteps, int kValueSteps, class T = typename M::T>
[[gnu::noinline]] void keep_in_one_go(typename M::Backward& matrices, const BackwardTask& t,
                                      const ScoreBlock& block, T* room, T factor) {
  using Kept = KeptPanels<M, kHeadSteps, kValueSteps>;
  static_assert(Kept::fits(4));
  Kept kept(matrices, t, factor, room + 4 * Kept::tile);
  PanelsOfBlock<M> next(block);
  T *s = room, *next_s = room + 2 * Kept::tile;  // dp behind it
  const auto multiply_next = [&](auto& beside) CATTN_INLINE_LAMBDA {
    kept.multiply_scores(next, next_s, beside);
    kept.multiply_gradients(next, next_s + Kept::tile, beside);
  };
  const auto multiply_next_apart = [&]() CATTN_APART_LAMBDA {
    NothingBeside nothing;
    multiply_next(nothing);
    matrices.settle();
  };
  multiply_next_apart();
  while (next.has_one()) {
    const PanelsOfBlock<M> panel = next;
    T* const swap = s;
    s = next_s;
    next_s = swap;
    next.next();
    kept.begin(panel);
    if (panel.is_full()) {
      RowsKept<M> rows = kept.rows(panel, s, s + Kept::tile);
      WorkBeside work([&]() CATTN_INLINE_LAMBDA { rows.keep(); }, rows.pairs,
                      kept.score_steps() + kept.gradient_steps());
      multiply_next(work);
      work.finish();
      matrices.settle();
    } else {
      multiply_next_apart();
      keep_attended<M>(t, matrices, panel, factor, s, s + Kept::tile);
    }
    kept.end(panel);
  }
}

// Of several: its weights beside its products dp, and its score gradients beside the scores of the
// next panel, so that only one tile of s and one of dp are in use.
template <class M, int kHeadSteps, int kValueSteps, class T = typename M::T>
[[gnu::noinline]] void keep_in_two_goes(typename M::Backward& matrices, const BackwardTask& t,
                                        const ScoreBlock& block, T* room, T factor) {
  using Kept = KeptPanels<M, kHeadSteps, kValueSteps>;
  // Sums are in memory when the work beside the next products reads them: only the last ones need
  // settle().
  static_assert(Kept::fits(2) && M::steps_behind_sums);
  Kept kept(matrices, t, factor, room + 2 * Kept::tile);
  PanelsOfBlock<M> next(block);
  T *const s = room, *const dp = room + Kept::tile;
  NothingBeside nothing;
  kept.multiply_scores(next, s, nothing);
  while (next.has_one()) {
    const PanelsOfBlock<M> panel = next;
    next.next();
    kept.begin(panel);
    if (panel.is_full()) {
      RowsKept<M> rows = kept.rows(panel, s, dp), rows_again = rows;
      WorkBeside weights([&]() CATTN_INLINE_LAMBDA { rows.keep_weights(); }, rows.pairs,
                         kept.gradient_steps());
      kept.multiply_gradients(panel, dp, weights);
      weights.finish();
      if (!next.has_one()) matrices.settle();
      WorkBeside gradients([&]() CATTN_INLINE_LAMBDA { rows_again.keep_gradients(); }, rows.pairs,
                           kept.score_steps());
      kept.multiply_scores(next, s, gradients);
      gradients.finish();
    } else {
      kept.multiply_gradients(panel, dp, nothing);
      matrices.settle();
      keep_attended<M>(t, matrices, panel, factor, s, dp);
      kept.multiply_scores(next, s, nothing);
    }
    kept.end(panel);
  }
}

CATTN_INLINE ScoreBlock score_block(const BackwardTask& t) {
  return {t.rows, t.first_query, t.cols, t.first_key, t.band};
}

// Whether weights come from products as they are, where they are attended.
CATTN_INLINE bool has_plain_weights(const ScoreTerms& terms) {
  return is_plain(terms) && !terms.dropout.on;
}
// Whether rows are packed for the products that add as they come, by what both kernels know.
template <class Matrices>
CATTN_INLINE bool are_gradients_kept(const Matrices& matrices, const BackwardTask& t) {
  return matrices.keeps() && has_plain_weights(*t.terms) && !t.dscore;
}

template <class M>
void backward(const BackwardTask& t) {
  using T = typename M::T;
  constexpr Index key_block = Tile::Backward<T>::key_block;
  const BackwardScratch<M> scratch(t.scratch);
  const ScoreBlock block = score_block(t);
  const ScoreTerms& terms = *t.terms;
  const T factor = static_cast<T>(exponent_factor(terms));
  const auto* const row_scales = static_cast<const RowScale<T>*>(t.row_scales);
  const T* const delta = static_cast<const T*>(t.delta);
  T* const p = scratch.probability;
  T* const ds = scratch.dscore;
  T* const slope = terms.softcap != 0 ? scratch.slope : nullptr;
  typename M::Backward matrices(t, block, scratch.end);

  const bool whole = block.full(0, t.rows, 0, t.cols);
  const bool masked = !whole || terms.mask.data || terms.bias.data;
  const bool plain = whole && has_plain_weights(terms);
  const bool kept = are_gradients_kept(matrices, t);
  if constexpr (M::keeps_gradients) {
    if (kept) {
      with_known_sizes<M, M::depth_step>(t, [&]<int kHeadSteps, int kValueSteps>() {
        if constexpr (M::gradient_parts == 1) {
          keep_in_one_go<M, kHeadSteps, kValueSteps>(matrices, t, block, p, factor);
        } else {
          keep_in_two_goes<M, kHeadSteps, kValueSteps>(matrices, t, block, p, factor);
        }
      });
    }
  }
  for (Index first = 0; first < t.rows && !kept; first += M::row_group) {
    const ScoreBlock group = block.rows_from(first, M::row_group);
    const Range attended = group.columns(0, group.rows);
    if (attended.begin >= attended.end) continue;
    T* const p_rows = p + first * key_block;
    T* const ds_rows = ds + first * key_block;
    if constexpr (M::finishes_in_registers) {
      const auto finish_tiles = [&]<bool kPlain>() {
        const StoreProbabilities<T, kPlain> store{p_rows, factor, row_scales + first, group, terms};
        matrices.scores(group, first, store);
        const StoreScoreGradients<T, kPlain> store_gradients{ds_rows, p_rows, delta + first,
                                                             group.rows};
        matrices.gradients(group, first, store_gradients);
      };
      if (plain) {
        finish_tiles.template operator()<true>();
        continue;
      }
      if (transforms_tiles<T>(terms) && !terms.dropout.on) {
        finish_tiles.template operator()<false>();
        continue;
      }
    }
    matrices.scores(group, first, StoreScores<T, key_block>{p_rows, nullptr});
    matrices.gradients(group, first, StoreScores<T, key_block>{ds_rows, nullptr});
    matrices.settle();
    const auto gradient_rows = [&]<bool kMark>() {
      M::row_tiles(group.rows, [&]<int kRows>(Index r) {
        const Range columns = group.columns(r, kRows);
        if (columns.begin >= columns.end) return;
        const auto [begin, end] = whole_vectors<T>(columns);
        transform_rows<T, key_block>(group, terms, p_rows, r, kRows, begin, end,
                                     slope ? slope + first * key_block : nullptr);
        for (Index row = r; row < smaller(r + kRows, group.rows); ++row) {
          if (row % (kRowsAwake / 2) == kRowsAwake / 4) M::stay_awake();
          T* const p_row = p_rows + row * key_block;
          T* const ds_row = ds_rows + row * key_block;
          const T row_delta = delta[first + row];
          exponentiate_row_below<T, kMark>(p_row, begin, end, factor, row_scales[first + row]);
          if (!terms.dropout.on) {
            score_gradient_row(p_row, ds_row, begin, end, row_delta, kMark);
            continue;
          }
          BlockWords<key_block> random;
          random.draw(terms.dropout, group, row);
          drop_gradient_row(ds_row, begin, end, random.words, terms.dropout);
          score_gradient_row(p_row, ds_row, begin, end, row_delta, kMark);
          drop_row(p_row, begin, end, random.words, terms.dropout.threshold);
        }
      });
    };
    if (masked) {
      gradient_rows.template operator()<true>();
    } else {
      gradient_rows.template operator()<false>();
    }
  }
  if (!whole && !kept) {  // what is kept has zeros there
    mark_outside<M>(block, p);
    mark_outside<M>(block, ds);
  }
  if (t.dscore) add_score_gradients(block, ds, static_cast<T*>(t.dscore));
  if (slope) {
    for_rows_of_block<M>(block, [&](Index row, Index begin, Index end) {
      apply_slope_row(ds + row * key_block, slope + row * key_block, begin, end);
    });
  }
  if (t.dv || t.dv_rows.out.data) matrices.add_dv(kept ? nullptr : p);
  if (t.dk || t.dk_rows.out.data) matrices.add_dk(kept ? nullptr : ds);
  if ((t.dq || t.dq_rows.out.data) && !kept) matrices.add_dq(ds);
  matrices.settle();
}

template <class M>
void backward_dq(const BackwardTask& t) {
  const BackwardScratch<M> scratch(t.scratch);
  const ScoreBlock block = score_block(t);
  typename M::Backward matrices(t, block, scratch.end);
  matrices.add_dq(are_gradients_kept(matrices, t) ? nullptr : scratch.dscore);
  matrices.settle();
}

template <class T, class S>
void row_terms(const RowTermsTask& t) {
  using X = Vec<T>;
  const T* const lse = static_cast<const T*>(t.lse);
  const T* const dlse = static_cast<const T*>(t.dlse);
  for (Index first = 0; first < t.rows; first += X::width) {
    const Index count = smaller(X::width, t.rows - first);
    T lanes[X::width] = {};
    for (Index r = 0; r < count; ++r) lanes[r] = lse[(first + r) * t.lse_stride];
    row_scales<T>(X::load(lanes), count, static_cast<RowScale<T>*>(t.row_scales) + first);
  }
  double dsink = 0;
  for (Index r = 0; r < t.rows; ++r) {
    const S* const dout = static_cast<const S*>(t.grad_out.data) + r * t.grad_out.row_stride;
    const S* const out = static_cast<const S*>(t.out.data) + r * t.out.row_stride;
    auto sum = X::zero();
    Index c = 0;
    for (; c + X::width <= t.value_dim; c += X::width)
      sum = X::fma(X::load(dout + c), X::load(out + c), sum);
    if (c < t.value_dim) {
      const Index n = t.value_dim - c;
      sum = X::fma(X::load_n(dout + c, n), X::load_n(out + c, n), sum);
    }
    const T row_lse = lse[r * t.lse_stride];
    const bool empty = row_lse == -T(__builtin_inff());
    const T delta = empty ? T(0) : X::sum_lanes(sum) - (dlse ? dlse[r * t.dlse_stride] : T(0));
    static_cast<T*>(t.delta)[r] = with_short_nan(delta);
    if (t.dsink && !empty && t.sink != -__builtin_inf()) {
      const double above = (t.sink - static_cast<double>(row_lse)) * kLog2e;
      const double exponent = above > 0 ? 0 : above;  // by the roundings of a large lse
      dsink -= static_cast<double>(exp2_scalar(static_cast<T>(exponent))) * delta;
    }
  }
  if (t.dsink) *t.dsink = dsink;
}

// The accumulator of a block is in panels of its rows, or that of its transpose in panels of
// theirs.
template <class M>
CATTN_INLINE bool is_transposed_accumulator(bool query_side) {
  return M::transposes_keys && !query_side;
}
template <class M>
CATTN_INLINE Index accumulator_panel_rows(bool query_side, Index cols) {
  if (is_transposed_accumulator<M>(query_side)) return round_up(cols, kPanel<typename M::T>);
  return query_side ? M::BackwardTiles::query_block : M::BackwardTiles::key_block;
}

template <class M>
void clear(const ClearTask& t) {
  using T = typename M::T;
  const Index panel_rows = accumulator_panel_rows<M>(t.query_side, t.cols);
  const bool transposed = is_transposed_accumulator<M>(t.query_side);
  const Index rows = transposed ? panel_rows : round_up(t.rows, M::row_padding);
  const Index cols = transposed ? t.rows : t.cols;
  clear_panels(static_cast<T*>(t.accumulator), rows, cols, panel_rows);
}

template <class M, class S>
void flush(const FlushTask& t) {
  using T = typename M::T;
  using X = Vec<T>;
  constexpr Index width = X::width;
  const Index panel_rows = accumulator_panel_rows<M>(t.query_side, t.cols);
  S* const all_out = static_cast<S*>(t.out.data);
  const auto store = [&](auto vector) {
    store_rows<T>(all_out, t.out.row_stride, panel_rows, Range{0, t.rows}, t.cols, vector);
  };
  const T* const accumulator = static_cast<const T*>(t.accumulator);
  if (!accumulator) {
    store([](Index, Index) { return X::zero(); });
    return;
  }
  const auto factor = X::set1(static_cast<T>(t.factor));
  if (!is_transposed_accumulator<M>(t.query_side)) {
    store([&](Index, Index at) { return X::mul(X::load(accumulator + at), factor); });
    return;
  }
  const auto vector_at = [&](Index r, Index col) {
    return X::load(accumulator + (col / kPanel<T> * panel_rows + r) * kPanel<T> + col % kPanel<T>);
  };
  for (Index first = 0; first < t.rows; first += width) {
    const Index count = smaller(width, t.rows - first);
    S* const out = all_out + first * t.out.row_stride;
    for (Index r = 0; r < count; ++r) prefetch_row(out + (r + width) * t.out.row_stride, t.cols);
    for (Index col = 0; col < t.cols; col += width) {
      typename X::V rows[width];
      for (Index i = 0; i < width; ++i) rows[i] = vector_at(col + i, first);
      X::transpose(rows);
      const Index n = t.cols - col;
      for (Index r = 0; r < count; ++r) {
        S* const to = out + r * t.out.row_stride + col;
        const auto x = X::mul(rows[r], factor);
        if (n >= width) {
          X::store(to, x);
        } else {
          X::store_n(to, x, n);
        }
      }
    }
  }
}
