// Backward: one key block against one query block of one head. With s, p, o as in forward and
// D_i = rowsum(dO_i * O_i) - dlse_i:
//   dV += P^T dO      dP = dO V^T      dS = P * (dP - D)      dK += dS^T Q      dQ += dS K
// P is recomputed from the lse, so nothing of size Lq x Lk is kept. Dropout drops P in dV and dP in
// dS; a softcap multiplies dS by its slope on the way to dK and dQ. The factors `scale` of dQ and
// dK and 1 / (1 - dropout) of dV are applied when the accumulators are flushed.

template <class T>
struct BackwardScratch {
  using Tiles = typename Tile::Backward<T>;
  T *probability, *dscore, *slope, *end;

  CATTN_INLINE explicit BackwardScratch(void* scratch) {
    constexpr Index tile = Tiles::query_block * Tiles::key_block;
    probability = static_cast<T*>(scratch);
    dscore = probability + tile;
    slope = dscore + tile;
    end = slope + tile;
  }
};

template <class T>
Index backward_scratch_bytes(Index, Index) {
  return bytes_up_to(BackwardScratch<T>(nullptr).end);
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
template <class T>
CATTN_INLINE void mark_outside(const ScoreBlock& block, T* tile) {
  using X = Vec<T>;
  constexpr Index stride = Tile::Backward<T>::key_block;
  for_row_tiles(block.rows, [&]<int kRows>(Index r) {
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

// Whether something is masked or dropped in a block where it must be left out one by one.
CATTN_INLINE bool hides_some(const BackwardTask& t, const ScoreBlock& block) {
  const ScoreTerms& terms = *t.terms;
  return !t.finite && (terms.mask.data || terms.bias.data || terms.dropout.on ||
                       !block.full(0, t.rows, 0, t.cols));
}

// Probabilities of a tile of products, 2^(factor s - lse), while they are in registers. Every row
// attends all of the block.
template <class T>
struct StoreProbabilities {
  T* p;
  T factor;
  const T* lse;  // in the kernels' unit, one per row
  Index rows;

  template <int kRows, int kVectors>
  CATTN_INLINE void operator()(typename Vec<T>::V (&tile)[kRows][kVectors], Index r, Index c,
                               Range) const {
    using X = Vec<T>;
    constexpr Index stride = Tile::Backward<T>::key_block;
    const auto by = X::set1(factor);
    CATTN_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const auto shift = X::set1(-lse[smaller(r + i, rows - 1)]);
      CATTN_UNROLL
      for (int j = 0; j < kVectors; ++j)
        X::store(p + (r + i) * stride + c + j * X::width, exp2<T>(X::fma(tile[i][j], by, shift)));
    }
  }
};

// Score gradients of a tile of dP, p (dP - delta), from the probabilities p.
template <class T>
struct StoreScoreGradients {
  T* ds;
  const T* p;
  const T* delta;  // one per row
  Index rows;

  template <int kRows, int kVectors>
  CATTN_INLINE void operator()(typename Vec<T>::V (&tile)[kRows][kVectors], Index r, Index c,
                               Range) const {
    using X = Vec<T>;
    constexpr Index stride = Tile::Backward<T>::key_block;
    CATTN_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const auto d = X::set1(delta[smaller(r + i, rows - 1)]);
      CATTN_UNROLL
      for (int j = 0; j < kVectors; ++j) {
        const Index at = (r + i) * stride + c + j * X::width;
        X::store(ds + at, X::mul(X::load(p + at), X::sub(tile[i][j], d)));
      }
    }
  }
};

template <class T>
void backward(const BackwardTask& t) {
  using Tiles = typename Tile::Backward<T>;
  constexpr Index query_block = Tiles::query_block, key_block = Tiles::key_block;
  const BackwardScratch<T> scratch(t.scratch);
  const ScoreBlock block{t.rows, t.first_query, t.cols, t.first_key, t.band};
  const ScoreTerms& terms = *t.terms;
  const T factor = static_cast<T>(exponent_factor(terms));
  const T* const query = static_cast<const T*>(t.query);
  const T* const grad_out = static_cast<const T*>(t.grad_out);
  const T* const lse = static_cast<const T*>(t.lse);
  const T* const delta = static_cast<const T*>(t.delta);
  T* const p = scratch.probability;
  T* const ds = scratch.dscore;
  T* const slope = terms.softcap != 0 ? scratch.slope : nullptr;

  const bool whole = block.full(0, t.rows, 0, t.cols);
  const bool masked = !whole || terms.mask.data || terms.bias.data;
  const auto score_products = [&](auto finish) {
    block_products<T>(block, query, query_block, static_cast<const T*>(t.key), t.head_dim, finish);
  };
  const auto gradient_products = [&](auto finish) {
    block_products<T>(block, grad_out, query_block, static_cast<const T*>(t.value_t), t.value_dim,
                      finish);
  };
  const bool in_registers = whole && is_plain(terms) && !terms.dropout.on;
  if (in_registers) {
    score_products(StoreProbabilities<T>{p, factor, lse, t.rows});
    gradient_products(StoreScoreGradients<T>{ds, p, delta, t.rows});
  } else {
    score_products(StoreScores<T, key_block>{p, nullptr});
    gradient_products(StoreScores<T, key_block>{ds, nullptr});
  }
  const auto gradient_rows = [&]<bool kMark>() {
    for_row_tiles(t.rows, [&]<int kRows>(Index r) {
      const Range columns = block.columns(r, kRows);
      if (columns.begin >= columns.end) return;
      const auto [begin, end] = whole_vectors<T>(columns);
      transform_rows<T, key_block>(block, terms, p, r, kRows, begin, end, slope);
      for (Index row = r; row < smaller(r + kRows, t.rows); ++row) {
        T* const p_row = p + row * key_block;
        T* const ds_row = ds + row * key_block;
        exponentiate_row_below<T, kMark>(p_row, begin, end, factor, lse[row]);
        if (!terms.dropout.on) {
          score_gradient_row(p_row, ds_row, begin, end, delta[row], kMark);
          continue;
        }
        BlockWords<key_block> random;
        random.draw(terms.dropout, block, row);
        drop_gradient_row(ds_row, begin, end, random.words, terms.dropout);
        score_gradient_row(p_row, ds_row, begin, end, delta[row], kMark);
        drop_row(p_row, begin, end, random.words, terms.dropout.threshold);
      }
    });
  };
  if (in_registers) {
    // Done.
  } else if (masked) {
    gradient_rows.template operator()<true>();
  } else {
    gradient_rows.template operator()<false>();
  }
  if (!whole) {
    mark_outside(block, p);
    mark_outside(block, ds);
  }
  if (t.dscore) add_score_gradients(block, ds, static_cast<T*>(t.dscore));
  if (slope) {
    for_rows_of_block<T>(block, [&](Index row, Index begin, Index end) {
      apply_slope_row(ds + row * key_block, slope + row * key_block, begin, end);
    });
  }

  const LeftColumns<T, key_block> p_columns{p}, ds_columns{ds};
  const auto rows_of = [&](Index c, Index count) { return block.rows_of(c, count); };
  T* const dv = static_cast<T*>(t.dv);
  T* const dk = static_cast<T*>(t.dk);
  if (hides_some(t, block)) {
    if (dv)
      accumulate_skipping<T>(p_columns, t.cols, grad_out, query_block, t.rows, t.value_dim, dv,
                             key_block);
    if (dk)
      accumulate_skipping<T>(ds_columns, t.cols, query, query_block, t.rows, t.head_dim, dk,
                             key_block);
    return;
  }
  if (dv)
    accumulate_panels<T>(p_columns, t.cols, grad_out, query_block, t.value_dim, dv, key_block,
                         rows_of);
  if (dk)
    accumulate_panels<T>(ds_columns, t.cols, query, query_block, t.head_dim, dk, key_block,
                         rows_of);
}

template <class T>
void backward_dq(const BackwardTask& t) {
  using Tiles = typename Tile::Backward<T>;
  constexpr Index query_block = Tiles::query_block, key_block = Tiles::key_block;
  const ScoreBlock block{t.rows, t.first_query, t.cols, t.first_key, t.band};
  const LeftRows<T, key_block> ds_rows{BackwardScratch<T>(t.scratch).dscore};
  const T* const key_rows = static_cast<const T*>(t.key_rows);
  T* const dq = static_cast<T*>(t.dq);
  if (hides_some(t, block)) {
    accumulate_skipping<T>(ds_rows, t.rows, key_rows, key_block, t.cols, t.head_dim, dq,
                           query_block);
    return;
  }
  accumulate_panels<T>(ds_rows, t.rows, key_rows, key_block, t.head_dim, dq, query_block,
                       [&](Index r, Index count) { return block.columns(r, count); });
}

template <class T, class S>
void row_terms(const RowTermsTask& t) {
  using X = Vec<T>;
  const T* const lse = static_cast<const T*>(t.lse);
  const T* const dlse = static_cast<const T*>(t.dlse);
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
    // An empty row has p = 2^(s - inf) = 0.
    static_cast<T*>(t.lse_log2)[r] =
        empty ? T(__builtin_inff()) : static_cast<T>(static_cast<double>(row_lse) * kLog2e);
    static_cast<T*>(t.delta)[r] = delta;
    if (t.dsink && !empty && t.sink != -__builtin_inf()) {
      const double exponent = (t.sink - static_cast<double>(row_lse)) * kLog2e;
      dsink -= static_cast<double>(exp2_scalar(static_cast<T>(exponent))) * delta;
    }
  }
  if (t.dsink) *t.dsink = dsink;
}

template <class T, class S>
void flush(const FlushTask& t) {
  using X = Vec<T>;
  const Index block_rows =
      t.query_side ? Tile::Backward<T>::query_block : Tile::Backward<T>::key_block;
  const auto factor = X::set1(static_cast<T>(t.factor));
  const T* const accumulator = static_cast<const T*>(t.accumulator);
  for (Index r = 0; r < t.rows; ++r) {
    S* const out = static_cast<S*>(t.out.data) + r * t.out.row_stride;
    for (Index col = 0; col < t.cols; col += X::width) {
      const Index at = (col / kPanel<T> * block_rows + r) * kPanel<T> + col % kPanel<T>;
      const auto x = accumulator ? X::mul(X::load(accumulator + at), factor) : X::zero();
      const Index n = t.cols - col;
      if (n >= X::width) {
        X::store(out + col, x);
      } else {
        X::store_n(out + col, x, n);
      }
    }
  }
}
