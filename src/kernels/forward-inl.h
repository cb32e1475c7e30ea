// Forward: one query block of one head against its keys, in one pass with a running softmax
// (Milakov and Gimelshein 2018; Dao et al. 2022).
//
// Per key block: scores (products, transforms), probabilities p = 2^(s - reference) of scores in
// units of log2(e), and o += p v. The reference of a row is a maximum that it has seen, rounded to
// an integer; it moves only when a new maximum exceeds it by a factor of 2^8, so most blocks
// rescale nothing.
//
// Mostly not even the maxima are needed: |s| <= |q| |k|, and where that is at most kReach the
// reference is -kReach, so that p is between 1 and 2^(2 kReach), and the exponential is taken while
// the products are in registers. References being integers, results do not depend on which it was:
// only the exponents of p, o and the sums do.
//
// Where p is rounded to a half type for its product with v, the reference is the maximum itself and
// moves with it: the largest weight of a row is then a power of 2 and loses nothing, and where few
// keys matter that is most of the error. Where weights come rounded at once, maxima would take as
// long as they do: scores within kRoundedReach have that as the reference, p is between
// 2^(-2 kRoundedReach) and 1, and the largest weight is rounded like all others.
constexpr int kReach = 40, kRoundedReach = 28;
template <class M>
constexpr int kReachOf = M::rounds_weights ? kRoundedReach : kReach;
template <class M>
constexpr int kReferenceWithinReach = M::rounds_weights ? kRoundedReach : -kReach;

template <class T>
struct ForwardScratch {
  using Tiles = typename Tile::Forward<T>;
  T *query, *score, *out, *sum, *reference, *maximum;
  // Of the weights as they are multiplied with v: `sum` itself, unless they are rounded for it.
  T* weight_sum;
  // What is to be added to the `out` of the group of rows at hand; null: nothing.
  T* out_more = nullptr;
  // Forward mode (jvp-inl.h) sums these too; null otherwise.
  T *out_tangent = nullptr, *sum_tangent = nullptr;

  CATTN_INLINE ForwardScratch(void* scratch, Index head_dim, Index value_dim,
                              bool rounds_weights = false, bool sums_afresh = false) {
    T* p = static_cast<T*>(scratch);
    const auto take = [&](Index elements) {
      T* const mine = p;
      p += round_up(elements, 64 / static_cast<Index>(sizeof(T)));
      return mine;
    };
    score = take(Tiles::query_block * Tiles::key_block);
    query = take(Tiles::query_block * round_up(head_dim, kPanel<T>));
    out = take(Tiles::query_block * round_up(value_dim, kPanel<T>));
    sum = take(Tiles::query_block * Vec<T>::width);
    weight_sum = rounds_weights ? take(Tiles::query_block * Vec<T>::width) : sum;
    reference = take(Tiles::query_block);
    maximum = take(Tiles::query_block * Vec<T>::width);
    if (sums_afresh) out_more = take(Tiles::query_block * round_up(value_dim, kPanel<T>));
    end = p;
  }
  // The same of the rows from `row` on, whose scores take the place of those before.
  CATTN_INLINE ForwardScratch from(Index row) const {
    ForwardScratch rows = *this;
    rows.query += row * kPanel<T>;
    rows.out += row * kPanel<T>;
    rows.sum += row * Vec<T>::width;
    rows.weight_sum += row * Vec<T>::width;
    rows.reference += row;
    rows.maximum += row * Vec<T>::width;
    return rows;
  }
  T* end;
};

// The bytes of a scratch that was laid out from null.
template <class T>
CATTN_INLINE Index bytes_up_to(T* end) {
  return static_cast<Index>(reinterpret_cast<uintptr_t>(end));
}

template <class M>
Index forward_scratch_bytes(Index head_dim, Index value_dim) {
  const ForwardScratch<typename M::T> scratch(nullptr, head_dim, value_dim, M::rounds_weights,
                                              M::sums_afresh);
  return bytes_up_to(scratch.end) + M::Forward::scratch_bytes(head_dim, value_dim);
}

// Scores of one row to probabilities, in place; adds them to the row's sums (one per lane).
// With kMark, masked positions become kMasked.
template <class T, bool kMark, class Probability>
CATTN_INLINE void exponentiate_row(T* s, Index begin, Index end, T* sum, Probability probability) {
  using X = Vec<T>;
  const auto minus_infinity = X::set1(-T(__builtin_inff()));
  auto total = sum ? X::load(sum) : X::zero();
  for (Index j = begin; j < end; j += X::width) {
    const auto score = X::load(s + j);
    auto p = probability(score);
    if constexpr (kMark) {
      p = X::select(X::equal(score, minus_infinity), X::set1(kMasked<T>), p);
    }
    total = X::add(total, p);
    X::store(s + j, p);
  }
  if (sum) X::store(sum, total);
}

// The probabilities of a row's scores relative to its reference, 2^(factor s - reference), times
// what rounded weights are kept with.
template <class M, class T = typename M::T>
class Probability {
  using X = Vec<T>;

 public:
  CATTN_INLINE Probability(T factor, T reference)
      : factor_(X::set1(factor)), reference_(X::set1(M::rounds_weights ? -reference : reference)) {}

  CATTN_INLINE typename X::V operator()(typename X::V score) const {
    if constexpr (M::rounds_weights) {
      return M::Exponential::template of<M::weight_exponent>(X::fma(score, factor_, reference_));
    } else {
      return M::Exponential::above(X::mul(score, factor_), reference_);
    }
  }

 private:
  typename X::V factor_, reference_;
};

// Up to this size of a reference m c, where m is a row's maximum and c the factor, m c is as good
// as its rounding: fma(m, c, -reference) is so close to 0 that the weight is 1 when it is rounded.
// Beyond, and where the factor is huge, the scores are multiplied first, and the difference is
// exactly 0.
template <class T>
CATTN_INLINE bool fuses(T reference, T factor) {
  return reference <= T(4096) && reference >= T(-4096) && factor <= T(0x1p100);
}

// The same panel by panel, each given to keep(column, panel). Adds them to the row's sums, and what
// is multiplied with v to `weight_sum` if M rounds it and does not sum what it keeps.
template <class M, class T, class F, class Keep>
CATTN_INLINE void exponentiate_panels(const T* s, Range columns, T* sum, T* weight_sum,
                                      F probability, Keep keep) {
  using X = Vec<T>;
  constexpr bool kRounded = M::rounds_weights && !M::Forward::sums_kept;
  const auto panels = [&]<bool kSum>() {
    auto total = X::zero(), weight_total = X::zero();
    for (Index c = columns.begin; c < columns.end; c += kPanel<T>) {
      typename X::V p[kPanel<T> / X::width];
      CATTN_UNROLL
      for (int j = 0; j < kPanel<T> / X::width; ++j) {
        p[j] = probability(X::load(s + c + j * X::width));
        if constexpr (kSum) total = X::add(total, p[j]);
      }
      if constexpr (kRounded) weight_total = X::add(weight_total, M::sum_rounded(p));
      keep(c, p);
    }
    const auto add_to = [](T* sums, auto more) { X::store(sums, X::add(X::load(sums), more)); };
    if constexpr (kRounded) add_to(weight_sum, weight_total);
    if constexpr (kSum) add_to(sum, total);
  };
  if (!sum) {
    panels.template operator()<false>();
  } else {
    panels.template operator()<true>();
  }
}

// What is known of scores that become rounded weights. finite: or -inf; bounded: within reach, or
// -inf.
enum class Scores { any, finite, bounded };

// The weights of rows' scores, rounded as they are kept: 2^(factor s - reference), 1 at most.
template <class M, Scores kScores, class T = typename M::T>
class RoundRow {
  using X = Vec<T>;
  using Weights = typename M::RoundedWeights;

 public:
  CATTN_INLINE explicit RoundRow(T factor) : by_(X::set1(factor * Weights::units)) {}

  // The place of a score of 0.
  CATTN_INLINE static typename X::V place_of_zero(T reference) {
    return X::set1(Weights::place(-reference));
  }
  CATTN_INLINE static typename X::V place_of_zero_within_reach() {
    static_assert(kScores == Scores::bounded);
    return X::set1(Weights::place(T(-kReferenceWithinReach<M>)) + Weights::in_last_bits);
  }
  template <class Keeper>
  CATTN_INLINE void operator()(const T* s, Range columns, typename X::V place_of_zero,
                               Keeper keeper) const {
#pragma GCC unroll 4
    for (Index c = columns.begin; c < columns.end; c += kPanel<T>, keeper.next_panel()) {
      const auto place = [&](Index at) { return X::fma(X::load(s + at), by_, place_of_zero); };
      const auto first = place(c), second = place(c + X::width);
      if constexpr (kScores == Scores::bounded) {
        keeper.keep(weights_.at_last_bits(first, second));
      } else {
        keeper.keep(weights_.template at<kScores == Scores::finite>(first, second));
      }
    }
  }

 private:
  typename X::V by_;
  Weights weights_;
};

// The same with the weights themselves, e^(s - lse).
template <class T, bool kMark>
CATTN_INLINE void exponentiate_row_below(T* s, Index begin, Index end, T factor, RowScale<T> row) {
  using X = Vec<T>;
  const auto c = X::set1(factor), shift = X::set1(row.shift), scale = X::set1(row.scale);
  exponentiate_row<T, kMark>(s, begin, end, nullptr, [&](auto score) {
    return X::mul(exp2_above<T>(X::mul(score, c), shift), scale);
  });
}

// The lane-wise maximum of a row; NaN is passed over.
template <class T>
CATTN_INLINE typename Vec<T>::V row_maximum(const T* s, Index begin, Index end) {
  using X = Vec<T>;
  auto m = X::set1(-T(__builtin_inff()));
  for (Index j = begin; j < end; j += X::width) m = X::max(X::load(s + j), m);
  return m;
}

// Multiplies what a row has summed so far.
template <class T>
CATTN_INLINE void rescale_row(const ForwardScratch<T>& scratch, Index r, typename Vec<T>::V factor,
                              Index value_dim) {
  using X = Vec<T>;
  constexpr Index query_block = ForwardScratch<T>::Tiles::query_block;
  const auto rescale_sum = [&](T* sums) {
    T* const sum = sums + r * X::width;
    X::store(sum, X::mul(X::load(sum), factor));
  };
  const auto rescale_out = [&](T* accumulator) {
    for (Index col = 0; col < value_dim; col += X::width) {
      T* const p = accumulator + (col / kPanel<T> * query_block + r) * kPanel<T> + col % kPanel<T>;
      X::store(p, X::mul(X::load(p), factor));
    }
  };
  rescale_sum(scratch.sum);
  rescale_out(scratch.out);
  if (scratch.weight_sum != scratch.sum) rescale_sum(scratch.weight_sum);
  if (scratch.out_more) rescale_out(scratch.out_more);
  if (scratch.out_tangent) {
    rescale_sum(scratch.sum_tangent);
    rescale_out(scratch.out_tangent);
  }
}

// Moves the reference of a row.
template <class T>
CATTN_INLINE void move_reference(const ForwardScratch<T>& scratch, Index r, T reference,
                                 Index value_dim) {
  const T old = scratch.reference[r];
  scratch.reference[r] = reference;
  if (old == -T(__builtin_inff())) return;  // nothing summed yet
  rescale_row(scratch, r, exp2<T>(Vec<T>::set1(old - reference)), value_dim);
}

// Makes the references of all rows fit a block with these lane-wise maxima. `width` rows at a time:
// mostly none has to move.
template <class M, class T>
CATTN_INLINE void move_references(const ForwardScratch<T>& scratch, Index rows, T factor,
                                  Index value_dim) {
  using X = Vec<T>;
  constexpr bool exact = M::rounds_weights;
  constexpr T slack = exact ? 0 : 8;  // sums grow by 2^8 at most before a row moves
  for (Index r = 0; r < rows; r += X::width) {
    const auto exponent =
        X::mul(maximum_of_rows<T>(scratch.maximum + r * X::width), X::set1(factor));
    const auto limit = X::add(X::load(scratch.reference + r), X::set1(slack));
    if (!X::any(X::greater(exponent, limit))) continue;
    T references[X::width];
    X::store(references, exact ? exponent : X::nearest(exponent));
    for (Index i = 0; i < smaller(X::width, rows - r); ++i) {
      if (references[i] > scratch.reference[r + i] + slack) {
        move_reference(scratch, r + i, references[i], value_dim);
      }
    }
  }
}

// The transformed scores of rows [r, r + count) over whole vectors [begin, end). `slope` is null or
// a tile like s that receives the derivative of a softcap.
template <class T, Index kStride>
CATTN_INLINE void transform_rows(const ScoreBlock& block, const ScoreTerms& terms, T* s, Index r,
                                 Index count, Index begin, Index end, T* slope = nullptr) {
  const bool full = block.full(r, count, begin, end);
  if (full && is_plain(terms)) return;
  for (Index row = r; row < smaller(r + count, block.rows); ++row) {
    transform_row(s + row * kStride, begin, end, terms, block, row, full,
                  slope ? slope + row * kStride : nullptr);
  }
}

template <class T>
CATTN_INLINE Range whole_vectors(Range range) {
  return whole(range, Vec<T>::width);
}

// Rows of one part between two calls of M::stay_awake.
constexpr Index kRowsAwake = 32;

// Calls f(row, begin, end) for all rows of a block, with the columns of their row tile in whole
// steps, by default whole vectors. M is how matrices are multiplied (fma_matrices-inl.h).
template <class M, Index kStep = Vec<typename M::T>::width, class F>
CATTN_INLINE void for_rows_of_block(const ScoreBlock& block, F f) {
  M::row_tiles(block.rows, [&]<int kRows>(Index r) {
    const Range columns = block.columns(r, kRows);
    if (columns.begin >= columns.end) return;
    const auto [begin, end] = whole(columns, kStep);
    for (Index row = r; row < smaller(r + kRows, block.rows); ++row) {
      if (row % kRowsAwake == kRowsAwake / 2) M::stay_awake();
      f(row, begin, end);
    }
  });
}

// Probabilities of a row that has had nothing to attend so far: its scores are all -inf or NaN.
template <class T, bool kMark>
void exponentiate_empty_row(T* s, Index begin, Index end, T* sum) {
  for (Index j = begin; j < end; ++j) {
    if (s[j] != s[j]) {
      sum[0] = s[j];
    } else {
      s[j] = kMark ? kMasked<T> : T(0);
    }
  }
}

// Adds the rounded probabilities of a row to its sum of weights. What stands in [begin, end) is
// summed in whole panels, as exponentiate_panels does.
template <class M, class T>
CATTN_INLINE void sum_rounded_row(const T* p, Index begin, Index end, T* weight_sum) {
  using X = Vec<T>;
  auto total = X::load(weight_sum);
  for (Index c = begin / kPanel<T> * kPanel<T>; c < end; c += kPanel<T>) {
    typename X::V panel[kPanel<T> / X::width];
    for (Index j = 0; j < kPanel<T> / X::width; ++j) {
      const Index at = c + j * X::width;
      panel[j] = begin <= at && at < end ? X::load(p + at) : X::zero();
    }
    total = X::add(total, M::sum_rounded(panel));
  }
  X::store(weight_sum, total);
}

// Multiplies what the rows from r on have summed by their factors, one per lane, where `rows` has a
// bit.
template <class T>
CATTN_INLINE void rescale_rows(const ForwardScratch<T>& scratch, Index r, unsigned rows,
                               typename Vec<T>::V by, Index value_dim) {
  using X = Vec<T>;
  T factors[X::width];
  X::store(factors, by);
  for (; rows != 0; rows &= rows - 1) {
    const Index i = __builtin_ctz(rows);
    rescale_row(scratch, r + i, X::set1(factors[i]), value_dim);
  }
}

// Moves the references of rows to `reached` where that is more.
template <class T>
CATTN_INLINE void raise_references(const ForwardScratch<T>& scratch, Index rows, const T* reached,
                                   Index value_dim) {
  using X = Vec<T>;
  const auto minus_infinity = X::set1(-T(__builtin_inff()));
  for (Index first = 0; first < rows; first += X::width) {
    const auto old = X::load(scratch.reference + first), now = X::load(reached + first);
    if (const unsigned moved = X::bits(X::greater(now, old))) {
      X::store(scratch.reference + first, X::max(now, old));
      const unsigned summed = X::bits(X::greater(old, minus_infinity));
      const unsigned exist = X::bits(X::lanes_between(0, rows - first));
      rescale_rows(scratch, first, moved & summed & exist, exp2<T>(X::sub(old, now)), value_dim);
    }
  }
}

// RoundRow of rows; place_of_zero(r) is that of row r.
template <class M, Scores kScores, class T = typename M::T, class PlaceOfZero>
CATTN_INLINE void round_rows(const T* score, Index rows, Range columns, T factor,
                             const typename M::Forward& matrices, PlaceOfZero place_of_zero) {
  constexpr Index stride = ForwardScratch<T>::Tiles::key_block;
  const RoundRow<M, kScores> round_row(factor);
  auto keeper = matrices.keeper(0, columns.begin);
  for (Index r = 0; r < rows; ++r, keeper.next_row())
    round_row(score + r * stride, columns, place_of_zero(r), keeper);
}

// softmax_rows where scores are plain, every row attends some of `columns`, whole panels, and the
// maximum of a row is its reference, which fuses, or with `bounded` all references are that of
// scores within reach. What a row does not attend is -inf. The weights do not wait for what is
// summed to follow references that move: that comes behind them.
template <class M, bool kSum, class T>
CATTN_INLINE void softmax_whole_rows(const ForwardScratch<T>& scratch, Index rows, Range columns,
                                     T factor, bool bounded, Index value_dim,
                                     const typename M::Forward& matrices) {
  using X = Vec<T>;
  constexpr Index stride = ForwardScratch<T>::Tiles::key_block;
  constexpr int in_panel = kPanel<T> / X::width;
  const auto by = X::set1(factor);
  if constexpr (!kSum && M::rounds_at_once) {
    if (bounded) {
      const auto one = RoundRow<M, Scores::bounded>::place_of_zero_within_reach();
      round_rows<M, Scores::bounded>(scratch.score, rows, columns, factor, matrices,
                                     [&](Index) { return one; });
      return;
    }
  }
  T reached[M::row_group], sums[kSum ? M::row_group * X::width : 1];
  static_assert(M::row_group % X::width == 0);
  for (Index first = 0; first < rows; first += X::width) {
    if (kSum && bounded) {
      X::store(reached + first, X::set1(T(kReferenceWithinReach<M>)));
      continue;
    }
    typename X::V maxima[X::width];
    CATTN_UNROLL
    for (Index i = 0; i < X::width; ++i) {  // rows past the last repeat it
      const T* const s = scratch.score + smaller(first + i, rows - 1) * stride;
      maxima[i] = row_maximum(s, columns.begin, columns.end);
    }
    const auto maximum = combine_rows<T>(maxima, [](auto a, auto b) { return X::max(a, b); });
    X::store(reached + first, X::max(X::mul(maximum, by), X::load(scratch.reference + first)));
  }
  if constexpr (!kSum && M::rounds_at_once) {
    using Round = RoundRow<M, Scores::finite>;
    round_rows<M, Scores::finite>(scratch.score, rows, columns, factor, matrices,
                                  [&](Index r) { return Round::place_of_zero(reached[r]); });
    raise_references(scratch, rows, reached, value_dim);
    return;
  }
  for (Index r = 0; r < rows; ++r) {
    const T* const s = scratch.score + r * stride;
    if (r % kRowsAwake == kRowsAwake / 2) M::stay_awake();
    const auto reference = X::set1(reached[r]);
    auto total = X::zero();
#pragma GCC unroll 4
    for (Index c = columns.begin; c < columns.end; c += kPanel<T>) {
      typename X::V p[in_panel];
      CATTN_UNROLL
      for (int j = 0; j < in_panel; ++j) {
        p[j] = M::Exponential::template of<M::weight_exponent>(
            X::fms(X::load(s + c + j * X::width), by, reference));
        if constexpr (kSum) total = X::add(total, p[j]);
      }
      matrices.keeper(r, c)(0, p);
    }
    if constexpr (kSum) X::store(sums + r * X::width, total);
  }
  if (!bounded) raise_references(scratch, rows, reached, value_dim);
  if constexpr (kSum) {
    for (Index i = 0; i < rows * X::width; i += X::width)
      X::store(scratch.sum + i, X::add(X::load(scratch.sum + i), X::load(sums + i)));
  }
}

// What is known of the scores of a block.
struct KnownScores {
  bool fuse = false;     // they are finite, and references that are their maxima fuse
  bool bounded = false;  // within reach, as all of the task: that is where the references stay
};

// From the products of a block to its probabilities, summed but not yet dropped. `factor` is what
// brings scores to units of log2(e); has_maxima: the rows' maxima over the panels of their row tile
// are there; `slope` as in transform_rows. Probabilities take the place of the scores, or with
// kKeep `matrices` keeps them, the way its next product wants them.
template <class M, bool kMark, bool kKeep = false, class T>
CATTN_INLINE void softmax_rows(const ForwardScratch<T>& scratch, const ScoreBlock& block,
                               const ScoreTerms& terms, T factor, bool has_maxima, Index value_dim,
                               const typename M::Forward* matrices = nullptr, T* slope = nullptr,
                               [[maybe_unused]] KnownScores known = {}) {
  using X = Vec<T>;
  constexpr Index stride = ForwardScratch<T>::Tiles::key_block;
  constexpr Index step = kKeep ? kPanel<T> : X::width;
  if constexpr (kKeep && M::Forward::sums_kept) {
    const Range columns = whole(block.columns(0, block.rows), step);
    if (known.fuse && is_plain(terms) && block.every_row_attends()) {
      transform_rows<T, stride>(block, terms, scratch.score, 0, block.rows, columns.begin,
                                columns.end);
      constexpr Range all{0, stride};  // loops of a known length: mostly that is the case
      const auto softmax = [&]<bool kAll>() {
        const Range panels = kAll ? all : columns;
        if (scratch.sum == scratch.weight_sum) {
          softmax_whole_rows<M, false>(scratch, block.rows, panels, factor, known.bounded,
                                       value_dim, *matrices);
        } else {
          softmax_whole_rows<M, true>(scratch, block.rows, panels, factor, known.bounded, value_dim,
                                      *matrices);
        }
      };
      if (columns.begin == all.begin && columns.end == all.end) {
        softmax.template operator()<true>();
      } else {
        softmax.template operator()<false>();
      }
      return;
    }
  }
  const bool plain = has_maxima && is_plain(terms);
  M::row_tiles(block.rows, [&]<int kRows>(Index r) {
    const Range columns = block.columns(r, kRows);
    const Index count = smaller(kRows, block.rows - r);
    if (columns.begin >= columns.end) {
      fill(scratch.maximum + r * X::width, count * X::width, -T(__builtin_inff()));
      return;
    }
    // The products' own maxima are over whole panels: they serve where all of that is attended.
    if (plain && block.full(r, kRows, columns.begin / kPanel<T> * kPanel<T>,
                            round_up(columns.end, kPanel<T>))) {
      return;
    }
    const auto [begin, end] = whole(columns, step);
    transform_rows<T, stride>(block, terms, scratch.score, r, kRows, begin, end, slope);
    for (Index row = r; row < r + count; ++row) {
      X::store(scratch.maximum + row * X::width,
               row_maximum(scratch.score + row * stride, begin, end));
    }
  });
  if (!known.bounded) move_references<M>(scratch, block.rows, factor, value_dim);
  for_rows_of_block<M, step>(block, [&](Index row, Index begin, Index end) {
    T* const s = scratch.score + row * stride;
    T* const weight_sum = scratch.weight_sum + row * X::width;
    // The exact sum serves for the lse only.
    const bool same = M::rounds_weights && scratch.sum == scratch.weight_sum;
    T* const sum = same ? nullptr : scratch.sum + row * X::width;
    T reference = scratch.reference[row];
    const bool empty = reference == -T(__builtin_inff());
    T by = factor;
    if (M::rounds_weights && !fuses(reference, factor) && !empty) {
      scale_row(s, begin, end, factor);
      shift_row(s, begin, end, -reference);  // a pass of its own: no compiler may fuse the two
      by = 1;
      reference = 0;
    }
    const Probability<M> probability(by, reference);
    if (empty) exponentiate_empty_row<T, kMark>(s, begin, end, sum ? sum : weight_sum);
    if constexpr (kKeep) {
      const auto keep = [&](Index c, auto& p) { matrices->keeper(row, c)(0, p); };
      const Range panels{begin, end};
      if constexpr (M::rounds_at_once) {
        if (!sum && !empty) {
          const RoundRow<M, Scores::any> round_row(by);
          round_row(s, panels, round_row.place_of_zero(reference), matrices->keeper(row, begin));
          return;
        }
      }
      if (empty) {
        exponentiate_panels<M>(s, panels, sum, weight_sum, [](auto p) { return p; }, keep);
      } else {
        exponentiate_panels<M>(s, panels, sum, weight_sum, probability, keep);
      }
    } else {
      if (!empty) exponentiate_row<T, kMark>(s, begin, end, sum, probability);
      if constexpr (M::rounds_weights) sum_rounded_row<M>(s, begin, end, weight_sum);
    }
  });
}

// Drops weights of a block. Apart, so that the loop without dropout stays small.
template <class M, class T>
[[gnu::noinline]] void drop_rows(T* tile, const ScoreBlock& block, const Dropout& dropout) {
  constexpr Index stride = ForwardScratch<T>::Tiles::key_block;
  BlockWords<stride> random;
  for_rows_of_block<M>(block, [&](Index row, Index begin, Index end) {
    random.draw(dropout, block, row);
    drop_row(tile + row * stride, begin, end, random.words, dropout.threshold);
  });
}

// What the rows' sums come to: denominators are reference-scaled, 2^reference sum (+ the sink). The
// output is divided by what its weights add up to: where they are rounded, a row's largest weight
// then costs no accuracy, and what few keys share is off by a part of their difference only.
template <class T>
struct RowResults {
  T factors[Vec<T>::width];  // out = o * factor
  T lses[Vec<T>::width];     // natural log
};

// x = mantissa 2^exponent with the mantissa in [1/2, 1).
struct Binary {
  double mantissa;
  int exponent;
  CATTN_INLINE explicit Binary(double x) { mantissa = __builtin_frexp(x, &exponent); }
};

// lse = ln(2) (reference + log2(sum)); a row without keys gives -inf.
template <class T>
CATTN_INLINE T log_sum(T reference, T sum) {
  if (sum == T(0)) return -T(__builtin_inff());
  const Binary s(static_cast<double>(sum));
  const double exponent = static_cast<double>(reference) + s.exponent;
  return static_cast<T>(exponent * kLn2 + __builtin_log(s.mantissa));
}

// For `width` rows from `first` on.
template <class T>
CATTN_INLINE RowResults<T> row_results(const ForwardTask& t, const ForwardScratch<T>& scratch,
                                       Index first) {
  using X = Vec<T>;
  RowResults<T> results;
  T sums[X::width], weight_sums[X::width];
  const auto sum = sum_rows<T>(scratch.sum + first * X::width);
  auto weight_sum = sum;
  if (scratch.weight_sum != scratch.sum)
    weight_sum = sum_rows<T>(scratch.weight_sum + first * X::width);
  X::store(sums, sum);
  X::store(weight_sums, weight_sum);
  auto kept_scale = X::set1(T(1));
  if (t.terms->dropout.on) kept_scale = X::set1(static_cast<T>(t.terms->dropout.kept_scale));
  const auto reciprocal = X::div(kept_scale, weight_sum);
  X::store(results.factors, X::select(X::equal(weight_sum, X::zero()), X::zero(), reciprocal));
  const Index rows = smaller(X::width, t.rows - first);
  const T* const reference = scratch.reference + first;
  if (t.sink == -__builtin_inf()) {
    if (t.lse)
      for (Index r = 0; r < rows; ++r) results.lses[r] = log_sum(reference[r], sums[r]);
    return results;
  }
  T kept[X::width];
  X::store(kept, kept_scale);
  const T sink = static_cast<T>(t.sink * kLog2e);
  const T sink_exponent = static_cast<T>(__builtin_ceil(static_cast<double>(sink)));
  for (Index r = 0; r < rows; ++r) {
    // The sums in units of 2^top: of the sum without the sink or of the sink, whichever is larger.
    // References may be so large that top - reference is not what is left of it.
    const Binary s(static_cast<double>(sums[r])), w(static_cast<double>(weight_sums[r]));
    const double own = static_cast<double>(reference[r]) + s.exponent;
    const bool sum_leads = sums[r] != T(0) && own > static_cast<double>(sink_exponent);
    const double top = sum_leads ? own : static_cast<double>(sink_exponent);
    const T shift = sum_leads ? static_cast<T>(s.exponent) : sink_exponent - reference[r];
    const T sink_part = exp2_scalar(static_cast<T>(static_cast<double>(sink) - top));
    const auto with_sink = [&](const Binary& x) {
      return static_cast<T>(x.mantissa) * exp2_scalar(static_cast<T>(x.exponent) - shift) +
             sink_part;
    };
    results.factors[r] = exp2_scalar(-shift) * kept[r] / with_sink(w);
    results.lses[r] = log_sum(static_cast<T>(top), with_sink(s));
  }
  return results;
}

// Rows that are written soon: their cache lines come meanwhile.
constexpr Index kRowsAhead = 16;
template <class S>
CATTN_INLINE void prefetch_row(const S* row, Index cols) {
  for (Index c = 0; c < cols; c += 64 / static_cast<Index>(sizeof(S)))
    __builtin_prefetch(row + c, 1, 2);
}

// Rows [first, first + count) of an accumulator to memory, where row r is out + r * stride:
// transform(x, r, at) of each vector x, which is at accumulator + at.
template <class T, class S, class F>
CATTN_INLINE void store_rows(S* out, Index stride, const T* accumulator, Index first, Index count,
                             Index cols, F transform) {
  using X = Vec<T>;
  constexpr Index query_block = ForwardScratch<T>::Tiles::query_block;
  constexpr int in_panel = kPanel<T> / X::width;
  for (Index r = first; r < first + count; ++r) {
    S* to = out + r * stride;
    prefetch_row(to + kRowsAhead * stride, cols);
    Index at = r * kPanel<T>;
    for (Index left = cols; left > 0;
         left -= kPanel<T>, to += kPanel<T>, at += query_block * kPanel<T>) {
      typename X::V x[in_panel];
      CATTN_UNROLL
      for (int j = 0; j < in_panel; ++j) {
        const Index from = at + j * X::width;
        x[j] = transform(X::load(accumulator + from), r, from);
      }
      CATTN_UNROLL
      for (int j = 0; j < in_panel; ++j) {
        const Index n = left - j * X::width;
        if (n >= X::width) {
          X::store(to + j * X::width, x[j]);
        } else if (n > 0) {
          X::store_n(to + j * X::width, x[j], n);
        }
      }
    }
  }
}

// out = o / sum and lse. S is the type in memory.
template <class T, class S>
CATTN_INLINE void finish_rows(const ForwardTask& t, const ForwardScratch<T>& scratch) {
  using X = Vec<T>;
  for (Index first = 0; first < t.rows; first += X::width) {
    const Index count = smaller(X::width, t.rows - first);
    const RowResults<T> results = row_results(t, scratch, first);
    store_rows(
        static_cast<S*>(t.out.data), t.out.row_stride, scratch.out, first, count, t.value_dim,
        [&](auto o, Index r, Index) { return X::mul(o, X::set1(results.factors[r - first])); });
    for (Index r = 0; t.lse && r < count; ++r)
      static_cast<T*>(t.lse)[(first + r) * t.lse_stride] = results.lses[r];
  }
}

template <class T>
CATTN_INLINE ScoreBlock score_block(const ForwardTask& t, Index key_block, Index b) {
  const Index first_key = b * key_block;
  return {t.rows, t.first_query, smaller(key_block, t.band.key_count - first_key), first_key,
          t.band};
}

// Outputs and sums that are still empty, in the rows that row tiles or vectors of rows touch.
template <class M, class T>
CATTN_INLINE void clear_out(Index rows, Index value_dim, T* out) {
  constexpr Index query_block = Tile::Forward<T>::query_block;
  const Index tile_rows = smaller(round_up(rows, M::row_padding), query_block);
  for (Index col = 0; col < value_dim; col += kPanel<T>)
    fill(out + col * query_block, tile_rows * kPanel<T>, T(0));
}
template <class T>
CATTN_INLINE void clear_sums(Index rows, T* sum) {
  fill(sum, round_up(rows, Vec<T>::width) * Vec<T>::width, T(0));
}

template <class M, class T>
CATTN_INLINE void prepare_rows(const ForwardTask& t, const ForwardScratch<T>& scratch) {
  constexpr Index width = Vec<T>::width;
  const Index vector_rows = round_up(t.rows, width);
  clear_sums(t.rows, scratch.sum);
  if (scratch.weight_sum != scratch.sum) clear_sums(t.rows, scratch.weight_sum);
  fill(scratch.reference, vector_rows, -T(__builtin_inff()));
  fill(scratch.maximum + t.rows * width, (vector_rows - t.rows) * width, -T(__builtin_inff()));
}

// The key blocks that a task attends.
template <class T>
CATTN_INLINE Range attended_blocks(const ForwardTask& t) {
  constexpr Index key_block = Tile::Forward<T>::key_block;
  const Index end = highest_key(t.band, t.first_query + t.rows - 1);
  return {lowest_key(t.band, t.first_query) / key_block, (end + key_block - 1) / key_block};
}

// Whether |q| |k| is within reach, in units of log2(e), for all that a task attends, and its values
// are of moderate size.
// Where the scale is not in the queries, norms may underflow while scores do not, unless numbers
// split; where weights are 1 at most, so may their products with values.
template <class M, class T = typename M::T>
CATTN_INLINE bool is_bounded(const ForwardTask& t, const PackedQueries<T>& queries, T factor,
                             Index key_bytes) {
  if (!folds_scale(*t.terms)) return false;
  if (M::scales_queries ? factor != 1 : !queries.split) return false;
  constexpr int of_values = kBlockModerate | (M::rounds_weights ? kBlockSplits : 0);
  constexpr int of_keys = M::scales_queries ? 0 : kBlockSplits;
  const Range blocks = attended_blocks<T>(t);
  if (!M::bounds_serve(blocks.end - blocks.begin)) return false;
  T key_norm = 0;
  for (Index b = blocks.begin; b < blocks.end; ++b) {
    const Index index = b - t.first_block;
    const auto& key = BlockTail<T>::of(t.keys + index * key_bytes, key_bytes);
    if ((t.value_flags[index] & of_values) != of_values) return false;
    if ((key.flags & of_keys) != of_keys) return false;
    if (key.norm > key_norm) key_norm = key.norm;
  }
  constexpr T rounding = M::rounds_weights ? T(1.01) : T(1);  // of float32 operands to one part
  return key_norm * queries.norm * factor * rounding <= T(kReachOf<M>);
}

// Calls f(block, terms, index) for those of `blocks` that a task attends; index counts from
// t.first_block.
template <class T, class F>
CATTN_INLINE void for_key_blocks(const ForwardTask& t, Range blocks, F f) {
  constexpr Index key_block = Tile::Forward<T>::key_block;
  for (Index b = blocks.begin; b < blocks.end; ++b) {
    ScoreTerms terms = *t.terms;
    if (t.mask_kinds) {
      if (t.mask_kinds[b] == MaskKind::empty) continue;
      if (t.mask_kinds[b] == MaskKind::full) terms.mask.data = nullptr;
    }
    f(score_block<T>(t, key_block, b), terms, b - t.first_block);
  }
}
template <class T, class F>
CATTN_INLINE void for_key_blocks(const ForwardTask& t, F f) {
  for_key_blocks<T>(t, attended_blocks<T>(t), f);
}

constexpr Index kBytesInL2 = 1 << 19;  // of keys and values
constexpr Index kBlocksPerSum = 4;     // longer ones grow less accurate

// The same for groups of M::row_group rows, f(group, its first row, terms, index), as far as they
// attend something of a block, and finish(its first row) before another group has its turn. A
// group's outputs stay in the L1 cache for several key blocks, and the key blocks in the L2 cache
// for all groups.
template <class M, class F, class Finish>
CATTN_INLINE void for_row_groups(const ForwardTask& t, Index block_bytes, F f, Finish finish) {
  using T = typename M::T;
  const Index in_l2 = larger(kBytesInL2 / block_bytes, 1);
  const Index at_a_time = M::sums_afresh ? smaller(in_l2, kBlocksPerSum) : in_l2;
  const Range all = attended_blocks<T>(t);
  for (Index first = all.begin; first < all.end; first += at_a_time) {
    const Range blocks{first, smaller(first + at_a_time, all.end)};
    for (Index row = 0; row < t.rows; row += M::row_group) {
      for_key_blocks<T>(t, blocks,
                        [&](const ScoreBlock& block, const ScoreTerms& terms, Index index) {
                          const ScoreBlock group = block.rows_from(row, M::row_group);
                          const Range columns = group.columns(0, group.rows);
                          if (columns.begin < columns.end) f(group, row, terms, index);
                        });
      finish(row);
    }
  }
}

// Probabilities of a tile of products within kReach, in place of its scores; adds them to the rows'
// sums. kKeep: `matrices` keeps them, the way its next product wants them.
template <class M, bool kKeep>
struct StoreBoundedProbabilities {
  using T = typename M::T;
  using X = Vec<T>;
  const ForwardScratch<T>& scratch;
  const ScoreBlock& block;
  const ScoreTerms& terms;
  T factor;  // what brings the products to units of log2(e): 1 if it is in the queries
  typename M::Forward& matrices;

  CATTN_INLINE typename X::V probability(typename X::V score) const {
    const auto x = M::scales_queries ? score : X::mul(score, X::set1(factor));
    return M::Exponential::template of<kReach>(x);
  }

  // Of scores that are in memory.
  CATTN_INLINE void rows() const {
    constexpr Index stride = ForwardScratch<T>::Tiles::key_block;
    const auto of = [&](auto score) { return probability(score); };
    M::row_tiles(block.rows, [&]<int kRows>(Index r) {
      const Range columns = block.columns(r, kRows);
      if (columns.begin >= columns.end) return;
      const auto [begin, end] = whole(columns, kPanel<T>);
      transform_rows<T, stride>(block, terms, scratch.score, r, kRows, begin, end);
      for (Index row = r; row < smaller(r + kRows, block.rows); ++row) {
        if (row % (kRowsAwake / M::weight_parts) == 0) M::stay_awake();
        T* const s = scratch.score + row * stride;
        T* const sum = scratch.sum + row * X::width;
        if constexpr (kKeep) {
          exponentiate_panels<M>(s, Range{begin, end}, sum, sum, of,
                                 [&](Index c, auto& p) { matrices.keeper(row, c)(0, p); });
        } else {
          exponentiate_row<T, false>(s, begin, end, sum, of);
        }
      }
    });
  }

  template <int kRows, int kVectors>
  CATTN_INLINE void operator()(typename X::V (&tile)[kRows][kVectors], Index r, Index c,
                               Range columns) const {
    constexpr Index stride = ForwardScratch<T>::Tiles::key_block;
    T* const s = scratch.score + r * stride + c;
    T* const sums = scratch.sum + r * X::width;
    [[maybe_unused]] const auto keep = matrices.keeper(r, c);
    if (!is_plain(terms) || !block.full(r, kRows, c, c + kPanel<T>)) {
      StoreScores<T, stride>{scratch.score, nullptr}(tile, r, c, columns);
      transform_rows<T, stride>(block, terms, scratch.score, r, kRows, c, c + kPanel<T>);
      for (Index i = 0; i < smaller(kRows, block.rows - r); ++i) {
        T* const row = s + i * stride;
        exponentiate_row<T, false>(row, 0, kPanel<T>, sums + i * X::width,
                                   [&](auto score) { return probability(score); });
        typename X::V p[kVectors];
        for (int j = 0; j < kVectors; ++j) p[j] = X::load(row + j * X::width);
        if constexpr (kKeep) keep(i, p);
      }
      return;
    }
    CATTN_UNROLL
    for (int i = 0; i < kRows; ++i) {
      typename X::V p[kVectors];
      auto total = X::load(sums + i * X::width);
      CATTN_UNROLL
      for (int j = 0; j < kVectors; ++j) {
        p[j] = probability(tile[i][j]);
        total = X::add(total, p[j]);
        if constexpr (!kKeep) X::store(s + i * stride + j * X::width, p[j]);
      }
      X::store(sums + i * X::width, total);
      if constexpr (kKeep) keep(i, p);
    }
  }
};

// Adds `out_more` to the outputs of some rows, if there are some; else it becomes them.
template <class T>
CATTN_INLINE void add_more_to_out(const ForwardScratch<T>& scratch, Index rows, Index value_dim,
                                  bool has_outputs) {
  using X = Vec<T>;
  constexpr Index query_block = ForwardScratch<T>::Tiles::query_block;
  for (Index col = 0; col < value_dim; col += kPanel<T>) {
    T* const out = scratch.out + col * query_block;
    const T* const more = scratch.out_more + col * query_block;
    for (Index i = 0; i < rows * kPanel<T>; i += X::width) {
      const auto sum = X::load(more + i);
      X::store(out + i, has_outputs ? X::add(X::load(out + i), sum) : sum);
    }
  }
}

// The loop over key blocks, shared by all types in memory.
template <class M, class T = typename M::T>
[[gnu::noinline]] void attend(const ForwardTask& t, const ForwardScratch<T>& scratch,
                              const PackedQueries<T>& queries) {
  using Tiles = typename Tile::Forward<T>;
  constexpr Index key_block = Tiles::key_block;
  constexpr Tiling tiling{Tiles::query_block, key_block};
  const Index key_bytes = M::packed_bytes(Operand::key, tiling, t.head_dim);
  const Index value_bytes = M::packed_bytes(Operand::value, tiling, t.value_dim);
  const T factor = static_cast<T>(rest_of_factor<M>(*t.terms));
  const bool bounded = is_bounded<M>(t, queries, factor, key_bytes);
  if (bounded) {
    fill(scratch.reference, round_up(t.rows, Vec<T>::width), T(kReferenceWithinReach<M>));
  }
  typename M::Forward matrices(t, queries, scratch.query, scratch.score, scratch.end);
  // Outputs are not cleared in advance: mostly the first product of a group of rows sets them.
  bool has_outputs[Tiles::query_block / M::row_group] = {};
  const auto begin_outputs = [&](Index row) {  // returns whether there were some
    bool& has_some = has_outputs[row / M::row_group];
    const bool had_some = has_some;
    has_some = true;
    return had_some;
  };
  const auto clear_new_outputs = [&](Index row) {
    if (!begin_outputs(row))
      clear_out<M>(smaller(M::row_group, t.rows - row), t.value_dim, scratch.from(row).out);
  };
  bool has_more = false;
  const auto add_more = [&](Index row) {
    if (!has_more) return;
    has_more = false;
    matrices.settle();
    const Index rows = round_up(smaller(M::row_group, t.rows - row), M::row_padding);
    add_more_to_out(scratch.from(row), rows, t.value_dim, begin_outputs(row));
  };
  for_row_groups<M>(
      t, key_bytes + value_bytes,
      [&](const ScoreBlock& block, Index row, const ScoreTerms& terms, Index index) {
        ForwardScratch<T> rows = scratch.from(row);
        if (!has_more) rows.out_more = nullptr;
        const char* const key = t.keys + index * key_bytes;
        const uint8_t flags = t.value_flags[index];
        const bool keeps = M::Forward::keeps && (flags & kBlockSplits) && !terms.dropout.on;
        const auto exponentiate = [&]<bool kKeep>() {
          if constexpr (!M::rounds_weights && M::finishes_in_registers) {
            if (bounded) {
              matrices.scores(
                  block, row, key,
                  StoreBoundedProbabilities<M, kKeep>{rows, block, terms, factor, matrices});
              return;
            }
          }
          const bool has_maxima =
              matrices.scores(block, row, key, StoreScores<T, key_block>{rows.score, rows.maximum});
          matrices.settle();
          if constexpr (!M::rounds_weights) {
            if (bounded) {
              StoreBoundedProbabilities<M, kKeep>{rows, block, terms, factor, matrices}.rows();
              return;
            }
          }
          const T reach = queries.norm * BlockTail<T>::of(key, key_bytes).norm * factor;
          const auto softmax = [&]<bool kMark>() {
            softmax_rows<M, kMark, kKeep>(
                rows, block, terms, factor, has_maxima, t.value_dim, &matrices,
                static_cast<T*>(nullptr),
                KnownScores{matrices.splits(key) && fuses(reach, factor), bounded});
          };
          if (kKeep || (flags & kBlockFinite)) {
            softmax.template operator()<false>();
          } else {
            softmax.template operator()<true>();
          }
        };
        if (keeps) {
          exponentiate.template operator()<M::Forward::keeps>();
        } else {
          exponentiate.template operator()<false>();
        }
        if (terms.dropout.on) drop_rows<M>(rows.score, block, terms.dropout);
        const char* const value = t.values + index * value_bytes;
        if (keeps) {
          matrices.add_kept_sums(block, rows.weight_sum);
          if constexpr (!M::Forward::begins_outputs) clear_new_outputs(row);
          if constexpr (M::sums_afresh) {
            matrices.accumulate_kept(block, value, scratch.out_more, has_more);
            has_more = true;
          } else {
            matrices.accumulate_kept(block, value, rows.out, begin_outputs(row));
          }
        } else {
          clear_new_outputs(row);
          matrices.accumulate(block, rows.score, value, flags, rows.out);
        }
      },
      add_more);
  matrices.settle();
  for (Index row = 0; row < t.rows; row += M::row_group) clear_new_outputs(row);
  if constexpr (M::weight_exponent != 0) {
    for (Index r = 0; r < t.rows; ++r) scratch.reference[r] -= T(M::weight_exponent);
  }
}

template <class M, class S>
void forward(const ForwardTask& t) {
  ForwardScratch<typename M::T> scratch(t.scratch, t.head_dim, t.value_dim, M::rounds_weights,
                                        M::sums_afresh);
  if (!t.lse) scratch.sum = scratch.weight_sum;  // who would need the other one?
  prepare_rows<M>(t, scratch);
  attend<M>(t, scratch, M::Forward::template pack_queries<S>(t, scratch.query, scratch.end));
  finish_rows<typename M::T, S>(t, scratch);
}

// The probabilities themselves, from the lse: weights = e^(s - lse).
template <class M, class S>
void weights(const WeightsTask& task) {
  using T = typename M::T;
  using X = Vec<T>;
  using Tiles = typename Tile::Forward<T>;
  constexpr Index key_block = Tiles::key_block;
  constexpr Tiling tiling{Tiles::query_block, key_block};
  const ForwardTask& t = *task.forward;
  const ForwardScratch<T> scratch(t.scratch, t.head_dim, t.value_dim);
  const Index key_bytes = M::packed_bytes(Operand::key, tiling, t.head_dim);

  S* const weight = static_cast<S*>(task.weights.data);
  const T* const lse = static_cast<const T*>(t.lse);
  for (Index r = 0; r < t.rows; ++r) fill(weight + r * task.weights.row_stride, task.keys, S{});
  const auto queries = M::Forward::template pack_queries<S>(t, scratch.query, scratch.end);
  const T factor = static_cast<T>(rest_of_factor<M>(*t.terms));
  typename M::Forward matrices(t, queries, scratch.query, scratch.score, scratch.end);
  for_key_blocks<T>(t, [&](const ScoreBlock& block, const ScoreTerms& terms, Index index) {
    matrices.scores(block, 0, t.keys + index * key_bytes,
                    StoreScores<T, key_block>{scratch.score, nullptr});
    matrices.settle();
    for (Index r = 0; r < t.rows; ++r) {
      const T row_lse = lse[r * t.lse_stride];
      const Range columns = block.columns(r, 1);
      if (columns.begin >= columns.end || row_lse == -T(__builtin_inff())) continue;
      const auto [begin, end] = whole_vectors<T>(columns);
      T* const s = scratch.score + r * key_block;
      transform_rows<T, key_block>(block, terms, scratch.score, r, 1, begin, end);
      RowScale<T> row_scale;
      row_scales<T>(X::set1(row_lse), 1, &row_scale);
      exponentiate_row_below<T, true>(s, begin, end, factor, row_scale);
      S* const to = weight + r * task.weights.row_stride + block.first_key;
      for (Index c = begin; c < end; c += X::width) {
        const auto p = X::add(X::load(s + c), X::zero());  // no -0 for a masked position
        const Index n = block.cols - c;
        if (n >= X::width) {
          X::store(to + c, p);
        } else {
          X::store_n(to + c, p, n);
        }
      }
    }
  });
}
