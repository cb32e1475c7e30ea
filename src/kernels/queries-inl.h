// Queries of the forward pass, packed in panels.

// What is known of a task's queries when they are packed.
template <class T>
struct PackedQueries {
  T norm;          // a bound of the norms of their rows, times their factor; inf if not finite
  bool split;      // in parts that products can be made of
  bool in_panels;  // of T too
};

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

// The rows of a task's queries, or of their tangents, times their factor; row tiles may read a few
// rows past the last one, which are zeros. Returns the largest norm of a row; inf if a number is
// not finite.
template <class M, class S, class T = typename M::T>
CATTN_INLINE T pack_scaled_queries(ConstRows q, const ForwardTask& t, T* packed) {
  using X = Vec<T>;
  constexpr Index query_block = Tile::Forward<T>::query_block;
  const Index tile_rows = smaller(round_up(t.rows, M::row_padding), query_block);
  clear_panels(packed + t.rows * kPanel<T>, tile_rows - t.rows, t.head_dim, query_block);
  const auto factor = X::set1(static_cast<T>(query_factor<M>(*t.terms)));
  return with_known_panels<T>(t.head_dim, [&](auto panels) {
    return largest_norm<T>(t.rows, [&](Index r) {
      typename X::V squares[1][Tile::vectors];
      clear<T>(squares);
      row_to_panels<T>(static_cast<const S*>(q.data) + r * q.row_stride, t.head_dim, panels,
                       t.rows * q.row_stride, packed + r * kPanel<T>, query_block * kPanel<T>,
                       squares[0], [&](auto x) { return X::mul(x, factor); });
      return sum_vectors<T>(squares[0]);
    });
  });
}
