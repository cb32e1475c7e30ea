// The tiles of all instruction sets with 32 registers of 512 bits. Included like vec/avx512.h.

// 32 registers: 12 x 2 accumulators and 2 right operands; the left one is broadcast from memory.
// A longer block of keys in the backward adds to dq less often, and one of queries in the forward
// has less around its products, but scores leave the caches, where they are kept in all of a block.
template <Index kForwardQueries, Index kBackwardKeys>
struct VectorTile {
  static constexpr int rows = 12, vectors = 2;
  static constexpr bool loops_by_kind = true;
  template <class T>
  struct Forward {
    static constexpr Index query_block = kForwardQueries, key_block = 128;
  };
  template <class T>
  struct Backward {
    static constexpr Index query_block = 128, key_block = kBackwardKeys;
  };
  // Of what is kept in 2 bytes: more rows for each time that dk and dv are added to.
  struct BackwardOfHalves {
    static constexpr Index query_block = 256, key_block = kBackwardKeys;
  };
};
