// Forward where tiles are multiplied by a unit of their own (amx/): while that multiplies, the
// vector unit turns scores that are there into weights. What one product takes, 16 cycles, is
// enough for about 60 weights.
//
// It serves where no maxima are wanted, so that a weight needs nothing but its score.
//
// Keys have their turn in units, those in chunks. At a time there are the scores of the next chunk,
// which are being multiplied, those of this one and the weights that they become, and the weights
// of the unit before, which are multiplied with its values, some columns for each chunk. All of
// that is to stay in the L1 cache.

// Memory ahead is fetched for so many rows at a time.
constexpr int kRowsPerFetch = 4;

// Weights that are rounded at once, and summed as rounded.
template <class M, Index kKeys>
class RoundedRows {
  using T = typename M::T;
  using X = Vec<T>;
  using Round = RoundRow<M, Scores::bounded>;
  using Keeper = typename M::Forward::Keeper;

 public:
  static constexpr bool leaves_sums = false;
  // Up to so many panels of values have their turn all at once: measured.
  static constexpr int panels_of_one_chunk = 3;
  CATTN_INLINE RoundedRows(const ForwardScratch<T>& rows, const T* s,
                           const typename M::Forward::Weights& weights, Index, T factor,
                           ForwardAhead& ahead)
      : round_(factor), s_(s), p_(weights.p), sum_(rows.weight_sum), ahead_(ahead) {}
  CATTN_INLINE void step() {
    if (left_ <= 0) return;
    if (left_ % kRowsPerFetch == 0) ahead_.fetch_rows();
    --left_;
    const Keeper keeper{{p_, M::row_group * kPanel<T>, 0}};
    X::store(sum_, round_(s_, {0, kKeys}, one_, keeper, X::load(sum_)));
    sum_ += X::width;
    s_ += kKeys;
    p_ += kPanel<T>;
  }
  CATTN_INLINE void finish() {
    while (left_ > 0) step();
  }

 private:
  Round round_;
  const T* s_;
  uint16_t* p_;
  T* sum_;
  int left_ = static_cast<int>(M::row_group);
  ForwardAhead& ahead_;
  typename X::V one_ = Round::place_of_zero_within_reach();
};

// The others: of several parts, a number of rows for each of `steps` steps, or of one part whose
// exact sums are wanted, a row for each.
template <class M, Index kKeys>
class ExactRows {
  using T = typename M::T;
  using X = Vec<T>;

 public:
  // Whether rounded weights are left to be summed by a product.
  static constexpr bool leaves_sums = M::rounds_weights;
  static constexpr int panels_of_one_chunk = M::Forward::one_product_a_step ? 2 : 0;
  CATTN_INLINE ExactRows(const ForwardScratch<T>& rows, const T* s,
                         const typename M::Forward::Weights& weights, Index steps, T factor,
                         ForwardAhead& ahead)
      : s_(s),
        to_{weights},
        by_(X::set1(factor)),
        sum_(rows.sum),
        per_step_((kOne * M::row_group + steps - 1) / steps),
        ahead_(ahead) {}
  CATTN_INLINE void step() {
    if constexpr (M::Forward::one_product_a_step) {
      if (left_ > 0) next();
    } else {
      for (due_ += per_step_; due_ >= kOne && left_ > 0; due_ -= kOne) next();
    }
  }
  CATTN_INLINE void finish() {
    while (left_ > 0) next();
  }

 private:
  CATTN_INLINE void next() {
    if (left_ % kRowsPerFetch == 0) {
      ahead_.fetch_rows();
      if constexpr (M::fetches_blocks) ahead_.step();
    }
    --left_;
    auto to = to_;
    auto total = X::load(sum_);
    CATTN_UNROLL
    for (Index c = 0; c < kKeys; c += kPanel<T>, to.next_panel()) {
      typename X::V p[kPanel<T> / X::width];
      CATTN_UNROLL
      for (int j = 0; j < kPanel<T> / X::width; ++j) {
        p[j] = weight_within_reach<M>(X::load(s_ + c + j * X::width), by_);
        total = X::add(total, p[j]);
      }
      to(0, p);
    }
    X::store(sum_, total);
    sum_ += X::width;
    s_ += kKeys;
    to_.next_row();
  }
  static constexpr Index kOne = 256;
  const T* s_;
  typename M::Forward::Keeper to_;
  const typename X::V by_;
  T* sum_;
  Index per_step_, due_ = 0, left_ = M::row_group;
  ForwardAhead& ahead_;
};

// Adds `out_more` to the outputs of some rows, if there are some; else it becomes them.
template <class T>
CATTN_INLINE void add_more_to_out(const ForwardScratch<T>& scratch, Index rows, Index value_dim,
                                  bool has_outputs) {
  using X = Vec<T>;
  constexpr Index query_block = ForwardScratch<T>::Tiles::query_block;
  for (Index col = 0; col < value_dim; col += kPanel<T>) {
    T* const out = scratch.out + col * query_block;
    const T* const more = scratch.out_more + col * query_block;
    for (Index i = 0; i < rows * kPanel<T>; i += X::width) {
      const auto sum = X::load(more + i);
      X::store(out + i, has_outputs ? X::add(X::load(out + i), sum) : sum);
    }
  }
}

// Begin: begin(row) returns whether the rows from `row` on have outputs, which are to be added to,
// and notes that they have some now.
// kHeadSteps, kValueVectors: those of the task, where loops are to be written out for them; else 0.
template <class M, template <class, Index> class Rows, int kHeadSteps, int kValueVectors,
          class Begin>
class ForwardPipeline {
  using T = typename M::T;
  using X = Vec<T>;
  using Matrices = typename M::Forward;
  static constexpr Index row_group = M::row_group;
  static constexpr Index unit_keys = M::Forward::unit_keys;
  static constexpr int kPanelVectors = kPanel<T> / X::width;
  using Edge = BandEdge<T, row_group, unit_keys>;

 public:
  static constexpr Index key_block = Tile::template Forward<T>::key_block;
  static_assert(key_block % unit_keys == 0);
  // How often key blocks ahead have their turn while so many rows attend one.
  CATTN_INLINE static Index fetches_of_block(Index rows) {
    static_assert(!M::fetches_blocks || unit_keys == kPanel<T>);  // one chunk
    return key_block / unit_keys * rows / kRowsPerFetch;
  }

  CATTN_INLINE ForwardPipeline(const ForwardTask& t, const ForwardScratch<T>& scratch,
                               Matrices& matrices, T factor, const ForwardAhead& ahead, Begin begin)
      : t_(t),
        scratch_(scratch),
        matrices_(matrices),
        begin_(begin),
        factor_(factor),
        ahead_(ahead),
        head_steps_{M::operand_steps(t.head_dim)},
        value_vectors_{in_steps_of(t.value_dim, X::width)} {}

  CATTN_INLINE ForwardAhead& ahead() { return ahead_; }

  // A key block for a group of rows from `row` on.
  CATTN_INLINE void add(const ScoreBlock& block, const ScoreTerms& terms, Index row,
                        const char* key, const char* value) {
    const Range attended = block.columns(0, block.rows);
    for (Index first = 0; first < key_block; first += unit_keys) {
      if (attended.end <= first || attended.begin >= first + unit_keys) continue;
      const bool full = block.full(0, block.rows, first, first + unit_keys);
      const T* const edge = is_plain(terms) && !full ? Edge::of(block, first) : nullptr;
      const bool plain = is_plain(terms) && (full || edge);
      const bool add = M::sums_afresh ? in_sum_ : begin_(row);
      in_sum_ = true;
      // Behind the keys that exist nothing is packed.
      const Index keys = smaller(round_up(block.cols - first, kPanel<T>), unit_keys);
      const Unit unit{row,   block.first_key,           first, keys, key, value, edge, add,
                      plain, terms.mask.data != nullptr};
      with_chunks([&]<int kChunks>() { add_unit<kChunks>(unit); });
    }
  }
  // What has been summed afresh, if so, is added to the outputs behind the unit that came last.
  CATTN_INLINE void end_sum() {
    if (in_sum_) scores_.ends = true;
    in_sum_ = false;
  }
  CATTN_INLINE void drain() {
    if (!scores_.key) return;
    with_chunks([&]<int kChunks>() { drain_units<kChunks>(); });
  }

 private:
  struct Unit {
    Index row = 0, first_key = 0;  // of the block
    Index first = 0, keys = 0;     // its keys in there
    const char *key = nullptr, *value = nullptr;
    const T* edge = nullptr;  // that the products begin with
    bool add = false, plain = true, masked = false, ends = false;
  };

  template <class F>
  CATTN_INLINE void with_chunks(F f) const {
    constexpr int panels_of_one = Rows<M, unit_keys>::panels_of_one_chunk;
    if constexpr (unit_keys == kPanel<T>) {
      f.template operator()<1>();
    } else {
      if constexpr (panels_of_one > 0) {
        if (value_vectors_ <= panels_of_one * kPanelVectors) return f.template operator()<1>();
      }
      f.template operator()<2>();
    }
  }
  template <int kChunks>
  CATTN_INLINE void add_unit(const Unit& unit) {
    if (scores_.key) {
      advance<kChunks>(unit);
    } else {
      scores_apart<kChunks>(unit);
    }
    scores_ = unit;
  }
  template <int kChunks>
  [[gnu::noinline]] void drain_units() {
    advance<kChunks>(Unit{});
    values_apart();
    matrices_.settle();
    if (weights_.ends) end_sum_of(weights_.row);
    scores_ = weights_ = Unit{};
  }

  // The scores that are there become weights, beside the products of scores of `next`, and of the
  // weights before them with their values.
  template <int kChunks>
  [[gnu::noinline]] void advance(const Unit& next) {
    advance_chunk<kChunks, 0>(next);
    if constexpr (kChunks == 2) advance_chunk<kChunks, 1>(next);
    if (weights_.ends) end_sum_of(weights_.row);
    turn_ = 1 - turn_;
    weights_ = scores_;
  }
  template <int kChunks, int kChunk>
  CATTN_INLINE void advance_chunk(const Unit& next) {
    constexpr bool more = kChunk + 1 < kChunks;
    const Unit& multiplied = more ? scores_ : next;
    constexpr Index first = more ? (kChunk + 1) * unit_keys / kChunks : 0;
    if (multiplied.edge) {
      advance_to_edge<kChunks, kChunk>(multiplied, first);
    } else {
      advance_chunk<kChunks, kChunk>(multiplied, first, nullptr);
    }
  }
  // Rare, and so apart: the loop without edges is faster alone.
  template <int kChunks, int kChunk>
  [[gnu::noinline]] void advance_to_edge(const Unit& multiplied, Index first) {
    advance_chunk<kChunks, kChunk>(multiplied, first, multiplied.edge + first);
  }
  // Beside the scores of a chunk of `multiplied`, from `first` on, which begin with `start`.
  template <int kChunks, int kChunk, class Start>
  CATTN_INLINE void advance_chunk(const Unit& multiplied, Index first, Start start) {
    constexpr Index keys = unit_keys / kChunks;
    T* const s = score_buffer<kChunks>(1 - free_);
    if (!scores_.plain) transform<kChunks>(kChunk, s);
    Rows<M, keys> rows(scratch_.from(scores_.row), s, weights(turn_, kChunk * keys),
                       steps_beside<kChunks, kChunk>(), factor_, ahead_);
    if (kChunk + 1 < kChunks || multiplied.key) scores<kChunks>(multiplied, first, start, rows);
    if (weights_.keys == unit_keys) {
      values<kChunks, kChunk>(rows);
    } else if (weights_.key && kChunk + 1 == kChunks) {
      values_apart();
    }
    rows.finish();
    matrices_.settle();
  }

  [[gnu::noinline]] void end_sum_of(Index row) {
    if constexpr (M::sums_afresh)
      add_more_to_out(scratch_.from(row), row_group, t_.value_dim, begin_(row));
  }

  // What is not attended becomes -inf.
  template <int kChunks>
  [[gnu::noinline]] void transform(int chunk, T* s) const {
    constexpr Index keys = unit_keys / kChunks;
    const Index first = scores_.first + chunk * keys;
    const ScoreBlock block{smaller(row_group, t_.rows - scores_.row), t_.first_query + scores_.row,
                           keys, scores_.first_key + first, t_.band};
    ScoreTerms terms = *t_.terms;
    if (!scores_.masked) terms.mask.data = nullptr;
    transform_rows<T, keys>(block, terms, s, 0, block.rows, 0, keys);
  }

  // Into the buffer that is free.
  template <int kChunks, class Start, class Beside>
  CATTN_INLINE void scores(const Unit& unit, Index first, Start start, Beside& beside) {
    matrices_.template scores_beside<unit_keys / kChunks>(unit.row, unit.key, unit.first + first,
                                                          head_steps_, start,
                                                          score_buffer<kChunks>(free_), beside);
    free_ = 1 - free_;
  }
  template <int kChunks>
  [[gnu::noinline]] void scores_apart(const Unit& unit) {
    NothingBeside nothing;
    if (unit.edge) {
      scores<kChunks>(unit, 0, unit.edge, nothing);
    } else {
      scores<kChunks>(unit, 0, nullptr, nothing);
    }
    matrices_.settle();
  }
  // Of values, those for a chunk: whole panels, but for the last.
  template <int kChunks, int kChunk>
  CATTN_INLINE Range vectors_of() const {
    const Index panels = value_vectors_ / kPanelVectors;
    return {panels * kChunk / kChunks * kPanelVectors,
            kChunk + 1 < kChunks ? panels * (kChunk + 1) / kChunks * kPanelVectors
                                 : static_cast<Index>(value_vectors_)};
  }
  // Of a whole unit, the columns for a chunk.
  template <int kChunks, int kChunk, class Beside>
  CATTN_INLINE void values(Beside& beside) {
    constexpr Count<unit_keys / M::depth_step> key_steps;
    if constexpr (kValueVectors % (kPanelVectors * kChunks) == 0 && kValueVectors > 0) {
      constexpr Count<kValueVectors / kChunks> vectors;
      add_values(key_steps, kChunk * vectors, vectors, beside);
    } else {
      const Range vectors = vectors_of<kChunks, kChunk>();
      add_values(key_steps, vectors.begin, Count<>{vectors.end - vectors.begin}, beside);
    }
    if constexpr (kChunk == 0) add_sums(unit_keys, beside);
  }
  // Behind the products of scores, if keys are few or no scores come next.
  [[gnu::noinline]] void values_apart() {
    NothingBeside nothing;
    add_values(Count<>{weights_.keys / M::depth_step}, 0, Count<>{value_vectors_}, nothing);
    add_sums(weights_.keys, nothing);
  }
  template <int kKeySteps, int kVectors, class Beside>
  CATTN_INLINE void add_values(Count<kKeySteps> key_steps, Index first, Count<kVectors> vectors,
                               Beside& beside) {
    matrices_.values_beside(
        weights(1 - turn_, 0), key_steps, weights_.value, weights_.first, first * X::width, vectors,
        M::sums_afresh ? scratch_.from(weights_.row).out_more : scratch_.from(weights_.row).out,
        weights_.add, beside);
  }
  template <class Beside>
  CATTN_INLINE void add_sums(Index keys, Beside& beside) {
    if constexpr (Rows<M, unit_keys>::leaves_sums)
      matrices_.sums_beside(weights(1 - turn_, 0), keys, scratch_.from(weights_.row).weight_sum,
                            beside);
  }
  template <int kChunks, int kChunk>
  CATTN_INLINE Index steps_beside() const {
    const Range vectors = vectors_of<kChunks, kChunk>();
    return matrices_.steps_beside(unit_keys / kChunks, head_steps_, vectors.end - vectors.begin);
  }
  template <int kChunks>
  CATTN_INLINE T* score_buffer(int which) const {
    return scratch_.score + which * row_group * (unit_keys / kChunks);
  }
  CATTN_INLINE typename Matrices::Weights weights(int which, Index first) const {
    constexpr Index part = row_group * unit_keys,
                    block = key_block * ForwardScratch<T>::Tiles::query_block;
    static_assert(2 * part + M::weight_parts * part <= block);  // two buffers of each, in float32
    uint16_t* const all = reinterpret_cast<uint16_t*>(scratch_.score + 2 * part);
    return {all + which * M::weight_parts * part + first * row_group, row_group * kPanel<T>, part};
  }

  const ForwardTask& t_;
  const ForwardScratch<T>& scratch_;
  Matrices& matrices_;
  Begin begin_;
  const T factor_;
  ForwardAhead ahead_;
  const Count<kHeadSteps> head_steps_;
  const Count<kValueVectors> value_vectors_;
  bool in_sum_ = false;      // whether units have been added to the sum at hand
  int free_ = 0, turn_ = 0;  // the buffers of scores and of weights that are written next
  Unit scores_, weights_;    // whose first chunk of scores is there; whose weights are there
};
