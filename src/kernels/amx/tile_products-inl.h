// The micro-kernel of multiply_pairs in tile registers: 32 x 32 outputs in four of them, two hold
// the left operand and two the right one. T is HardwareTiles (amx/tile.h) or
// EmulatedTiles.
//
// The object configures the registers: make one per call of a kernel, not per product.
template <class T>
class TileProducts {
 public:
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
    constexpr bool two_rows = kRows == 2 * kTileRows, two_cols = kVectors == 2;
    tiles_.template zero<0>();
    if constexpr (two_cols) tiles_.template zero<1>();
    if constexpr (two_rows) tiles_.template zero<2>();
    if constexpr (two_rows && two_cols) tiles_.template zero<3>();
    for (int product = 0; product < P::list.count; ++product) {
      const uint16_t* const a = left.p + P::list.of[product].left * left.part;
      const uint16_t* const b = right.p + P::list.of[product].right * right.part;
      for (Index d = begin / kPairDepth * kPairDepth; d < end; d += kPairDepth) {
        load_left<4>(a + d / kPairDepth * left.panel, begin - d, end - d);
        load_right<6>(b + d * kPairCols);
        tiles_.template multiply_add<0, 4, 6>();
        if constexpr (two_cols) {
          load_right<7>(b + d * kPairCols + 2 * Pairs::width);
          tiles_.template multiply_add<1, 4, 7>();
        }
        if constexpr (two_rows) {
          load_left<5>(a + d / kPairDepth * left.panel + kTileRows * kPairDepth, begin - d,
                       end - d);
          tiles_.template multiply_add<2, 5, 6>();
        }
        if constexpr (two_rows && two_cols) tiles_.template multiply_add<3, 5, 7>();
      }
    }
    alignas(64) float sums[kRows * kPairCols];
    store<0>(sums, 0, 0);
    if constexpr (two_cols) store<1>(sums, 0, 1);
    if constexpr (two_rows) store<2>(sums, kTileRows, 0);
    if constexpr (two_rows && two_cols) store<3>(sums, kTileRows, 1);
    constexpr int step = 8;  // rows that vector registers hold at a time
    for (Index r = 0; r < kRows; r += step) {
      Pairs::V rows[step][kVectors];
      CATTN_UNROLL
      for (int i = 0; i < step; ++i) {
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

  // 16 rows of a left panel, with zeros outside of [begin, end).
  template <int kTile>
  CATTN_INLINE void load_left(const uint16_t* p, Index begin, Index end) {
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

  template <int kTile>
  CATTN_INLINE void load_right(const uint16_t* p) {
    tiles_.template load<kTile>(p, 2 * kTileBytes);
  }

  // One tile into (rows, 32) sums.
  template <int kTile>
  CATTN_INLINE void store(float* sums, Index row, Index vector) {
    tiles_.template store<kTile>(sums + row * kPairCols + vector * Pairs::width,
                                 kPairCols * static_cast<Index>(sizeof(float)));
  }

  T tiles_;
};
