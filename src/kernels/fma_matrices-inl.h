// How the kernels' matrices are packed and multiplied: by fused multiply-adds of T, in panels. The
// kernels are templates of this class; pair_matrices-inl.h is another like it.

// tile * value of one block to `to`, in the columns that are attended. beside.step() before each
// row tile.
template <class T, class To, class Beside = NothingBeside>
CATTN_INLINE void multiply_block(const ScoreBlock& block, const T* tile, const T* value,
                                 Index value_dim, To to, Beside&& beside = {}) {
  constexpr Index key_block = Tile::Forward<T>::key_block;
  const AttendedTiles attended(block);
  multiply_panels<T>(
      LeftRows<T, key_block>{tile}, block.rows, value, key_block, value_dim, to,
      [&](Index r, Index count) { return attended.columns(r, count); }, beside);
}

// out += tile * value of one block, or out = tile * value without `add` in the rows of the block;
// where value holds a NaN or inf, masked elements are left out. beside.step() before each row tile.
template <class T, class Beside = NothingBeside>
CATTN_INLINE void accumulate_block(const ScoreBlock& block, const T* tile, const T* value,
                                   bool finite, Index value_dim, T* out, bool add = true,
                                   Beside&& beside = {}) {
  using Tiles = typename Tile::Forward<T>;
  constexpr Index query_block = Tiles::query_block, key_block = Tiles::key_block;
  const LeftRows<T, key_block> left{tile};
  if (finite) {
    multiply_block(block, tile, value, value_dim, ToPanels<T>{out, query_block, add}, beside);
    return;
  }
  if (!add) clear_panels(out, block.rows, value_dim, query_block);
  for (Index r = 0; r < block.rows; ++r) {
    const Range columns = block.columns(r, 1);
    if (columns.begin >= columns.end) continue;
    accumulate_skipping<T>(left.at(r, columns.begin), 1, value + columns.begin * kPanel<T>,
                           key_block, columns.end - columns.begin, value_dim, out + r * kPanel<T>,
                           query_block);
  }
}

// Whether something is masked or dropped in a block: where it holds a NaN or inf, that must be left
// out one by one.
CATTN_INLINE bool hides_some(const ScoreTerms& terms, const ScoreBlock& block) {
  return terms.mask.data || terms.bias.data || terms.dropout.on ||
         !block.full(0, block.rows, 0, block.cols);
}

template <class Arithmetic, class BackwardBlocks = typename Tile::template Backward<Arithmetic>>
struct FmaMatrices {
  using T = Arithmetic;
  using BackwardTiles = BackwardBlocks;
  using Exponential = WholeExponential<T>;
  static constexpr bool scales_queries = true;   // rounding q once more is as good as rounding s
  static constexpr bool rounds_weights = false;  // for the product with v
  static constexpr int weight_exponent = 0;      // of what rounded weights are multiplied by
  // See PairMatrices.
  static constexpr bool rounds_at_once = false, sums_afresh = false, pipelines = false;
  // Whether the forward fetches key blocks of long sequences ahead.
  static constexpr bool fetches_blocks = true;
  static constexpr Index row_padding = Tile::rows / 3;  // row tiles may reach up to a multiple
  // Rows that are taken from scores to outputs at a time, and whether probabilities are computed
  // while the scores are in registers.
  static constexpr Index row_group = Tile::template Forward<T>::query_block;
  static constexpr bool finishes_in_registers = true;
  static constexpr bool keeps_gradients = false,
                        transposes_keys = false;  // see PairMatrices
  static constexpr int weight_parts = 1;
  static constexpr bool writes_rows = true;

  // Calls f<kRows>(row) for the row tiles that products are made of.
  template <class F>
  CATTN_INLINE static void row_tiles(Index rows, F f) {
    for_row_tiles(rows, f);
  }

  // See PairMatrices.
  CATTN_INLINE static void stay_awake() {}
  static constexpr bool bounds_serve(Index) { return true; }

  static Index packed_bytes(Operand operand, const Tiling& tiling, Index cols) {
    return panel_bytes<T>(operand, tiling, cols);
  }
  // Returns the block's flags.
  template <class S>
  static uint8_t pack(const PackTask& t, const Tiling& tiling) {
    const Index bytes = packed_bytes(t.operand, tiling, t.cols);
    return pack_in_panels<T, S>(t, tiling, BlockTail<T>::of(static_cast<char*>(t.packed), bytes));
  }

  // One query block against key blocks. `query` is in panels.
  class Forward {
    using Tiles = typename Tile::template Forward<T>;

   public:
    static constexpr bool keeps = false, sums_kept = false, begins_outputs = false;
    static Index scratch_bytes(Index, Index) { return 0; }
    template <class S>
    static PackedQueries<T> pack_queries(const ForwardTask& t, T* query, void*) {
      return {pack_scaled_queries<FmaMatrices, S>(t.q, t, query), false, true};
    }
    CATTN_INLINE Forward(const ForwardTask& t, const PackedQueries<T>&, T* query, T*, void*)
        : t_(t), query_(query) {}

    // How often scores() and accumulate() together call beside.step(), if all is attended. Of few
    // rows there is too little work to fetch a block beside it.
    static Index fetches_of_block(Index rows, Index value_dim) {
      if (rows < 4 * Tile::rows) return 0;
      const Index panels = Tiles::key_block / kPanel<T> + in_steps_of(value_dim, kPanel<T>);
      return in_steps_of(rows, Tile::rows) * panels;
    }
    // Q K^T, tile by tile to `finish`. Returns whether maxima are there, of row_tiles.
    // `row` is the block's first row of the query block.
    template <class Finish, class Beside>
    CATTN_INLINE bool scores(const ScoreBlock& block, Index row, const char* key, Finish finish,
                             Beside& beside) {
      block_products<T>(block, query_ + row * kPanel<T>, Tiles::query_block,
                        reinterpret_cast<const T*>(key), t_.head_dim, finish, beside);
      return true;
    }
    // out += tile * value, or out = tile * value without `add`
    template <class Beside>
    CATTN_INLINE void accumulate(const ScoreBlock& block, const T* tile, const char* value,
                                 uint8_t flags, T* out, bool add, Beside& beside) {
      accumulate_block(block, tile, reinterpret_cast<const T*>(value), (flags & kBlockFinite) != 0,
                       t_.value_dim, out, add, beside);
    }
    // out = tile * value of the only block, which is finite, times the rows' factors.
    CATTN_INLINE void multiply_only(const ScoreBlock& block, const T* tile, const char* value,
                                    const ToRows<T>& out) {
      multiply_block(block, tile, reinterpret_cast<const T*>(value), t_.value_dim, out);
    }
    void accumulate_kept(const ScoreBlock&, const char*, T*, bool) {}
    void add_kept_sums(const ScoreBlock&, T*) {}
    CATTN_INLINE void settle() {}
    bool splits(const char*) const { return false; }

   private:
    const ForwardTask& t_;
    const T* query_;
  };

  // One query block and one key block. Products that add leave masked or dropped elements out where
  // an operand holds a NaN or inf.
  class Backward {
    using Tiles = BackwardTiles;
    static constexpr Index query_block = Tiles::query_block, key_block = Tiles::key_block;

   public:
    static Index scratch_bytes(Index, Index) { return 0; }
    CATTN_INLINE Backward(const BackwardTask& t, const ScoreBlock& block, void*)
        : t_(t),
          attended_(block),
          skips_(!(t.flags & kBlockFinite) && hides_some(*t.terms, block)) {}

    // Q K^T and dO V^T, tile by tile to `finish`.
    // `group` is some of the block's rows, from `row` on.
    template <class Finish>
    CATTN_INLINE void scores(const ScoreBlock& group, Index row, Finish finish) {
      block_products<T>(group, static_cast<const T*>(t_.query) + row * kPanel<T>, query_block,
                        static_cast<const T*>(t_.key), t_.head_dim, finish);
    }
    template <class Finish>
    CATTN_INLINE void gradients(const ScoreBlock& group, Index row, Finish finish) {
      block_products<T>(group, static_cast<const T*>(t_.grad_out) + row * kPanel<T>, query_block,
                        static_cast<const T*>(t_.value_t), t_.value_dim, finish);
    }
    CATTN_INLINE void settle() {}
    CATTN_INLINE bool keeps() const { return false; }
    // dv += p^T dO
    CATTN_INLINE void add_dv(const T* p) {
      add_transposed(p, static_cast<const T*>(t_.grad_out), t_.value_dim, static_cast<T*>(t_.dv),
                     t_.dv_rows);
    }
    // dk += ds^T Q
    CATTN_INLINE void add_dk(const T* ds) {
      add_transposed(ds, static_cast<const T*>(t_.query), t_.head_dim, static_cast<T*>(t_.dk),
                     t_.dk_rows);
    }
    // dq += ds K
    CATTN_INLINE void add_dq(const T* ds) {
      const LeftRows<T, key_block> left{ds};
      const T* const key_rows = static_cast<const T*>(t_.key_rows);
      T* const dq = static_cast<T*>(t_.dq);
      if (skips_) {
        accumulate_skipping<T>(left, t_.rows, key_rows, key_block, t_.cols, t_.head_dim, dq,
                               query_block);
        return;
      }
      multiply_panels_to(t_.dq_rows, left, t_.rows, key_rows, key_block, t_.head_dim,
                         ToPanels<T>{dq, query_block, true},
                         [&](Index r, Index count) { return attended_.columns(r, count); });
    }

   private:
    // To the accumulator, or to rows in memory.
    template <class Left, class DepthRange>
    CATTN_INLINE static void multiply_panels_to(const ResultRows& rows, Left left, Index left_rows,
                                                const T* right, Index right_rows, Index cols,
                                                const ToPanels<T>& sum, DepthRange depth_range) {
      if (rows.out.data) {
        multiply_to_rows(rows, left, left_rows, right, right_rows, cols, depth_range);
      } else {
        multiply_panels<T>(left, left_rows, right, right_rows, cols, sum, depth_range);
      }
    }
    // A function of its own: the other loop keeps its registers.
    template <class Left, class DepthRange>
    [[gnu::noinline]] static void multiply_to_rows(const ResultRows& rows, Left left,
                                                   Index left_rows, const T* right,
                                                   Index right_rows, Index cols,
                                                   DepthRange depth_range) {
      const T factor = static_cast<T>(rows.factor);
      const ToRows<T> to{
          static_cast<T*>(rows.out.data), rows.out.row_stride, left_rows, cols, &factor, 0};
      multiply_panels<T>(left, left_rows, right, right_rows, cols, to, depth_range);
    }
    CATTN_INLINE void add_transposed(const T* tile, const T* right, Index cols, T* sum,
                                     const ResultRows& rows) {
      const LeftColumns<T, key_block> left{tile};
      if (skips_) {
        accumulate_skipping<T>(left, t_.cols, right, query_block, t_.rows, cols, sum, key_block);
        return;
      }
      multiply_panels_to(rows, left, t_.cols, right, query_block, cols,
                         ToPanels<T>{sum, key_block, true},
                         [&](Index c, Index count) { return attended_.rows_of(c, count); });
    }

    const BackwardTask& t_;
    const AttendedTiles attended_;
    const bool skips_;
  };
};
