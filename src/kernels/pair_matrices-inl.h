// Matrices multiplied on pairs of bfloat16 or float16 (pairs-inl.h), what fma_matrices-inl.h does
// by multiply-adds. A block in which some number does not split into parts is kept in panels of
// float32 instead, without kBlockSplits; its products are those of FmaMatrices, for which its
// partners are put together again. Of one part all are kept as pairs and put together.

// The exponential of weights in so many parts.
template <int kParts>
struct ExponentialOf {
  using Type = ShortExponential<float>;
};
template <>
struct ExponentialOf<3> {
  using Type = WholeExponential<float>;
};

template <int kParts, class Weights>
struct ExponentialOfGradients {
  using Type = Weights;
};
template <class Weights>
struct ExponentialOfGradients<1, Weights> {
  using Type = RoundedExponential<float>;
};
template <class Weights>
struct ExponentialOfGradients<3, Weights> {
  using Type = TableExponential<float>;
};

template <bool kHalves>
struct BackwardBlocks {
  using Type = typename Tile::template Backward<float>;
};
template <>
struct BackwardBlocks<true> {
  using Type = typename Tile::BackwardOfHalves;
};

// How many products: of operands (scores and dO V^T), and of what is float32 with an operand: of
// probabilities in the forward pass, and of them and of score gradients in the backward pass.
template <class Operands, class Weights, class Gradients = Weights>
struct PairPrecision {
  using Format = typename Operands::Format;
  using OperandProducts = Operands;
  using WeightProducts = Weights;
  using GradientProducts = Gradients;
  static constexpr int parts = Operands::right_parts;  // that an operand is kept in
  static constexpr int weight_parts = Weights::left_parts;
  using Exponential = typename ExponentialOf<weight_parts>::Type;
  static constexpr int gradient_parts = Gradients::left_parts;
  // Of weights that are kept in so many parts for gradients, and serve for nothing else.
  using GradientExponential = typename ExponentialOfGradients<gradient_parts, Exponential>::Type;
  // Of what is computed and what it is multiplied with along its rows: one part goes into a row by
  // one instruction.
  static constexpr Pairing pairing = weight_parts == 1 ? Pairing::neighbours : Pairing::halves;
  static_assert((weight_parts == 1) == (gradient_parts == 1));
  static_assert(Operands::left_parts == parts && Weights::right_parts == parts);
  static_assert(Gradients::right_parts == parts && Gradients::left_parts == parts);
};

// The squares of a row, added by lanes.
template <class S>
CATTN_INLINE Pairs::V squares_of_row(const S* row, Index cols) {
  using X = Vec<float>;
  auto squares = X::zero();
  for (Index c = 0; c < cols; c += X::width) {
    const auto x = load_up_to(row + c, cols - c);
    squares = X::fma(x, x, squares);
  }
  return squares;
}
CATTN_INLINE Pairs::V squares_of_row(const BFloat16* row, Index cols) {
  auto squares = Vec<float>::zero();
  const auto add = [&](Pairs::W x) { squares = Pairs::multiply_add(squares, x, x); };
  constexpr Index width = 2 * Pairs::width;
  Index c = 0;
  for (; c + width <= cols; c += width) add(Pairs::load(&row[c].bits));
  if (c < cols) add(Pairs::load_up_to(&row[c].bits, cols - c));
  return squares;
}

// Inf if a number is not finite. As largest_norm(), whose rows are written on the way, but in
// registers: for short sequences it takes half of the time.
template <class S>
float largest_norm_of_rows(const S* source, Index stride, Index rows, Index cols) {
  constexpr Index width = Pairs::width;
  Norms<float> norms;
  for (Index first = 0; first < rows; first += width) {
    Pairs::V squares[width];
    CATTN_UNROLL
    for (Index i = 0; i < width; ++i) {  // rows past the last repeat it
      squares[i] = squares_of_row(source + smaller(first + i, rows - 1) * stride, cols);
    }
    norms.add(combine_rows<float>(squares, [](auto a, auto b) { return Vec<float>::add(a, b); }));
  }
  return norms.norm();
}

// What is known of a packed block: its flags, and the largest norm of a row; inf if a number is not
// finite.
struct ScaledRange {
  uint8_t flags;
  float norm;
};

// pack_left of rows times a factor, in one pass with the norms of what comes out.
template <class F, int kParts, class S>
ScaledRange pack_left_scaled(const S* source, Index stride, Index rows, Index depth, float factor,
                             LeftPairs left) {
  using X = Vec<float>;
  const auto by = X::set1(factor);
  PartsRange range;
  const float norm = largest_norm<float>(rows, [&](Index r) {
    const S* const row = source + r * stride;
    auto squares = X::zero();
    for (Index d = 0; d < depth; d += kPairDepth) {
      Pairs::V x[2];
      CATTN_UNROLL
      for (int j = 0; j < 2; ++j) {
        const Index at = d + j * X::width;
        x[j] = X::mul(load_up_to(row + smaller(at, depth), depth - at), by);
        squares = X::fma(x[j], x[j], squares);
        range.see(x[j]);
      }
      Pairs::W parts[kParts];
      split_row<F, kParts>(x[0], x[1], parts);
      uint16_t* const to = left.at(r, d).p;
      CATTN_UNROLL
      for (int p = 0; p < kParts; ++p) Pairs::store(to + left.offset(p), parts[p]);
    }
    return squares;
  });
  pad_left<kParts>(left, rows, depth);
  return {range.range<F>().flags, norm};
}

// A bound of the norm of `cols` elements. Where p is rounded nothing is gained by a better one.
CATTN_INLINE float norm_bound(float largest, Index cols) {
  return largest * __builtin_sqrtf(static_cast<float>(cols));
}

// A range of depth in whole steps; what it gains is zero in the operand that was computed. An empty
// one stays empty: nothing was kept for it.
CATTN_INLINE Range whole_steps(Range range, Index step) {
  return range.begin < range.end ? whole(range, step) : Range{0, 0};
}

// left right^T of a block on pairs, tile by tile to `finish`.
template <class P, class Micro, class Finish>
CATTN_INLINE void pair_products(Micro& micro, const ScoreBlock& block, LeftPairs left,
                                RightPairs right, Index depth, Finish finish) {
  if constexpr (Micro::stores_sums) {
    Micro::row_tiles(block.rows, [&]<int kRows>(Index r) {
      const Range attended = block.columns(r, kRows);
      if (attended.begin >= attended.end) return;
      const Range columns = whole(attended, kPairCols);
      const RightPairs keys = right.at(0, columns.begin);
      const Index vectors = (columns.end - columns.begin) / Pairs::width;
      const Range all_of_it{0, Leftover<P>::whole_steps(depth) * kPairDepth};
      if constexpr (requires { Finish::stride; }) {
        const PairOutput scores{finish.s, Finish::stride, kPairCols, false};
        micro.template product<P, kRows>(left.at(r, 0), keys, all_of_it, vectors,
                                         scores.from(r, columns.begin));
      } else {
        micro.template product<P, kRows>(left.at(r, 0), keys, all_of_it, vectors,
                                         [&](auto& tile, Index i, Index col) {
                                           finish(tile, r + i, columns.begin + col, attended);
                                         });
      }
    });
  } else {
    const Range all = block.columns(0, block.rows);
    const Index first = all.begin / kPairCols * kPairCols;
    Range columns{0, 0};  // of the row tile at hand: asked for before its products come
    multiply_pairs<P, true>(
        micro, left, block.rows, right.at(0, first), round_up(all.end, kPairCols) - first,
        [&](auto& tile, Index r, Index col) { finish(tile, r, first + col, columns); },
        [&](Index r, Index count, Index col) {
          columns = block.columns(r, count);
          const bool seen = first + col < columns.end && first + col + kPairCols > columns.begin;
          return Range{0, seen ? round_up(depth, 2) : 0};
        });
  }
}

// The same by multiply-adds, over the columns of Micro's row tiles, which may be taller.
template <class Micro, class Finish>
CATTN_INLINE void products_for(const ScoreBlock& block, const float* left, Index left_rows,
                               const float* right, Index depth, Finish finish) {
  block_products<float>(block, left, left_rows, right, depth, finish, NothingBeside{},
                        [&](Index r, Index count) {
                          const Index begin = r / Micro::tallest * Micro::tallest;
                          const Index end = round_up(r + count, Micro::tallest);
                          return block.columns(begin, end - begin);
                        });
}

// P is a PairPrecision; Micro multiplies (RegisterProducts or TileProducts; Micro::Apart does the
// same). kScales: the scale may be multiplied into q, where one rounding more of q is no worse than
// one of the scores. With fewer than three parts it is: the backward, which splits q as it is,
// would read other scores than the forward.
template <class P, class Micro, bool kScales, class Rounded = void>
struct PairMatrices {
  using T = float;
  using Exponential = typename P::Exponential;
  using GradientExponential = typename P::GradientExponential;
  static constexpr bool scales_queries = kScales;
  static constexpr bool rounds_weights = P::weight_parts == 1;
  using Format = typename P::Format;
  // Weights are kept as 2^weight_exponent times what they are: those down to 2^-29 of the largest
  // are then normal float16.
  static constexpr int weight_exponent = kLargestExponent<Format>;
  // Whether weights that nothing else is made of come rounded as they are.
  static constexpr bool rounds_at_once =
      rounds_weights && !kIsLimited<Format> && requires { Rounded::units; };
  using RoundedWeights = Rounded;
  // Whether scores against so many key blocks need no maxima if they are known to be within reach.
  // One block's weights round better with a maximum, and norms would take as long.
  static constexpr bool bounds_serve(Index key_blocks) {
    return !rounds_weights || (rounds_at_once && key_blocks > 1);
  }
  static constexpr Pairing pairing = P::pairing;
  // Of weights and values in the forward.
  static constexpr Pairing weight_pairing = rounds_at_once ? Pairing::halves : pairing;
  // What ranges of the depth are rounded to.
  static constexpr Index depth_step = pairing == Pairing::halves ? kPairDepth : Micro::depth_step;
  static constexpr Index row_padding = Micro::row_padding;
  // What tile registers leave in memory goes through the L1 cache row tile by row tile.
  static constexpr bool finishes_in_registers = !Micro::stores_sums;
  static constexpr bool writes_rows = false;
  static constexpr Index row_group =
      Micro::stores_sums ? Micro::tallest : Tile::template Forward<float>::query_block;
  static constexpr int parts = P::parts, weight_parts = P::weight_parts;
  static constexpr bool pipelines = Micro::stores_sums && (rounds_at_once || !rounds_weights);
  // One part holds what it rounds to of any number. Those that products of pairs cannot take are
  // put together when they are wanted: room for panels would leave every other line of the caches
  // that packed blocks fall into empty.
  static constexpr bool in_pairs_only = parts == 1;
  static constexpr int gradient_parts = P::gradient_parts;
  // Whether products of a panel begin with all of its sums, and so have those that were pending in
  // memory before their first step() beside: where there are several for each step of the depth.
  static constexpr bool steps_behind_sums = P::OperandProducts::list.count > 1;
  // As accurate as float32: outputs are summed from sums of some blocks, each of which starts
  // afresh.
  static constexpr bool sums_afresh = Micro::stores_sums && weight_parts == 3;
  // Of fewer parts, what it costs where key blocks stay in the L2 cache, 2 to 7 %, is as much as it
  // saves with the longest sequences: the loop is short.
  static constexpr bool fetches_blocks = sums_afresh;
  // dk and dv are summed as their transposes: what is computed, p and ds, is
  // then the right operand of both products, which takes it as it comes, two rows at a time. As the
  // left one it would have to be transposed.
  static constexpr bool transposes_keys = true;
  // Whether p and ds of plain blocks are packed as they come, while they are in registers.
  static constexpr bool keeps_gradients = Micro::stores_sums && !kIsLimited<Format>;
  // Of score gradients and keys in the backward.
  static constexpr Pairing gradient_pairing = keeps_gradients ? Pairing::halves : pairing;
  static_assert(depth_step == kPairDepth ||
                (gradient_pairing == Pairing::neighbours && weight_pairing == Pairing::neighbours));
  using BackwardTiles = typename BackwardBlocks<keeps_gradients && gradient_parts == 1>::Type;
  static_assert(!keeps_gradients || row_group == kPairDepth);

  // Along the depth of scores and of dO V^T: how many steps hold what is left over of it, and the
  // others.
  static_assert(Micro::stores_sums || parts == 1);
  using LeftoverOf = Leftover<typename P::OperandProducts>;
  CATTN_INLINE static Index leftover_steps(Index depth) { return LeftoverOf::of(depth).steps(); }
  CATTN_INLINE static Index operand_steps(Index depth) {
    static_assert(!Micro::stores_sums || depth_step == kPairDepth);
    return LeftoverOf::whole_steps(depth);
  }

  template <class F>
  CATTN_INLINE static void row_tiles(Index rows, F f) {
    Micro::row_tiles(rows, f);
  }
  // To be called every few hundred cycles in long work between products.
  CATTN_INLINE static void stay_awake() { Micro::stay_awake(); }

  // The sum, by lanes, of 32 probabilities of a row as they are multiplied.
  CATTN_INLINE static Pairs::V sum_rounded(const Pairs::V (&p)[2]) {
    const Pairs::W rounded = Format::round_row(p[0], p[1]);
    return Vec<float>::add(Format::lower(rounded), Format::upper(rounded));
  }

  // ---- packed operands: pairs, or float32 in panels, then the tail ----

  static Index packed_bytes(Operand operand, const Tiling& tiling, Index cols) {
    const Index rows = block_rows(operand, tiling);
    const Index elements = is_query(operand) ? left_elements(rows, cols) + left_elements(cols, rows)
                           : is_transposed(operand) ? right_elements(cols, rows)
                                                    : right_elements(rows, cols);
    const Index pairs = elements * parts * 2 + 64;
    return in_pairs_only ? pairs : larger(pairs, panel_bytes<float>(operand, tiling, cols));
  }

  template <class S>
  static uint8_t pack(const PackTask& t, const Tiling& tiling) {
    const S* const source = static_cast<const S*>(t.source.data);
    const Index stride = t.source.row_stride;
    auto& tail =
        BlockTail<float>::of(static_cast<char*>(t.packed), packed_bytes(t.operand, tiling, t.cols));
    PackedRange range;
    const Packed packed{t.operand, tiling, t.cols, t.packed};
    if (is_query(t.operand)) {
      range = pack_left<Format, parts>(source, stride, t.rows, t.cols, packed.left());
      join_leftover<typename P::OperandProducts>(packed.left(), t.rows, t.cols);
      pack_left_transposed<Format, parts>(source, stride, t.rows, t.cols, packed.left_transposed());
    } else if (is_transposed(t.operand)) {
      range = pack_right_transposed<Format, parts>(source, stride, t.rows, t.cols, packed.right());
      join_leftover<typename P::OperandProducts>(packed.right(), t.rows, t.cols);
    } else if (t.operand == Operand::value) {
      range =
          pack_right<Format, parts, weight_pairing>(source, stride, t.rows, t.cols, packed.right());
    } else {
      range = pack_right<Format, parts, gradient_pairing>(source, stride, t.rows, t.cols,
                                                          packed.right());
    }
    if (t.of_blocks > 0) {
      tail.norm = bounds_serve(t.of_blocks) ? largest_norm_of_rows(source, stride, t.rows, t.cols)
                                            : norm_bound(range.largest, t.cols);
    }
    tail.flags = range.flags;
    if (in_pairs_only || (range.flags & kBlockSplits)) return range.flags;
    return pack_in_panels<float, S>(t, tiling, tail);
  }

  CATTN_INLINE static LeftPairs with_leftover(LeftPairs left, Index depth) {
    left.leftover = LeftoverOf::of(depth).width;
    return left;
  }

  // Memory that is handed out piece by piece.
  class Pieces {
   public:
    CATTN_INLINE explicit Pieces(void* memory) : next_(static_cast<char*>(memory)) {}
    CATTN_INLINE LeftPairs left(Index rows, Index depth, Index part_count) {
      return LeftPairs::make(take(left_elements(rows, depth) * part_count * 2), rows, depth);
    }
    CATTN_INLINE RightPairs right(Index depth, Index cols, Index part_count) {
      return RightPairs::make(take(right_elements(depth, cols) * part_count * 2), depth, cols);
    }
    CATTN_INLINE float* panels(Operand operand, const Tiling& tiling, Index cols) {
      return reinterpret_cast<float*>(take(panel_bytes<float>(operand, tiling, cols)));
    }
    CATTN_INLINE float* floats(Index count) {
      return reinterpret_cast<float*>(take(count * static_cast<Index>(sizeof(float))));
    }
    CATTN_INLINE void* place() const { return next_; }
    CATTN_INLINE Index taken() const {
      return static_cast<Index>(reinterpret_cast<uintptr_t>(next_));
    }

   private:
    CATTN_INLINE char* take(Index bytes) {
      char* const mine = next_;
      next_ += bytes;
      return mine;
    }
    char* next_;
  };

  // An operand, whichever way it is packed.
  struct Packed {
    Operand operand;
    const Tiling& tiling;
    Index cols;
    const void* memory;

    CATTN_INLINE bool splits() const {
      const Index bytes = packed_bytes(operand, tiling, cols);
      return BlockTail<float>::of(static_cast<const char*>(memory), bytes).flags & kBlockSplits;
    }
    // Of keys and values.
    CATTN_INLINE RightPairs right() const {
      const Index rows = block_rows(operand, tiling);
      void* const p = const_cast<void*>(memory);
      return is_transposed(operand) ? RightPairs::make(p, cols, rows)
                                    : RightPairs::make(p, rows, cols);
    }
    // Of queries: as they are, and behind that their transpose.
    CATTN_INLINE LeftPairs left() const {
      return with_leftover(
          LeftPairs::make(const_cast<void*>(memory), block_rows(operand, tiling), cols), cols);
    }
    CATTN_INLINE LeftPairs left_transposed() const {
      const Index rows = block_rows(operand, tiling);
      return LeftPairs::make(left().p + left_elements(rows, cols) * parts, cols, rows);
    }
    // In panels of float32, in `room` if they have to be put together.
    CATTN_INLINE const float* panels(float* room) const {
      if (!memory || !(in_pairs_only || splits())) return static_cast<const float*>(memory);
      const Index rows = block_rows(operand, tiling);
      if (is_query(operand)) {
        unpack_left<Format, parts, typename P::OperandProducts>(left(), rows, cols, room,
                                                                rows * kPanel<float>);
      } else if (is_transposed(operand)) {
        unpack_right<Format, parts, Pairing::neighbours, typename P::OperandProducts>(
            right(), cols, rows, room, cols * kPanel<float>);
      } else if (operand == Operand::value) {
        unpack_right<Format, parts, weight_pairing>(right(), rows, cols, room,
                                                    rows * kPanel<float>);
      } else {
        unpack_right<Format, parts, gradient_pairing>(right(), rows, cols, room,
                                                      rows * kPanel<float>);
      }
      return room;
    }
  };

  // One query block against key blocks: see FmaMatrices.
  class Forward {
    using Tiles = typename Tile::template Forward<float>;
    static constexpr Index query_block = Tiles::query_block, key_block = Tiles::key_block;
    static constexpr Tiling tiling{query_block, key_block};
    static constexpr bool in_place = Micro::stores_sums;
    // A group of rows takes half of the L1 cache's sets in each panel: in turns the one and the
    // other.
    static constexpr Index kQueryPadding = in_place ? row_group : 0;

   public:
    using Weights = LeftPairs;
    static Index scratch_bytes(Index head_dim, Index value_dim) {
      ForwardTask t{};
      t.head_dim = head_dim;
      t.value_dim = value_dim;
      return Memory(t, nullptr).bytes;
    }
    // Packs the queries of a task. Returns what is known of them.
    template <class S>
    static PackedQueries<float> pack_queries(const ForwardTask& t, float* query, void* scratch) {
      const LeftPairs left = Memory(t, scratch).query;
      if constexpr (rounds_weights && !scales_queries) {  // no factor: from memory to pairs at once
        static_assert(parts == 1);                        // nothing to join
        const S* const q = static_cast<const S*>(t.q.data);
        const auto range = pack_left<Format, parts>(q, t.q.row_stride, t.rows, t.head_dim, left);
        const bool bounds = bounds_serve((t.band.key_count + key_block - 1) / key_block);
        const float norm = bounds ? largest_norm_of_rows(q, t.q.row_stride, t.rows, t.head_dim)
                                  : norm_bound(range.largest, t.head_dim);
        return {norm, (range.flags & kBlockSplits) != 0, false};
      }
      const auto factor = static_cast<float>(query_factor<PairMatrices>(*t.terms));
      const auto range = pack_left_scaled<Format, parts>(
          static_cast<const S*>(t.q.data), t.q.row_stride, t.rows, t.head_dim, factor, left);
      const bool splits = (range.flags & kBlockSplits) != 0;
      join_leftover<typename P::OperandProducts>(left, t.rows, t.head_dim);
      if (!splits) pack_scaled_queries<PairMatrices, S>(t.q, t, query);
      return {range.norm, splits, !splits};
    }
    CATTN_INLINE Forward(const ForwardTask& t, const PackedQueries<float>& queries, float* query,
                         float* score, void* scratch)
        : t_(t), query_(query), memory_(t, scratch), queries_(queries) {
      if constexpr (in_place) {
        // Rows of weights in place of their scores, two parts panel by panel: they take no room in
        // the L1 cache. A third part has places like those of the first one.
        uint16_t* const first = reinterpret_cast<uint16_t*>(score);
        constexpr Index part = kPairDepth, parts_here = weight_parts < 2 ? 1 : 2;
        memory_.weights = {first, parts_here * part, part, 2 * key_block,
                           memory_.third_part - first - 2 * part};
      }
    }

    // Nothing is done beside these: see ForwardPipeline.
    static Index fetches_of_block(Index, Index) { return 0; }
    template <class Finish, class Beside>
    CATTN_INLINE bool scores(const ScoreBlock& block, Index row, const char* key, Finish finish,
                             Beside&) {
      const Packed packed{Operand::key, tiling, t_.head_dim, key};
      if (splits(key)) {
        pair_products<typename P::OperandProducts>(micro_, block, memory_.query.at(row, 0),
                                                   packed.right(), t_.head_dim, finish);
        return !Micro::stores_sums;
      }
      if (!queries_.in_panels) {
        unpack_left<Format, parts, typename P::OperandProducts>(
            memory_.query, round_up(t_.rows, kPairRows), t_.head_dim, query_,
            query_block * kPanel<float>);
        queries_.in_panels = true;
      }
      products_for<Micro>(block, query_ + row * kPanel<float>, query_block,
                          packed.panels(memory_.panels), t_.head_dim, finish);
      return false;
    }

    // Columns of `tile` outside of the band are overwritten.
    template <class Beside>
    CATTN_INLINE void accumulate(const ScoreBlock& block, float* tile, const char* value,
                                 uint8_t flags, float* out, bool add, Beside&) {
      if (!add) clear_panels(out, round_up(block.rows, row_padding), t_.value_dim, query_block);
      if (!(flags & kBlockSplits)) {
        const Packed packed{Operand::value, tiling, t_.value_dim, value};
        accumulate_block(block, tile, packed.panels(memory_.panels), (flags & kBlockFinite) != 0,
                         t_.value_dim, out);
        return;
      }
      const Range all = block.columns(0, block.rows);
      const Index first = all.begin / kPairDepth * kPairDepth;
      // What stands beside the columns that a row tile attends is of other blocks.
      row_tiles(block.rows, [&]<int kRows>(Index r) {
        const Range columns = block.columns(r, kRows), steps = whole_steps(columns, depth_step);
        if (columns.begin >= columns.end) return;
        for (Index row = r; row < smaller(r + kRows, block.rows); ++row) {
          float* const p = tile + row * key_block;
          fill(p + steps.begin, columns.begin - steps.begin, 0.0f);
          fill(p + columns.end, steps.end - columns.end, 0.0f);
        }
      });
      pack_left<Format, weight_parts, weight_pairing, kOfComputed<weight_parts>>(
          tile + first, key_block, block.rows, round_up(all.end, depth_step) - first,
          memory_.weights.at(0, first));
      accumulate_kept(block, value, out, true, true);
    }

    // Keeps probabilities in parts as they come: rows from `row` on, 32 columns from c on.
    static constexpr bool keeps = true;
    struct Keeper {
      LeftPairs to;

      CATTN_INLINE void keep(Pairs::W p) const { Pairs::store(to.p, p); }
      CATTN_INLINE void next_panel() { to.p += to.panel; }
      CATTN_INLINE void next_row() { to.p += to.row; }
      CATTN_INLINE void operator()(Index i, const Pairs::V (&p)[2]) const {
        Pairs::W all[weight_parts];
        split_row<Format, weight_parts, weight_pairing, kOfComputed<weight_parts>>(p[0], p[1], all);
        CATTN_UNROLL
        for (int part = 0; part < weight_parts; ++part) {
          Pairs::store(to.p + i * to.row + to.offset(part), all[part]);
        }
      }
    };
    CATTN_INLINE Keeper keeper(Index row, Index c) const { return {memory_.weights.at(row, c)}; }

    // Whether the products with these keys are of parts, and so finite.
    CATTN_INLINE bool splits(const char* key) const {
      return queries_.split && Packed{Operand::key, tiling, t_.head_dim, key}.splits();
    }

    // Whether add_kept_sums() adds up what is kept, in the type in which it is kept.
    static constexpr bool sums_kept = rounds_weights && Micro::stores_sums;
    CATTN_INLINE void add_kept_sums(const ScoreBlock& block, float* sums) {
      if constexpr (sums_kept) {
        row_tiles(block.rows, [&]<int kRows>(Index r) {
          micro_.template add_row_sums<Format, kRows>(
              memory_.weights.at(r, 0), whole_steps(block.columns(r, kRows), depth_step),
              sums + r * Pairs::width);
        });
      }
    }

    // What scores, accumulate and add_kept_sums leave is in memory only behind this.
    CATTN_INLINE void settle() { micro_.flush(); }

    // out += weights * value, or out = weights * value without `add`, if it begins_outputs: all
    // rows of a group are then one row tile, of which none is left out. Without `afresh` three
    // parts go on with the sum that is there.
    static constexpr bool begins_outputs = Micro::stores_sums;
    CATTN_INLINE void accumulate_kept(const ScoreBlock& block, const char* value, float* out,
                                      bool add, bool afresh = false) {
      PairOutput to{out, kPanel<float>, query_block * kPanel<float>, add};
      to.afresh = afresh;
      const RightPairs values = Packed{Operand::value, tiling, t_.value_dim, value}.right();
      const auto multiply = [&](Range keys) {
        multiply_pairs<typename P::WeightProducts>(
            micro_, memory_.weights, block.rows, values, t_.value_dim, to,
            [&](Index r, Index count, Index) {
              const Range steps = whole_steps(block.columns(r, count), depth_step);
              return Range{larger(steps.begin, keys.begin), smaller(steps.end, keys.end)};
            });
      };
      if (sums_afresh && !afresh) {  // in the order of values_beside
        const Range all = whole_steps(block.columns(0, block.rows), depth_step);
        for (Index first = all.begin; first < all.end; first += unit_keys, to.add = true)
          multiply({first, first + unit_keys});
      } else {
        multiply({0, key_block});
      }
    }

    // The same of a group of rows, and beside.step() between products (TileProducts). A unit is the
    // keys whose weights, of which three parts take more room, are in the L1 cache.
    static constexpr Index unit_keys = weight_parts == 3 ? 32 : 64;
    static constexpr bool one_product_a_step =
        P::OperandProducts::list.count == 1 && P::WeightProducts::list.count == 1;
    // Of several parts: so many steps has this of so many keys, and of all keys of a unit with so
    // many vectors of values.
    template <int kHeadSteps>
    CATTN_INLINE Index steps_beside(Index keys, Count<kHeadSteps> head_steps, Index vectors) const {
      constexpr Index of_weights = P::WeightProducts::list.count;
      Index of_scores = head_steps * P::OperandProducts::list.count;
      if constexpr (kHeadSteps == 0) of_scores += leftover_steps(t_.head_dim);
      return keys / kPairCols * of_scores +
             unit_keys / kPairDepth * in_steps_of(vectors * of_weights, 2);
    }
    // s = query * key of kKeys keys from `first` on, over a head size of so many steps. The
    // products begin with `start` (BandEdge), or nullptr.
    template <int kKeys, int kHeadSteps, class Start, class Beside>
    CATTN_INLINE void scores_beside(Index row, const char* key, Index first,
                                    Count<kHeadSteps> head_steps, Start start, float* s,
                                    Beside& beside) {
      const Packed packed{Operand::key, tiling, t_.head_dim, key};
      micro_.template product<typename P::OperandProducts, row_group>(
          memory_.query.at(row, 0), packed.right().at(0, first), head_steps,
          Count<kKeys / Pairs::width>{},
          starting_with(start, PairOutput{s, kKeys, kPairCols, false}), beside);
    }
    // out += weights * value, over some keys from `first` on and vectors of columns from `col` on.
    template <int kKeySteps, int kVectors, class Beside>
    CATTN_INLINE void values_beside(const LeftPairs& weights, Count<kKeySteps> key_steps,
                                    const char* value, Index first, Index col,
                                    Count<kVectors> vectors, float* out, bool add, Beside& beside) {
      const Packed packed{Operand::value, tiling, t_.value_dim, value};
      const PairOutput to{out, kPanel<float>, query_block * kPanel<float>, add};
      micro_.template product<typename P::WeightProducts, row_group>(
          weights, packed.right().at(first, col), key_steps, vectors, to.from(0, col), beside);
    }
    template <class Beside>
    CATTN_INLINE void sums_beside(const LeftPairs& weights, Index keys, float* sums,
                                  Beside& beside) {
      micro_.template add_row_sums<Format, row_group>(weights, {0, keys}, sums, beside);
    }

   private:
    struct Memory {
      LeftPairs query, weights;
      uint16_t* third_part;  // of weights in place of scores
      float* panels;
      Index bytes;

      CATTN_INLINE Memory(const ForwardTask& t, void* scratch) {
        Pieces pieces(scratch);
        query =
            with_leftover(pieces.left(query_block + kQueryPadding, t.head_dim, parts), t.head_dim);
        weights = pieces.left(in_place ? 0 : row_group, key_block, weight_parts);
        third_part = pieces.left(in_place && weight_parts == 3 ? 2 * row_group : 0, key_block, 1).p;
        panels = pieces.panels(Operand::key, tiling,
                               larger(t.head_dim, round_up(t.value_dim, kPairCols)));
        bytes = pieces.taken();
      }
    };

    const ForwardTask& t_;
    float* query_;
    Memory memory_;
    PackedQueries<float> queries_;
    Micro micro_;
  };

  // One query block and one key block: see FmaMatrices.
  class Backward {
    using Tiles = BackwardTiles;
    static constexpr Index query_block = Tiles::query_block, key_block = Tiles::key_block;
    static constexpr Tiling tiling{query_block, key_block};
    using Fma = typename FmaMatrices<float, BackwardTiles>::Backward;

   public:
    static Index scratch_bytes(Index head_dim, Index value_dim) {
      BackwardTask t{};
      t.head_dim = head_dim;
      t.value_dim = value_dim;
      return Memory(t, nullptr).bytes;
    }
    CATTN_INLINE Backward(const BackwardTask& t, const ScoreBlock& block, void* scratch)
        : t_(t),
          block_(block),
          memory_(t, scratch),
          splits_((t.flags & kBlockSplits) != 0),
          in_panels_(splits_ ? t : put_together(t)),
          fma_(in_panels_, block, nullptr) {}

    template <class Finish>
    CATTN_INLINE void scores(const ScoreBlock& group, Index row, Finish finish) {
      if (splits_) {
        pair_products<typename P::OperandProducts>(micro_, group, query(t_).left().at(row, 0),
                                                   key(t_).right(), t_.head_dim, finish);
        return;
      }
      products_for<Micro>(group, static_cast<const float*>(in_panels_.query) + row * kPanel<float>,
                          query_block, static_cast<const float*>(in_panels_.key), t_.head_dim,
                          finish);
    }
    template <class Finish>
    CATTN_INLINE void gradients(const ScoreBlock& group, Index row, Finish finish) {
      if (splits_) {
        pair_products<typename P::OperandProducts>(micro_, group, grad_out(t_).left().at(row, 0),
                                                   value_t(t_).right(), t_.value_dim, finish);
        return;
      }
      products_for<Micro>(
          group, static_cast<const float*>(in_panels_.grad_out) + row * kPanel<float>, query_block,
          static_cast<const float*>(in_panels_.value_t), t_.value_dim, finish);
    }
    // What the products leave is in memory only behind this.
    CATTN_INLINE void settle() { micro_.flush(); }
    // dv += p^T dO, dk += ds^T Q, dq += ds K. The tiles are null if a RowKeeper has had all of
    // their rows, for dq perhaps that of an earlier object with the same scratch.
    CATTN_INLINE void add_dv(const float* p) {
      if (splits_) return add_to_keys(p, memory_.probability, grad_out(t_), t_.dv);
      add_panels_to_keys(t_.value_dim, t_.dv, [&] { fma_.add_dv(p); });
    }
    CATTN_INLINE void add_dk(const float* ds) {
      if (splits_) return add_to_keys(ds, memory_.dscore, query(t_), t_.dk);
      add_panels_to_keys(t_.head_dim, t_.dk, [&] { fma_.add_dk(ds); });
    }
    CATTN_INLINE void add_dq(const float* ds) {
      if (!splits_) return fma_.add_dq(ds);
      Scaled scaled{nullptr, nullptr};
      if (ds) {
        scaled = fit<false>(ds);
        pack_left<Format, gradient_parts, gradient_pairing, kOfComputed<gradient_parts>>(
            scaled.tile, key_block, t_.rows, t_.cols, memory_.dscore_rows);
      }
      add_rows(block_, memory_.dscore_rows,
               {static_cast<float*>(t_.dq), kPanel<float>, query_block * kPanel<float>, true,
                scaled.back});
    }

    // A panel of either for a group of rows, and beside.step() between products (TileProducts), so
    // many times over so many steps of the depth.
    template <int kSteps>
    CATTN_INLINE static Index steps_beside(Count<kSteps> steps, Index depth) {
      const Index of_whole = Micro::template steps_beside<typename P::OperandProducts> * steps;
      return kSteps > 0 ? of_whole : of_whole + leftover_steps(depth);
    }
    template <int kSteps, class Beside>
    CATTN_INLINE void scores_beside(Index first, Index col, Count<kSteps> steps, float* s,
                                    Beside& beside) {
      multiply_beside(query(t_), key(t_), first, col, steps, s, beside);
    }
    template <int kSteps, class Beside>
    CATTN_INLINE void gradients_beside(Index first, Index col, Count<kSteps> steps, float* dp,
                                       Beside& beside) {
      multiply_beside(grad_out(t_), value_t(t_), first, col, steps, dp, beside);
    }

    CATTN_INLINE bool keeps() const { return keeps_gradients && splits_; }
    // The rows from `first` on are kept next, with dq their score gradients as a left operand,
    // which no one else wants, in `room`.
    CATTN_INLINE void keep_rows(Index first, float* room) {
      first_ = first;
      rows_ =
          t_.dq ? LeftPairs::make(room, row_group, key_block) : memory_.dscore_rows.at(first, 0);
    }
    // Keeps two of these rows of probabilities and score gradients, 32 columns at a time.
    class RowKeeper {
     public:
      CATTN_INLINE RowKeeper(const Backward& matrices, Index c)
          : to_(matrices),
            in_columns_(to_.memory_.dscore.at(to_.first_, c).p - to_.memory_.dscore.p),
            in_rows_(to_.rows_.at(0, c).p - to_.rows_.p) {}

      CATTN_INLINE void keep_weights(const Pairs::V (&p)[2][2]) const {
        if (to_.t_.dv) keep_columns(PartsOfRows(p), to_.memory_.probability);
      }
      CATTN_INLINE void keep_gradients(const Pairs::V (&ds)[2][2]) const {
        const PartsOfRows parts(ds);  // the same for both of their operands
        if (to_.t_.dk) keep_columns(parts, to_.memory_.dscore);
        keep_rows(parts);
      }
      CATTN_INLINE void next_rows() {  // of the same group
        in_columns_ += kPairDepth;
        in_rows_ += 2 * to_.rows_.row;
      }

     private:
      // The parts of two vectors of two rows, rounded: what is left to do is to put pairs together.
      struct PartsOfRows {
        Pairs::V of[2][2][gradient_parts];

        CATTN_INLINE explicit PartsOfRows(const Pairs::V (&x)[2][2]) {
          CATTN_UNROLL
          for (int i = 0; i < 2; ++i) {
            CATTN_UNROLL
            for (int j = 0; j < 2; ++j) {
              auto& parts = of[i][j];
              take_parts<Format, gradient_parts, kOfComputed<gradient_parts>>(x[i][j], parts);
              if constexpr (gradient_parts < 3) {
                parts[gradient_parts - 1] = Format::round_half_up(parts[gradient_parts - 1]);
              }
            }
          }
        }
      };
      CATTN_INLINE void keep_columns(const PartsOfRows& x, const RightPairs& to) const {
        CATTN_UNROLL
        for (int part = 0; part < gradient_parts; ++part) {
          CATTN_UNROLL
          for (int j = 0; j < 2; ++j) {
            Pairs::store(to.p + in_columns_ + j * kPairTile + part * to.part,
                         Format::pair(x.of[0][j][part], x.of[1][j][part]));
          }
        }
      }
      CATTN_INLINE void keep_rows(const PartsOfRows& x) const {
        const LeftPairs& rows = to_.rows_;
        CATTN_UNROLL
        for (int part = 0; part < gradient_parts; ++part) {
          CATTN_UNROLL
          for (int i = 0; i < 2; ++i) {
            Pairs::store(rows.p + in_rows_ + i * rows.row + rows.offset(part),
                         Format::pair(x.of[i][0][part], x.of[i][1][part]));
          }
        }
      }
      const Backward& to_;
      Index in_columns_, in_rows_;  // where, in p and ds as right operands and in ds as a left one
    };
    CATTN_INLINE RowKeeper row_keeper(Index c) const { return {*this, c}; }
    // dq += ds K of these rows
    CATTN_INLINE void add_kept_dq(const ScoreBlock& group) {
      float* const dq = static_cast<float*>(t_.dq) + first_ * kPanel<float>;
      add_rows(group, rows_, {dq, kPanel<float>, query_block * kPanel<float>, true});
    }

   private:
    struct Memory {
      RightPairs probability, dscore;
      LeftPairs dscore_rows;
      struct {
        float *tile, *by, *back;
      } scaled;  // where the format's range is limited
      float *query, *grad_out, *key, *value_t, *key_rows, *sums;
      Index bytes;

      CATTN_INLINE Memory(const BackwardTask& t, void* scratch) {
        Pieces pieces(scratch);
        void* const here = pieces.place();
        probability = pieces.right(query_block, key_block, gradient_parts);
        // One after the other, if they are not kept.
        if constexpr (!keeps_gradients) pieces = Pieces(here);
        dscore = pieces.right(query_block, key_block, gradient_parts);
        if constexpr (!keeps_gradients) pieces = Pieces(here);
        dscore_rows = pieces.left(query_block, key_block, gradient_parts);
        if constexpr (kIsLimited<Format>) {
          const Index longest = larger(query_block, key_block);
          scaled = {pieces.floats(query_block * key_block), pieces.floats(longest),
                    pieces.floats(longest)};
        }
        query = pieces.panels(Operand::query, tiling, t.head_dim);
        grad_out = pieces.panels(Operand::grad_out, tiling, t.value_dim);
        key = pieces.panels(Operand::key, tiling, t.head_dim);
        value_t = pieces.panels(Operand::value_t, tiling, t.value_dim);
        key_rows = pieces.panels(Operand::key_rows, tiling, t.head_dim);
        sums = pieces.floats(key_block * round_up(larger(t.head_dim, t.value_dim), kPairCols));
        bytes = pieces.taken();
      }
    };

    CATTN_INLINE static Packed query(const BackwardTask& t) {
      return {Operand::query, tiling, t.head_dim, t.query};
    }
    CATTN_INLINE static Packed grad_out(const BackwardTask& t) {
      return {Operand::grad_out, tiling, t.value_dim, t.grad_out};
    }
    CATTN_INLINE static Packed key(const BackwardTask& t) {
      return {Operand::key, tiling, t.head_dim, t.key};
    }
    CATTN_INLINE static Packed value_t(const BackwardTask& t) {
      return {Operand::value_t, tiling, t.value_dim, t.value_t};
    }
    CATTN_INLINE static Packed key_rows(const BackwardTask& t) {
      return {Operand::key_rows, tiling, t.head_dim, t.key_rows};
    }
    // The task with all operands in panels.
    BackwardTask put_together(const BackwardTask& t) const {
      BackwardTask all = t;
      all.query = query(t).panels(memory_.query);
      all.grad_out = grad_out(t).panels(memory_.grad_out);
      all.key = key(t).panels(memory_.key);
      all.value_t = value_t(t).panels(memory_.value_t);
      all.key_rows = key_rows(t).panels(memory_.key_rows);
      all.dk = all.dv = memory_.sums;
      return all;
    }
    // A tile of weights or score gradients that fits into the format: its rows, or for keys its
    // columns, are scaled; `back` undoes that (null: nothing to do).
    struct Scaled {
      const float *tile, *back;
    };
    template <bool kTransposed>
    CATTN_INLINE Scaled fit(const float* tile) const {
      if constexpr (kIsLimited<Format>) {
        return scale_to_fit<kTransposed>(tile);
      } else {
        return {tile, nullptr};
      }
    }
    template <bool kTransposed>
    [[gnu::noinline]] Scaled scale_to_fit(const float* tile) const {
      using X = Vec<float>;
      const auto [scaled, by, back] = memory_.scaled;
      const auto row_of = [&](Index r) { return tile + r * key_block; };
      const auto infinity = X::set1(__builtin_inff());
      const auto larger_of = [&](auto largest, auto x) {  // of those that are finite
        const auto magnitude = X::max(x, X::sub(X::zero(), x));
        return X::select(X::greater(infinity, magnitude), X::max(magnitude, largest), largest);
      };
      if constexpr (kTransposed) {
        for (Index c = 0; c < t_.cols; c += X::width) {
          auto largest = X::zero();
          for (Index r = 0; r < t_.rows; ++r)
            largest = larger_of(largest, load_up_to(row_of(r) + c, t_.cols - c));
          X::store(by + c, largest);
        }
      } else {
        for (Index r = 0; r < t_.rows; ++r) {
          auto largest = X::zero();
          for (Index c = 0; c < t_.cols; c += X::width)
            largest = larger_of(largest, load_up_to(row_of(r) + c, t_.cols - c));
          by[r] = largest_lane(largest);
        }
      }
      const Index scaled_rows = kTransposed ? round_up(t_.cols, X::width) : t_.rows;
      for (Index i = 0; i < scaled_rows; ++i) {
        const int exponent = fitting_exponent<Format>(by[i]);
        by[i] = float_power_of_2(exponent);
        back[i] = float_power_of_2(-exponent);
      }
      for (Index r = 0; r < t_.rows; ++r) {
        for (Index c = 0; c < t_.cols; c += X::width) {
          const auto factor = kTransposed ? X::load(by + c) : X::set1(by[r]);
          X::store(scaled + r * key_block + c,
                   X::mul(load_up_to(row_of(r) + c, t_.cols - c), factor));
        }
      }
      return {scaled, back};
    }

    template <int kSteps, class Beside>
    CATTN_INLINE void multiply_beside(const Packed& left, const Packed& right, Index first,
                                      Index col, Count<kSteps> steps, float* to, Beside& beside) {
      micro_.template product<typename P::OperandProducts, row_group>(
          left.left().at(first, 0), right.right().at(0, col), steps,
          Count<kPairCols / Pairs::width>{}, PairOutput{to, kPairCols, kPairCols, false}, beside);
    }

    // to += ds K for the rows of `block`
    CATTN_INLINE void add_rows(const ScoreBlock& block, LeftPairs ds, const PairOutput& to) {
      multiply_pairs<typename P::GradientProducts>(
          micro_, ds, block.rows, key_rows(t_).right(), t_.head_dim, to,
          [&](Index r, Index count, Index) {
            return whole_steps(block.columns(r, count), depth_step);
          });
    }

    // sum += of^T tile, with the tile packed in `right`; null: it is there
    CATTN_INLINE void add_to_keys(const float* tile, RightPairs right, const Packed& of,
                                  void* sum) {
      Scaled scaled{nullptr, nullptr};
      if (tile) {
        scaled = fit<true>(tile);
        pack_right<Format, gradient_parts>(scaled.tile, key_block, t_.rows, t_.cols, right);
      }
      const LeftPairs left = of.left_transposed();
      const PairOutput to{static_cast<float*>(sum),
                          kPanel<float>,
                          round_up(of.cols, kPairCols) * kPanel<float>,
                          true,
                          nullptr,
                          scaled.back};
      // A panel of keys at a time, unless all of them have the same depth.
      const bool whole = block_.full(0, t_.rows, 0, t_.cols);
      const Index cols = whole ? t_.cols : kPairCols;
      for (Index c = 0; c < t_.cols; c += cols) {
        const Range depth = whole_steps(block_.rows_of(c, cols), depth_step);
        multiply_pairs<typename P::GradientProducts>(micro_, left, of.cols, right.at(0, c),
                                                     smaller(cols, t_.cols - c), to.from(0, c),
                                                     [&](Index, Index, Index) { return depth; });
      }
    }

    // The same by multiply-adds: add() adds to memory_.sums, in panels of (keys, cols).
    template <class F>
    [[gnu::noinline]] void add_panels_to_keys(Index cols, void* sum, F add) {
      using X = Vec<float>;
      const Index padded = round_up(cols, kPairCols);
      fill(memory_.sums, key_block * padded, 0.0f);
      add();
      for (Index c = 0; c < t_.cols; c += X::width) {
        for (Index d = 0; d < padded; d += X::width) {
          Pairs::V rows[X::width];
          for (Index i = 0; i < X::width; ++i)
            rows[i] = X::load(memory_.sums + (d / kPairCols * key_block + c + i) * kPairCols +
                              d % kPairCols);
          X::transpose(rows);
          for (Index i = 0; i < X::width; ++i) {
            float* const to = static_cast<float*>(sum) +
                              (c / kPairCols * padded + d + i) * kPairCols + c % kPairCols;
            X::store(to, X::add(X::load(to), rows[i]));
          }
        }
      }
    }

    const BackwardTask& t_;
    const ScoreBlock& block_;
    const Memory memory_;
    const bool splits_;
    const BackwardTask in_panels_;
    Fma fma_;
    typename Micro::Apart micro_;
    Index first_ = 0;  // of the rows that are kept
    LeftPairs rows_{};
  };
};

// One part and one product: bfloat16, and float32 that may be rounded to it.
using OnePart = PairPrecision<Products<1, 1, 1>, Products<1, 1, 1>>;
// float32 in two parts, three products each.
using TwoParts = PairPrecision<Products<2, 2, 2>, Products<2, 2, 2>>;
// float32 in three parts: as accurate as multiply-adds.
using ThreeParts = PairPrecision<Products<3, 3, 3>, Products<3, 3, 3>>;
// A float16 is two parts, exactly; the weights' remainder is beyond what float16 can show.
using Float16Parts = PairPrecision<Products<2, 2, 3>, Products<2, 2, 2>>;
// The same as one part of float16, for AMX-FP16.
using WholeFloat16 =
    PairPrecision<Products<1, 1, 1, Float16Pairs>, Products<1, 1, 1, Float16Pairs>>;
