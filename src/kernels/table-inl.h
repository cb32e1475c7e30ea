// The entries of one ISA's table, all instantiated from the shared sources.

template <class T>
constexpr KernelSet kernel_set() {
  using F = typename Tile::Forward<T>;
  using B = typename Tile::Backward<T>;
  static_assert(F::query_block % Tile::rows == 0 && F::key_block % kPanel<T> == 0);
  static_assert(B::query_block % (Tile::rows / 3) == 0 && B::key_block % kPanel<T> == 0 &&
                B::key_block % (Tile::rows / 3) == 0);
  static_assert(Tile::rows % 3 == 0 && Tile::vectors == 2);
  return {sizeof(T),
          {F::query_block, F::key_block},
          {B::query_block, B::key_block},
          packed_bytes<T>,
          accumulator_bytes<T>,
          forward_scratch_bytes<T>,
          backward_scratch_bytes<T>,
          pack<T>,
          forward<T>,
          weights<T>,
          row_terms<T>,
          backward<T>,
          flush<T>};
}
