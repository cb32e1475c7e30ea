// Queries of the forward pass, packed in panels.

// What is known of a task's queries when they are packed.
template <class T>
struct PackedQueries {
  T norm;          // a bound of the norms of their rows, times their factor; inf if not finite
  bool split;      // in parts that products can be made of
  bool in_panels;  // of T too
};

// Rows of queries, packed; row tiles may read a few rows past the last one, which are zeros.
template <class M, class S, class T = typename M::T>
CATTN_INLINE void pack_queries(ConstRows q, Index rows, Index head_dim, T* packed) {
  constexpr Index query_block = Tile::Forward<T>::query_block;
  const Index tile_rows = smaller(round_up(rows, M::row_padding), query_block);
  pack_panels<T>(static_cast<const S*>(q.data), q.row_stride, rows, head_dim, packed, query_block);
  for (Index col = 0; col < head_dim; col += kPanel<T>)
    fill(packed + col * query_block + rows * kPanel<T>, (tile_rows - rows) * kPanel<T>, T(0));
}

// The factor that queries are multiplied by when they are packed; scores still need the rest.
template <class M>
CATTN_INLINE double query_factor(const ScoreTerms& terms) {
  const double factor = exponent_factor(terms);
  return M::scales_queries && folds_scale(terms) && factor <= 1 ? factor : 1;
}
template <class M>
CATTN_INLINE double rest_of_factor(const ScoreTerms& terms) {
  return query_factor<M>(terms) == 1 ? exponent_factor(terms) : 1;
}

// Multiplies the packed queries by their factor. Returns the largest norm; inf if a number is not
// finite.
template <class M, class T>
CATTN_INLINE T scale_queries(const ForwardTask& t, T* query) {
  using X = Vec<T>;
  constexpr Index query_block = Tile::Forward<T>::query_block;
  const auto factor = X::set1(static_cast<T>(query_factor<M>(*t.terms)));
  return largest_norm<T>(t.rows, [&](Index r) {
    T* const row = query + r * kPanel<T>;
    auto squares = X::zero();
    for (Index col = 0; col < t.head_dim; col += X::width) {
      T* const p = row + col / kPanel<T> * query_block * kPanel<T> + col % kPanel<T>;
      const auto x = X::mul(X::load(p), factor);
      squares = X::fma(x, x, squares);
      X::store(p, x);
    }
    return squares;
  });
}

// Both at once. Returns the largest norm.
template <class M, class S, class T = typename M::T>
CATTN_INLINE T pack_scaled_queries(const ForwardTask& t, T* query) {
  pack_queries<M, S>(t.q, t.rows, t.head_dim, query);
  return scale_queries<M>(t, query);
}
