// Dropout: Philox4x32-10 (Salmon et al. 2011), a counter-based generator: the random word of an
// element depends on the seed and the element's place alone. Key: the seed. Counter: (16 (j / 64) +
// j % 16, query i, query head, batch entry); of its four words the one with index j / 16 % 4
// belongs to key j. So 64 neighbouring keys are 16 counters, and each word of all of them is a run
// of 16.

CATTN_INLINE void philox(Words::V (&counter)[4], uint64_t seed) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  CATTN_UNROLL
  for (int round = 0; round < 10; ++round) {
    Words::V high0, low0, high1, low1;
    Words::multiply(counter[0], 0xd2511f53u, high0, low0);
    Words::multiply(counter[2], 0xcd9e8d57u, high1, low1);
    counter[0] = Words::exclusive_or(Words::exclusive_or(high1, counter[1]), Words::set1(key0));
    counter[1] = low1;
    counter[2] = Words::exclusive_or(Words::exclusive_or(high0, counter[3]), Words::set1(key1));
    counter[3] = low0;
    key0 += 0x9e3779b9u;
    key1 += 0xbb67ae85u;
  }
}

inline void dropout_row(const DropoutRow& t) {
  constexpr uint32_t run = kDropoutSpan / 4;
  for (Index first = 0; first < t.count; first += kDropoutSpan) {
    const auto span = static_cast<uint32_t>((t.first_key + first) / kDropoutSpan);
    CATTN_UNROLL
    for (uint32_t lane = 0; lane < run; lane += Words::width) {
      Words::V words[4] = {Words::iota(span * run + lane), Words::set1(t.query),
                           Words::set1(t.head), Words::set1(t.batch)};
      philox(words, t.seed);
      CATTN_UNROLL
      for (uint32_t w = 0; w < 4; ++w) Words::store(t.words + first + w * run + lane, words[w]);
    }
  }
}

// The random words of row r of a block, from its first column on.
template <Index kCols>
struct BlockWords {
  static_assert(kCols % kDropoutSpan == 0);
  alignas(64) uint32_t words[kCols];

  CATTN_INLINE void draw(const Dropout& dropout, const ScoreBlock& block, Index r) {
    dropout_row({dropout.seed, dropout.batch, dropout.head,
                 static_cast<uint32_t>(block.first_query + r), block.first_key, block.cols, words});
  }
};

// p = p where kept, else kMasked: multiplies like 0 and is left out where values are not finite.
// The factor 1 / (1 - dropout) is applied to whole rows of the result.
template <class T>
CATTN_INLINE void drop_row(T* p, Index begin, Index end, const uint32_t* words,
                           uint32_t threshold) {
  using X = Vec<T>;
  for (Index c = begin; c < end; c += X::width) {
    const auto kept = X::words_at_least(words + c, threshold);
    X::store(p + c, X::select(kept, X::load(p + c), X::set1(kMasked<T>)));
  }
}

// Backward: dp = dp / (1 - dropout) where kept, else 0.
template <class T>
CATTN_INLINE void drop_gradient_row(T* dp, Index begin, Index end, const uint32_t* words,
                                    const Dropout& dropout) {
  using X = Vec<T>;
  const auto scale = X::set1(static_cast<T>(dropout.kept_scale));
  for (Index c = begin; c < end; c += X::width) {
    const auto kept = X::words_at_least(words + c, dropout.threshold);
    X::store(dp + c, X::select(kept, X::mul(X::load(dp + c), scale), X::zero()));
  }
}
