// Forward: one query block of one head against its keys, in one pass with a running softmax
// (Milakov and Gimelshein 2018; Dao et al. 2022): per key block scores (products, transforms),
// their weights p (softmax-inl.h), and o += p v.
// clang-format off: each uses what stands before it
#include "kernels/softmax-inl.h"
#include "kernels/band_edge-inl.h"
#include "kernels/ahead-inl.h"
#include "kernels/forward_pipeline-inl.h"
// clang-format on

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
CATTN_INLINE T log_sum(double reference, T sum) {
  if (sum == T(0)) return -T(__builtin_inff());
  const Binary s(static_cast<double>(sum));
  return static_cast<T>((reference + s.exponent) * kLn2 + __builtin_log(s.mantissa));
}

// In units of log2(e): the least integer that is not below the sink.
CATTN_INLINE double sink_exponent(const ForwardTask& t) { return __builtin_ceil(t.sink * kLog2e); }

// How far a row is to move, a whole number, for a sink so high above its reference that
// 2^(reference - sink) may be no number, though its product with what the row has summed is one.
template <class T>
CATTN_INLINE T way_to_sink(double sink, T reference) {
  constexpr double far = 100, out_of_sight = 4000;
  const double way = sink - static_cast<double>(reference);
  if (!(way > far) || reference == -T(__builtin_inff())) return T(0);
  return static_cast<T>(way < out_of_sight ? __builtin_ceil(way) : out_of_sight);
}
template <class T>
[[gnu::noinline]] bool has_far_sink(const ForwardTask& t, const ForwardScratch<T>& scratch) {
  for (Index r = 0; r < t.rows; ++r)
    if (way_to_sink(sink_exponent(t), scratch.reference[r]) > T(0)) return true;
  return false;
}
template <class T>
[[gnu::noinline]] void move_to_sink(const ForwardTask& t, const ForwardScratch<T>& scratch) {
  for (Index r = 0; r < t.rows; ++r) {
    const T reference = scratch.reference[r], way = way_to_sink(sink_exponent(t), reference);
    if (way > T(0)) move_reference(scratch, r, reference + way, t.value_dim);
  }
}
CATTN_INLINE bool has_sink(const ForwardTask& t) { return t.sink != -__builtin_inf(); }

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
  if (!has_sink(t)) {
    if (t.lse) {
      for (Index r = 0; r < rows; ++r)
        results.lses[r] = log_sum(static_cast<double>(reference[r]), sums[r]);
    }
    return results;
  }
  T kept[X::width];
  X::store(kept, kept_scale);
  const double sink = t.sink * kLog2e, of_sink = sink_exponent(t);
  for (Index r = 0; r < rows; ++r) {
    // The sums in units of 2^top: of the sum without the sink or of the sink, whichever is larger.
    // References may be so large that top - reference is not what is left of it.
    const Binary s(static_cast<double>(sums[r])), w(static_cast<double>(weight_sums[r]));
    const double own = static_cast<double>(reference[r]) + s.exponent;
    const bool sum_leads = sums[r] != T(0) && own > of_sink;
    const double top = sum_leads ? own : of_sink;
    const double of_row = static_cast<double>(reference[r]);
    T shift = static_cast<T>(sum_leads ? static_cast<double>(s.exponent) : of_sink - of_row);
    if (sums[r] == T(0)) shift = T(__builtin_inff());  // of no key; 0 times any power is to be 0
    const T sink_part = exp2_scalar(static_cast<T>(sink - top));
    const auto with_sink = [&](const Binary& x) {
      return static_cast<T>(x.mantissa) * exp2_scalar(static_cast<T>(x.exponent) - shift) +
             sink_part;
    };
    results.factors[r] = exp2_scalar(-shift) * kept[r] / with_sink(w);
    results.lses[r] = log_sum(top, with_sink(s));
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

// Rows of results to memory, where row r is out + r * stride: vector(r, at) of each vector that is
// at `at` in an accumulator whose panels have panel_rows rows.
template <class T, class S, class F>
CATTN_INLINE void store_rows(S* out, Index stride, Index panel_rows, Range rows, Index cols,
                             F vector) {
  using X = Vec<T>;
  with_known_panels<T>(cols, [&]<int kPanels>(Count<kPanels> panels) {
    for (Index r = rows.begin; r < rows.end; ++r) {
      S* to = out + r * stride;
      prefetch_row(to + kRowsAhead * stride, cols);
      Index at = r * kPanel<T>;
      repeat(panels, [&] {
        CATTN_UNROLL
        for (int j = 0; j < Tile::vectors; ++j)
          X::store(to + j * X::width, vector(r, at + j * X::width));
        to += kPanel<T>;
        at += panel_rows * kPanel<T>;
      });
      const Index left = kPanels > 0 ? 0 : cols % kPanel<T>;
      CATTN_UNROLL
      for (int j = 0; j < Tile::vectors; ++j) {
        const Index n = left - j * X::width;
        if (n >= X::width) {
          X::store(to + j * X::width, vector(r, at + j * X::width));
        } else if (n > 0) {
          X::store_n(to + j * X::width, vector(r, at + j * X::width), n);
        }
      }
    }
  });
}

// Calls f(rows, factors) for `width` rows at a time, whose lses go to memory.
template <class T, class F>
CATTN_INLINE void finish_sums(const ForwardTask& t, const ForwardScratch<T>& scratch, F f) {
  constexpr Index width = Vec<T>::width;
  for (Index first = 0; first < t.rows; first += width) {
    const Index count = smaller(width, t.rows - first);
    const RowResults<T> results = row_results(t, scratch, first);
    f(Range{first, first + count}, results.factors);
    for (Index r = 0; t.lse && r < count; ++r)
      static_cast<T*>(t.lse)[(first + r) * t.lse_stride] = results.lses[r];
  }
}

// out = o / sum and lse. S is the type in memory.
template <class T, class S>
[[gnu::noinline]] void finish_rows(const ForwardTask& t, const ForwardScratch<T>& scratch) {
  using X = Vec<T>;
  constexpr Index query_block = ForwardScratch<T>::Tiles::query_block;
  if (has_sink(t)) move_to_sink(t, scratch);
  finish_sums(t, scratch, [&](Range rows, const T* factors) {
    store_rows<T>(static_cast<S*>(t.out.data), t.out.row_stride, query_block, rows, t.value_dim,
                  [&](Index r, Index at) {
                    return X::mul(X::load(scratch.out + at), X::set1(factors[r - rows.begin]));
                  });
  });
}

// Where column `col` of a row's outputs is, from the row's own place in the first panel on.
template <class T>
CATTN_INLINE Index place_in_panels(Index col) {
  constexpr Index panel = kPanel<T>;
  return col / panel * Tile::template Forward<T>::query_block * panel + col % panel;
}

// What the rows have come to, for merge(): kPartNumbers numbers of each, and its output, undivided.
template <class T>
CATTN_INLINE T* part_of_row(char* part, Index row, Index value_dim) {
  return reinterpret_cast<T*>(part) + row * (kPartNumbers + round_up(value_dim, kPartStep));
}

// Calls f(at, vector) for the vectors of a row of the outputs: `at` is its first column.
template <class T, class F>
CATTN_INLINE void for_vectors_of_out(T* out, Index row, Index value_dim, F f) {
  static_assert(kPartStep % Vec<T>::width == 0);
  for (Index c = 0; c < value_dim; c += Vec<T>::width)
    f(c, out + row * kPanel<T> + place_in_panels<T>(c));
}

template <class T>
[[gnu::noinline]] void store_part(const ForwardTask& t, const ForwardScratch<T>& scratch,
                                  char* part) {
  using X = Vec<T>;
  for (Index r = 0; r < t.rows; ++r) {
    T* const row = part_of_row<T>(part, r, t.value_dim);
    row[1] = X::sum_lanes(X::load(scratch.sum + r * X::width));
    // Of a row that attends no key here the reference may still be that of bounded scores.
    row[0] = row[1] == T(0) ? -T(__builtin_inff()) : scratch.reference[r];
    for_vectors_of_out(scratch.out, r, t.value_dim, [&](Index c, const T* from) {
      X::store(row + kPartNumbers + c, X::load(from));
    });
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
  clear_panels(out, tile_rows, value_dim, query_block);
}
template <class T>
CATTN_INLINE void clear_sums(Index rows, T* sum) {
  fill(sum, round_up(rows, Vec<T>::width) * Vec<T>::width, T(0));
}

template <class M, class T>
CATTN_INLINE void prepare_rows(Index rows, const ForwardScratch<T>& scratch) {
  constexpr Index width = Vec<T>::width;
  const Index vector_rows = round_up(rows, width);
  clear_sums(rows, scratch.sum);
  if (scratch.weight_sum != scratch.sum) clear_sums(rows, scratch.weight_sum);
  fill(scratch.reference, round_up(rows, larger(width, M::row_padding)), -T(__builtin_inff()));
  fill(scratch.maximum + rows * width, (vector_rows - rows) * width, -T(__builtin_inff()));
}

// The key blocks that a task attends, of those that it has.
template <class T>
CATTN_INLINE Range attended_blocks(const ForwardTask& t) {
  constexpr Index key_block = Tile::Forward<T>::key_block;
  const Index end = highest_key(t.band, t.first_query + t.rows - 1);
  return {larger(lowest_key(t.band, t.first_query) / key_block, t.first_block),
          smaller((end + key_block - 1) / key_block, t.end_block)};
}

// Whether the values of all blocks that a task attends have these flags.
template <class T>
CATTN_INLINE bool are_values(const ForwardTask& t, int flags) {
  const Range blocks = attended_blocks<T>(t);
  for (Index b = blocks.begin; b < blocks.end; ++b)
    if ((t.value_flags[b - t.first_block] & flags) != flags) return false;
  return true;
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
  if (!M::bounds_serve(blocks.end - blocks.begin) || !are_values<T>(t, of_values)) return false;
  T key_norm = 0;
  for (Index b = blocks.begin; b < blocks.end; ++b) {
    const Index index = b - t.first_block;
    const auto& key = BlockTail<T>::of(t.keys + index * key_bytes, key_bytes);
    if ((key.flags & of_keys) != of_keys) return false;
    if (key.norm > key_norm) key_norm = key.norm;
  }
  constexpr T rounding = M::rounds_weights ? T(1.01) : T(1);  // of float32 operands to one part
  return key_norm * queries.norm * factor * rounding <= T(kReachOf<M>);
}

// Whether all keys and values that a task attends are in parts.
template <class Matrices>
CATTN_INLINE bool all_split(const Matrices& matrices, const ForwardTask& t, Index key_bytes) {
  const Range blocks = attended_blocks<float>(t);
  for (Index b = blocks.begin; b < blocks.end; ++b) {
    const Index index = b - t.first_block;
    if (!(t.value_flags[index] & kBlockSplits) || !matrices.splits(t.keys + index * key_bytes))
      return false;
  }
  return true;
}

constexpr Index kBytesInL2 = 3 << 18;  // of keys and values
// More than this does not stay in the L2 cache until the next task.
constexpr Index kMostBytesInL2 = 25 << 16;
// So much may come while as much is in use.
constexpr Index kMostBytesAhead = 1 << 19;
constexpr Index kBlocksPerSum = 4;  // longer ones grow less accurate

CATTN_INLINE MaskKind mask_kind(const ForwardTask& t, Index b) {
  return t.mask_kinds ? t.mask_kinds[b] : MaskKind::full;
}
CATTN_INLINE ScoreTerms terms_of_block(const ForwardTask& t, Index b) {
  ScoreTerms terms = *t.terms;
  if (mask_kind(t, b) == MaskKind::full) terms.mask.data = nullptr;
  return terms;
}

// Calls f(block, terms, index) for those of `blocks` that a task attends; index counts from
// t.first_block.
template <class T, class F>
CATTN_INLINE void for_key_blocks(const ForwardTask& t, Range blocks, F f) {
  constexpr Index key_block = Tile::Forward<T>::key_block;
  for (Index b = blocks.begin; b < blocks.end; ++b) {
    if (mask_kind(t, b) == MaskKind::empty) continue;
    f(score_block<T>(t, key_block, b), terms_of_block(t, b), b - t.first_block);
  }
}
template <class T, class F>
CATTN_INLINE void for_key_blocks(const ForwardTask& t, F f) {
  for_key_blocks<T>(t, attended_blocks<T>(t), f);
}

// The same for groups of M::row_group rows of `rows`, f(group, its first row, terms, index), as far
// as they attend something of a block, and finish(its first row) before another group has its turn.
// A group's outputs stay in the L1 cache for several key blocks, and the key blocks in the L2 cache
// for all groups. If M::fetches_blocks, those that do not stay there from task to task are fetched
// ahead, where f calls ahead.step(): `fetches` times for all groups and one key block.
template <class M, class F, class Finish>
CATTN_INLINE void for_row_groups(const ForwardTask& t, Index key_bytes, Index value_bytes,
                                 Range rows, ForwardAhead& ahead, Index fetches, F f,
                                 Finish finish) {
  using T = typename M::T;
  const Index block_bytes = key_bytes + value_bytes;
  const Range all = attended_blocks<T>(t);
  // A block that all rows attend at once has its turn only once. If there are several groups, two
  // blocks at least are to find room: each time their outputs pass through the caches.
  constexpr bool once = M::row_group == Tile::template Forward<T>::query_block;
  const bool is_long = M::fetches_blocks && (once ? 1 : 2) * block_bytes <= kMostBytesAhead &&
                       (all.end - all.begin) * block_bytes > kMostBytesInL2;
  Index at_a_time = larger((is_long ? kMostBytesAhead : kBytesInL2) / block_bytes, 1);
  if (is_long && once) at_a_time = 1;
  if (M::sums_afresh) at_a_time = smaller(at_a_time, kBlocksPerSum);
  for (Index first = all.begin; first < all.end; first += at_a_time) {
    const Range blocks{first, smaller(first + at_a_time, all.end)};
    if (is_long && fetches > 0) {  // behind the last ones the first ones, for the next task
      const Index next = blocks.end < all.end ? blocks.end : all.begin;
      const Index now = blocks.end - blocks.begin, count = smaller(now, all.end - next);
      const Index index = next - t.first_block;
      ahead.expect(t.keys + index * key_bytes, count * key_bytes, t.values + index * value_bytes,
                   count * value_bytes, fetches * now);
    }
    for (Index row = rows.begin; row < rows.end; row += M::row_group) {
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

// Probabilities of scores within kReach that are in memory, in their place; adds them to the rows'
// sums. kKeep: `matrices` keeps them, the way its next product wants them.
template <class M, bool kKeep, class T = typename M::T>
CATTN_INLINE void weigh_bounded_rows(const ForwardScratch<T>& scratch, const ScoreBlock& block,
                                     const ScoreTerms& terms, T factor,
                                     const typename M::Forward& matrices) {
  using X = Vec<T>;
  constexpr Index stride = ForwardScratch<T>::Tiles::key_block;
  const auto by = X::set1(factor);
  const auto of = [&](auto score) { return weight_within_reach<M>(score, by); };
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

// Probabilities of tiles of products, in place of their scores, while these are in registers; adds
// them to the rows' sums. What kind of block it is the compiler knows. kBounded: all of the task is
// within kReach; otherwise the references of rows move before a tile that needs it, with all that
// the rows have summed. kTransforms: scores are not plain. kEdges: some of it may not be attended.
template <class M, bool kBounded, bool kTransforms, bool kEdges = true>
struct WeighTiles {
  using T = typename M::T;
  using X = Vec<T>;
  const ForwardScratch<T>& scratch;
  const ScoreBlock& block;
  const ScoreTerms& terms;
  T factor;         // what brings the products to units of log2(e): 1 if it is in the queries
  Index value_dim;  // of the rows' outputs; 0 while there are none
  // One call less for each tile is worth more than the registers that it takes.
  static constexpr bool stands_in_loop = true;
  const bool all = !kEdges || block.full(0, block.rows, 0, round_up(block.cols, kPanel<T>));

  template <int kRows, int kVectors>
  CATTN_INLINE void operator()(typename X::V (&tile)[kRows][kVectors], Index r, Index c,
                               Range columns) const {
    static_assert(!M::rounds_weights && M::scales_queries);
    const Index end = kTransforms ? c + kPanel<T> : smaller(c + kPanel<T>, block.cols);
    if (all || block.full(r, kRows, c, end)) {
      if constexpr (kTransforms) transform_tile<false, T>(tile, terms, block, r, c);
      if (!kTransforms && kEdges && end < c + kPanel<T>) {
        CATTN_UNROLL
        for (int i = 0; i < kRows; ++i) cut_row<T>(tile[i], {0, end - c});
      }
      constexpr bool plain = !kTransforms && !kEdges;
      return weigh<plain>(tile, r, c, columns);
    }
    StoreScores<T, stride>{scratch.score, nullptr}(tile, r, c, columns);
    const T* edge = nullptr;
    if constexpr (kBounded && !kTransforms)
      edge = BandEdge<T, kRows, kPanel<T>>::of(block.rows_from(r, kRows), c);
    weigh_cut_rows(edge, r, smaller(r + kRows, block.rows), c, columns);
  }

 private:
  static constexpr Index stride = ForwardScratch<T>::Tiles::key_block;
  // All values of the task being moderate, what a row has summed may grow by as much as if all were
  // bounded: rows rarely move, but for their first panel.
  static constexpr T reach = 2 * kReach;

  // kPlain: no score is -inf.
  template <bool kPlain, int kRows, int kVectors>
  CATTN_INLINE void weigh(typename X::V (&tile)[kRows][kVectors], Index r, Index c,
                          Range columns) const {
    T* const s = scratch.score + r * stride + c;
    if constexpr (!kBounded) {
      if (__builtin_expect(exceeds(tile, r), false)) {
        StoreScores<T, stride>{scratch.score, nullptr}(tile, r, c, columns);
        move_rows(r, kRows, c, columns);
        CATTN_UNROLL
        for (int i = 0; i < kRows; ++i) {
          CATTN_UNROLL
          for (int j = 0; j < kVectors; ++j) tile[i][j] = X::load(s + i * stride + j * X::width);
        }
      }
    }
    T* const sums = scratch.sum + r * X::width;
    CATTN_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const auto reference = X::set1(kBounded ? T(0) : finite_reference(scratch.reference[r + i]));
      auto total = X::load(sums + i * X::width);
      CATTN_UNROLL
      for (int j = 0; j < kVectors; ++j) {
        const auto p = probability<kPlain>(tile[i][j], reference);
        total = X::add(total, p);
        X::store(s + i * stride + j * X::width, p);
      }
      X::store(sums + i * X::width, total);
    }
  }
  template <bool kPlain>
  CATTN_INLINE typename X::V probability(typename X::V score, typename X::V reference) const {
    if constexpr (!kBounded) {
      return M::Exponential::above(X::mul(score, X::set1(factor)), reference);
    } else if constexpr (kPlain) {
      return M::Exponential::template of_small<kReach>(score);
    } else {
      return weight_within_reach<M>(score, X::set1(factor));
    }
  }

  // Whether a score is beyond the reach of its row's reference. NaN is passed over, or what stands
  // beside it, as the row's sum is NaN then.
  template <int kRows, int kVectors>
  CATTN_INLINE bool exceeds(const typename X::V (&tile)[kRows][kVectors], Index r) const {
    const auto by = X::set1(factor);
    auto beyond = X::zero();
    CATTN_UNROLL
    for (int i = 0; i < kRows; ++i) {
      auto most = tile[i][0];
      CATTN_UNROLL
      for (int j = 1; j < kVectors; ++j) most = X::max(tile[i][j], most);
      const auto excess = X::sub(X::mul(most, by), X::set1(scratch.reference[r + i]));
      beyond = X::max(excess, beyond);
    }
    return X::any(X::greater(beyond, X::set1(reach)));
  }
  // Moves the references of those rows that have such a score among those of the panel at c, which
  // are in memory, with all that they have summed, and what they have in the panels before.
  [[gnu::noinline]] void move_rows(Index r, Index rows, Index c, Range columns) const {
    for (const Index end = r + rows; r < end; r += X::width) {
      const Index count = smaller(X::width, end - r);
      const T* const s = scratch.score + r * stride;
      const auto exponent =
          X::mul(row_maxima<T, stride>(s, count, {c, c + kPanel<T>}), X::set1(factor));
      T exponents[X::width], references[X::width];
      X::store(exponents, exponent);
      X::store(references, X::nearest(exponent));
      for (Index i = 0; i < count; ++i) {
        const T old = scratch.reference[r + i];
        if (!(exponents[i] - old > reach)) continue;
        move_reference(scratch, r + i, references[i], value_dim);
        T* const p = scratch.score + (r + i) * stride;
        const PowerOf2<T> power(old - references[i]);
        const auto first = X::set1(power.first), second = X::set1(power.second);
        for (Index at = columns.begin / kPanel<T> * kPanel<T>; at < c; at += X::width)
          X::store(p + at, X::mul(X::mul(X::load(p + at), first), second));
      }
    }
  }
  // Products of a panel that are in memory, of which rows may attend a part: `edge` is to be added
  // to them unless it is null. A function of its own: the loop over whole tiles keeps its
  // registers.
  [[gnu::noinline]] void weigh_cut_rows(const T* edge, Index r, Index end, Index c,
                                        Range columns) const {
    for (; r < end; ++r) {
      const T* const s = scratch.score + r * stride + c;
      typename X::V row[1][kPanel<T> / X::width];
      CATTN_UNROLL
      for (int j = 0; j < kPanel<T> / X::width; ++j) row[0][j] = X::load(s + j * X::width);
      if constexpr (kTransforms) transform_tile<true, T>(row, terms, block, r, c);
      if (edge) {
        CATTN_UNROLL
        for (int j = 0; j < kPanel<T> / X::width; ++j)
          row[0][j] = X::add(row[0][j], X::load(edge + j * X::width));
        --edge;
      } else {
        cut_row<T>(row[0], block, r, c);
      }
      weigh<false>(row, r, c, columns);
    }
  }
};

// Whether blocks of plain scores have loops of their own, a few hundredths faster: they take room.
template <class T>
constexpr bool kLoopsByKind = sizeof(T) == 4 && Tile::loops_by_kind;

// Calls f with what WeighTiles is to know of a block.
template <class T, class F>
CATTN_INLINE void with_kind_of_scores(const ScoreBlock& block, const ScoreTerms& terms,
                                      bool bounded, F f) {
  if (!kLoopsByKind<T> || !is_plain(terms)) {
    bounded ? f.template operator()<true, true>() : f.template operator()<false, true>();
  } else if constexpr (kLoopsByKind<T>) {
    if (!bounded) {
      f.template operator()<false, false>();
    } else if (block.full(0, block.rows, 0, round_up(block.cols, kPanel<T>))) {
      f.template operator()<true, false, false>();
    } else {
      f.template operator()<true, false>();
    }
  }
}

// Whether products with values can be finished while they are in registers.
template <class M>
constexpr bool kFinishesRows = requires { &M::Forward::multiply_only; };

// The loop over key blocks, shared by all types in memory. `out`: where results are numbers of T,
// else null. Where a task attends one block only, they go there at once; returns whether they did.
template <class M, class T = typename M::T>
[[gnu::noinline]] bool attend(const ForwardTask& t, const ForwardScratch<T>& scratch,
                              const PackedQueries<T>& queries, ForwardAhead ahead, T* out) {
  using Tiles = typename Tile::Forward<T>;
  constexpr Index key_block = Tiles::key_block;
  constexpr Tiling tiling{Tiles::query_block, key_block};
  const Index key_bytes = M::packed_bytes(Operand::key, tiling, t.head_dim);
  const Index value_bytes = M::packed_bytes(Operand::value, tiling, t.value_dim);
  const T factor = static_cast<T>(rest_of_factor<M>(*t.terms));
  const bool bounded = is_bounded<M>(t, queries, factor, key_bytes);
  const bool moderate = bounded || are_values<T>(t, kBlockModerate);
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
  const Range blocks = attended_blocks<T>(t);
  const bool is_only = out && blocks.end - blocks.begin == 1;
  bool is_done = false;
  bool has_more = false;
  const auto add_more = [&](Index row) {
    if (!has_more) return;
    has_more = false;
    matrices.settle();
    const Index rows = round_up(smaller(M::row_group, t.rows - row), M::row_padding);
    add_more_to_out(scratch.from(row), rows, t.value_dim, begin_outputs(row));
  };
  // What no maxima are wanted of, but for a last group of half of the rows.
  Index rows_in_pipeline = 0;
  if constexpr (M::pipelines) {
    const auto run = [&]<template <class, Index> class Rows>() {
      rows_in_pipeline = round_up(t.rows - M::row_group / 2, M::row_group);
      with_known_sizes<M, Vec<T>::width>(t, [&]<int kHeadSteps, int kValueVectors>() {
        ForwardPipeline<M, Rows, kHeadSteps, kValueVectors, decltype(begin_outputs)> pipeline(
            t, scratch, matrices, factor, ahead, begin_outputs);
        for_row_groups<M>(
            t, key_bytes, value_bytes, {0, rows_in_pipeline}, pipeline.ahead(),
            pipeline.fetches_of_block(rows_in_pipeline),
            [&](const ScoreBlock& block, Index row, const ScoreTerms& terms, Index index) {
              pipeline.add(block, terms, row, t.keys + index * key_bytes,
                           t.values + index * value_bytes);
            },
            [&](Index) { pipeline.end_sum(); });
        pipeline.drain();
      });
    };
    if (bounded && !t.terms->dropout.on && all_split(matrices, t, key_bytes) &&
        fuses(T(kReachOf<M>), factor)) {
      if constexpr (M::rounds_at_once) {
        if (scratch.sum == scratch.weight_sum) {
          run.template operator()<RoundedRows>();
        } else {
          run.template operator()<ExactRows>();
        }
      } else {
        run.template operator()<ExactRows>();
      }
    }
  }
  for_row_groups<M>(
      t, key_bytes, value_bytes, {rows_in_pipeline, t.rows}, ahead,
      M::Forward::fetches_of_block(t.rows, t.value_dim),
      [&](const ScoreBlock& block, Index row, const ScoreTerms& terms, Index index) {
        ForwardScratch<T> rows = scratch.from(row);
        if (!has_more) rows.out_more = nullptr;
        const char* const key = t.keys + index * key_bytes;
        const uint8_t flags = t.value_flags[index];
        const bool keeps = M::Forward::keeps && (flags & kBlockSplits) && !terms.dropout.on;
        const auto exponentiate = [&]<bool kKeep>() {
          if constexpr (!M::rounds_weights && M::finishes_in_registers) {
            if (moderate && transforms_tiles<T>(terms)) {
              const Index outputs = has_outputs[row / M::row_group] ? t.value_dim : 0;
              with_kind_of_scores<T>(block, terms, bounded, [&]<bool... kKnown>() {
                const WeighTiles<M, kKnown...> weigh_tiles{rows, block, terms, factor, outputs};
                matrices.scores(block, row, key, weigh_tiles, ahead);
              });
              return;
            }
          }
          const bool has_maxima = matrices.scores(
              block, row, key, StoreScores<T, key_block>{rows.score, rows.maximum}, ahead);
          matrices.settle();
          if constexpr (!M::rounds_weights) {
            if (bounded) {
              weigh_bounded_rows<M, kKeep>(rows, block, terms, factor, matrices);
              return;
            }
          }
          const T reach = queries.norm * BlockTail<T>::of(key, key_bytes).norm * factor;
          const auto softmax = [&]<bool kMark>() {
            softmax_rows<M, kMark, kKeep>(
                rows, block, terms, factor, t.value_dim,
                {has_maxima, matrices.splits(key) && fuses(reach, factor), bounded}, &matrices);
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
        if constexpr (kFinishesRows<M>) {
          if (is_only && (flags & kBlockFinite) && !(has_sink(t) && has_far_sink(t, scratch))) {
            static_assert(M::row_group == Tiles::query_block, "all rows at once");
            T factors[Tiles::query_block];
            finish_sums(t, scratch, [&](Range of, const T* part) {
              for (Index r = of.begin; r < of.end; ++r) factors[r] = part[r - of.begin];
            });
            matrices.multiply_only(block, rows.score, value,
                                   {out, t.out.row_stride, t.rows, t.value_dim, factors, 1});
            is_done = true;
            return;
          }
        }
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
          matrices.accumulate(block, rows.score, value, flags, rows.out, begin_outputs(row), ahead);
        }
      },
      add_more);
  if (is_done) return true;
  matrices.settle();
  for (Index row = 0; row < t.rows; row += M::row_group) clear_new_outputs(row);
  if constexpr (M::weight_exponent != 0) {
    for (Index r = 0; r < t.rows; ++r) scratch.reference[r] -= T(M::weight_exponent);
  }
  return false;
}

template <class M, class S>
void forward(const ForwardTask& t) {
  ForwardScratch<typename M::T> scratch(t.scratch, t.head_dim, t.value_dim, M::rounds_weights,
                                        M::sums_afresh);
  if (!t.lse) scratch.sum = scratch.weight_sum;  // who would need the other one?
  prepare_rows<M>(t.rows, scratch);
  using T = typename M::T;
  T* out = nullptr;
  if constexpr (kFinishesRows<M> && __is_same(S, T)) {
    if (!t.part) out = static_cast<T*>(t.out.data);
  }
  const bool is_done =
      attend<M>(t, scratch, M::Forward::template pack_queries<S>(t, scratch.query, scratch.end),
                ForwardAhead::of<S>(t), out);
  if (is_done) return;
  if constexpr (!M::rounds_weights) {
    if (t.part) return store_part(t, scratch, t.part);
  }
  finish_rows<T, S>(t, scratch);
}

// The probabilities of a block's products, from the lse: weights = e^(s - lse).
template <class T, class S>
[[gnu::noinline]] void store_weights(const ForwardTask& t, const ScoreBlock& block,
                                     const ScoreTerms& terms, T* score, T factor, Rows weights) {
  using X = Vec<T>;
  constexpr Index key_block = Tile::Forward<T>::key_block;
  const T* const lse = static_cast<const T*>(t.lse);
  for (Index r = 0; r < t.rows; ++r) {
    const T row_lse = lse[r * t.lse_stride];
    const Range columns = block.columns(r, 1);
    if (columns.begin >= columns.end || row_lse == -T(__builtin_inff())) continue;
    const auto [begin, end] = whole_vectors<T>(columns);
    T* const s = score + r * key_block;
    transform_rows<T, key_block>(block, terms, score, r, 1, begin, end);
    RowScale<T> row_scale;
    row_scales<T>(X::set1(row_lse), 1, &row_scale);
    exponentiate_row_below<T, true>(s, begin, end, factor, row_scale);
    S* const to = static_cast<S*>(weights.data) + r * weights.row_stride + block.first_key;
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
}
template <class S>
CATTN_INLINE void clear_weights(const WeightsTask& t) {
  S* const weights = static_cast<S*>(t.weights.data);
  for (Index r = 0; r < t.forward->rows; ++r) fill(weights + r * t.weights.row_stride, t.keys, S{});
}

template <class M, class S>
void weights(const WeightsTask& task) {
  using T = typename M::T;
  using Tiles = typename Tile::Forward<T>;
  constexpr Index key_block = Tiles::key_block;
  constexpr Tiling tiling{Tiles::query_block, key_block};
  const ForwardTask& t = *task.forward;
  const ForwardScratch<T> scratch(t.scratch, t.head_dim, t.value_dim);
  const Index key_bytes = M::packed_bytes(Operand::key, tiling, t.head_dim);
  clear_weights<S>(task);
  const auto queries = M::Forward::template pack_queries<S>(t, scratch.query, scratch.end);
  const T factor = static_cast<T>(rest_of_factor<M>(*t.terms));
  typename M::Forward matrices(t, queries, scratch.query, scratch.score, scratch.end);
  NothingBeside nothing;
  for_key_blocks<T>(t, [&](const ScoreBlock& block, const ScoreTerms& terms, Index index) {
    matrices.scores(block, 0, t.keys + index * key_bytes,
                    StoreScores<T, key_block>{scratch.score, nullptr}, nothing);
    matrices.settle();
    store_weights<T, S>(t, block, terms, scratch.score, factor, task.weights);
  });
}
