// Matrix products on pairs of bfloat16 or float16: layouts, packing, and the loops over tiles.
//
// VDPBF16PS, TDPBF16PS and TDPFP16PS multiply pairs that are adjacent along the depth of a product
// and add into float32. An operand is kept in one to three parts (parts-inl.h), each a matrix of
// its own:
//   left  (rows, depth):  (depth / 32, rows, 32), so a row of a panel is 64 bytes, 16 pairs;
//   right (depth, cols):  (cols / 32, depth / 32, 2, 16, 16, 2): of 32 columns and 32 of the depth
//                         two tiles one after the other, whose rows are a vector of 16 pairs.
// Of an operand in several parts the end of the depth may be laid out otherwise (Leftover).
// A tile of 16 rows and 64 bytes is one tile register of either; side by side two of them would
// take 4 to 8 % longer to load. Depth is padded with zeros to a
// multiple of 32, rows to a multiple of 16 and columns to a multiple of 32.
//
// Which two make a pair is the same in both operands (Pairing): neighbours along the depth, or of
// every 32 the first and the 17th, the second and the 18th and so on. Those come out of two vectors
// of a row without a permutation, so what is computed is paired like that.
//
// Needs Vec<float> of 16 lanes, Pairs and Float16Pairs, parts-inl.h and gemm-inl.h before it.

constexpr Index kPairDepth = 32;  // elements of a left panel, of depth
constexpr Index kPairRows = 16;   // what rows are padded to
constexpr Index kPairCols = 32;   // columns of a right panel
constexpr Index kPairTile = 512;  // elements of a tile
static_assert(kPanel<float> == kPairCols && Vec<float>::width == 16);

// Elements of one part.
CATTN_INLINE Index left_elements(Index rows, Index depth) {
  return round_up(rows, kPairRows) * round_up(depth, kPairDepth);
}
CATTN_INLINE Index right_elements(Index depth, Index cols) {
  return round_up(depth, kPairDepth) * round_up(cols, kPairCols);
}

struct LeftPairs {
  uint16_t* p;
  Index panel;  // elements from one panel to the next: 32 * rows of the memory
  Index part;   // elements from one part to the next
  // From one row of a panel to the next; only tile registers take another one, where panels lie
  // side by side in the rows of a larger matrix.
  Index row = kPairDepth;
  Index third = 0;     // how much further than that the third part is
  Index leftover = 0;  // width of places for what is left over of the depth (Leftover)

  CATTN_INLINE static LeftPairs make(void* memory, Index rows, Index depth) {
    return {static_cast<uint16_t*>(memory), round_up(rows, kPairRows) * kPairDepth,
            left_elements(rows, depth)};
  }
  // depth: a multiple of 32
  CATTN_INLINE LeftPairs at(Index r, Index depth) const {
    return {p + depth / kPairDepth * panel + r * row, panel, part, row, third, leftover};
  }
  CATTN_INLINE Index offset(int i) const { return i * part + (i == 2 ? third : 0); }
};

struct RightPairs {
  uint16_t* p;
  Index panel;  // elements from one panel to the next: 32 * (padded) depth
  Index part;

  CATTN_INLINE static RightPairs make(void* memory, Index depth, Index cols) {
    return {static_cast<uint16_t*>(memory), round_up(depth, kPairDepth) * kPairCols,
            right_elements(depth, cols)};
  }
  // depth: even; col: a multiple of 16; from a place in between on, whole steps and panels only.
  CATTN_INLINE RightPairs at(Index depth, Index col) const {
    const Index tile = depth / kPairDepth * 2 + col % kPairCols / Pairs::width;
    const Index in_tile = depth % kPairDepth * Pairs::width;
    return {p + col / kPairCols * panel + tile * kPairTile + in_tile, panel, part};
  }
};

// The first n elements of a vector, or all; zeros for the rest.
template <class S>
CATTN_INLINE Pairs::V load_up_to(const S* p, Index n) {
  using X = Vec<float>;
  return n >= X::width ? X::load(p) : n > 0 ? X::load_n(p, n) : X::zero();
}

// 32 elements of a row in memory, of which n exist, as 16 pairs.
template <class F, int kParts, Pairing kPairing = Pairing::neighbours,
          Splitting kSplitting = Splitting::rounded, class S>
CATTN_INLINE void split_row(const S* p, Index n, RangeOf<F, kParts, S>& range,
                            Pairs::W (&parts)[kParts]) {
  if constexpr (kIsPart<F, kParts, S>) {
    static_assert(kPairing == Pairing::neighbours);
    parts[0] = Pairs::load_up_to(&p->bits, n);
    range.see(parts[0]);
  } else {
    constexpr Index width = Pairs::width;
    const auto first = load_up_to(p, n),
               second = load_up_to(p + (n > width ? width : 0), n - width);
    range.see(first);
    range.see(second);
    split_row<F, kParts, kPairing, kSplitting>(first, second, parts);
  }
}

// The depth of the first element of pair i, and how far behind it the other one is.
template <Pairing kPairing>
CATTN_INLINE Index first_of_pair(Index i) {
  const Index steps = i / Pairs::width * kPairDepth, in_step = i % Pairs::width;
  return steps + (kPairing == Pairing::halves ? in_step : 2 * in_step);
}
template <Pairing kPairing>
constexpr Index kPairDistance = kPairing == Pairing::halves ? Pairs::width : 1;

// Two rows of `rows` that exist, the first and the one `distance` further, of 16 columns from p on
// (n exist) as pairs.
template <class F, int kParts, class S>
CATTN_INLINE void split_two_rows(const S* p, Index stride, Index first, Index distance, Index rows,
                                 Index n, RangeOf<F, kParts, S>& range, Pairs::W (&parts)[kParts]) {
  const Index second = first + distance;
  const Index lower_count = first < rows ? n : 0, upper_count = second < rows ? n : 0;
  const S* const lower_row = p + (lower_count > 0 ? first * stride : 0);
  const S* const upper_row = p + (upper_count > 0 ? second * stride : 0);
  if constexpr (kIsPart<F, kParts, S>) {
    parts[0] = Pairs::load_pairs(&lower_row->bits, lower_count, &upper_row->bits, upper_count);
    range.see(parts[0]);
  } else {
    const auto lower = load_up_to(lower_row, lower_count);
    const auto upper = load_up_to(upper_row, upper_count);
    range.see(lower);
    range.see(upper);
    split<F, kParts>(lower, upper, parts);
  }
}

// Zeros for the rows of a left operand that do not exist, up to whole tiles.
template <int kParts>
CATTN_INLINE void pad_left(LeftPairs left, Index rows, Index depth) {
  for (Index d = 0; d < depth; d += kPairDepth) {
    for (Index r = rows; r < round_up(rows, kPairRows); ++r) {
      CATTN_UNROLL
      for (int p = 0; p < kParts; ++p)
        Pairs::store(left.at(r, d).p + left.offset(p), Pairs::zero());
    }
  }
}

// Left operand from (rows, depth) in memory: Q for Q K^T, dO for dO V^T, P for P V, dS for dS K.
// S is the type in memory.
template <class F, int kParts, Pairing kPairing = Pairing::neighbours,
          Splitting kSplitting = Splitting::rounded, class S>
PackedRange pack_left(const S* source, Index stride, Index rows, Index depth, LeftPairs left) {
  RangeOf<F, kParts, S> range;
  for (Index r = 0; r < rows; ++r) {
    uint16_t* to = left.at(r, 0).p;
    for (Index d = 0; d < depth; d += kPairDepth, to += left.panel) {
      const Index n = smaller(kPairDepth, depth - d);
      Pairs::W parts[kParts];
      split_row<F, kParts, kPairing, kSplitting>(source + r * stride + d, n, range, parts);
      CATTN_UNROLL
      for (int p = 0; p < kParts; ++p) Pairs::store(to + left.offset(p), parts[p]);
    }
  }
  pad_left<kParts>(left, rows, depth);
  return range.template range<F>();
}

// Left operand from its transpose (depth, rows) in memory: Q for Q^T dS, dO for dO^T P.
template <class F, int kParts, class S>
PackedRange pack_left_transposed(const S* source, Index stride, Index depth, Index rows,
                                 LeftPairs left) {
  RangeOf<F, kParts, S> range;
  for (Index d = 0; d < depth; d += kPairDepth) {
    for (Index r = 0; r < rows; r += kPairRows) {
      Pairs::W parts[kParts][16];
      for (Index k = 0; k < 16; ++k) {
        Pairs::W pair[kParts];
        split_two_rows<F, kParts>(source + r, stride, d + 2 * k, 1, depth, rows - r, range, pair);
        CATTN_UNROLL
        for (int p = 0; p < kParts; ++p) parts[p][k] = pair[p];
      }
      uint16_t* const to = left.at(r, d).p;
      for (int p = 0; p < kParts; ++p) {
        Pairs::transpose(parts[p]);
        CATTN_UNROLL
        for (int i = 0; i < 16; ++i) {
          Pairs::store(to + left.offset(p) + i * kPairDepth, parts[p][i]);
        }
      }
    }
  }
  return range.template range<F>();
}

// Right operand from (depth, cols) in memory: V for P V, K for dS K, dS for Q^T dS, P for dO^T P.
template <class F, int kParts, Pairing kPairing = Pairing::neighbours, class S>
PackedRange pack_right(const S* source, Index stride, Index depth, Index cols, RightPairs right) {
  RangeOf<F, kParts, S> range;
  for (Index i = 0; i < round_up(depth, kPairDepth) / 2; ++i) {
    const Index first = first_of_pair<kPairing>(i);
    constexpr Index distance = kPairDistance<kPairing>;
    Index c = 0;
    if constexpr (kIsPart<F, kParts, S>) {  // whole panels as they are
      const S* const row = source + first * stride;
      for (; first + distance < depth && c + kPairCols <= cols; c += kPairCols) {
        const auto lower = Pairs::load(&row[c].bits);
        const auto upper = Pairs::load(&row[c + distance * stride].bits);
        range.see(lower);
        range.see(upper);
        uint16_t* const to = right.at(2 * i, c).p;
        Pairs::W pairs[2];
        Pairs::interleave(lower, upper, pairs);
        Pairs::store(to, pairs[0]);
        Pairs::store(to + kPairTile, pairs[1]);
      }
    }
    for (; c < round_up(cols, kPairCols); c += Pairs::width) {
      uint16_t* const to = right.at(2 * i, c).p;
      Pairs::W parts[kParts];
      split_two_rows<F, kParts>(source + (c < cols ? c : 0), stride, first, distance, depth,
                                cols - c, range, parts);
      CATTN_UNROLL
      for (int p = 0; p < kParts; ++p) Pairs::store(to + p * right.part, parts[p]);
    }
  }
  return range.template range<F>();
}

// Right operand from its transpose (cols, depth) in memory: K for Q K^T, V for dO V^T.
template <class F, int kParts, class S>
PackedRange pack_right_transposed(const S* source, Index stride, Index cols, Index depth,
                                  RightPairs right) {
  RangeOf<F, kParts, S> range;
  for (Index c = 0; c < round_up(cols, kPairCols); c += Pairs::width) {
    for (Index d = 0; d < depth; d += kPairDepth) {
      const Index n = smaller(kPairDepth, depth - d);
      Pairs::W parts[kParts][16];
      const auto load = [&](Index i, const S* row, Index count) {
        Pairs::W pair[kParts];
        split_row<F, kParts>(row, count, range, pair);
        CATTN_UNROLL
        for (int p = 0; p < kParts; ++p) parts[p][i] = pair[p];
      };
      if (kIsPart<F, kParts, S> && n == kPairDepth && c + 16 <= cols) {  // as they are
        CATTN_UNROLL
        for (Index i = 0; i < 16; ++i) load(i, source + (c + i) * stride + d, kPairDepth);
      } else {
        for (Index i = 0; i < 16; ++i) {
          const bool exists = c + i < cols;
          load(i, source + (exists ? (c + i) * stride + d : 0), exists ? n : 0);
        }
      }
      uint16_t* const to = right.at(d, c).p;
      for (int p = 0; p < kParts; ++p) {
        Pairs::transpose(parts[p]);
        CATTN_UNROLL
        for (int k = 0; k < 16; ++k) {
          Pairs::store(to + p * right.part + k * kPairDepth, parts[p][k]);
        }
      }
    }
  }
  return range.template range<F>();
}

// Which parts are multiplied: part i of the left operand with part j of the right one wherever
// i + j < kOrders, about 2^-8 smaller for every step of i + j. Neighbours in the list have a part
// in common, which is loaded once for both; where a sum is to be as accurate as float32, the small
// ones come first, so that they are not lost in a sum that is large already (then what is left over
// of the depth, if it is laid out apart, then the large ones). With |x - hi| <= 2^-8
// |x| and so on (parts-inl.h), what is left out is, relative to the sum of |x y|:
//   <3, 3, 3>  float32, "highest": six products, 2^-24 (mid lo and lo mid, 2^-25 each)
//   <2, 2, 2>  float32, "high": three products, 2^-15 (mid mid 2^-16, the remainders 2^-17 each)
//   <1, 1, 1>  bfloat16, nothing; float32, "medium": 2^-7; one with the other 2^-8
//   <2, 2, 3>  float16: four products, nothing (mid mid would be missing by 2^-16)
//   <3, 2, 3>  a float32 times a float16: five products, 2^-25
//   <3, 1, 3>  a float32 times a bfloat16: three products, nothing
//   <2, 1, 2>  the same with 16 bits of the float32: two products, 2^-17
//   <1, 1, 1, Float16Pairs>  float16, nothing; with what is rounded to float16, 2^-11
template <int kLeft, int kRight, int kOrders, class F = Pairs>
struct Products {
  using Format = F;
  static constexpr int left_parts = kLeft, right_parts = kRight;
  struct Product {
    int left, right;
  };
  struct List {
    int count = 0;
    int small = 0;  // so many come first, and are to be summed before the others
    Product of[kLeft * kRight] = {};
  };
  static constexpr List make() {
    List all;
    const auto add = [&](int left, int right) { all.of[all.count++] = {left, right}; };
    if constexpr (kLeft == 3 && kRight == 3) {
      static_assert(kOrders == 3);
      add(0, 2), add(0, 1), add(1, 1), add(1, 0), add(2, 0);
      all.small = all.count;
      add(0, 0);
      return all;
    }
    // Every other row of the table backwards.
    for (int j = kRight - 1; j >= 0; --j) {
      const int most = kLeft - 1 < kOrders - 1 - j ? kLeft - 1 : kOrders - 1 - j;
      for (int n = 0; n <= most; ++n) add((kRight - 1 - j) % 2 == 0 ? most - n : n, j);
    }
    return all;
  }
  static constexpr List list = make();
};

// What a depth goes beyond whole steps, where that is little. In several parts it would take a step
// for each product; instead parts stand side by side along the depth of a few steps. A panel of the
// right operand serves for two steps where it can, as it comes from further away. Step j of the
// left operand and panel j of the right one are where the last panel of part j would be.
constexpr int kNoPart = -1;
struct LeftoverLayout {
  struct Step {
    int right_panel;
    int left[4];  // parts that stand side by side
  };
  int right[2][4];
  int right_panels, steps;
  Step step[3];  // products that are small come first, along the depth of a step too
};
// In places of 8 or 16 elements: four or two in a panel.
template <class P, int kWidth>
constexpr LeftoverLayout leftover_layout() {
  constexpr int no = kNoPart;
  constexpr bool narrow = kWidth == 8;
  if constexpr (P::left_parts == 3) {
    if constexpr (narrow) return {{{0, 1, 2, 0}}, 1, 2, {{0, {2, 1, no, no}}, {0, {1, 0, 0, 0}}}};
    return {{{1, 0, no, no}, {0, 2, no, no}},
            2,
            3,
            {{1, {2, 0, no, no}}, {0, {1, 1, no, no}}, {0, {0, 0, no, no}}}};
  } else {
    constexpr int last = P::list.count == 4 ? 1 : no;  // with the right operand's second part
    if constexpr (narrow) return {{{1, 0, 1, 0}}, 1, 1, {{0, {last, 1, 0, 0}}}};
    return {{{1, 0, no, no}}, 1, 2, {{0, {last, 1, no, no}}, {0, {0, 0, no, no}}}};
  }
}

// Whether its steps multiply the parts that P lists, each pair once.
template <class P, int kWidth>
constexpr bool multiplies_all() {
  constexpr LeftoverLayout layout = leftover_layout<P, kWidth>();
  int times[3][3] = {};
  for (int j = 0; j < layout.steps; ++j) {
    const auto& step = layout.step[j];
    for (int i = 0; i < kPairDepth / kWidth; ++i)
      if (step.left[i] != kNoPart) ++times[step.left[i]][layout.right[step.right_panel][i]];
  }
  for (int i = 0; i < P::list.count; ++i) --times[P::list.of[i].left][P::list.of[i].right];
  for (const auto& row : times)
    for (const int n : row)
      if (n != 0) return false;
  return true;
}

// What is left over of a depth: `width` is that of places, 0 if it is not laid out like that.
template <class P>
struct Leftover {
  Index first = 0;  // of its elements along the depth
  Index width = 0;

  CATTN_INLINE static Leftover of(Index depth) {
    const Index first = depth / kPairDepth * kPairDepth, rest = depth - first;
    constexpr bool serves = P::left_parts > 1 && P::left_parts == P::right_parts;
    // Sums begin with a whole step.
    if (!serves || first == 0 || rest == 0 || rest > kPairDepth / 2) return {};
    return {first, rest > kPairDepth / 4 ? kPairDepth / 2 : kPairDepth / 4};
  }
  CATTN_INLINE bool joined() const { return width > 0; }
  // How many steps the depth has beside.
  CATTN_INLINE static Index whole_steps(Index depth) {
    return of(depth).joined() ? depth / kPairDepth : in_steps_of(depth, kPairDepth);
  }
  CATTN_INLINE LeftoverLayout layout() const {
    if constexpr (P::left_parts == 1) return {};
    static_assert(P::left_parts == 1 || (multiplies_all<P, 8>() && multiplies_all<P, 16>()));
    return width == 8 ? leftover_layout<P, 8>() : leftover_layout<P, 16>();
  }
  // A place of a part in either operand: the step or panel, and from which element of the depth on.
  struct Place {
    Index panel, at;
  };
  Place of_left(int part) const {
    return find([&](Index j, Index i) { return layout().step[j].left[i] == part; });
  }
  Place of_right(int part) const {
    return find([&](Index j, Index i) { return layout().right[j][i] == part; });
  }
  CATTN_INLINE Index steps() const { return joined() ? layout().steps : 0; }

 private:
  template <class F>
  Place find(F holds) const {
    const Index places = kPairDepth / width;
    Index n = 0;
    while (!holds(n / places, n % places)) ++n;
    return {n / places, n % places * width};
  }
};

// Puts what is left over of the depth of a packed operand, from `first` on, side by side.
template <class P, int kWidth>
void join_parts(LeftPairs left, Index rows, Index first) {
  constexpr LeftoverLayout layout = leftover_layout<P, kWidth>();
  for (Index r = 0; r < round_up(rows, kPairRows); ++r) {
    uint16_t* const row = left.at(r, first).p;
    Pairs::W parts[P::left_parts];
    CATTN_UNROLL
    for (int p = 0; p < P::left_parts; ++p) parts[p] = Pairs::load(row + left.offset(p));
    for (int j = 0; j < layout.steps; ++j) {
      uint16_t* const to = row + j * left.part;
      Pairs::store(to, Pairs::zero());
      for (int i = 0; i < kPairDepth / kWidth; ++i) {
        const int part = layout.step[j].left[i];
        if (part == kNoPart) continue;
        __builtin_memcpy(to + i * kWidth, &parts[part], kWidth * sizeof(uint16_t));
      }
    }
  }
}
template <class P, int kWidth>
void join_parts(RightPairs right, Index cols, Index first) {
  constexpr LeftoverLayout layout = leftover_layout<P, kWidth>();
  constexpr int pairs = kWidth / 2;
  for (Index c = 0; c < round_up(cols, kPairCols); c += Pairs::width) {
    uint16_t* const tile = right.at(first, c).p;
    Pairs::W parts[P::right_parts][pairs];
    for (int p = 0; p < P::right_parts; ++p)
      for (int k = 0; k < pairs; ++k)
        parts[p][k] = Pairs::load(tile + p * right.part + k * kPairDepth);
    for (int j = 0; j < layout.right_panels; ++j) {
      uint16_t* to = tile + j * right.part;
      for (int i = 0; i < kPairDepth / kWidth; ++i)
        for (int k = 0; k < pairs; ++k, to += kPairDepth)
          Pairs::store(to, parts[layout.right[j][i]][k]);
    }
  }
}
// The same of rows or columns, if there is something to join.
template <class P, class Operand>
CATTN_INLINE void join_leftover(const Operand& operand, Index count, Index depth) {
  const auto leftover = Leftover<P>::of(depth);
  if constexpr (P::left_parts > 1) {
    if (leftover.width == 8) join_parts<P, 8>(operand, count, leftover.first);
    if (leftover.width == 16) join_parts<P, 16>(operand, count, leftover.first);
  }
}

// The numbers of a right operand again, the sums of their parts, in panels of (depth, 32) that are
// `panel` elements apart. P: the products for which it has joined what is left over, if it has.
template <class F, int kParts, Pairing kPairing = Pairing::neighbours,
          class P = Products<1, 1, 1, F>>
void unpack_right(RightPairs right, Index depth, Index cols, float* panels, Index panel) {
  using X = Vec<float>;
  static_assert(P::left_parts == 1 || kPairing == Pairing::neighbours);
  const auto leftover = Leftover<P>::of(depth);
  // Of pair i of the depth and vector c of columns.
  const auto pairs_at = [&](int part, Index i, Index c) -> const uint16_t* {
    if (!leftover.joined() || 2 * i < leftover.first)
      return right.at(2 * i, c).p + part * right.part;
    const auto place = leftover.of_right(part);
    return right.at(2 * i + place.at, c).p + place.panel * right.part;
  };
  for (Index c = 0; c < cols; c += Pairs::width) {
    float* const to = panels + c / kPairCols * panel + c % kPairCols;
    for (Index i = 0; i < round_up(depth, kPairDepth) / 2; ++i) {
      const Index first = first_of_pair<kPairing>(i), second = first + kPairDistance<kPairing>;
      if (first >= depth) continue;
      auto lower = X::zero(), upper = X::zero();
      CATTN_UNROLL
      for (int p = kParts - 1; p >= 0; --p) {
        const auto pairs = Pairs::load(pairs_at(p, i, c));
        lower = X::add(lower, F::lower(pairs));
        upper = X::add(upper, F::upper(pairs));
      }
      X::store(to + first * kPairCols, lower);
      if (second < depth) X::store(to + second * kPairCols, upper);
    }
  }
}

// The same of a left operand of (rows, depth), in panels of (rows, 32).
template <class F, int kParts, class P>
void unpack_left(LeftPairs left, Index rows, Index depth, float* panels, Index panel) {
  using X = Vec<float>;
  using Half = typename F::Half;
  const auto leftover = Leftover<P>::of(depth);
  for (Index d = 0; d < depth; d += kPairDepth, panels += panel) {
    const bool joined = leftover.joined() && d == leftover.first;
    const Index count = joined ? leftover.width : kPairDepth;
    Index offset[kParts];
    for (int p = 0; p < kParts; ++p) {
      offset[p] = left.offset(p);
      if (!joined) continue;
      const auto place = leftover.of_left(p);
      offset[p] = place.panel * left.part + place.at;
    }
    for (Index r = 0; r < rows; ++r) {
      const Half* const from = reinterpret_cast<const Half*>(left.at(r, d).p);
      for (Index i = 0; i < kPairDepth; i += X::width) {
        auto sum = X::zero();
        CATTN_UNROLL
        for (int p = kParts - 1; p >= 0; --p)
          sum = X::add(sum, load_up_to(from + offset[p] + (i < count ? i : 0), count - i));
        X::store(panels + r * kPairDepth + i, sum);
      }
    }
  }
}

// Keeps or adds products. Element (i, j) is at c[i * row + j / 32 * panel + j % 32]: a tile of
// scores with rows of its own length (panel = 32), or panels of n rows (row = 32, panel = 32 * n).
struct PairOutput {
  float* c;
  Index row, panel;
  bool add;                               // c += factor * product, else c = product
  const float* factors = nullptr;         // of the rows, if not 1
  const float* column_factors = nullptr;  // likewise
  bool afresh = true;  // of three parts: adds a sum that starts at 0, not product by product

  CATTN_INLINE float* at(Index r, Index col) const {
    return c + r * row + col / kPairCols * panel + col % kPairCols;
  }
  CATTN_INLINE PairOutput from(Index r, Index col) const {
    PairOutput rest = *this;
    rest.c = at(r, col);
    if (factors) rest.factors += r;
    if (column_factors) rest.column_factors += col;
    return rest;
  }
  template <int kRows, int kVectors>
  CATTN_INLINE void operator()(Pairs::V (&tile)[kRows][kVectors], Index r, Index col) const {
    using X = Vec<float>;
    float* const to = at(r, col);
    CATTN_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const auto factor = X::set1(factors ? factors[r + i] : 1.0f);
      CATTN_UNROLL
      for (int j = 0; j < kVectors; ++j) {
        float* const p = to + i * row + j * X::width;
        auto x = tile[i][j];
        if (column_factors) x = X::mul(x, X::load(column_factors + col + j * X::width));
        X::store(p, add ? X::fma(x, factor, X::load(p)) : X::mul(x, factor));
      }
    }
  }
};

// In tile registers: c = start[j - i] + product (BandEdge).
struct StartedOutput : PairOutput {
  const float* start;

  CATTN_INLINE StartedOutput from(Index r, Index col) const {
    return {PairOutput::from(r, col), start + col - r};
  }
};
CATTN_INLINE PairOutput starting_with(decltype(nullptr), const PairOutput& to) { return to; }
CATTN_INLINE StartedOutput starting_with(const float* start, const PairOutput& to) {
  return {to, start};
}

// left * right, for the products P of their parts: out(tile, row, col) receives it tile by tile in
// vectors of 16. depth_range(row, count, col) gives the part of the depth, in whole steps of
// Micro::depth_step, that counts for those rows and the panel of columns from col (tile registers
// ask once, with col = 0); where it is empty there is no tile. Rows past `rows`, up to a multiple
// of 16, and columns past `cols`, up to a multiple of 16, come too (zeros where padding is met).
//
// The micro-kernels: row_tiles(rows, f) calls f<kRows>(row). RegisterProducts has
// tile<P, kRows, kVectors>, which does kRows rows by kVectors * 16 columns; TileProducts, whose
// stores_sums is true, has product<P, kRows>, which does all columns of kRows rows and leaves sums
// in memory behind flush().
template <class P, bool kWholePanels = false, class Micro, class Out, class DepthRange>
CATTN_INLINE void multiply_pairs(Micro& micro, LeftPairs left, Index rows, RightPairs right,
                                 Index cols, Out out, DepthRange depth_range) {
  if constexpr (Micro::stores_sums) {
    Micro::row_tiles(rows, [&]<int kRows>(Index r) {
      const Range depth = depth_range(r, kRows, 0);
      if (depth.begin >= depth.end) return;
      const Index vectors = round_up(cols, Pairs::width) / Pairs::width;
      // As accurate as float32, the sum starts afresh: the small products come first.
      constexpr bool as_float32 = P::left_parts == 3;
      if constexpr (requires { out.at(r, Index{0}); }) {
        const bool afresh = as_float32 && out.add && out.afresh;
        if (!afresh && !out.factors && !out.column_factors) {
          micro.template product<P, kRows>(left.at(r, 0), right, depth, vectors, out.from(r, 0));
          return;
        }
      }
      micro.template product<P, kRows>(
          left.at(r, 0), right, depth, vectors,
          [&](auto& tile, Index i, Index col) { out(tile, r + i, col); });
    });
  } else {
    for (Index col = 0; col < cols; col += kPairCols) {
      const bool narrow = !kWholePanels && cols - col <= Vec<float>::width;
      Micro::row_tiles(rows, [&]<int kRows>(Index r) {
        const auto [begin, end] = depth_range(r, kRows, col);
        if (begin >= end) return;
        const auto put = [&](auto& tile, Index i) { out(tile, r + i, col); };
        if constexpr (!kWholePanels) {
          if (narrow) {
            micro.template tile<P, kRows, 1>(left.at(r, 0), right.at(0, col), begin, end, put);
            return;
          }
        }
        micro.template tile<P, kRows, 2>(left.at(r, 0), right.at(0, col), begin, end, put);
      });
    }
  }
}

// The micro-kernel in vector registers: a pair of the left operand is broadcast to all lanes.
struct RegisterProducts {
  using Apart = RegisterProducts;
  static constexpr bool multiplies_float16 = false;
  static constexpr bool stores_sums = false;
  static constexpr Index depth_step = 2;
  static constexpr Index tallest = Tile::rows, row_padding = Tile::rows / 3;

  template <class F>
  CATTN_INLINE static void row_tiles(Index rows, F f) {
    static_assert(kPairRows % (Tile::rows / 3) == 0);
    for_row_tiles(rows, f);
  }

  CATTN_INLINE static void stay_awake() {}
  CATTN_INLINE static void flush() {}

  template <class P, int kRows, int kVectors, class Put>
  CATTN_INLINE void tile(LeftPairs left, RightPairs right, Index begin, Index end, Put put) const {
    Pairs::V acc[kRows][kVectors];
    clear<float>(acc);
    for (int product = 0; product < P::list.count; ++product) {
      const uint16_t* const a = left.p + left.offset(P::list.of[product].left);
      const Index part = P::list.of[product].right * right.part;
      for (Index d = begin; d < end;) {
        const Index stop = smaller(end, (d / kPairDepth + 1) * kPairDepth);
        multiply_add(acc, a + d / kPairDepth * left.panel + d % kPairDepth, right.at(d, 0).p + part,
                     (stop - d) / 2);
        d = stop;
      }
    }
    put(acc, 0);
  }

 private:
  template <int kRows, int kVectors>
  CATTN_INLINE static void multiply_add(Pairs::V (&acc)[kRows][kVectors], const uint16_t* a,
                                        const uint16_t* b, Index pairs) {
#pragma GCC unroll 2
    for (Index k = 0; k < pairs; ++k, a += 2, b += kPairDepth) {
      Pairs::W right[kVectors];
      CATTN_UNROLL
      for (int j = 0; j < kVectors; ++j) right[j] = Pairs::load(b + j * kPairTile);
      CATTN_UNROLL
      for (int i = 0; i < kRows; ++i) {
        const auto left = Pairs::broadcast(a + i * kPairDepth);
        CATTN_UNROLL
        for (int j = 0; j < kVectors; ++j) {
          acc[i][j] = Pairs::multiply_add(acc[i][j], left, right[j]);
        }
      }
    }
  }
};
