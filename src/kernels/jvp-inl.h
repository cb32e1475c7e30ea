// Forward mode: how out moves when q, k and v move by their tangents. With s, P as in forward:
//   ds = scale (dq . k + q . dk) (1 - tanh^2 of a softcap)
//   dO = sum_j P_j ds_j v_j + P_j dv_j  -  (sum_j P_j ds_j) O
// in the same pass with the same running softmax; dropout drops P in both sums that hold v.

template <class T>
struct JvpScratch {
  using Tiles = typename Tile::Forward<T>;
  ForwardScratch<T> forward;
  T *query_tangent, *weight_tangent, *product, *slope, *end;

  CATTN_INLINE JvpScratch(void* scratch, Index head_dim, Index value_dim)
      : forward(scratch, head_dim, value_dim) {
    constexpr Index tile = Tiles::query_block * Tiles::key_block;
    T* p = forward.end;
    const auto take = [&](Index elements) {
      T* const mine = p;
      p += round_up(elements, 64 / static_cast<Index>(sizeof(T)));
      return mine;
    };
    query_tangent = take(Tiles::query_block * round_up(head_dim, kPanel<T>));
    weight_tangent = take(tile);
    product = take(tile);
    slope = take(tile);
    forward.out_tangent = take(Tiles::query_block * round_up(value_dim, kPanel<T>));
    forward.sum_tangent = take(Tiles::query_block * Vec<T>::width);
    end = p;
  }
};

template <class T>
Index jvp_scratch_bytes(Index head_dim, Index value_dim) {
  return bytes_up_to(JvpScratch<T>(nullptr, head_dim, value_dim).end);
}

// tangent = p scale (tangent + product) slope, summed; masked positions keep their mark.
template <class T>
CATTN_INLINE void weight_tangent_row(const T* p, T* tangent, const T* product, const T* slope,
                                     Index begin, Index end, T scale, T* sum) {
  using X = Vec<T>;
  const auto mark = X::set1(kMasked<T>), factor = X::set1(scale);
  auto total = X::load(sum);
  for (Index c = begin; c < end; c += X::width) {
    const auto weight = X::load(p + c);
    auto ds = X::mul(X::add(X::load(tangent + c), X::load(product + c)), factor);
    if (slope) ds = X::mul(ds, X::load(slope + c));
    const auto moved = X::select(X::same_bits(weight, mark), mark, X::mul(weight, ds));
    total = X::add(total, moved);
    X::store(tangent + c, moved);
  }
  X::store(sum, total);
}

template <class T, class S>
void jvp(const JvpTask& task) {
  using M = FmaMatrices<T>;
  using X = Vec<T>;
  using Tiles = typename Tile::Forward<T>;
  constexpr Index query_block = Tiles::query_block, key_block = Tiles::key_block;
  constexpr Tiling tiling{query_block, key_block};
  const ForwardTask& t = *task.forward;
  const JvpScratch<T> all(t.scratch, t.head_dim, t.value_dim);
  const ForwardScratch<T>& scratch = all.forward;
  const Index key_bytes = panel_bytes<T>(Operand::key, tiling, t.head_dim);
  const Index value_bytes = panel_bytes<T>(Operand::value, tiling, t.value_dim);
  T* const slope = t.terms->softcap != 0 ? all.slope : nullptr;

  prepare_rows<M>(t.rows, scratch);
  pack_scaled_queries<M, S>(t.q, t, scratch.query);
  pack_scaled_queries<M, S>(task.q_tangent, t, all.query_tangent);
  const T factor = static_cast<T>(rest_of_factor<M>(*t.terms));
  const T scale = static_cast<T>(t.terms->scale / query_factor<M>(*t.terms));
  clear_out<M>(t.rows, t.value_dim, scratch.out);
  clear_out<M>(t.rows, t.value_dim, scratch.out_tangent);
  clear_sums(t.rows, scratch.sum_tangent);
  for_key_blocks<T>(t, [&](const ScoreBlock& block, const ScoreTerms& terms, Index index) {
    const auto key = reinterpret_cast<const T*>(t.keys + index * key_bytes);
    const auto key_tangent = reinterpret_cast<const T*>(task.key_tangents + index * key_bytes);
    const auto value = reinterpret_cast<const T*>(t.values + index * value_bytes);
    const auto value_tangent =
        reinterpret_cast<const T*>(task.value_tangents + index * value_bytes);
    const auto products = [&](const T* left, const T* right, T* to, T* maximum) {
      block_products<T>(block, left, query_block, right, t.head_dim,
                        StoreScores<T, key_block>{to, maximum});
    };
    products(scratch.query, key, scratch.score, scratch.maximum);
    products(all.query_tangent, key, all.weight_tangent, nullptr);
    products(scratch.query, key_tangent, all.product, nullptr);
    softmax_rows<M, true>(scratch, block, terms, factor, t.value_dim, {.maxima = true}, nullptr,
                          slope);
    for_rows_of_block<M>(block, [&](Index row, Index begin, Index end) {
      const Index at = row * key_block;
      weight_tangent_row(scratch.score + at, all.weight_tangent + at, all.product + at,
                         slope ? slope + at : nullptr, begin, end, scale,
                         scratch.sum_tangent + row * X::width);
    });
    if (terms.dropout.on) {
      drop_rows<M>(scratch.score, block, terms.dropout);
      drop_rows<M>(all.weight_tangent, block, terms.dropout);
    }
    const bool finite = (t.value_flags[index] & kBlockFinite) != 0;
    const bool tangent_finite = (task.value_tangent_flags[index] & kBlockFinite) != 0;
    accumulate_block(block, scratch.score, value, finite, t.value_dim, scratch.out);
    accumulate_block(block, all.weight_tangent, value, finite, t.value_dim, scratch.out_tangent);
    accumulate_block(block, scratch.score, value_tangent, tangent_finite, t.value_dim,
                     scratch.out_tangent);
  });

  finish_rows<T, S>(t, scratch);
  const bool dropped = t.terms->dropout.on;
  const T kept_scale = dropped ? static_cast<T>(t.terms->dropout.kept_scale) : T(1);
  for (Index first = 0; first < t.rows; first += X::width) {
    const RowResults<T> results = row_results(t, scratch, first);
    T moved[X::width];
    X::store(moved, sum_rows<T>(scratch.sum_tangent + first * X::width));
    store_rows<T>(static_cast<S*>(task.out_tangent.data), task.out_tangent.row_stride,
                  ForwardScratch<T>::Tiles::query_block,
                  Range{first, smaller(first + X::width, t.rows)}, t.value_dim,
                  [&](Index r, Index at) {
                    // `by` is kept_scale / denominator, and the sum of P ds is not dropped.
                    const T of_row = results.factors[r - first];
                    const auto by = X::set1(of_row);
                    const auto out = X::mul(X::load(scratch.out + at), by);
                    const auto mean = X::set1(-moved[r - first] * (of_row / kept_scale));
                    return X::fma(mean, out, X::mul(X::load(scratch.out_tangent + at), by));
                  });
  }
}
