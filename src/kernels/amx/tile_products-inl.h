// The micro-kernel of multiply_pairs in tile registers: 32 x 32 outputs, the sums of products of
// 32 rows and 32 columns over a chain of steps, each 32 elements of the depth in one of the
// products of parts. T is HardwareTiles (amx/tile.h) or EmulatedTiles.
//
// A register takes long to come out of the unit, so that what it costs must hide behind other
// products: sums leave one by one, between the products of those that follow.
//
// The object configures the registers: make one per call of a kernel, not per product.
template <class T>
class TileProducts {
 public:
  static constexpr bool multiplies_float16 = true;  // if the CPU has AMX-FP16
  static constexpr Index tallest = 2 * kTileRows, row_padding = kTileRows;

  TileProducts() : tiles_(kWhole) {}

  template <class F>
  CATTN_INLINE static void row_tiles(Index rows, F f) {
    Index r = 0;
    for (; rows - r > kTileRows; r += 2 * kTileRows) f.template operator()<2 * kTileRows>(r);
    if (rows - r > 0) f.template operator()<kTileRows>(r);
  }

  template <class P, int kRows, int kVectors, class Put>
  CATTN_INLINE void tile(LeftPairs left, RightPairs right, Index begin, Index end, Put put) {
    const Range depth{begin / kPairDepth * kPairDepth, round_up(end, kPairDepth)};
    const auto load_left = [&]<int kTile>(const Step& step, Index row) {
      load_within<kTile>(step.left(left, row), begin - step.depth, end - step.depth);
    };
    const auto load_right = [&]<int kTile>(const Step& step, Index vector) {
      tiles_.template load<kTile>(step.right(right, vector), 2 * kTileBytes);
    };
    alignas(64) float sums[kRows * kPairCols];
    const Index steps = (depth.end - depth.begin) / kPairDepth * P::list.count;
    if (steps <= 2) {
      chain_of_two<P, kRows, kVectors>(depth, steps, load_left, load_right, sums);
    } else {
      long_chain<P, kRows, kVectors>(depth, load_left, load_right, sums);
    }
    constexpr int group = 8;  // rows that vector registers hold at a time
    for (Index r = 0; r < kRows; r += group) {
      Pairs::V rows[group][kVectors];
      CATTN_UNROLL
      for (int i = 0; i < group; ++i) {
        CATTN_UNROLL
        for (int v = 0; v < kVectors; ++v)
          rows[i][v] = Vec<float>::load(sums + (r + i) * kPairCols + v * Pairs::width);
      }
      put(rows, r);
    }
  }

 private:
  static constexpr TileShape kWhole[kTiles] = {{kTileRows, kTileBytes}, {kTileRows, kTileBytes},
                                               {kTileRows, kTileBytes}, {kTileRows, kTileBytes},
                                               {kTileRows, kTileBytes}, {kTileRows, kTileBytes},
                                               {kTileRows, kTileBytes}, {kTileRows, kTileBytes}};

  // One step of a chain: part `left_part` of the left operand with part `right_part` of the right
  // one, over the depth from `depth` on.
  struct Step {
    int left_part, right_part;
    Index depth;

    CATTN_INLINE const uint16_t* left(LeftPairs from, Index row) const {
      return from.at(row, depth).p + left_part * from.part;
    }
    CATTN_INLINE const uint16_t* right(RightPairs from, Index vector) const {
      return from.at(depth, vector * Pairs::width).p + right_part * from.part;
    }
  };
  template <class P>
  CATTN_INLINE static Step step(Range depth, Index i) {
    const Index per_product = (depth.end - depth.begin) / kPairDepth;
    const auto [left_part, right_part] = P::list.of[i / per_product];
    return {left_part, right_part, depth.begin + i % per_product * kPairDepth};
  }

  // One or two steps: the whole left operand stays in registers 4 to 7, and the sums are taken one
  // after the other.
  template <class P, int kRows, int kVectors, class LoadLeft, class LoadRight>
  CATTN_INLINE void chain_of_two(Range depth, Index steps, LoadLeft load_left, LoadRight load_right,
                                 float* sums) {
    constexpr bool two_rows = kRows == 2 * kTileRows, two_cols = kVectors == 2;
    const bool two_steps = steps == 2;
    const Step first = step<P>(depth, 0), second = step<P>(depth, steps - 1);
    load_left.template operator()<4>(first, 0);
    if (two_steps) load_left.template operator()<5>(second, 0);
    if constexpr (two_rows) {
      load_left.template operator()<6>(first, kTileRows);
      if (two_steps) load_left.template operator()<7>(second, kTileRows);
    }
    const auto columns = [&]<int kVector>() {
      load_right.template operator()<2>(first, kVector);
      if (two_steps) load_right.template operator()<3>(second, kVector);
      tiles_.template zero<0>();
      multiply_add<P, 0, 4, 2>();
      if (two_steps) multiply_add<P, 0, 5, 3>();
      store<0>(sums, 0, kVector);
      if constexpr (two_rows) {
        tiles_.template zero<1>();
        multiply_add<P, 1, 6, 2>();
        if (two_steps) multiply_add<P, 1, 7, 3>();
        store<1>(sums, kTileRows, kVector);
      }
    };
    columns.template operator()<0>();
    if constexpr (two_cols) columns.template operator()<1>();
  }

  // Any number of steps: all sums at once in registers 0 to 3, so that what is loaded for a step
  // serves four products; they leave between the products of the last step.
  template <class P, int kRows, int kVectors, class LoadLeft, class LoadRight>
  CATTN_INLINE void long_chain(Range depth, LoadLeft load_left, LoadRight load_right, float* sums) {
    constexpr bool two_rows = kRows == 2 * kTileRows, two_cols = kVectors == 2;
    tiles_.template zero<0>();
    if constexpr (two_cols) tiles_.template zero<1>();
    if constexpr (two_rows) tiles_.template zero<2>();
    if constexpr (two_rows && two_cols) tiles_.template zero<3>();
    for (int product = 0; product < P::list.count; ++product) {
      const auto [left_part, right_part] = P::list.of[product];
      for (Index d = depth.begin; d < depth.end; d += kPairDepth) {
        const Step at{left_part, right_part, d};
        const bool last = product + 1 == P::list.count && d + kPairDepth >= depth.end;
        load_left.template operator()<4>(at, 0);
        load_right.template operator()<6>(at, 0);
        multiply_add<P, 0, 4, 6>();
        if (last) store<0>(sums, 0, 0);
        if constexpr (two_cols) {
          load_right.template operator()<7>(at, 1);
          multiply_add<P, 1, 4, 7>();
          if (last) store<1>(sums, 0, 1);
        }
        if constexpr (two_rows) {
          load_left.template operator()<5>(at, kTileRows);
          multiply_add<P, 2, 5, 6>();
          if (last) store<2>(sums, kTileRows, 0);
        }
        if constexpr (two_rows && two_cols) {
          multiply_add<P, 3, 5, 7>();
          if (last) store<3>(sums, kTileRows, 1);
        }
      }
    }
  }

  template <class P, int kC, int kA, int kB>
  CATTN_INLINE void multiply_add() {
    tiles_.template multiply_add<typename P::Format::Half, kC, kA, kB>();
  }

  // 16 rows of a left panel, with zeros outside of [begin, end).
  template <int kTile>
  CATTN_INLINE void load_within(const uint16_t* p, Index begin, Index end) {
    if (begin <= 0 && end >= kPairDepth) {
      tiles_.template load<kTile>(p, kTileBytes);
      return;
    }
    alignas(64) uint16_t part[kTileRows * kPairDepth];
    for (Index r = 0; r < kTileRows; ++r) {
      for (Index k = 0; k < kPairDepth; ++k) {
        part[r * kPairDepth + k] = k >= begin && k < end ? p[r * kPairDepth + k] : uint16_t{0};
      }
    }
    tiles_.template load<kTile>(part, kTileBytes);
  }

  // One tile into (rows, 32) sums.
  template <int kTile>
  CATTN_INLINE void store(float* sums, Index row, Index vector) {
    tiles_.template store<kTile>(sums + row * kPairCols + vector * Pairs::width,
                                 kPairCols * static_cast<Index>(sizeof(float)));
  }

  T tiles_;
};
