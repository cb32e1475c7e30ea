// The micro-kernel of multiply_pairs in tile registers: 32 x 32 outputs, the sums of products of
// 32 rows and 32 columns over a chain of steps, each 32 elements of the depth in one of the
// products of parts. T is HardwareTiles (amx/tile.h) or EmulatedTiles.
//
// A sum takes long to come out of the unit, and what comes behind its store waits for it. So each
// of the four sums is stored only when its register is wanted for the next output, between products
// of others; flush() stores the last ones.
//
// The object configures the registers: make one per call of a kernel, not per product.
//
// kApart: the loop over the depth of a tile is a function of its own. The forward is 3 % faster
// without that, the backward, in which much else is inlined, 5 % with it.
template <class T, bool kApart = false>
class TileProducts {
 public:
  using Apart = TileProducts<T, true>;
  static constexpr bool multiplies_float16 = true;  // if the CPU has AMX-FP16
  static constexpr bool stores_sums = true;         // straight to memory
  static constexpr Index tallest = 2 * kTileRows, row_padding = kTileRows;
  static constexpr Index depth_step = kPairDepth;  // what ranges of the depth are rounded to

  TileProducts() : tiles_(kWhole) {}

  template <class F>
  CATTN_INLINE static void row_tiles(Index rows, F f) {
    Index r = 0;
    for (; rows - r > kTileRows; r += 2 * kTileRows) f.template operator()<2 * kTileRows>(r);
    if (rows - r > 0) f.template operator()<kTileRows>(r);
  }

  // How often beside.step() is called for each step of the depth of 32 x 32 outputs: after each
  // product of tiles, or of several parts after four, and of 32 x 16 outputs half as often. A
  // product takes 16 cycles, in which the rest of the core has nothing to do.
  template <class P>
  static constexpr Index steps_beside = P::list.count == 1 ? 4 : P::list.count;

  // c += left right (or = without `add`) for kRows rows, over a depth in whole panels: `vectors`
  // vectors of 16 columns from to.c on.
  template <class P, int kRows, class Beside = const NothingBeside>
  CATTN_INLINE void product(LeftPairs left, RightPairs right, Range depth, Index vectors,
                            PairOutput to, Beside& beside = kNothing) {
    left.p += depth.begin / kPairDepth * left.panel;
    right.p += depth.begin / kPairDepth * 2 * kPairTile;
    product<P, kRows>(left, right, Count<>{(depth.end - depth.begin) / kPairDepth},
                      Count<>{vectors}, to, beside);
  }
  // The same over the first `steps` panels of the depth.
  template <class P, int kRows, int kSteps, int kVectors, class Output, class Beside>
  CATTN_INLINE void product(LeftPairs left, RightPairs right, Count<kSteps> steps,
                            Count<kVectors> vectors, Output to, Beside& beside) {
    if constexpr (kRows == 2 * kTileRows && P::list.count == 1) {
      if (steps == 1) return short_products<P, 1>(left, right, vectors, to, beside);
      if (steps == 2) return short_products<P, 2>(left, right, vectors, to, beside);
    }
    repeat(Count<kVectors / 2>{vectors / 2}, [&]() CATTN_INLINE_LAMBDA {
      tile<P, kRows, 2>(left, right, steps, to, beside);
      right.p += right.panel;
      to = to.from(0, kPairCols);
    });
    if (vectors % 2 > 0) tile<P, kRows, 1>(left, right, steps, to, beside);
  }

  // The same to put(rows, r, col), some rows at a time in vector registers: those of two vectors of
  // columns beside the products of the next two.
  template <class P, int kRows, class Put>
  CATTN_INLINE void product(LeftPairs left, RightPairs right, Range depth, Index vectors, Put put) {
    constexpr int wide = 2 * Pairs::width;
    alignas(64) float sums[2][kRows * wide];
    left.p += depth.begin / kPairDepth * left.panel;
    right.p += depth.begin / kPairDepth * 2 * kPairTile;
    const Count<> depth_steps{(depth.end - depth.begin) / kPairDepth};
    const Index steps = depth_steps * steps_beside<P>;
    SumsPut<kRows, Put> before(nullptr, 0, 0, steps, put);
    for (Index v = 0; v < vectors; v += 2) {
      float* const to = sums[v / 2 % 2];
      const Count<> here{smaller(vectors - v, 2)};
      product<P, kRows>(left, right.at(0, v * Pairs::width), depth_steps, here,
                        PairOutput{to, wide, kPairCols, false}, before);
      before.finish();
      // Else the next two vectors are in the same registers, before their first step().
      if (P::list.count == 1 || vectors - v < 4) flush();
      before = {to, here, v * Pairs::width, steps, put};
    }
    before.finish();
  }

  // Adds the sums of the rows of a left operand of one part to lane 0 of `sums` (kRows, 16).
  template <class F, int kRows, class Beside = const NothingBeside>
  CATTN_INLINE void add_row_sums(LeftPairs left, Range depth, float* sums,
                                 Beside& beside = kNothing) {
    using P = Products<1, 1, 1, F>;
    constexpr bool two_rows = kRows == 2 * kTileRows;
    alignas(64) static constexpr OnesInFirstColumn<F> ones;
    const uint16_t* a = left.p + depth.begin / kPairDepth * left.panel;
    const Index row_bytes = left.row * kHalf;
    tiles_.template load<6>(ones.pairs, kTileBytes);
    const PairOutput to{sums, Pairs::width, 0, true};
    begin_sum<0>(pending_[0], to, 0, 0);
    if constexpr (two_rows) begin_sum<2>(pending_[2], to, kTileRows, 0);
    for (Index d = depth.begin; d < depth.end; d += kPairDepth, a += left.panel) {
      tiles_.template load<4>(a, row_bytes);
      multiply_add<P, 0, 4, 6>();
      beside.step();
      if constexpr (two_rows) {
        tiles_.template load<5>(a + kTileRows * left.row, row_bytes);
        multiply_add<P, 2, 5, 6>();
        beside.step();
      }
    }
  }

  // Sums are in memory only behind this.
  CATTN_INLINE void flush() {
    store_pending<0>(pending_[0]);
    store_pending<1>(pending_[1]);
    store_pending<2>(pending_[2]);
    store_pending<3>(pending_[3]);
  }

  CATTN_INLINE static void stay_awake() { T::stay_awake(); }

 private:
  // A sum that is still in its register. short_products has its two in registers of the core: what
  // is read from memory beside stores of tiles waits for those whose addresses end alike.
  struct Pending {
    float* c = nullptr;
    Index stride = 0;
  };
  static constexpr NothingBeside kNothing{};
  // Sums that are to be put: all of them are in memory behind the first step().
  template <int kRows, class Put>
  class SumsPut {
   public:
    CATTN_INLINE SumsPut(const float* sums, Index vectors, Index col, Index steps, const Put& put)
        : sums_(sums), vectors_(vectors), col_(col), steps_(steps), put_(&put) {}
    CATTN_INLINE void step() {
      due_ += kRows / kGroup;
      if (due_ < steps_) return;
      due_ -= steps_;
      if (row_ < kRows) next();
    }
    CATTN_INLINE void finish() {
      while (row_ < kRows) next();
    }

   private:
    static constexpr int kGroup = 8, kWide = 2 * Pairs::width;
    [[gnu::noinline]] void next() {
      if (vectors_ == 2) put<2>();
      if (vectors_ == 1) put<1>();
      row_ += kGroup;
    }
    template <int kVectors>
    CATTN_INLINE void put() const {
      Pairs::V rows[kGroup][kVectors];
      CATTN_UNROLL
      for (int i = 0; i < kGroup; ++i) {
        CATTN_UNROLL
        for (int j = 0; j < kVectors; ++j)
          rows[i][j] = Vec<float>::load(sums_ + (row_ + i) * kWide + j * Pairs::width);
      }
      (*put_)(rows, row_, col_);
    }
    const float* sums_;
    Index vectors_, col_, steps_;
    const Put* put_;
    Index due_ = 0, row_ = 0;
  };
  static constexpr Index kHalf = sizeof(uint16_t);
  template <class F>
  struct OnesInFirstColumn {
    uint16_t pairs[kTileRows][kTileBytes / 2] = {};
    constexpr OnesInFirstColumn() {
      for (auto& row : pairs) row[0] = row[1] = kOne<F>;
    }
  };
  static constexpr TileShape kWhole[kTiles] = {{kTileRows, kTileBytes}, {kTileRows, kTileBytes},
                                               {kTileRows, kTileBytes}, {kTileRows, kTileBytes},
                                               {kTileRows, kTileBytes}, {kTileRows, kTileBytes},
                                               {kTileRows, kTileBytes}, {kTileRows, kTileBytes}};

  // Over a depth of one or two steps, whose left operand stays in registers 4 to 7: the sums, in
  // registers 0 and 1, are taken one after the other. (Who goes on with them flushes first: other
  // products have them in other registers.)
  template <class P, int kSteps, int kVectors, class Output, class Beside>
  CATTN_INLINE void short_products(const LeftPairs& left, const RightPairs& right,
                                   Count<kVectors> vectors, const Output& to, Beside& beside) {
    store_pending<2>(pending_[2]);
    store_pending<3>(pending_[3]);
    Pending pending[2] = {pending_[0], pending_[1]};
    const Index row_bytes = left.row * kHalf;
    const auto load_left = [&]<int kTile>(Index row, Index step) {
      tiles_.template load<kTile>(left.p + row * left.row + step * left.panel, row_bytes);
    };
    load_left.template operator()<4>(0, 0);
    load_left.template operator()<5>(kTileRows, 0);
    if constexpr (kSteps == 2) {
      load_left.template operator()<6>(0, 1);
      load_left.template operator()<7>(kTileRows, 1);
    }
    Index v = 0;
    repeat(vectors, [&]() CATTN_INLINE_LAMBDA {
      const uint16_t* const b = right.p + v / 2 * right.panel + v % 2 * kPairTile;
      tiles_.template load_streamed<2>(b, kTileBytes);
      begin_sum<0>(pending[0], to, 0, v);
      multiply_add<P, 0, 4, 2>();
      beside.step();
      if constexpr (kSteps == 2) {
        tiles_.template load_streamed<3>(b + 2 * kPairTile, kTileBytes);
        multiply_add<P, 0, 6, 3>();
        beside.step();
      }
      begin_sum<1>(pending[1], to, kTileRows, v);
      multiply_add<P, 1, 5, 2>();
      beside.step();
      if constexpr (kSteps == 2) {
        multiply_add<P, 1, 7, 3>();
        beside.step();
      }
      ++v;
    });
    pending_[0] = pending[0];
    pending_[1] = pending[1];
  }

  // One tile: all sums at once in registers 0 to 3, so that what is loaded for a step serves up to
  // four products.
  template <class P, int kRows, int kVectors, int kSteps, class Output, class Beside>
  CATTN_INLINE void tile(const LeftPairs& left, const RightPairs& right, Count<kSteps> steps,
                         const Output& to, Beside& beside) {
    if constexpr (kApart && kSteps == 0) {
      tile_apart<P, kRows, kVectors>(left, right, steps, to, beside);
    } else {
      tile_here<P, kRows, kVectors>(left, right, steps, to, beside);
    }
  }
  template <class P, int kRows, int kVectors, int kSteps, class Output, class Beside>
  [[gnu::noinline]] void tile_apart(const LeftPairs& left, const RightPairs& right,
                                    Count<kSteps> steps, const Output& to, Beside& beside) {
    tile_here<P, kRows, kVectors>(left, right, steps, to, beside);
  }
  template <class P, int kRows, int kVectors, int kSteps, class Output, class Beside>
  CATTN_INLINE void tile_here(const LeftPairs& left, const RightPairs& right, Count<kSteps> steps,
                              const Output& to, Beside& beside) {
    constexpr int small = P::list.small, count = P::list.count;
    // A depth that is known has nothing left over (with_known_sizes).
    constexpr bool may_be_left_over = kSteps == 0 && count > 1;
    if constexpr (small == 0) {
      products<P, kRows, kVectors, count>(left, right, steps, to, beside);
      if constexpr (may_be_left_over)
        leftover_products<P, kRows, kVectors>(left, right, steps, to, beside);
    } else {
      products<P, kRows, kVectors, small>(left, right, steps, to, beside);
      if constexpr (may_be_left_over) {
        if (left.leftover > 0) {
          leftover_products<P, kRows, kVectors>(left, right, steps, to, beside);
          return large_products<P, kRows, kVectors, false>(left, right, steps, to, beside);
        }
      }
      large_products<P, kRows, kVectors, true>(left, right, steps, to, beside);
    }
  }
  // Those behind the small ones, the last step first. kShares: what that has in common with the
  // last of the small ones is still loaded.
  template <class P, int kRows, int kVectors, bool kShares, int kSteps, class Output, class Beside>
  CATTN_INLINE void large_products(LeftPairs left, RightPairs right, Count<kSteps> steps,
                                   const Output& to, Beside& beside) {
    constexpr int small = P::list.small, count = P::list.count;
    left.p += (steps - 1) * left.panel;
    right.p += (steps - 1) * 2 * kPairTile;
    step<P, kRows, kVectors, small, count, kShares, false>(left, right, to, beside);
    repeat(Count<kSteps ? kSteps - 1 : 0>{steps - 1}, [&]() CATTN_INLINE_LAMBDA {
      left.p -= left.panel;
      right.p -= 2 * kPairTile;
      step<P, kRows, kVectors, small, count, false, false>(left, right, to, beside);
    });
  }
  // What is left over of the depth, behind so many steps.
  template <class P, int kRows, int kVectors, class Output, class Beside>
  CATTN_INLINE void leftover_products(LeftPairs left, RightPairs right, Index steps,
                                      const Output& to, Beside& beside) {
    left.p += steps * left.panel;
    right.p += steps * 2 * kPairTile;
    if (left.leftover == 8) multiply_leftover<P, 8, 0, kRows, kVectors>(left, right, to, beside);
    if (left.leftover == 16) multiply_leftover<P, 16, 0, kRows, kVectors>(left, right, to, beside);
  }
  template <class P, int kWidth, int kStep, int kRows, int kVectors, class Output, class Beside>
  CATTN_INLINE void multiply_leftover(const LeftPairs& left, const RightPairs& right,
                                      const Output& to, Beside& beside) {
    constexpr LeftoverLayout layout = leftover_layout<P, kWidth>();
    constexpr int panel = layout.step[kStep].right_panel;
    constexpr bool shares = kStep > 0 && panel == layout.step[kStep - (kStep > 0)].right_panel;
    tile_step<P, kRows, kVectors, true, !shares, false>(
        left.p + kStep * left.part, right.p + panel * right.part, left.row, to, beside);
    beside.step();
    if constexpr (kStep + 1 < layout.steps)
      multiply_leftover<P, kWidth, kStep + 1, kRows, kVectors>(left, right, to, beside);
  }
  // The first kTo products of parts, step by step of the depth. They begin the sums.
  template <class P, int kRows, int kVectors, int kTo, int kSteps, class Output, class Beside>
  CATTN_INLINE void products(LeftPairs left, RightPairs right, Count<kSteps> steps,
                             const Output& to, Beside& beside) {
    const auto take = [&]<bool kBegins>() CATTN_INLINE_LAMBDA {
      step<P, kRows, kVectors, 0, kTo, false, kBegins>(left, right, to, beside);
      left.p += left.panel;
      right.p += 2 * kPairTile;
    };
    take.template operator()<true>();
    repeat(Count<kSteps ? kSteps - 1 : 0>{steps - 1},
           [&]() CATTN_INLINE_LAMBDA { take.template operator()<false>(); });
  }
  // A step of theirs. kShares: what kProduct has in common with the product before is loaded.
  template <class P, int kRows, int kVectors, int kProduct, int kTo, bool kShares, bool kBegins,
            class Output, class Beside>
  CATTN_INLINE void step(const LeftPairs& left, const RightPairs& right, const Output& to,
                         Beside& beside) {
    constexpr auto parts = P::list.of[kProduct], before = P::list.of[kProduct - kShares];
    constexpr bool load_a = !kShares || parts.left != before.left;
    constexpr bool load_b = !kShares || parts.right != before.right;
    tile_step<P, kRows, kVectors, load_a, load_b, kBegins>(
        left.p + left.offset(parts.left), right.p + parts.right * right.part, left.row, to, beside);
    if constexpr (P::list.count > 1 && (kVectors == 2 || kProduct % 2 == 0)) beside.step();
    if constexpr (kProduct + 1 < kTo)
      step<P, kRows, kVectors, kProduct + 1, kTo, true, false>(left, right, to, beside);
  }
  // Up to four products of tiles at a and b, rows `row` elements apart, unless they are loaded.
  template <class P, int kRows, int kVectors, bool kLoadLeft, bool kLoadRight, bool kBegins,
            class Output, class Beside>
  CATTN_INLINE void tile_step(const uint16_t* a, const uint16_t* b, Index row, const Output& to,
                              Beside& beside) {
    constexpr bool two_rows = kRows == 2 * kTileRows, two_cols = kVectors == 2;
    const Index row_bytes = row * kHalf;
    if constexpr (kLoadLeft) tiles_.template load<4>(a, row_bytes);
    if constexpr (kLoadRight) tiles_.template load_streamed<6>(b, kTileBytes);
    if constexpr (kBegins) begin_sum<0>(pending_[0], to, 0, 0);
    multiply_add<P, 0, 4, 6>();
    if constexpr (P::list.count == 1) beside.step();
    if constexpr (two_cols) {
      if constexpr (kLoadRight) tiles_.template load_streamed<7>(b + kPairTile, kTileBytes);
      if constexpr (kBegins) begin_sum<1>(pending_[1], to, 0, 1);
      multiply_add<P, 1, 4, 7>();
      if constexpr (P::list.count == 1) beside.step();
    }
    if constexpr (two_rows) {
      if constexpr (kLoadLeft) tiles_.template load<5>(a + kTileRows * row, row_bytes);
      if constexpr (kBegins) begin_sum<2>(pending_[2], to, kTileRows, 0);
      multiply_add<P, 2, 5, 6>();
      if constexpr (P::list.count == 1) beside.step();
    }
    if constexpr (two_rows && two_cols) {
      if constexpr (kBegins) begin_sum<3>(pending_[3], to, kTileRows, 1);
      multiply_add<P, 3, 5, 7>();
      if constexpr (P::list.count == 1) beside.step();
    }
  }

  template <int kTile, class Output>
  CATTN_INLINE void begin_sum(Pending& pending, const Output& to, Index row, Index vector) {
    store_pending<kTile>(pending);
    float* const c = to.at(row, vector * Pairs::width);
    pending = {c, to.row * static_cast<Index>(sizeof(float))};
    if constexpr (requires { to.start; }) {
      tiles_.template load<kTile>(to.start + vector * Pairs::width - row,
                                  -static_cast<Index>(sizeof(float)));
    } else if (to.add) {
      tiles_.template load<kTile>(pending.c, pending.stride);
    } else {
      tiles_.template zero<kTile>();
    }
  }
  template <int kTile>
  CATTN_INLINE void store_pending(Pending& pending) {
    if (!pending.c) return;
    tiles_.template store<kTile>(pending.c, pending.stride);
    pending.c = nullptr;
  }

  template <class P, int kC, int kA, int kB>
  CATTN_INLINE void multiply_add() {
    tiles_.template multiply_add<typename P::Format::Half, kC, kA, kB>();
  }

  T tiles_;
  Pending pending_[4];  // where the sums in registers 0 to 3 go, between products
};
