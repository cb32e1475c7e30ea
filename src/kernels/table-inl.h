// The entries of one ISA's table, all instantiated from the shared sources.

// T is what is computed in, S what lies in memory.
template <class T, class S = T>
constexpr KernelSet kernel_set() {
  return {matrix_kernels<FmaMatrices<T>, S>(),
          sizeof(T),
          accumulator_bytes<T>,
          jvp_scratch_bytes<T>,
          jvp<T, S>,
          decode<T, S>,
          merge<T, S>,
          decode_weights<T, S>,
          row_terms<T, S>,
          rope<T, S>};
}

constexpr KernelTable kernel_table(const char* name) {
  return {name,
          kernel_set<float>(),
          kernel_set<float>(),
          kernel_set<float>(),
          kernel_set<double>(),
          kernel_set<float, Float16>(),
          kernel_set<float, BFloat16>(),
          dropout_row,
          nullptr};
}
