// Memory that is wanted soon is fetched into the L2 cache line by line, beside other work.

constexpr Index kLine = 64;

// Rows of which some lines are not fetched yet.
class RowsAhead {
 public:
  RowsAhead() = default;  // none
  template <class S>
  CATTN_INLINE RowsAhead(const S* rows, Index count, Index row_stride, Index cols)
      : line_(reinterpret_cast<const char*>(rows)),
        lines_of_row_((cols * kSize<S> + kLine - 1) / kLine),
        to_next_row_(row_stride * kSize<S> - lines_of_row_ * kLine),
        lines_left_(lines_of_row_),
        rows_left_(rows ? count : 0) {}

  // Fetches the next line. Returns false if there is none.
  CATTN_INLINE bool fetch() {
    if (rows_left_ <= 0) return false;
    __builtin_prefetch(line_, 0, 2);
    line_ += kLine;
    if (--lines_left_ == 0) {
      line_ += to_next_row_;
      lines_left_ = lines_of_row_;
      --rows_left_;
    }
    return true;
  }

 private:
  template <class S>
  static constexpr Index kSize = sizeof(S);
  const char* line_ = nullptr;
  Index lines_of_row_ = 0, to_next_row_ = 0, lines_left_ = 0, rows_left_ = 0;
};

// What a forward task will touch next: its outputs, then the queries of the next task; and key
// blocks that do not stay in the L2 cache from one task to the next.
class ForwardAhead {
 public:
  template <class S>
  CATTN_INLINE static ForwardAhead of(const ForwardTask& t) {
    ForwardAhead ahead;
    ahead.out_ = {static_cast<const S*>(t.out.data), t.rows, t.out.row_stride, t.value_dim};
    ahead.next_q_ = {static_cast<const S*>(t.next_q), t.rows, t.q.row_stride, t.head_dim};
    return ahead;
  }
  // Fetches a line of rows.
  CATTN_INLINE void fetch_rows() {
    if (!out_.fetch()) next_q_.fetch();
  }

  // Key blocks whose turn is in so many calls of step().
  CATTN_INLINE void expect(const char* keys, Index key_bytes, const char* values, Index value_bytes,
                           Index steps) {
    keys_ = {keys, in_steps_of(key_bytes, steps * kLine) * kLine};
    values_ = {values, in_steps_of(value_bytes, steps * kLine) * kLine};
  }
  // Fetches the share of one call of the key blocks.
  CATTN_INLINE void step() {
    keys_.step();
    values_.step();
  }

 private:
  // So many bytes a step, of which up to a line is from behind the end: no matter.
  struct BytesAhead {
    const char* p = nullptr;
    Index of_step = 0;
    CATTN_INLINE void step() {
      for (const char* const end = p + of_step; p < end; p += kLine) __builtin_prefetch(p, 0, 2);
    }
  };
  RowsAhead out_, next_q_;
  BytesAhead keys_, values_;
};
