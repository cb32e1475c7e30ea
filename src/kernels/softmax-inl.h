// From scores to weights, p = 2^(s - reference) of scores in units of log2(e), with a running
// softmax. The reference of a row is a maximum that it has seen, rounded to an integer; it moves
// only when a new maximum exceeds it by far, so most blocks rescale nothing.
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

// A row that has had nothing to attend so far has a reference of -inf. What it does not attend is
// to have a weight of 0 then too, not NaN.
template <class T>
CATTN_INLINE T finite_reference(T reference) {
  constexpr T lowest = sizeof(T) == 8 ? T(-__DBL_MAX__) : T(-__FLT_MAX__);
  return reference > lowest ? reference : lowest;
}

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

// The same panel by panel, each given to keep(column, panel). Adds them to the row's sums, and what
// is multiplied with v to `weight_sum` if M rounds it and does not sum what it keeps.
template <class M, class T, class F, class Keep>
CATTN_INLINE void exponentiate_panels(const T* s, Range columns, T* sum, T* weight_sum,
                                      F probability, Keep keep) {
  using X = Vec<T>;
  constexpr bool kRounded = M::rounds_weights && !M::Forward::sums_kept;
  const auto panels = [&]<bool kSum>() {
    auto total = X::zero(), weight_total = X::zero();
    if constexpr (kSum) total = X::load(sum);
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
    if constexpr (kRounded) X::store(weight_sum, X::add(X::load(weight_sum), weight_total));
    if constexpr (kSum) X::store(sum, total);
  };
  if (!sum) {
    panels.template operator()<false>();
  } else {
    panels.template operator()<true>();
  }
}

// The same with the weights themselves, e^(s - lse).
template <class T, bool kMark>
CATTN_INLINE void exponentiate_row_below(T* s, Index begin, Index end, T factor, RowScale<T> row) {
  const auto by = Vec<T>::set1(factor);
  ScaledRow<T> of_row;
  of_row.set(row);
  exponentiate_row<T, kMark>(s, begin, end, nullptr,
                             [&](auto score) { return weight_from_lse<T>(score, by, of_row); });
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

// That of a score within reach, or of -inf.
template <class M, class T = typename M::T>
CATTN_INLINE typename Vec<T>::V weight_within_reach(typename Vec<T>::V score,
                                                    typename Vec<T>::V factor) {
  using X = Vec<T>;
  if constexpr (M::rounds_weights) {
    return M::Exponential::template of<M::weight_exponent>(
        X::fms(score, factor, X::set1(T(kReferenceWithinReach<M>))));
  } else {
    return M::Exponential::template of_small_or_none<kReach>(
        M::scales_queries ? score : X::mul(score, factor));
  }
}

// Up to this size of a reference m c, where m is a row's maximum and c the factor, m c is as good
// as its rounding: fma(m, c, -reference) is so close to 0 that the weight is 1 when it is rounded.
// Beyond, and where the factor is huge, the scores are multiplied first, and the difference is
// exactly 0.
template <class T>
CATTN_INLINE bool fuses(T reference, T factor) {
  return reference <= T(4096) && reference >= T(-4096) && factor <= T(0x1p100);
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
  // Returns `total` and their sum, by lanes; who does not take it does not pay for it.
  template <class Keeper>
  CATTN_INLINE typename X::V operator()(const T* s, Range columns, typename X::V place_of_zero,
                                        Keeper keeper, typename X::V total = X::zero()) const {
#pragma GCC unroll 4
    for (Index c = columns.begin; c < columns.end; c += kPanel<T>, keeper.next_panel()) {
      const auto place = [&](Index at) { return X::fma(X::load(s + at), by_, place_of_zero); };
      const auto first = place(c), second = place(c + X::width);
      const auto weights = rounded(first, second);
      total = Weights::add(total, weights);
      keeper.keep(weights);
    }
    return total;
  }

 private:
  CATTN_INLINE auto rounded(typename X::V first, typename X::V second) const {
    if constexpr (kScores == Scores::bounded) {
      return weights_.at_last_bits(first, second);
    } else {
      return weights_.template at<kScores == Scores::finite>(first, second);
    }
  }
  typename X::V by_;
  Weights weights_;
};

// The lane-wise maximum of a row; NaN is passed over.
template <class T>
CATTN_INLINE typename Vec<T>::V row_maximum(const T* s, Index begin, Index end) {
  using X = Vec<T>;
  auto m = X::set1(-T(__builtin_inff()));
  for (Index j = begin; j < end; j += X::width) m = X::max(X::load(s + j), m);
  return m;
}

// The maxima of rows, one per lane, of which there are `count`; NaN is passed over.
template <class T, Index kStride>
CATTN_INLINE typename Vec<T>::V row_maxima(const T* s, Index count, Range columns) {
  using X = Vec<T>;
  typename X::V maxima[X::width];
  CATTN_UNROLL
  for (Index i = 0; i < X::width; ++i) {  // rows past the last repeat it
    maxima[i] = row_maximum(s + smaller(i, count - 1) * kStride, columns.begin, columns.end);
  }
  return combine_rows<T>(maxima, [](auto a, auto b) { return X::max(a, b); });
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

// 2^exponent for exponent <= 0, as first * second: what has been summed may be so large that its
// product with both is a number, though 2^exponent is none.
template <class T>
struct PowerOf2 {
  T first = T(1), second;
  CATTN_INLINE explicit PowerOf2(T exponent) {
    if (exponent < T(-100)) {
      const T half =
          exponent < T(-4000) ? T(-2000) : static_cast<T>(static_cast<int>(exponent) / 2);
      first = exp2_scalar(half);
      exponent -= half;
    }
    second = exp2_scalar(exponent);
  }
};

// Moves the reference of a row.
template <class T>
CATTN_INLINE void move_reference(const ForwardScratch<T>& scratch, Index r, T reference,
                                 Index value_dim) {
  const T old = scratch.reference[r];
  scratch.reference[r] = reference;
  if (old == -T(__builtin_inff())) return;  // nothing summed yet
  const PowerOf2<T> power(old - reference);
  if (power.first != T(1)) rescale_row(scratch, r, Vec<T>::set1(power.first), value_dim);
  rescale_row(scratch, r, Vec<T>::set1(power.second), value_dim);
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
    const auto maximum =
        row_maxima<T, stride>(scratch.score + first * stride, rows - first, columns);
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
  bool maxima = false;   // those of rows, over the panels of their row tile
  bool fuse = false;     // they are finite, and references that are their maxima fuse
  bool bounded = false;  // within reach, as all of the task: that is where the references stay
};

// From the products of a block to its probabilities, summed but not yet dropped. `factor` is what
// brings scores to units of log2(e); `slope` as in transform_rows. Probabilities take the place of
// the scores, or with kKeep `matrices` keeps them, the way its next product wants them.
template <class M, bool kMark, bool kKeep = false, class T>
CATTN_INLINE void softmax_rows(const ForwardScratch<T>& scratch, const ScoreBlock& block,
                               const ScoreTerms& terms, T factor, Index value_dim,
                               KnownScores known, const typename M::Forward* matrices = nullptr,
                               T* slope = nullptr) {
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
  const bool plain = known.maxima && is_plain(terms);
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
    T reference = finite_reference(scratch.reference[row]);
    T by = factor;
    if (M::rounds_weights && !fuses(reference, factor)) {
      scale_row(s, begin, end, factor);
      shift_row(s, begin, end, -reference);  // a pass of its own: no compiler may fuse the two
      by = 1;
      reference = 0;
    }
    const Probability<M> probability(by, reference);
    if constexpr (kKeep) {
      const auto keep = [&](Index c, auto& p) { matrices->keeper(row, c)(0, p); };
      const Range panels{begin, end};
      if constexpr (M::rounds_at_once) {
        if (!sum) {
          const RoundRow<M, Scores::any> round_row(by);
          round_row(s, panels, round_row.place_of_zero(reference), matrices->keeper(row, begin));
          return;
        }
      }
      exponentiate_panels<M>(s, panels, sum, weight_sum, probability, keep);
    } else {
      exponentiate_row<T, kMark>(s, begin, end, sum, probability);
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
