// Forward where tiles are multiplied by a unit of their own (amx/): while that multiplies, the
// vector unit turns scores that are there into weights. What one product takes, 16 cycles, is
// enough for about 60 weights.
//
// It serves where no maxima are wanted, so that a weight needs nothing but its score.
//
// Keys have their turn in units of 64, those in one or two chunks. At a time there are the scores
// of the next chunk, which are being multiplied, those of this one, which become weights, and the
// weights of the unit before, which are multiplied with its values, some columns for each chunk.
// All of that is to stay in the L1 cache.
template <class M>
class ForwardPipeline {
  using T = typename M::T;
  using X = Vec<T>;
  using Matrices = typename M::Forward;
  using Round = RoundRow<M, Scores::bounded>;
  static constexpr Index row_group = M::row_group, unit_keys = 64;

 public:
  static constexpr Index key_block = Tile::template Forward<T>::key_block;

  CATTN_INLINE ForwardPipeline(const ForwardTask& t, const ForwardScratch<T>& scratch,
                               Matrices& matrices, T factor)
      : t_(t),
        scratch_(scratch),
        matrices_(matrices),
        round_(factor),
        panels_(round_up(t.value_dim, kPanel<T>) / kPanel<T>) {}

  // A key block for a group of rows from `row` on; begin() returns whether they have outputs that
  // are to be added to, and is called once for each unit that is attended.
  template <class Begin>
  CATTN_INLINE void add(const ScoreBlock& block, const ScoreTerms& terms, Index row,
                        const char* key, const char* value, Begin begin) {
    const Range attended = block.columns(0, block.rows);
    for (Index first = 0; first < key_block; first += unit_keys) {
      if (attended.end <= first || attended.begin >= first + unit_keys) continue;
      const bool plain = is_plain(terms) && block.full(0, block.rows, first, first + unit_keys);
      const Unit unit{row,   block.first_key, first, key,
                      value, begin(),         plain, terms.mask.data != nullptr};
      if (panels_ <= 2) {
        add_unit<1>(unit);
      } else {
        add_unit<2>(unit);
      }
    }
  }
  CATTN_INLINE void drain() {
    if (!scores_.key) return;
    if (panels_ <= 2) {
      drain_units<1>();
    } else {
      drain_units<2>();
    }
  }

 private:
  struct Unit {
    Index row = 0, first_key = 0;  // of the block
    Index first = 0;               // of its keys
    const char *key = nullptr, *value = nullptr;
    bool add = false, plain = true, masked = false;
  };
  struct Nothing {
    CATTN_INLINE void step() {}
  };
  // Rounds a chunk row by row.
  template <Index kKeys>
  struct Rounding {
    Round round;
    const T* s;
    uint16_t* p;
    int left = static_cast<int>(row_group);
    typename X::V one = Round::place_of_zero_within_reach();

    CATTN_INLINE void step() {
      if (left <= 0) return;
      --left;
      round(s, {0, kKeys}, one, typename Matrices::Keeper{{p, row_group * kPanel<T>, 0}});
      s += kKeys;
      p += kPanel<T>;
    }
    CATTN_INLINE void finish() {
      while (left > 0) step();
    }
  };

  template <int kChunks>
  CATTN_INLINE void add_unit(const Unit& unit) {
    if (scores_.key) {
      advance<kChunks>(unit);
    } else {
      Nothing nothing;
      scores<kChunks>(unit, 0, nothing);
      matrices_.settle();
    }
    scores_ = unit;
  }
  template <int kChunks>
  [[gnu::noinline]] void drain_units() {
    advance<kChunks>(Unit{});
    Nothing nothing;
    for (int chunk = 0; chunk < kChunks; ++chunk) values<kChunks>(chunk, nothing);
    matrices_.settle();
    scores_ = weights_ = Unit{};
  }

  // The scores that are there become weights, beside the products of scores of `next`, and of the
  // weights before them with their values.
  template <int kChunks>
  [[gnu::noinline]] void advance(const Unit& next) {
    constexpr Index keys = unit_keys / kChunks;
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      T* const s = score_buffer<kChunks>(1 - free_);
      if (!scores_.plain) transform<kChunks>(chunk, s);
      Rounding<keys> rounding{round_, s, weight_buffer(turn_) + chunk * keys * row_group};
      if (chunk + 1 < kChunks) {
        scores<kChunks>(scores_, chunk + 1, rounding);
      } else if (next.key) {
        scores<kChunks>(next, 0, rounding);
      }
      if (weights_.key) values<kChunks>(chunk, rounding);
      rounding.finish();
      matrices_.settle();
    }
    turn_ = 1 - turn_;
    weights_ = scores_;
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
  template <int kChunks, class Beside>
  CATTN_INLINE void scores(const Unit& unit, int chunk, Beside& beside) {
    constexpr Index keys = unit_keys / kChunks;
    matrices_.scores_beside(unit.row, unit.key, unit.first + chunk * keys, keys,
                            score_buffer<kChunks>(free_), beside);
    free_ = 1 - free_;
  }
  template <int kChunks, class Beside>
  CATTN_INLINE void values(int chunk, Beside& beside) {
    const typename Matrices::Weights p{weight_buffer(1 - turn_), row_group * kPanel<T>, 0};
    const ForwardScratch<T> rows = scratch_.from(weights_.row);
    const Range columns{panels_ * chunk / kChunks * kPanel<T>,
                        panels_ * (chunk + 1) / kChunks * kPanel<T>};
    matrices_.values_beside(p, unit_keys, weights_.value, weights_.first, columns, rows.out,
                            weights_.add, beside);
    if (chunk == 0) matrices_.sums_beside(p, unit_keys, rows.weight_sum, beside);
  }

  template <int kChunks>
  CATTN_INLINE T* score_buffer(int which) const {
    return scratch_.score + which * row_group * (unit_keys / kChunks);
  }
  CATTN_INLINE uint16_t* weight_buffer(int which) const {
    return reinterpret_cast<uint16_t*>(scratch_.score + 2 * row_group * unit_keys) +
           which * row_group * unit_keys;
  }

  const ForwardTask& t_;
  const ForwardScratch<T>& scratch_;
  Matrices& matrices_;
  const Round round_;
  const Index panels_;       // of columns of values
  int free_ = 0, turn_ = 0;  // the buffers of scores and of weights that are written next
  Unit scores_, weights_;    // whose first chunk of scores is there; whose weights are there
};
