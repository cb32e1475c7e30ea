// What is special: masked places that hold NaN, rows without keys, empty arrays, extreme offsets.
#include <cstdint>
#include <limits>

#include "attention_case.h"
#include "tests.h"

namespace cattn::test {
namespace {

constexpr int64_t kLowest = std::numeric_limits<int64_t>::min();
constexpr int64_t kHighest = std::numeric_limits<int64_t>::max();

// NaN stays where it is attended. The reference never reads a masked position, so it has a NaN
// exactly where the library must have one.
void test_nonfinite() {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    Random random(seed);
    Case c;
    c.seed = seed;
    c.rows = 1 + random.below(110);
    c.keys = 1 + random.below(200);
    c.head_dim = 1 + random.below(40);
    c.value_dim = 1 + random.below(40);
    c.heads_q = 2;
    c.heads_kv = 1 + random.below(2);
    c.nonfinite = 0.02;
    c.dlse = random.chance(0.5);
    c.weights = random.chance(0.5);
    switch (seed % 4) {
      case 0: break;
      case 1: c.mask = Shape{2, c.rows, c.keys}, c.mask_density = 0.1; break;
      case 2: c.causal = true; break;
      default:
        c.bias = Shape{c.rows, c.keys};
        c.bias_infinities = 0.8;
        c.dbias = true;
        break;
    }
    run_case(c);
  }
}

// Whole rows and whole keys without a partner.
void test_masked_rows() {
  for (const Index rows : {Index{1}, Index{50}, Index{100}}) {
    for (const double density : {0.0, 0.01, 1.0}) {
      Case c;
      c.rows = rows;
      c.keys = 70;
      c.mask_density = density;
      c.weights = c.dlse = c.dbias = true;
      c.nonfinite = 0.3;
      c.bias = Shape{1, c.keys};
      for (const Shape& shape : {Shape{rows, 1}, Shape{c.keys}, Shape{rows, c.keys}, Shape{}}) {
        c.mask = shape;
        run_case(c);
      }
    }
  }
}

void test_offsets() {
  for (const int64_t offset :
       {kLowest, kLowest + 1, int64_t{-1} << 60, int64_t{-1000}, int64_t{-40}, int64_t{-39},
        int64_t{-1}, int64_t{0}, int64_t{1}, int64_t{69}, int64_t{70}, int64_t{1000},
        (int64_t{1} << 60) - 1, int64_t{1} << 60, kHighest - 1, kHighest}) {
    Case c;
    c.rows = 40;
    c.keys = 70;
    c.heads_q = 2;
    c.batch_q = {2};
    c.causal = true;
    c.weights = c.dlse = c.dbias = true;
    c.bias = Shape{2, 1, 70};
    c.nonfinite = 0.05;
    c.offset_shape = Shape{};
    c.offsets = {offset};
    run_case(c);
    c.offset_shape = Shape{2};  // beside an ordinary one
    c.offsets = {3, offset};
    run_case(c);
  }
}

void test_empty() {
  Case ordinary;
  ordinary.rows = 5;
  ordinary.keys = 7;
  ordinary.heads_q = 4;
  ordinary.heads_kv = 2;
  ordinary.batch_q = ordinary.batch_k = ordinary.batch_v = {2};
  ordinary.weights = ordinary.dlse = ordinary.dbias = true;
  const auto run = [](Case c) {
    for (const bool causal : {false, true}) {
      c.causal = causal;
      for (const Shape& shape : {Shape{}, Shape{c.keys}, Shape{c.rows, 1}, Shape{c.rows, c.keys},
                                 c.with_batch({c.heads_q, c.rows, c.keys})}) {
        c.bias = c.mask = shape;
        run_case(c);
      }
    }
  };
  Case c = ordinary;
  c.rows = 0;
  run(c);
  c = ordinary;
  c.keys = 0;
  run(c);
  c = ordinary;
  c.batch_q = c.batch_k = c.batch_v = {0};
  run(c);
  c = ordinary;
  c.batch_q = {3, 0}, c.batch_k = {1}, c.batch_v = {};
  run(c);
  c = ordinary;
  c.heads_q = 0;
  run(c);
  c = ordinary;
  c.heads_q = c.heads_kv = 0;
  run(c);
}

}  // namespace

void test_edges() {
  test_nonfinite();
  test_masked_rows();
  test_offsets();
  test_empty();
}

}  // namespace cattn::test
