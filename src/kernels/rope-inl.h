// Rotary position embedding (Su et al. 2021): each pair of features is turned by an angle that
// grows with the position, y1 = x1 cos - x2 sin, y2 = x1 sin + x2 cos.

// The pair's halves are apart (half-split): whole vectors of pairs.
template <class T, class S>
CATTN_INLINE void rope_split_row(const S* x, S* out, const T* cos, const T* sin, Index pairs,
                                 T sign) {
  using X = Vec<T>;
  for (Index t = 0; t < pairs; t += X::width) {
    const Index n = smaller(X::width, pairs - t);
    const bool full = n == X::width;
    const auto c = full ? X::load(cos + t) : X::load_n(cos + t, n);
    const auto s = X::mul(full ? X::load(sin + t) : X::load_n(sin + t, n), X::set1(sign));
    const auto x1 = full ? X::load(x + t) : X::load_n(x + t, n);
    const auto x2 = full ? X::load(x + pairs + t) : X::load_n(x + pairs + t, n);
    const auto y1 = X::fma(X::sub(X::zero(), x2), s, X::mul(x1, c));
    const auto y2 = X::fma(x1, s, X::mul(x2, c));
    if (full) {
      X::store(out + t, y1);
      X::store(out + pairs + t, y2);
    } else {
      X::store_n(out + t, y1, n);
      X::store_n(out + pairs + t, y2, n);
    }
  }
}

// The pair's halves are neighbours: taken apart through a buffer, turned, and put back.
template <class T, class S>
CATTN_INLINE void rope_interleaved_row(const S* x, S* out, const T* cos, const T* sin, Index pairs,
                                       T sign) {
  constexpr Index width = Vec<T>::width;
  S split[2 * width], turned[2 * width];
  for (Index t = 0; t < pairs; t += width) {
    const Index n = smaller(width, pairs - t);
    for (Index l = 0; l < n; ++l) {
      split[l] = x[2 * (t + l)];
      split[n + l] = x[2 * (t + l) + 1];
    }
    rope_split_row<T>(split, turned, cos + t, sin + t, n, sign);
    for (Index l = 0; l < n; ++l) {
      out[2 * (t + l)] = turned[l];
      out[2 * (t + l) + 1] = turned[n + l];
    }
  }
}

template <class T, class S>
void rope(const RopeTask& t) {
  const T sign = t.inverse ? T(-1) : T(1);
  for (Index r = 0; r < t.rows; ++r) {
    const S* const x = static_cast<const S*>(t.x.data) + r * t.x.row_stride;
    S* const out = static_cast<S*>(t.out.data) + r * t.out.row_stride;
    const T* const cos = static_cast<const T*>(t.cos.data) + r * t.cos.row_stride;
    const T* const sin = static_cast<const T*>(t.sin.data) + r * t.sin.row_stride;
    if (t.interleaved) {
      rope_interleaved_row<T>(x, out, cos, sin, t.pairs, sign);
    } else {
      rope_split_row<T>(x, out, cos, sin, t.pairs, sign);
    }
    for (Index c = 2 * t.pairs; c < t.head_dim; ++c) out[c] = x[c];
  }
}
