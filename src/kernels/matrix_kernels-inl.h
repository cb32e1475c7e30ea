// The kernels for one way of multiplying matrices, instantiated from the shared sources.

// M is how matrices are multiplied, S what lies in memory.
template <class M, class S>
constexpr MatrixKernels matrix_kernels() {
  using T = typename M::T;
  using F = typename Tile::Forward<T>;
  using B = typename M::BackwardTiles;
  static_assert(F::query_block % M::row_padding == 0 && F::key_block % kPanel<T> == 0);
  static_assert(B::query_block % M::row_padding == 0 && B::key_block % kPanel<T> == 0 &&
                B::key_block % M::row_padding == 0 &&
                B::key_block == Tile::template Backward<T>::key_block);
  static_assert(F::key_block % kDropoutSpan == 0 && B::key_block % kDropoutSpan == 0);
  static_assert(Tile::rows % 3 == 0 && Tile::vectors == 2);
  return {{F::query_block, F::key_block},
          {B::query_block, B::key_block},
          M::packed_bytes,
          forward_scratch_bytes<M>,
          backward_scratch_bytes<M>,
          M::template pack<S>,
          forward<M, S>,
          weights<M, S>,
          backward<M>,
          backward_dq<M>,
          clear<M>,
          flush<M, S>,
          flush<M, T>,
          M::writes_rows};
}
