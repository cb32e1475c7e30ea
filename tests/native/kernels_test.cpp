// The kernel tables directly, one head at a time, with every operand in memory of its own that is
// exactly as large as the contract says: inside the library they lie side by side in one workspace,
// where an overrun or a read of what was never written could go unnoticed.
#include <cmath>
#include <cstring>
#include <limits>
#include <set>
#include <utility>

#include "attention_case.h"
#include "check.h"
#include "core/dispatch.h"
#include "kernels/band.h"
#include "tests.h"

namespace cattn::test {
namespace {

constexpr Index kUnbounded = Index{1} << 60;

struct HeadCase {
  Index rows, keys, head_dim, value_dim;
  Index lo_shift = -kUnbounded, hi_shift = kUnbounded;
  bool nonfinite = false;  // a NaN in a key, an infinity in a value
};

// `count` blocks of `bytes` bytes, one after the other.
class Blocks {
 public:
  Blocks(Index count, Index bytes, int turn)
      : bytes_(bytes), memory_(static_cast<size_t>(count * bytes), placement(turn), 64) {}
  char* operator[](Index i) const { return memory_.data() + i * bytes_; }
  void clear() const { std::memset(memory_.data(), 0, memory_.bytes()); }

 private:
  Index bytes_;
  Memory memory_;
};

template <class T>
class Head {
  using W = Wide<T>;

 public:
  Head(const KernelSet& kernels, const HeadCase& c, Precision precision, const std::string& name)
      : k_(kernels),
        precision_(precision),
        c_(c),
        name_(name + " rows " + std::to_string(c.rows) + " keys " + std::to_string(c.keys) + " D " +
              std::to_string(c.head_dim) + " Dv " + std::to_string(c.value_dim) + " band " +
              std::to_string(c.lo_shift) + " " + std::to_string(c.hi_shift)),
        band_{c.lo_shift, c.hi_shift, c.keys},
        turn_(static_cast<int>(c.rows + c.keys)),
        q_(matrix(c.rows, c.head_dim)),
        k_rows_(matrix(c.keys, c.head_dim)),
        v_(matrix(c.keys, c.value_dim)),
        dout_(matrix(c.rows, c.value_dim)),
        out_(matrix(c.rows, c.value_dim)),
        lse_(vector(c.rows)) {
    terms_.scale = 1 / std::sqrt(static_cast<double>(c.head_dim));
    Random random(static_cast<uint64_t>(c.rows * 1000 + c.keys));
    for (const Tensor<T>* t : {&q_, &k_rows_, &v_, &dout_}) {
      for (Index i = 0; i < t->size(); ++i) (*t)[i] = static_cast<T>(random.symmetric());
    }
    if (c.nonfinite && c.keys > 0) {
      k_rows_[random.below(k_rows_.size())] = static_cast<T>(std::nan(""));
      v_[random.below(v_.size())] = static_cast<T>(std::numeric_limits<double>::infinity());
    }
    make_reference();
  }

  void run() {
    forward();
    backward(true);
    backward(false);
  }
  // By the kernels for few queries.
  void run_few() const {
    // Another head of the group has other queries.
    const Tensor<T> q = matrix(c_.rows, c_.head_dim);
    for (Index i = 0; i < q.size(); ++i) q[i] = static_cast<T>(-1.5 * static_cast<double>(q_[i]));
    reference::Problem problem = reference_;
    problem.q = values(q);
    const reference::Result expected = reference::forward(problem);
    Bounds limits = bounds(problem, expected, values(dout_), {}, precision_);
    add_last_rounding(limits.out, expected.out, precision_);
    add_last_rounding(limits.weights, expected.weights, precision_);
    for (const Index parts : {1, 2, 3}) {
      decode(parts, {{&q_, &expected_, &bounds_}, {&q, &expected, &limits}});
      forward_in_parts(parts);
    }
  }
  void run_in_parts() const {
    for (const Index parts : {1, 2, 3}) forward_in_parts(parts);
  }

 private:
  Tensor<T> matrix(Index rows, Index cols) const {
    const Layout layout = c_.rows % 2 == 0 ? Layout::contiguous : Layout::padded;
    return Tensor<T>({rows, cols}, layout, LastAxis::contiguous, placement(turn_));
  }
  Tensor<W> vector(Index rows) const {
    return Tensor<W>({rows}, Layout::contiguous, LastAxis::any, placement(turn_));
  }
  static Index stride(const Tensor<T>& t) { return t.array().strides[0]; }
  static ConstRows rows_from(const Tensor<T>& t, Index first) {
    return {t.data() + first * stride(t), stride(t)};
  }
  static Rows rows_to(const Tensor<T>& t, Index first) {
    return {t.data() + first * stride(t), stride(t)};
  }

  void make_reference() {
    reference_.queries = c_.rows;
    reference_.keys = c_.keys;
    reference_.head_dim = c_.head_dim;
    reference_.value_dim = c_.value_dim;
    reference_.scale = terms_.scale;
    reference_.q = values(q_);
    reference_.k = values(k_rows_);
    reference_.v = values(v_);
    reference_.mask.resize(static_cast<size_t>(c_.rows * c_.keys));
    for (Index i = 0; i < c_.rows; ++i) {
      for (Index j = 0; j < c_.keys; ++j) {
        reference_.mask[static_cast<size_t>(i * c_.keys + j)] =
            j >= lowest_key(band_, i) && j < highest_key(band_, i);
      }
    }
    expected_ = reference::forward(reference_);
    gradients_ = reference::backward(reference_, expected_, values(dout_), {});
    bounds_ = bounds(reference_, expected_, values(dout_), {}, precision_);
    add_last_rounding(bounds_.out, expected_.out, precision_);
    add_last_rounding(bounds_.weights, expected_.weights, precision_);
    add_last_rounding(bounds_.dq, gradients_.dq, precision_);
    add_last_rounding(bounds_.dk, gradients_.dk, precision_);
    add_last_rounding(bounds_.dv, gradients_.dv, precision_);
  }
  template <class E>
  static reference::Array values(const Tensor<E>& t) {
    return t.template expanded<double>(t.shape());
  }

  void compare(const char* what, const reference::Array& got, const reference::Array& expected,
               const reference::Array& bound) const {
    const double ratio = largest_ratio(got, expected, bound);
    check(ratio <= 1, "kernel " + name_ + ": " + what + " has " + ratio_text(ratio));
  }
  template <class E>
  void compare(const char* what, const Tensor<E>& got, const reference::Array& expected,
               const reference::Array& bound) const {
    compare(what, values(got), expected, bound);
    check(got.gaps_untouched(), "kernel " + name_ + ": wrote between the rows of " + what);
  }

  static Index blocks(Index n, Index block) { return (n + block - 1) / block; }

  // Keys and values of some blocks, packed for the forward.
  class Packed {
   public:
    Packed(const Head& head, Index first_block, Index count)
        : first_block_(first_block),
          end_block_(first_block + count),
          keys_(count, bytes(head, Operand::key, head.c_.head_dim), head.turn_),
          values_(count, bytes(head, Operand::value, head.c_.value_dim), head.turn_),
          flags_(count, 1, head.turn_) {
      const Tiling& tiling = head.k_.forward_tiling;
      const HeadCase& c = head.c_;
      for (Index b = 0; b < count; ++b) {
        const Index first = (first_block + b) * tiling.key_block;
        const Index rows = std::min(tiling.key_block, c.keys - first);
        head.k_.pack(
            {Operand::key, rows_from(head.k_rows_, first), rows, c.head_dim, keys_[b], count},
            tiling);
        *flags_[b] = static_cast<char>(head.k_.pack(
            {Operand::value, rows_from(head.v_, first), rows, c.value_dim, values_[b]}, tiling));
      }
    }
    void give_to(ForwardTask& t) const {
      t.keys = keys_[0];
      t.values = values_[0];
      t.value_flags = reinterpret_cast<const uint8_t*>(flags_[0]);
      t.first_block = first_block_;
      t.end_block = end_block_;
    }

   private:
    static Index bytes(const Head& head, Operand operand, Index cols) {
      return head.k_.packed_bytes(operand, head.k_.forward_tiling, cols);
    }
    Index first_block_, end_block_;
    Blocks keys_, values_, flags_;
  };
  // As in the library: packed from the first block that is attended.
  Index first_block() const { return lowest_key(band_, 0) / k_.forward_tiling.key_block; }
  Index block_count() const { return blocks(c_.keys, k_.forward_tiling.key_block) - first_block(); }

  // Of rows from `first` on.
  ForwardTask task_of(const Tensor<T>& q, Index first, Index rows, const Tensor<T>& out,
                      const Tensor<W>& lse, const Blocks& scratch) const {
    ForwardTask t{};
    t.q = rows_from(q, first);
    t.rows = rows;
    t.first_query = first;
    t.head_dim = c_.head_dim;
    t.value_dim = c_.value_dim;
    t.band = band_;
    t.terms = &terms_;
    t.out = rows_to(out, first);
    t.lse = &lse[first];
    t.lse_stride = 1;
    t.scratch = scratch[0];
    return t;
  }

  void forward() const {
    const Tiling& tiling = k_.forward_tiling;
    const Packed packed(*this, first_block(), block_count());
    const Blocks scratch(1, k_.forward_scratch_bytes(c_.head_dim, c_.value_dim), turn_);
    const Tensor<T> weights = matrix(c_.rows, c_.keys);
    for (Index first = 0; first < c_.rows; first += tiling.query_block) {
      const Index rows = std::min(tiling.query_block, c_.rows - first);
      ForwardTask t = task_of(q_, first, rows, out_, lse_, scratch);
      packed.give_to(t);
      k_.forward(t);
      k_.weights({&t, c_.keys, rows_to(weights, first)});
    }
    compare("out", out_, expected_.out, bounds_.out);
    compare("lse", lse_, expected_.lse, bounds_.lse);
    compare("weights", weights, expected_.weights, bounds_.weights);
  }

  Index part_bytes() const {
    const Index row_numbers = kPartNumbers + blocks(c_.value_dim, kPartStep) * kPartStep;
    return c_.rows * row_numbers * static_cast<Index>(sizeof(W));
  }
  // Of the blocks: those of a part, of so many.
  static std::pair<Index, Index> part_of(Index blocks, Index part, Index parts) {
    const Index first = blocks * part / parts;
    return {first, blocks * (part + 1) / parts - first};
  }

  // Each part packed by itself.
  void forward_in_parts(Index parts) const {
    const Blocks scratch(1, k_.forward_scratch_bytes(c_.head_dim, c_.value_dim), turn_);
    const Blocks kept(parts, part_bytes(), turn_);
    const Tensor<T> out = matrix(c_.rows, c_.value_dim);
    const Tensor<W> lse = vector(c_.rows);
    ForwardTask t = task_of(q_, 0, c_.rows, out, lse, scratch);
    for (Index i = 0; i < parts; ++i) {
      const auto [first, count] = part_of(block_count(), i, parts);
      const Packed packed(*this, first_block() + first, count);
      packed.give_to(t);
      t.part = kept[i];
      k_.forward(t);
    }
    k_.merge({&t, kept[0], parts});
    compare("out of packed parts", out, expected_.out, bounds_.out);
    compare("lse of packed parts", lse, expected_.lse, bounds_.lse);
  }

  struct HeadOfGroup {
    const Tensor<T>* q;
    const reference::Result* expected;
    const Bounds* bounds;
  };
  // In so many parts, of which some may have no block.
  void decode(Index parts, const std::vector<HeadOfGroup>& of_group) const {
    constexpr Index heads = 2;
    const Blocks scratch(1, k_.forward_scratch_bytes(c_.head_dim, c_.value_dim), turn_);
    const Blocks kept(heads * parts, part_bytes(), turn_);
    const Tensor<T> out[heads] = {matrix(c_.rows, c_.value_dim), matrix(c_.rows, c_.value_dim)};
    const Tensor<W> lse[heads] = {vector(c_.rows), vector(c_.rows)};
    ForwardTask t[heads];
    for (Index h = 0; h < heads; ++h) {
      t[h] = task_of(*of_group[static_cast<size_t>(h)].q, 0, c_.rows, out[h], lse[h], scratch);
      t[h].first_block = first_block();
      t[h].end_block = first_block() + block_count();
    }
    for (Index i = 0; i < parts; ++i) {
      const auto [first, count] = part_of(block_count(), i, parts);
      k_.decode({t, heads, rows_from(k_rows_, 0), rows_from(v_, 0), first_block() + first, count,
                 parts > 1 ? kept[i] : nullptr, parts * part_bytes()});
    }
    for (Index h = 0; h < heads; ++h) {
      if (parts > 1) k_.merge({&t[h], kept[h * parts], parts});
      const Tensor<T> weights = matrix(c_.rows, c_.keys);
      k_.decode_weights({&t[h], c_.keys, rows_to(weights, 0)}, rows_from(k_rows_, 0));
      const auto& [q, expected, limits] = of_group[static_cast<size_t>(h)];
      compare("out of few queries", out[h], expected->out, limits->out);
      compare("lse of few queries", lse[h], expected->lse, limits->lse);
      compare("weights of few queries", weights, expected->weights, limits->weights);
    }
  }

  // Without dscore, kernels may keep the score gradients of plain blocks in another way.
  void backward(bool with_dscore) const {
    const Tiling& tiling = k_.backward_tiling;
    const Index key_count = blocks(c_.keys, tiling.key_block);
    const Index query_count = blocks(c_.rows, tiling.query_block);
    const auto packed = [&](Index count, Operand operand, Index cols) {
      return Blocks(count, k_.packed_bytes(operand, tiling, cols), turn_);
    };
    const Blocks key = packed(key_count, Operand::key, c_.head_dim);
    const Blocks value_t = packed(key_count, Operand::value_t, c_.value_dim);
    const Blocks key_rows = packed(key_count, Operand::key_rows, c_.head_dim);
    const Blocks query = packed(query_count, Operand::query, c_.head_dim);
    const Blocks grad_out = packed(query_count, Operand::grad_out, c_.value_dim);
    const Blocks dq(query_count, k_.accumulator_bytes(tiling.query_block, c_.head_dim), turn_);
    const Blocks dk(1, k_.accumulator_bytes(tiling.key_block, c_.head_dim), turn_);
    const Blocks dv(1, k_.accumulator_bytes(tiling.key_block, c_.value_dim), turn_);
    const Blocks dscore(1, tiling.query_block * tiling.key_block * k_.arithmetic_size, turn_);
    const Blocks scratch(1, k_.backward_scratch_bytes(c_.head_dim, c_.value_dim), turn_);
    const Tensor<W> row_scales = vector(kRowScaleNumbers * c_.rows), delta = vector(c_.rows);
    const Tensor<T> dq_rows = matrix(c_.rows, c_.head_dim), dk_rows = matrix(c_.keys, c_.head_dim),
                    dv_rows = matrix(c_.keys, c_.value_dim);
    reference::Array dscores(gradients_.dbias.size(), 0.0);

    uint8_t flags = 0xff;  // of everything
    for (Index b = 0; b < query_count; ++b) {
      const Index first = b * tiling.query_block;
      const Index rows = std::min(tiling.query_block, c_.rows - first);
      flags &= k_.pack({Operand::query, rows_from(q_, first), rows, c_.head_dim, query[b]}, tiling);
      flags &= k_.pack(
          {Operand::grad_out, rows_from(dout_, first), rows, c_.value_dim, grad_out[b]}, tiling);
      k_.row_terms({rows_from(dout_, first), rows_from(out_, first), rows, c_.value_dim,
                    &lse_[first], 1, nullptr, 0, &row_scales[kRowScaleNumbers * first],
                    &delta[first]});
    }
    for (Index b = 0; b < key_count; ++b) {
      const Index first = b * tiling.key_block;
      const Index rows = std::min(tiling.key_block, c_.keys - first);
      const ConstRows k = rows_from(k_rows_, first);
      flags &= k_.pack({Operand::key, k, rows, c_.head_dim, key[b]}, tiling);
      flags &= k_.pack({Operand::key_rows, k, rows, c_.head_dim, key_rows[b]}, tiling);
      flags &=
          k_.pack({Operand::value_t, rows_from(v_, first), rows, c_.value_dim, value_t[b]}, tiling);
    }

    for (Index b = 0; b < query_count; ++b) {
      k_.clear({dq[b], true, std::min(tiling.query_block, c_.rows - b * tiling.query_block),
                c_.head_dim});
    }
    for (Index b = 0; b < key_count; ++b) {
      const Index first_key = b * tiling.key_block;
      const Index cols = std::min(tiling.key_block, c_.keys - first_key);
      k_.clear({dk[0], false, cols, c_.head_dim});
      k_.clear({dv[0], false, cols, c_.value_dim});
      const Range attending = queries_of(band_, first_key, first_key + cols, c_.rows);
      for (Index qb = 0; qb < query_count; ++qb) {
        BackwardTask t{};
        t.first_query = qb * tiling.query_block;
        t.rows = std::min(tiling.query_block, c_.rows - t.first_query);
        if (attending.end <= t.first_query || attending.begin >= t.first_query + t.rows) continue;
        t.first_key = first_key;
        t.cols = cols;
        t.head_dim = c_.head_dim;
        t.value_dim = c_.value_dim;
        t.band = band_;
        t.terms = &terms_;
        t.query = query[qb];
        t.grad_out = grad_out[qb];
        t.key = key[b];
        t.value_t = value_t[b];
        t.key_rows = key_rows[b];
        t.flags = flags;
        t.row_scales = &row_scales[kRowScaleNumbers * t.first_query];
        t.delta = &delta[t.first_query];
        t.dq = dq[qb];
        t.dk = dk[0];
        t.dv = dv[0];
        t.dscore = with_dscore ? dscore[0] : nullptr;
        t.scratch = scratch[0];
        dscore.clear();
        const bool at_once = (b + qb) % 2 == 0;
        if (!at_once) t.dq = nullptr;
        k_.backward(t);
        if (!at_once) {
          t.dq = dq[qb];
          k_.backward_dq(t);
        }
        if (!with_dscore) continue;
        const W* const tile = static_cast<const W*>(t.dscore);
        for (Index r = 0; r < t.rows; ++r) {
          for (Index c = 0; c < cols; ++c) {
            dscores[static_cast<size_t>((t.first_query + r) * c_.keys + first_key + c)] =
                static_cast<double>(tile[r * tiling.key_block + c]);
          }
        }
      }
      k_.flush({dk[0], false, cols, c_.head_dim, terms_.scale, rows_to(dk_rows, first_key)});
      k_.flush({dv[0], false, cols, c_.value_dim, 1.0, rows_to(dv_rows, first_key)});
    }
    for (Index qb = 0; qb < query_count; ++qb) {
      const Index first = qb * tiling.query_block;
      k_.flush({dq[qb], true, std::min(tiling.query_block, c_.rows - first), c_.head_dim,
                terms_.scale, rows_to(dq_rows, first)});
    }
    compare("dq", dq_rows, gradients_.dq, bounds_.dq);
    compare("dk", dk_rows, gradients_.dk, bounds_.dk);
    compare("dv", dv_rows, gradients_.dv, bounds_.dv);
    if (with_dscore) compare("dscore", dscores, gradients_.dbias, bounds_.dscore);
  }

  const KernelSet& k_;
  const Precision precision_;
  const HeadCase c_;
  const std::string name_;
  const Band band_;
  const int turn_;
  ScoreTerms terms_{};
  const Tensor<T> q_, k_rows_, v_, dout_, out_;
  const Tensor<W> lse_;
  reference::Problem reference_;
  reference::Result expected_;
  reference::Gradients gradients_;
  Bounds bounds_;
};

// The flag of a packed block says whether everything in it is finite, wherever the exception is.
// (What is finite but overflows when it is squared may count as either.)
template <class T>
void test_finite_flag(const KernelSet& kernels, const std::string& name) {
  const Tiling& tiling = kernels.backward_tiling;
  const T kInfinity = static_cast<T>(std::numeric_limits<double>::infinity());
  for (const Operand operand : {Operand::key, Operand::value, Operand::value_t, Operand::key_rows,
                                Operand::query, Operand::grad_out}) {
    const bool query_side = operand == Operand::query || operand == Operand::grad_out;
    const Index block = query_side ? tiling.query_block : tiling.key_block;
    for (const Index rows : {Index{1}, Index{5}, block}) {
      for (const Index cols : {1, 7, 16, 33}) {
        const Tensor<T> source({rows, cols}, Layout::padded, LastAxis::contiguous, placement(1));
        const Blocks packed(1, kernels.packed_bytes(operand, tiling, cols), 0);
        const auto flags = [&] {
          return kernels.pack(
              {operand, {source.data(), source.array().strides[0]}, rows, cols, packed[0]}, tiling);
        };
        // Too large to split, except as float16, all of which split.
        constexpr bool splits = std::is_same_v<T, Half>;
        constexpr int usual = kBlockFinite | (splits ? kBlockModerate | kBlockSplits : 0);
        for (Index i = 0; i < source.size(); ++i) source[i] = static_cast<T>(splits ? 6e4 : 1e17);
        bool right = flags() == usual;
        for (Index i = 0; i < source.size(); i += 1 + source.size() / 50) {
          const T exception = static_cast<T>(i % 2 == 0 ? -kInfinity : std::nan(""));
          const T old = std::exchange(source[i], exception);
          right = right && flags() == 0;
          source[i] = old;
        }
        check(right, "kernel " + name + ": the finite flag of " + std::to_string(rows) + " x " +
                         std::to_string(cols) + ", operand " +
                         std::to_string(static_cast<int>(operand)));
      }
    }
  }
}

// Keys around blocks of them, and bands of all kinds.
void add_cases(std::vector<HeadCase>& cases, Index rows, Index key_block) {
  for (const Index keys :
       {Index{1}, Index{17}, key_block - 1, key_block, key_block + 1, 2 * key_block + 1}) {
    for (const Index size : {1, 17, 65}) {
      cases.push_back({rows, keys, size, 66 - size});
      cases.push_back({rows, keys, size, size, -kUnbounded, keys - rows + 1});
      cases.push_back({rows, keys, size, size, -5, 3});               // a window
      cases.push_back({rows, keys, size, size, keys - 9, keys + 9});  // leaves some rows empty
      cases.push_back({rows, keys, size, size, -20, 20, true});
    }
  }
}

template <class T>
void test_set(const KernelSet& kernels, Precision precision, const std::string& name) {
  const Tiling& tiling = kernels.forward_tiling;
  std::vector<HeadCase> cases;
  for (const Index rows : {Index{1}, Index{5}, Index{8}, tiling.query_block - 1, tiling.query_block,
                           tiling.query_block + 1})
    add_cases(cases, rows, tiling.key_block);
  for (const HeadCase& c : cases) Head<T>(kernels, c, precision, name).run();
  test_finite_flag<T>(kernels, name);
}

template <class T>
void test_few_queries(const KernelSet& kernels, Precision precision, const std::string& name) {
  std::vector<HeadCase> cases;
  for (const Index rows : {1, 2, 3, 8}) add_cases(cases, rows, kernels.forward_tiling.key_block);
  for (const HeadCase& c : cases) Head<T>(kernels, c, precision, name).run_few();
}

// As many as are packed in parts: several blocks in each, and rows that see none of the last ones.
template <class T>
void test_parts(const KernelSet& kernels, Precision precision, const std::string& name) {
  const Tiling& tiling = kernels.forward_tiling;
  const Index keys = 5 * tiling.key_block + 3;
  for (const Index rows : {Index{7}, Index{20}, tiling.query_block - 1, tiling.query_block}) {
    for (const bool nonfinite : {false, true}) {
      for (const HeadCase& c :
           {HeadCase{rows, keys, 24, 40}, HeadCase{rows, keys, 72, 17, -kUnbounded, keys - rows},
            HeadCase{rows, keys, 33, 64, tiling.key_block + 5, 2 * tiling.key_block}}) {
        HeadCase with = c;
        with.nonfinite = nonfinite;
        Head<T>(kernels, with, precision, name).run_in_parts();
      }
    }
  }
}

// For small heads multiply-adds are faster, where a table says so.
void test_choice_by_size(const KernelTable& table) {
  KernelTable choosy = table;
  choosy.float32_sizes = {{{96, 64, 32}, {48, 128, 128}, {48, 128, 128}}};
  choosy.multiply_adds = &table;
  const auto set = [&](int32_t dtype, cattn_precision precision, const HeadSize& size) {
    return &kernel_set(choosy, dtype, precision, size);
  };
  const std::string name = table.name;
  const HeadSize below[] = {
      {95, 64, 32}, {96, 63, 32}, {96, 64, 31}, {47, 128, 128}, {48, 127, 128}};
  for (const HeadSize& size : below)
    check(set(CATTN_FLOAT32, CATTN_PRECISION_HIGHEST, size) == &table.float32, name + ": below");
  for (const HeadSize& size : {HeadSize{96, 64, 32}, HeadSize{48, 128, 128}})
    check(set(CATTN_FLOAT32, CATTN_PRECISION_HIGHEST, size) == &choosy.float32,
          name + ": from there on");
  check(set(CATTN_FLOAT32, CATTN_PRECISION_HIGH, {}) == &choosy.float32_high, name + ": high");
  check(set(CATTN_FLOAT16, CATTN_PRECISION_HIGHEST, {}) == &choosy.float16, name + ": float16");
}

}  // namespace

void test_kernels() {
  std::set<void (*)(const ForwardTask&)> tested;  // tables share kernels
  for (int32_t i = 0; const KernelTable* table = available_table(i); ++i) {
    const std::string name = table->name;
    test_choice_by_size(*table);
    const auto test = [&]<class T>(const KernelSet& kernels, Precision of, const char* what, T) {
      if (tested.insert(kernels.forward).second) test_set<T>(kernels, of, name + " " + what);
    };
    const Precision single = precision<float>();
    test(table->float64, precision<double>(), "float64", double{});
    test(table->float32, single, "float32", float{});
    test(table->float32_high, in_two_parts(single), "float32 high", float{});
    test(table->float32_medium, in_one_part(single), "float32 medium", float{});
    // By elements, half types differ from float32 in packing alone.
    const auto half = multiplied<Half>(name), brain = multiplied<Brain>(name);
    if (half != Multiplied::by_elements)
      test(table->float16, precision<Half>(half), "float16", Half{});
    if (brain != Multiplied::by_elements)
      test(table->bfloat16, precision<Brain>(brain), "bfloat16", Brain{});
    if (table->multiply_adds) continue;  // few queries are multiplied by that table's
    constexpr auto elements = Multiplied::by_elements;
    test_few_queries<double>(table->float64, precision<double>(), name + " float64");
    test_few_queries<float>(table->float32, single, name + " float32");
    test_few_queries<Half>(table->float16, precision<Half>(elements), name + " float16");
    test_few_queries<Brain>(table->bfloat16, precision<Brain>(elements), name + " bfloat16");
    test_parts<double>(table->float64, precision<double>(), name + " float64");
    test_parts<float>(table->float32, single, name + " float32");
    test_parts<Half>(table->float16, precision<Half>(elements), name + " float16");
    test_parts<Brain>(table->bfloat16, precision<Brain>(elements), name + " bfloat16");
  }
}

}  // namespace cattn::test
