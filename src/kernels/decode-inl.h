// Decode: few queries of a head against many keys, as when a text is continued. Keys and values are
// read where they lie: to pack them would be to write and read all of them once more, for products
// that are over when they have passed by once. Scores are dot products of rows, outputs are sums of
// weighted rows; what is between them is the forward's.

// The rows of a task's queries times their factor, `stride` apart and filled up with zeros.
template <class M, class S, class T = typename M::T>
CATTN_INLINE void scale_queries(const ForwardTask& t, T* query, Index stride) {
  using X = Vec<T>;
  const auto factor = X::set1(static_cast<T>(query_factor<M>(*t.terms)));
  const S* const q = static_cast<const S*>(t.q.data);
  for (Index r = 0; r < t.rows; ++r) {
    typename X::V squares[Tile::vectors] = {X::zero(), X::zero()};  // nobody asks for them
    row_to_panels<T>(q + r * t.q.row_stride, t.head_dim, Count<>{t.head_dim / kPanel<T>}, 0,
                     query + r * stride, kPanel<T>, squares,
                     [&](auto x) { return X::mul(x, factor); });
  }
}

// Keys whose dot products are summed at a time: no sum waits for its own last step.
// (Two queries at a time would need each key once, but compilers read it twice all the same.)
template <class T>
constexpr int kKeysAtOnce = Vec<T>::width < 8 ? 8 : Vec<T>::width;

// Calls f(d, load) for the vectors of a row: load(p + d) is what exists of the one at column d.
template <class T, class S, class F>
CATTN_INLINE void for_vectors(Index cols, F f) {
  using X = Vec<T>;
  Index d = 0;
  for (; d + X::width <= cols; d += X::width) f(d, [](const S* p) { return X::load(p); });
  if (d < cols) f(d, [&](const S* p) { return X::load_n(p, cols - d); });
}

// score[i] = query . row i of kKeysAtOnce keys. Adds 0 to `zeros`, by lanes, or NaN for what is not
// finite when it is multiplied by `factor`.
template <class T, class S>
CATTN_INLINE void dot_products(const T* query, const S* keys, Index stride, Index head_dim,
                               T* score, T factor, typename Vec<T>::V& zeros) {
  using X = Vec<T>;
  constexpr int vectors = kKeysAtOnce<T> / X::width;
  typename X::V sums[vectors][X::width];
  clear<T>(sums);
  for_vectors<T, S>(head_dim, [&](Index d, auto load) {
    const auto q = X::load(query + d);
    CATTN_UNROLL
    for (int j = 0; j < vectors; ++j) {
      CATTN_UNROLL
      for (int i = 0; i < X::width; ++i)
        sums[j][i] = X::fma(load(keys + (j * X::width + i) * stride + d), q, sums[j][i]);
    }
  });
  CATTN_UNROLL
  for (int j = 0; j < vectors; ++j) {
    const auto all = combine_rows<T>(sums[j], [](auto a, auto b) { return X::add(a, b); });
    zeros = X::fma(X::mul(all, X::set1(factor)), X::zero(), zeros);
    X::store(score + j * X::width, all);
  }
}

// query . key
template <class T, class S>
[[gnu::noinline]] T dot_product(const T* query, const S* key, Index head_dim) {
  using X = Vec<T>;
  auto sum = X::zero();
  for_vectors<T, S>(
      head_dim, [&](Index d, auto load) { sum = X::fma(load(key + d), X::load(query + d), sum); });
  return X::sum_lanes(sum);
}

// The products of `rows` rows of queries with the keys of `columns`, and with some more: a few keys
// have their turn with all rows while they are in the L1 cache. Returns whether all are finite,
// times `factor`, which brings them to units of log2(e).
template <class T, class S>
[[gnu::noinline]] bool score_rows(Index rows, Range columns, Index key_count, const T* query,
                                  Index query_stride, const S* keys, Index stride, Index head_dim,
                                  T* score, T factor) {
  using X = Vec<T>;
  constexpr Index key_block = Tile::template Forward<T>::key_block;
  auto zeros = X::zero();
  if (key_count < kKeysAtOnce<T>) {
    for (Index r = 0; r < rows; ++r) {
      for (Index c = columns.begin; c < columns.end; ++c) {
        const T s = dot_product(query + r * query_stride, keys + c * stride, head_dim);
        zeros = X::fma(X::set1(s * factor), X::zero(), zeros);
        score[r * key_block + c] = s;
      }
    }
  } else {
    for (Index c = columns.begin; c < columns.end; c += kKeysAtOnce<T>) {
      const Index first = smaller(c, key_count - kKeysAtOnce<T>);  // the last ones once more
      for (Index r = 0; r < rows; ++r) {
        dot_products(query + r * query_stride, keys + first * stride, stride, head_dim,
                     score + r * key_block + first, factor, zeros);
      }
    }
  }
  return X::sum_lanes(zeros) == T(0);
}

// Whether no number of these rows is NaN or inf; squares that overflow count as such.
template <class T, class S>
[[gnu::noinline]] bool are_finite(const S* rows, Index stride, Index count, Index cols) {
  using X = Vec<T>;
  auto total = X::zero();
  for (Index r = 0; r < count; ++r) {
    for_vectors<T, S>(cols, [&](Index c, auto load) {
      const auto x = load(rows + r * stride + c);
      total = X::fma(x, x, total);
    });
  }
  return X::sum_lanes(total) < T(__builtin_inff());
}

// out += weights * `keys` of the values, for kVectors vectors from column `col` on; if that is one,
// it may have less than `width` columns. The sum begins anew and is added once, as everywhere.
template <int kVectors, class T, class S>
CATTN_INLINE void add_columns(const T* weight, Range keys, const S* values, Index stride, Index col,
                              Index value_dim, T* out) {
  using X = Vec<T>;
  // Several sums of the same, of keys in turn: no sum waits for its own last step.
  constexpr int at_once = 8 / kVectors;
  typename X::V sums[at_once][kVectors];
  clear<T>(sums);
  const auto add_key = [&](typename X::V(&sum)[kVectors], Index key) {
    const auto w = X::set1(weight[key]);
    const S* const value = values + key * stride + col;
    const Index n = value_dim - col;
    CATTN_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const S* const p = value + v * X::width;
      sum[v] = X::fma(kVectors == 1 && n < X::width ? X::load_n(p, n) : X::load(p), w, sum[v]);
    }
  };
  Index key = keys.begin;
  for (; key + at_once <= keys.end; key += at_once) {
    CATTN_UNROLL
    for (int i = 0; i < at_once; ++i) add_key(sums[i], key + i);
  }
  for (; key < keys.end; ++key) add_key(sums[0], key);
  CATTN_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    auto sum = sums[0][v];
    CATTN_UNROLL
    for (int i = 1; i < at_once; ++i) sum = X::add(sum, sums[i][v]);
    T* const to = out + place_in_panels<T>(col + v * X::width);
    X::store(to, X::add(X::load(to), sum));
  }
}

// Columns that have their turn at once.
template <class T>
constexpr Index kColumnsAtOnce = 8 * Vec<T>::width;

// All columns, the widest first.
template <class T, class S>
[[gnu::noinline]] void add_values(const T* weight, Range keys, const S* values, Index stride,
                                  Index value_dim, T* out) {
  using X = Vec<T>;
  Index col = 0;
  const auto add = [&]<int kVectors>() {
    add_columns<kVectors>(weight, keys, values, stride, col, value_dim, out);
    col += kVectors * X::width;
  };
  while (value_dim - col >= kColumnsAtOnce<T>) add.template operator()<8>();
  if (value_dim - col >= 4 * X::width) add.template operator()<4>();
  if (value_dim - col >= 2 * X::width) add.template operator()<2>();
  while (col < value_dim) add.template operator()<1>();
}

// Values that stay in the L1 cache while all rows have their turn; of one row, as many as there is
// room for in add_seen_values().
constexpr Index kValuesOfRows = 32, kValuesOfRow = 64;

// The same where a value is not finite: what is masked counts as zeros, in a copy that takes
// kValuesOfRow * kColumnsAtOnce elements. The bits are those of any finite values there.
template <class T, class S>
[[gnu::noinline]] void add_seen_values(const T* weight, Range keys, const S* values, Index stride,
                                       Index value_dim, T* out, T* copy) {
  using X = Vec<T>;
  constexpr Index at_once = kColumnsAtOnce<T>;
  for (Index col = 0; col < value_dim; col += at_once) {
    const Index cols = smaller(at_once, value_dim - col);
    for (Index key = keys.begin; key < keys.end; ++key) {
      T* const row = copy + (key - keys.begin) * at_once;
      const bool is_masked = weight[key] == T(0) && __builtin_signbit(weight[key]);
      for_vectors<T, S>(cols, [&](Index c, auto load) {
        X::store(row + c, is_masked ? X::zero() : load(values + key * stride + col + c));
      });
    }
    add_values<T, T>(weight + keys.begin, {0, keys.end - keys.begin}, copy, at_once, cols,
                     out + place_in_panels<T>(col));
  }
}

// out += weights * values of a block, some keys at a time for all `rows`, which are those of
// several heads. skips: what is masked is left out.
template <class T, class S>
CATTN_INLINE void add_values_of_block(const ScoreBlock& block, Index rows,
                                      const ForwardScratch<T>& scratch, const S* values,
                                      Index stride, Index value_dim, bool skips) {
  using Tiles = typename Tile::template Forward<T>;
  constexpr Index key_block = Tiles::key_block;
  // Behind the scores.
  constexpr Index free = (Tiles::query_block - kMostDecodeRows) * key_block;
  static_assert(kValuesOfRow * kColumnsAtOnce<T> <= free && kValuesOfRow <= key_block);
  T* const copy = scratch.score + kMostDecodeRows * key_block;
  const Range attended = block.columns(0, block.rows);
  const Index at_once = rows > 1 ? kValuesOfRows : kValuesOfRow;
  for (Index first = attended.begin; first < attended.end; first += at_once) {
    for (Index r = 0; r < rows; ++r) {
      const Range of_row = block.columns(r % block.rows, 1);
      const Range some{larger(first, of_row.begin), smaller(first + at_once, of_row.end)};
      if (some.begin >= some.end) continue;
      const T* const weights = scratch.score + r * key_block;
      T* const out = scratch.out + r * kPanel<T>;
      if (skips) {
        add_seen_values(weights, some, values, stride, value_dim, out, copy);
      } else {
        add_values(weights, some, values, stride, value_dim, out);
      }
    }
  }
}

// From products to weights. Apart: the same for all types in memory.
template <class M, class T = typename M::T>
[[gnu::noinline]] void weigh_rows(const ForwardScratch<T>& scratch, const ScoreBlock& block,
                                  const ScoreTerms& terms, T factor, Index value_dim, bool mark) {
  if (mark) {
    softmax_rows<M, true>(scratch, block, terms, factor, value_dim, {});
  } else {
    softmax_rows<M, false>(scratch, block, terms, factor, value_dim, {});
  }
  if (terms.dropout.on) drop_rows<M>(scratch.score, block, terms.dropout);
}

// What the parts of all rows come to.
template <class T>
[[gnu::noinline]] void merge_parts(const MergeTask& task, const ForwardScratch<T>& scratch) {
  using X = Vec<T>;
  const ForwardTask& t = *task.forward;
  prepare_rows<FmaMatrices<T>>(t.rows, scratch);
  clear_out<FmaMatrices<T>>(t.rows, t.value_dim, scratch.out);
  for (Index r = 0; r < t.rows; ++r) {
    const auto part = [&](Index i) {
      return part_of_row<T>(task.parts, i * t.rows + r, t.value_dim);
    };
    T reference = -T(__builtin_inff());
    for (Index i = 0; i < task.count; ++i)
      reference = part(i)[0] > reference ? part(i)[0] : reference;
    T sum = 0;
    for (Index i = 0; i < task.count; ++i) {
      const T* const of = part(i);
      const PowerOf2<T> power(of[0] == reference ? T(0) : of[0] - reference);
      const auto first = X::set1(power.first), second = X::set1(power.second);
      sum += of[1] * power.first * power.second;
      for_vectors_of_out(scratch.out, r, t.value_dim, [&](Index c, T* to) {
        const auto out = X::mul(X::load(of + kPartNumbers + c), first);
        X::store(to, X::fma(out, second, X::load(to)));
      });
    }
    scratch.reference[r] = reference;
    scratch.sum[r * X::width] = sum;
  }
}

template <class T, class S>
void merge(const MergeTask& task) {
  const ForwardTask& t = *task.forward;
  const ForwardScratch<T> scratch(t.scratch, t.head_dim, t.value_dim);
  merge_parts<T>(task, scratch);
  finish_rows<T, S>(t, scratch);
}

template <class T, class S>
void decode(const DecodeTask& task) {
  using X = Vec<T>;
  using M = FmaMatrices<T>;
  using Tiles = typename Tile::template Forward<T>;
  constexpr Index key_block = Tiles::key_block;
  // Of the last rows some more are looked at, up to whole vectors of rows.
  static_assert(kMostDecodeRows + X::width <= Tiles::query_block);
  // What all heads have the same is taken from the first one.
  const ForwardTask& t = *task.heads;
  const Index rows = task.head_count * t.rows;
  const ForwardScratch<T> scratch(t.scratch, t.head_dim, t.value_dim);
  const Index query_stride = round_up(t.head_dim, kPanel<T>);
  const auto factor_of = [](const ForwardTask& head) {
    return static_cast<T>(rest_of_factor<M>(*head.terms));
  };
  const auto for_heads = [&](auto f) {
    for (Index h = 0; h < task.head_count; ++h)
      f(task.heads[h], scratch.from(h * t.rows), h * t.rows);
  };
  prepare_rows<M>(rows + X::width, scratch);
  fill(scratch.maximum, (rows + X::width) * X::width, -T(__builtin_inff()));
  clear_out<M>(rows, t.value_dim, scratch.out);
  for_heads([&](const ForwardTask& head, const auto&, Index row) {
    scale_queries<M, S>(head, scratch.query + row * query_stride, query_stride);
  });
  for (Index b = task.first_block; b < task.first_block + task.blocks; ++b) {
    const ScoreBlock block = score_block<T>(t, key_block, b);
    const Range attended = block.columns(0, block.rows);
    bool is_masked = true, hides = false;
    for_heads([&](const ForwardTask& head, const auto&, Index) {
      is_masked = is_masked && mask_kind(head, b) == MaskKind::empty;
      hides = hides || hides_some(terms_of_block(head, b), block) || !folds_scale(*head.terms);
    });
    if (is_masked || attended.begin >= attended.end) continue;
    const Index stride = task.v.row_stride;
    const S* const keys = static_cast<const S*>(task.k.data) + block.first_key * task.k.row_stride;
    const S* const values = static_cast<const S*>(task.v.data) + block.first_key * stride;
    // Of heads with other factors than the first one's, some do not fold the scale: `hides` is
    // true.
    const bool finite = score_rows(rows, attended, block.cols, scratch.query, query_stride, keys,
                                   task.k.row_stride, t.head_dim, scratch.score, factor_of(t));
    // A score of -inf is a mask too, where it makes a difference.
    const bool skips =
        (hides || !finite) && !are_finite<T>(values + attended.begin * stride, stride,
                                             attended.end - attended.begin, t.value_dim);
    for_heads([&](const ForwardTask& head, ForwardScratch<T> of_head, Index row) {
      of_head.score += row * key_block;
      weigh_rows<M>(of_head, block, terms_of_block(head, b), factor_of(head), t.value_dim, skips);
    });
    add_values_of_block(block, rows, scratch, values, stride, t.value_dim, skips);
  }
  for_heads([&](const ForwardTask& head, const ForwardScratch<T>& of_head, Index row) {
    if (task.parts) {
      store_part(head, of_head, task.parts + row / t.rows * task.part_bytes);
    } else {
      finish_rows<T, S>(head, of_head);
    }
  });
}

template <class T, class S>
void decode_weights(const WeightsTask& task, ConstRows k) {
  using M = FmaMatrices<T>;
  const ForwardTask& t = *task.forward;
  const ForwardScratch<T> scratch(t.scratch, t.head_dim, t.value_dim);
  const Index query_stride = round_up(t.head_dim, kPanel<T>);
  const T factor = static_cast<T>(rest_of_factor<M>(*t.terms));
  clear_weights<S>(task);
  scale_queries<M, S>(t, scratch.query, query_stride);
  for_key_blocks<T>(t, [&](const ScoreBlock& block, const ScoreTerms& terms, Index) {
    const S* const keys = static_cast<const S*>(k.data) + block.first_key * k.row_stride;
    score_rows(block.rows, block.columns(0, block.rows), block.cols, scratch.query, query_stride,
               keys, k.row_stride, t.head_dim, scratch.score, factor);
    store_weights<T, S>(t, block, terms, scratch.score, factor, task.weights);
  });
}
