// Memory that is wanted soon is fetched into the L2 cache line by line, beside other work.

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
  static constexpr Index kLine = 64;
  const char* line_ = nullptr;
  Index lines_of_row_ = 0, to_next_row_ = 0, lines_left_ = 0, rows_left_ = 0;
};

// What a forward task will touch next: its outputs, then the queries of the next task.
class ForwardAhead {
 public:
  template <class S>
  CATTN_INLINE static ForwardAhead of(const ForwardTask& t) {
    ForwardAhead ahead;
    ahead.out_ = {static_cast<const S*>(t.out.data), t.rows, t.out.row_stride, t.value_dim};
    ahead.next_q_ = {static_cast<const S*>(t.next_q), t.rows, t.q.row_stride, t.head_dim};
    return ahead;
  }
  CATTN_INLINE void fetch() {
    if (!out_.fetch()) next_q_.fetch();
  }

 private:
  RowsAhead out_, next_q_;
};
