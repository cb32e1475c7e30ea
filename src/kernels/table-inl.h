// The entries of one ISA's table, all instantiated from the shared sources.

// T is what is computed in, S what lies in memory.
template <class T, class S = T>
constexpr KernelSet kernel_set() {
  using F = typename Tile::Forward<T>;
  using B = typename Tile::Backward<T>;
  static_assert(F::query_block % (Tile::rows / 3) == 0 && F::key_block % kPanel<T> == 0);
  static_assert(B::query_block % (Tile::rows / 3) == 0 && B::key_block % kPanel<T> == 0 &&
                B::key_block % (Tile::rows / 3) == 0);
  static_assert(F::key_block % kDropoutSpan == 0 && B::key_block % kDropoutSpan == 0);
  static_assert(Tile::rows % 3 == 0 && Tile::vectors == 2);
  return {sizeof(T),
          {F::query_block, F::key_block},
          {B::query_block, B::key_block},
          packed_bytes<T>,
          accumulator_bytes<T>,
          forward_scratch_bytes<T>,
          backward_scratch_bytes<T>,
          pack<T, S>,
          forward<T, S>,
          weights<T, S>,
          jvp_scratch_bytes<T>,
          jvp<T, S>,
          row_terms<T, S>,
          backward<T>,
          backward_dq<T>,
          flush<T, S>,
          flush<T, T>,
          rope<T, S>};
}

constexpr KernelTable kernel_table(const char* name) {
  return {name,
          kernel_set<float>(),
          kernel_set<double>(),
          kernel_set<float, Float16>(),
          kernel_set<float, BFloat16>(),
          dropout_row};
}
