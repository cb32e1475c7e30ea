// Forward and backward against the reference: sizes that straddle every tile edge, with the options
// drawn at random so that they meet each other.
#include <iterator>

#include "attention_case.h"
#include "tests.h"

namespace cattn::test {
namespace {

constexpr Index kRows[] = {1, 4, 5, 12, 13, 96, 127, 128, 129, 144, 145, 255, 256, 257};
constexpr Index kKeys[] = {0, 1, 15, 16, 17, 31, 32, 33, 127, 128, 129, 257};
constexpr Index kHeadSizes[] = {1, 3, 16, 17, 40, 64, 65, 128, 300};

template <class T, size_t n>
const T& pick(Random& random, const T (&choices)[n]) {
  return choices[random.below(n)];
}

// A shape that broadcasts to (batch..., heads, rows, keys): some axes 1, some leading ones left
// out.
Shape plane_shape(Random& random, const Case& c) {
  Shape shape = c.with_batch({c.heads_q, c.rows, c.keys});
  for (Index& axis : shape) {
    if (random.chance(0.35)) axis = 1;
  }
  shape.erase(shape.begin(), shape.begin() + random.below(static_cast<Index>(shape.size()) + 1));
  return shape;
}

void draw_batch(Random& random, Case& c) {
  constexpr Index kHeads[][2] = {{1, 1}, {2, 2}, {2, 1}, {3, 1}, {4, 2}, {6, 3}};
  const auto& heads = pick(random, kHeads);
  c.heads_q = heads[0];
  c.heads_kv = heads[1];
  switch (random.below(5)) {
    case 0: c.batch_q = c.batch_k = c.batch_v = {2}; break;
    case 1: c.batch_k = {3}; break;
    case 2: c.batch_q = {2, 1}, c.batch_k = {3}, c.batch_v = {1, 3}; break;
    case 3: c.flat = true, c.heads_q = c.heads_kv = 1; break;
    default: break;
  }
}

void draw_options(Random& random, Case& c) {
  c.layout = static_cast<Layout>(random.below(kLayouts));
  if (random.chance(0.4)) c.mask = plane_shape(random, c);
  if (random.chance(0.5)) {
    c.bias = plane_shape(random, c);
    c.bias_is_float32 = random.chance(0.3);
    c.bias_infinities = random.chance(0.5) ? 0.1 : 0;
    c.dbias = random.chance(0.8);
  }
  if (random.chance(0.5)) {
    c.causal = true;
    if (random.chance(0.7)) {
      Shape shape = c.batch();
      shape.erase(shape.begin(),
                  shape.begin() + random.below(static_cast<Index>(shape.size()) + 1));
      c.offset_shape = shape;
      for (int i = 0; i < 3; ++i) {
        c.offsets.push_back(random.below(c.rows + c.keys + 1) - c.rows);
      }
    }
  }
  if (random.chance(0.4)) {
    constexpr double kScales[] = {0, 1, -0.25, 0.01};
    c.scale = pick(random, kScales);
  }
  c.dlse = random.chance(0.5);
  c.weights = random.chance(0.3);
  c.dq = random.chance(0.85);
  c.dk = random.chance(0.85);
  c.dv = random.chance(0.85);
  c.lse = random.chance(0.95);
}

void test_shapes() {
  constexpr Index kMostProducts = 300'000;  // of batch, heads, rows, keys and head size
  uint64_t seed = 0;
  for (size_t r = 0; r < std::size(kRows); ++r) {
    for (size_t k = 0; k < std::size(kKeys); ++k) {
      for (size_t d = 0; d < std::size(kHeadSizes); ++d) {
        // Every other combination: any two of the sizes still meet.
        if ((r + k + d) % 2 != 0) continue;
        Random random(++seed);
        Case c;
        c.seed = seed;
        c.rows = kRows[r];
        c.keys = kKeys[k];
        c.head_dim = kHeadSizes[d];
        c.value_dim = random.chance(0.5) ? c.head_dim : pick(random, kHeadSizes);
        const Index one = c.rows * c.keys * std::max(c.head_dim, c.value_dim);
        if (one <= kMostProducts / 4) draw_batch(random, c);
        if (one * product(c.batch()) * c.heads_q > kMostProducts) c.heads_q = c.heads_kv = 1;
        draw_options(random, c);
        run_case(c);
      }
    }
  }
}

// Many key blocks, chunks of the backward, several query blocks, several threads.
void test_long() {
  Case c;
  c.rows = 200;
  c.keys = 1100;
  c.head_dim = 24;
  c.value_dim = 20;
  c.heads_q = 2;
  c.threads = 3;
  run_case(c);
  c.causal = true;
  run_case(c);
  c.dbias = true;
  for (const Shape& shape : {Shape{}, Shape{1100}, Shape{200, 1}, Shape{200, 1100}, Shape{2, 1, 1},
                             Shape{2, 200, 1100}, Shape{2, 1, 1100}, Shape{2, 200, 1}}) {
    c.bias = shape;
    run_case(c);
  }
  // More pairs than the threads: packed per thread.
  Case many;
  many.rows = 70;
  many.keys = 90;
  many.head_dim = many.value_dim = 16;
  many.batch_q = many.batch_k = many.batch_v = {8};
  many.heads_q = 4;
  many.heads_kv = 2;
  many.threads = 3;
  many.causal = true;
  many.offset_shape = Shape{8};
  many.offsets = {0, 20, -30, 90, -70, 5, 6, 7};
  run_case(many);
  // Keys far apart in score: the running maximum moves, and weights underflow.
  Case steep;
  steep.rows = 30;
  steep.keys = 300;
  steep.head_dim = steep.value_dim = 64;
  steep.size = 8;
  steep.scale = 1;
  run_case(steep);
  steep.scale = -1;
  run_case(steep);
}

}  // namespace

void test_accuracy() {
  test_shapes();
  test_long();
}

}  // namespace cattn::test
