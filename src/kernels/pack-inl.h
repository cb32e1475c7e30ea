// Packing: copies of an operand in panels (see gemm-inl.h), padded with zeros to whole panels, so
// that no product has a ragged edge. Reads exactly the elements of the source.

template <class T>
CATTN_INLINE bool all_finite(typename Vec<T>::V sum) {
  // x * 0 is 0 for a finite x and NaN otherwise, and NaN stays in a sum.
  const T s = Vec<T>::sum_lanes(sum);
  return s == T(0);
}

// (rows, cols) to (cols / kPanel, block_rows, kPanel). Returns whether all elements are finite.
// S is the type in memory, T what is computed in.
template <class T, class S>
bool pack_panels(const S* source, Index stride, Index rows, Index cols, T* packed,
                 Index block_rows) {
  using X = Vec<T>;
  auto probe = X::zero();
  const auto zero = X::zero();
  for (Index col = 0; col < cols; col += X::width) {
    const Index n = smaller(X::width, cols - col);
    T* to = packed + col / kPanel<T> * block_rows * kPanel<T> + col % kPanel<T>;
    const S* from = source + col;
    if (n == X::width) {
      for (Index r = 0; r < rows; ++r, from += stride, to += kPanel<T>) {
        __builtin_prefetch(from + rows * stride, 0, 2);
        const auto x = X::load(from);
        probe = X::fma(x, zero, probe);
        X::store(to, x);
      }
    } else {
      for (Index r = 0; r < rows; ++r, from += stride, to += kPanel<T>) {
        const auto x = X::load_n(from, n);
        probe = X::fma(x, zero, probe);
        X::store(to, x);
      }
    }
  }
  for (Index col = round_up(cols, X::width); col < round_up(cols, kPanel<T>); col += X::width) {
    T* to = packed + col / kPanel<T> * block_rows * kPanel<T> + col % kPanel<T>;
    for (Index r = 0; r < rows; ++r) X::store(to + r * kPanel<T>, zero);
  }
  return all_finite<T>(probe);
}

// (rows, cols) to the panels of the transpose: (rows / kPanel, cols, kPanel).
template <class T, class S>
bool pack_transposed(const S* source, Index stride, Index rows, Index cols, T* packed) {
  using X = Vec<T>;
  auto probe = X::zero();
  const auto zero = X::zero();
  for (Index row = 0; row < round_up(rows, kPanel<T>); row += X::width) {
    T* to = packed + row / kPanel<T> * cols * kPanel<T> + row % kPanel<T>;
    for (Index col = 0; col < cols; col += X::width) {
      const Index n = smaller(X::width, cols - col);
      typename X::V tile[X::width];
      CATTN_UNROLL
      for (int i = 0; i < X::width; ++i) {
        tile[i] = zero;
        if (row + i < rows) {
          const S* from = source + (row + i) * stride + col;
          __builtin_prefetch(from + rows * stride, 0, 2);
          tile[i] = n == X::width ? X::load(from) : X::load_n(from, n);
        }
        probe = X::fma(tile[i], zero, probe);
      }
      X::transpose(tile);
      CATTN_UNROLL
      for (int i = 0; i < X::width; ++i) {
        if (i < n) X::store(to + (col + i) * kPanel<T>, tile[i]);
      }
    }
  }
  return all_finite<T>(probe);
}

template <class T>
Index packed_bytes(Operand operand, const Tiling& tiling, Index cols) {
  const bool query_side = operand == Operand::query || operand == Operand::grad_out;
  const bool transposed = operand == Operand::key || operand == Operand::value_t;
  const Index rows = query_side ? tiling.query_block : tiling.key_block;
  const Index elements =
      transposed ? round_up(rows, kPanel<T>) * cols : rows * round_up(cols, kPanel<T>);
  return elements * static_cast<Index>(sizeof(T));
}

template <class T, class S>
uint8_t pack(const PackTask& t, const Tiling& tiling) {
  const S* source = static_cast<const S*>(t.source.data);
  T* packed = static_cast<T*>(t.packed);
  bool finite = true;
  switch (t.operand) {
    case Operand::key:
    case Operand::value_t:
      finite = pack_transposed<T>(source, t.source.row_stride, t.rows, t.cols, packed);
      break;
    case Operand::value:
    case Operand::key_rows:
      finite =
          pack_panels<T>(source, t.source.row_stride, t.rows, t.cols, packed, tiling.key_block);
      break;
    case Operand::query:
    case Operand::grad_out:
      finite =
          pack_panels<T>(source, t.source.row_stride, t.rows, t.cols, packed, tiling.query_block);
      break;
  }
  return static_cast<uint8_t>(finite ? kBlockFinite : 0);
}
