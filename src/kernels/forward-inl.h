// Forward: one query block of one head against its keys, in one pass with a running softmax
// (Milakov and Gimelshein 2018; Dao et al. 2022).
//
// Per key block: scores (products, transforms), probabilities p = 2^(c s - reference), and
// o += p v. The reference of a row is a maximum that it has seen; it moves only when a new maximum
// exceeds it by a factor of 2^8, so most blocks rescale nothing.

template <class T>
struct ForwardScratch {
  using Tiles = typename Tile::Forward<T>;
  T *query, *score, *out, *sum, *reference, *maximum;

  CATTN_INLINE ForwardScratch(void* scratch, Index head_dim, Index value_dim) {
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
    reference = take(Tiles::query_block);
    maximum = take(Tiles::query_block * Vec<T>::width);
    end = p;
  }
  T* end;
};

template <class T>
Index forward_scratch_bytes(Index head_dim, Index value_dim) {
  const ForwardScratch<T> scratch(nullptr, head_dim, value_dim);
  return static_cast<Index>(reinterpret_cast<uintptr_t>(scratch.end));
}

template <class T>
CATTN_INLINE void fill(T* p, Index count, T value) {
  for (Index i = 0; i < count; ++i) p[i] = value;
}

// Scores of one row to probabilities, in place; adds them to the row's sums (one per lane).
// With kMark, masked positions become kMasked.
template <class T, bool kMark>
CATTN_INLINE void exponentiate_row(T* s, Index begin, Index end, T factor, T reference, T* sum) {
  using X = Vec<T>;
  const auto c = X::set1(factor), shift = X::set1(-reference);
  const auto minus_infinity = X::set1(-T(__builtin_inff()));
  auto total = X::zero();
  for (Index j = begin; j < end; j += X::width) {
    const auto score = X::load(s + j);
    auto p = exp2<T>(X::fma(score, c, shift));
    if constexpr (kMark) {
      p = X::select(X::equal(score, minus_infinity), X::set1(kMasked<T>), p);
    }
    total = X::add(total, p);
    X::store(s + j, p);
  }
  if (sum) X::store(sum, X::add(X::load(sum), total));
}

// The lane-wise maximum of a row; NaN is passed over.
template <class T>
CATTN_INLINE typename Vec<T>::V row_maximum(const T* s, Index begin, Index end) {
  using X = Vec<T>;
  auto m = X::set1(-T(__builtin_inff()));
  for (Index j = begin; j < end; j += X::width) m = X::max(X::load(s + j), m);
  return m;
}

// Moves the reference of a row to `maximum`, rescaling what the row has summed so far.
template <class T>
CATTN_INLINE void move_reference(const ForwardScratch<T>& scratch, Index r, T maximum,
                                 Index value_dim) {
  using X = Vec<T>;
  const T old = scratch.reference[r];
  scratch.reference[r] = maximum;
  if (old == -T(__builtin_inff())) return;  // nothing summed yet
  const auto factor = exp2<T>(X::set1(old - maximum));
  T* const sum = scratch.sum + r * X::width;
  X::store(sum, X::mul(X::load(sum), factor));
  constexpr Index query_block = ForwardScratch<T>::Tiles::query_block;
  for (Index col = 0; col < value_dim; col += X::width) {
    T* const p = scratch.out + (col / kPanel<T> * query_block + r) * kPanel<T> + col % kPanel<T>;
    X::store(p, X::mul(X::load(p), factor));
  }
}

// Makes the references of all rows fit a block with these lane-wise maxima. `width` rows at a time:
// a transpose turns the maxima over lanes into one vector, and mostly no row has to move.
template <class T>
CATTN_INLINE void move_references(const ForwardScratch<T>& scratch, Index rows, T factor,
                                  Index value_dim) {
  using X = Vec<T>;
  constexpr T slack = 8;  // sums grow by 2^8 at most before a row moves
  for (Index r = 0; r < rows; r += X::width) {
    typename X::V tile[X::width];
    CATTN_UNROLL
    for (int i = 0; i < X::width; ++i) tile[i] = X::load(scratch.maximum + (r + i) * X::width);
    X::transpose(tile);
    auto m = tile[0];
    CATTN_UNROLL
    for (int i = 1; i < X::width; ++i) m = X::max(tile[i], m);
    const auto exponent = X::mul(m, X::set1(factor));
    const auto limit = X::add(X::load(scratch.reference + r), X::set1(slack));
    if (!X::any(X::greater(exponent, limit))) continue;
    T exponents[X::width];
    X::store(exponents, exponent);
    for (Index i = 0; i < smaller(X::width, rows - r); ++i) {
      if (exponents[i] > scratch.reference[r + i] + slack) {
        move_reference(scratch, r + i, exponents[i], value_dim);
      }
    }
  }
}

// The transformed scores of rows [r, r + count) over whole vectors [begin, end).
template <class T, Index kStride>
CATTN_INLINE void transform_rows(const ScoreBlock& block, const ScoreTerms& terms, T* s, Index r,
                                 Index count, Index begin, Index end) {
  const bool full = block.full(r, count, begin, end);
  if (full && is_plain(terms)) return;
  for (Index row = r; row < smaller(r + count, block.rows); ++row)
    transform_row(s + row * kStride, begin, end, terms, block, row, full);
}

template <class T>
CATTN_INLINE Range whole_vectors(Range range) {
  constexpr Index width = Vec<T>::width;
  return {range.begin / width * width, round_up(range.end, width)};
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

template <class T, bool kMark>
CATTN_INLINE void softmax_rows(const ForwardTask& t, const ForwardScratch<T>& scratch,
                               const ScoreBlock& block, T factor) {
  using X = Vec<T>;
  constexpr Index stride = ForwardScratch<T>::Tiles::key_block;
  const bool plain = is_plain(*t.terms);
  for_row_tiles(block.rows, [&]<int kRows>(Index r) {
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
    const auto [begin, end] = whole_vectors<T>(columns);
    transform_rows<T, stride>(block, *t.terms, scratch.score, r, kRows, begin, end);
    for (Index row = r; row < r + count; ++row) {
      X::store(scratch.maximum + row * X::width,
               row_maximum(scratch.score + row * stride, begin, end));
    }
  });
  move_references(scratch, block.rows, factor, t.value_dim);
  for_row_tiles(block.rows, [&]<int kRows>(Index r) {
    const Range columns = block.columns(r, kRows);
    if (columns.begin >= columns.end) return;
    const auto [begin, end] = whole_vectors<T>(columns);
    for (Index row = r; row < smaller(r + kRows, block.rows); ++row) {
      T* const s = scratch.score + row * stride;
      T* const sum = scratch.sum + row * X::width;
      const T reference = scratch.reference[row];
      if (reference == -T(__builtin_inff())) {
        exponentiate_empty_row<T, kMark>(s, begin, end, sum);
      } else {
        exponentiate_row<T, kMark>(s, begin, end, factor, reference, sum);
      }
    }
  });
}

// The sum over lanes of `width` rows of lane-wise sums, one row per lane of the result.
template <class T>
CATTN_INLINE typename Vec<T>::V sum_rows(const T* lanes) {
  using X = Vec<T>;
  typename X::V tile[X::width];
  CATTN_UNROLL
  for (int i = 0; i < X::width; ++i) tile[i] = X::load(lanes + i * X::width);
  X::transpose(tile);
  auto sum = tile[0];
  CATTN_UNROLL
  for (int i = 1; i < X::width; ++i) sum = X::add(sum, tile[i]);
  return sum;
}

// out = o / sum and lse = ln(2) (reference + log2(sum)); a row without keys gives 0 and -inf.
template <class T>
CATTN_INLINE void finish_rows(const ForwardTask& t, const ForwardScratch<T>& scratch) {
  using X = Vec<T>;
  constexpr Index query_block = ForwardScratch<T>::Tiles::query_block;
  for (Index first = 0; first < t.rows; first += X::width) {
    T sums[X::width], factors[X::width];
    const auto sum = sum_rows<T>(scratch.sum + first * X::width);
    X::store(sums, sum);
    X::store(factors, X::select(X::equal(sum, X::zero()), X::zero(), X::div(X::set1(T(1)), sum)));
    for (Index r = first; r < smaller(first + X::width, t.rows); ++r) {
      const auto factor = X::set1(factors[r - first]);
      T* const out = static_cast<T*>(t.out.data) + r * t.out.row_stride;
      for (Index col = 0; col < t.value_dim; col += X::width) {
        const T* const o =
            scratch.out + (col / kPanel<T> * query_block + r) * kPanel<T> + col % kPanel<T>;
        const auto x = X::mul(X::load(o), factor);
        const Index n = t.value_dim - col;
        if (n >= X::width) {
          X::store(out + col, x);
        } else {
          X::store_n(out + col, x, n);
        }
      }
      if (t.lse) {
        const T row_sum = sums[r - first];
        static_cast<T*>(t.lse)[r * t.lse_stride] =
            row_sum == T(0) ? -T(__builtin_inff())
                            : static_cast<T>(static_cast<double>(scratch.reference[r]) * kLn2 +
                                             __builtin_log(static_cast<double>(row_sum)));
      }
    }
  }
}

template <class T>
CATTN_INLINE ScoreBlock score_block(const ForwardTask& t, Index key_block, Index b) {
  const Index first_key = b * key_block;
  return {t.rows, t.first_query, smaller(key_block, t.band.key_count - first_key), first_key,
          t.band};
}

// The packed queries, and sums that are still empty. Rows are padded to what row tiles and vectors
// of rows touch.
template <class T>
CATTN_INLINE void prepare_rows(const ForwardTask& t, const ForwardScratch<T>& scratch) {
  constexpr Index query_block = ForwardScratch<T>::Tiles::query_block;
  constexpr Index width = Vec<T>::width;
  const Index tile_rows = smaller(round_up(t.rows, Tile::rows / 3), query_block);
  const Index vector_rows = round_up(t.rows, width);
  pack_panels(static_cast<const T*>(t.q.data), t.q.row_stride, t.rows, t.head_dim, scratch.query,
              query_block);
  for (Index col = 0; col < t.head_dim; col += kPanel<T>)
    fill(scratch.query + col * query_block + t.rows * kPanel<T>, (tile_rows - t.rows) * kPanel<T>,
         T(0));
  for (Index col = 0; col < t.value_dim; col += kPanel<T>)
    fill(scratch.out + col * query_block, tile_rows * kPanel<T>, T(0));
  fill(scratch.sum, vector_rows * width, T(0));
  fill(scratch.reference, vector_rows, -T(__builtin_inff()));
  fill(scratch.maximum + t.rows * width, (vector_rows - t.rows) * width, -T(__builtin_inff()));
}

template <class T>
void forward(const ForwardTask& t) {
  using Tiles = typename Tile::Forward<T>;
  constexpr Index query_block = Tiles::query_block, key_block = Tiles::key_block;
  constexpr Tiling tiling{query_block, key_block};
  const ForwardScratch<T> scratch(t.scratch, t.head_dim, t.value_dim);
  const T factor = static_cast<T>(exponent_factor(*t.terms));

  prepare_rows(t, scratch);
  const Index key_bytes = packed_bytes<T>(Operand::key, tiling, t.head_dim);
  const Index value_bytes = packed_bytes<T>(Operand::value, tiling, t.value_dim);
  const Index key_begin = lowest_key(t.band, t.first_query);
  const Index key_end = highest_key(t.band, t.first_query + t.rows - 1);
  for (Index b = key_begin / key_block; b * key_block < key_end; ++b) {
    const ScoreBlock block = score_block<T>(t, key_block, b);
    const Index index = b - t.first_block;
    const T* const key = reinterpret_cast<const T*>(t.keys + index * key_bytes);
    const T* const value = reinterpret_cast<const T*>(t.values + index * value_bytes);

    block_products<T, key_block>(block, scratch.query, query_block, key, t.head_dim, scratch.score,
                                 scratch.maximum);
    const LeftRows<T, key_block> probability{scratch.score};
    if (t.value_flags[index] & kBlockFinite) {
      softmax_rows<T, false>(t, scratch, block, factor);
      accumulate_panels<T>(probability, t.rows, value, key_block, t.value_dim, scratch.out,
                           query_block,
                           [&](Index r, Index count) { return block.columns(r, count); });
    } else {
      softmax_rows<T, true>(t, scratch, block, factor);
      for (Index r = 0; r < t.rows; ++r) {
        const Range columns = block.columns(r, 1);
        if (columns.begin >= columns.end) continue;
        accumulate_skipping<T>(
            probability.at(r, columns.begin), 1, value + columns.begin * kPanel<T>, key_block,
            columns.end - columns.begin, t.value_dim, scratch.out + r * kPanel<T>, query_block);
      }
    }
  }
  finish_rows(t, scratch);
}

// The probabilities themselves, from the lse: weights = e^(s - lse).
template <class T>
void weights(const WeightsTask& task) {
  using X = Vec<T>;
  using Tiles = typename Tile::Forward<T>;
  constexpr Index query_block = Tiles::query_block, key_block = Tiles::key_block;
  constexpr Tiling tiling{query_block, key_block};
  const ForwardTask& t = *task.forward;
  const ForwardScratch<T> scratch(t.scratch, t.head_dim, t.value_dim);
  const T factor = static_cast<T>(exponent_factor(*t.terms));
  const Index key_bytes = packed_bytes<T>(Operand::key, tiling, t.head_dim);

  T* const weight = static_cast<T*>(task.weights.data);
  const T* const lse = static_cast<const T*>(t.lse);
  for (Index r = 0; r < t.rows; ++r) fill(weight + r * task.weights.row_stride, task.keys, T(0));
  pack_panels(static_cast<const T*>(t.q.data), t.q.row_stride, t.rows, t.head_dim, scratch.query,
              query_block);
  const Index key_begin = lowest_key(t.band, t.first_query);
  const Index key_end = highest_key(t.band, t.first_query + t.rows - 1);
  for (Index b = key_begin / key_block; b * key_block < key_end; ++b) {
    const ScoreBlock block = score_block<T>(t, key_block, b);
    const T* const key = reinterpret_cast<const T*>(t.keys + (b - t.first_block) * key_bytes);
    block_products<T, key_block>(block, scratch.query, query_block, key, t.head_dim, scratch.score,
                                 nullptr);
    for (Index r = 0; r < t.rows; ++r) {
      const T row_lse = lse[r * t.lse_stride];
      const Range columns = block.columns(r, 1);
      if (columns.begin >= columns.end || row_lse == -T(__builtin_inff())) continue;
      const auto [begin, end] = whole_vectors<T>(columns);
      T* const s = scratch.score + r * key_block;
      transform_rows<T, key_block>(block, *t.terms, scratch.score, r, 1, begin, end);
      exponentiate_row<T, true>(s, begin, end, factor, static_cast<T>(row_lse * kLog2e), nullptr);
      T* const to = weight + r * task.weights.row_stride + block.first_key;
      for (Index c = begin; c < end; c += X::width) {
        const auto p = X::add(X::load(s + c), X::zero());  // no -0 for a masked position
        X::store_n(to + c, p, smaller(X::width, block.cols - c));
      }
    }
  }
}
