// Products on pairs of bfloat16 and float16: the emulated tile against the documentation, splitting
// into parts, and packing with products against float64, within bounds that are derived here.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include "attention_case.h"
#include "check.h"
#include "core/cpu.h"
#include "half.h"
#include "kernels/compiler.h"
#include "kernels/pair_product.h"
#include "memory.h"
#include "pairs_kernels.h"
#include "tests.h"

namespace cattn::test {

extern const PairKernels kPlainRegisters, kPlainTiles;
#if defined(CATTN_HAVE_AVX512)
extern const PairKernels kAvx512Registers, kAvx512EmulatedTiles, kAmxTiles, kAmxFp16Tiles;
#endif

const PairKernels* pair_kernels(int i) {
  static const std::vector<const PairKernels*> tables = [] {
    std::vector<const PairKernels*> found{&kPlainRegisters, &kPlainTiles};
#if defined(CATTN_HAVE_AVX512)
    if (cpu_features().avx512_bf16 && cpu_features().avx512_vbmi) {
      found.push_back(&kAvx512Registers);
      found.push_back(&kAvx512EmulatedTiles);
    }
    if (amx_permitted()) {
      found.push_back(cpu_features().amx_fp16 ? &kAmxFp16Tiles : &kAmxTiles);
    }
#endif
    return found;
  }();
  return i < static_cast<int>(tables.size()) ? tables[static_cast<size_t>(i)] : nullptr;
}

namespace {

#include "kernels/amx/emulated_tile.h"

// ---- The arithmetic, once more and in another way: by fma in float, scaled where it may
// underflow.

float daz(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }

float documented_fma(float a, float b, float c) {
  a = daz(a);
  b = daz(b);
  c = daz(c);
  if (!std::isfinite(a) || !std::isfinite(b) || !std::isfinite(c)) return std::fma(a, b, c);
  int a_exponent, b_exponent;
  const float a_fraction = std::frexp(a, &a_exponent), b_fraction = std::frexp(b, &b_exponent);
  const int exponent = a_exponent + b_exponent;
  if ((a != 0 && b != 0 && exponent > -60) || std::fabs(c) > 0x1p-60f) {
    return std::fma(a, b, c);  // cannot come near the subnormals
  }
  // With 2^140 times everything the result has 24 bits whatever its size, as one with an unbounded
  // exponent. Below 2^-126 it is flushed.
  constexpr int kScale = 140;
  const float scaled =
      std::fma(a_fraction, a == 0 || b == 0 ? b : std::ldexp(b_fraction, exponent + kScale),
               std::ldexp(c, kScale));
  if (std::fabs(scaled) < std::ldexp(1.0f, kScale - 126)) return std::copysign(0.0f, scaled);
  return std::ldexp(scaled, -kScale);
}

float from_bits(uint32_t bits) { return float_from_bits(bits); }
bool same_number(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) || float_bits(a) == float_bits(b);
}

struct TileImage {
  int rows, row_bytes;
  unsigned char bytes[16][64];
  uint16_t half(int r, int i) const {
    uint16_t x;
    std::memcpy(&x, bytes[r] + 2 * i, 2);
    return x;
  }
  float number(int r, int i) const {
    float x;
    std::memcpy(&x, bytes[r] + 4 * i, 4);
    return x;
  }
};

// A number of a pair: a subnormal bfloat16 is a subnormal float, which counts as zero.
float widened(uint16_t bits, bool float16) {
  return float16 ? to_float(Float16{bits}) : from_bits(static_cast<uint32_t>(bits) << 16);
}

// TDPBF16PS, or TDPFP16PS, line by line.
std::vector<float> documented_product(bool float16, const TileImage& c, const TileImage& a,
                                      const TileImage& b) {
  std::vector<float> result;
  const int cols = c.row_bytes / 4;
  for (int m = 0; m < c.rows; ++m) {
    std::vector<float> sums(static_cast<size_t>(2 * cols), 0.0f);
    for (int k = 0; k < a.row_bytes / 4; ++k) {
      for (int n = 0; n < cols; ++n) {
        for (int half = 0; half < 2; ++half) {
          float& sum = sums[static_cast<size_t>(2 * n + half)];
          sum = documented_fma(widened(a.half(m, 2 * k + half), float16),
                               widened(b.half(k, 2 * n + half), float16), sum);
        }
      }
    }
    for (int n = 0; n < cols; ++n) {
      const float even = sums[static_cast<size_t>(2 * n)],
                  odd = sums[static_cast<size_t>(2 * n + 1)];
      result.push_back(documented_fma(1, documented_fma(1, even, odd), c.number(m, n)));
    }
  }
  return result;
}

enum class Values { ordinary, tiny, any };

uint16_t random_half(Random& random, Values values) {
  const auto sign_and_fraction = static_cast<uint16_t>(random.below(1 << 16) & 0x807f);
  Index exponent = 0;
  switch (values) {
    case Values::ordinary: exponent = 124 + random.below(8); break;
    // Products around 2^-126, and subnormal numbers.
    case Values::tiny: exponent = random.below(16) == 0 ? 0 : 60 + random.below(8); break;
    case Values::any: return static_cast<uint16_t>(random.below(1 << 16));
  }
  return static_cast<uint16_t>(sign_and_fraction | exponent << 7);
}

float random_sum(Random& random, Values values) {
  const auto bits = static_cast<uint32_t>(random.below(Index{1} << 32));
  switch (values) {
    case Values::ordinary: return from_bits((bits & 0x807fffffu) | 126u << 23);
    case Values::tiny: return from_bits((bits & 0x807fffffu) | (bits >> 23 & 7u) << 23);
    default: return from_bits(bits);
  }
}

template <class Half>
void test_emulated_tile() {
  constexpr bool float16 = std::is_same_v<Half, Float16>;
  Random random(1);
  struct Shape {
    int m, n, k;  // pairs along k
  };
  for (const Shape s : {Shape{16, 16, 16}, {1, 1, 1}, {16, 3, 5}, {7, 16, 2}, {5, 4, 16}}) {
    for (const Values values : {Values::ordinary, Values::tiny, Values::any}) {
      for (int turn = 0; turn < 40; ++turn) {
        TileImage c{s.m, 4 * s.n, {}}, a{s.m, 4 * s.k, {}}, b{s.k, 4 * s.n, {}};
        for (int r = 0; r < 16; ++r) {
          for (int i = 0; i < 32; ++i) {
            const auto half = [&] {  // every other bit pattern of float16 is an ordinary number
              return random_half(random, float16 ? Values::any : values);
            };
            const uint16_t x = half(), y = half();
            std::memcpy(a.bytes[r] + 2 * i, &x, 2);
            std::memcpy(b.bytes[r] + 2 * i, &y, 2);
          }
          for (int i = 0; i < 16; ++i) {
            const float z = random_sum(random, values);
            std::memcpy(c.bytes[r] + 4 * i, &z, 4);
          }
        }
        const TileShape shapes[kTiles] = {{c.rows, c.row_bytes},
                                          {a.rows, a.row_bytes},
                                          {b.rows, b.row_bytes},
                                          {16, 64},
                                          {16, 64},
                                          {16, 64},
                                          {16, 64},
                                          {16, 64}};
        EmulatedTiles tiles(shapes);
        tiles.load<0>(c.bytes, 64);
        tiles.load<1>(a.bytes, 64);
        tiles.load<2>(b.bytes, 64);
        tiles.multiply_add<Half, 0, 1, 2>();
        TileImage got{16, 64, {}};
        std::memset(got.bytes, Memory::kPoison, sizeof(got.bytes));
        tiles.store<0>(got.bytes, 64);
        const std::vector<float> expected = documented_product(float16, c, a, b);
        bool right = true;
        for (int r = 0; r < 16; ++r) {
          for (int i = 0; i < 16; ++i) {
            if (r < s.m && i < s.n) {
              right = right &&
                      same_number(got.number(r, i), expected[static_cast<size_t>(r * s.n + i)]);
            } else {  // outside of the tile's shape nothing is stored
              right = right && float_bits(got.number(r, i)) == 0xffffffffu;
            }
          }
        }
        check(right, "emulated tile " + std::to_string(s.m) + " x " + std::to_string(s.n) + " x " +
                         std::to_string(s.k) + ", values " +
                         std::to_string(static_cast<int>(values)));
        tiles.zero<0>();
        tiles.store<0>(got.bytes, 64);
        check(got.number(0, 0) == 0 && got.number(s.m - 1, s.n - 1) == 0, "emulated tile: zero");
      }
    }
  }
}

// Where 2^-126 - 2^-150 is flushed although it would round to 2^-126 as a subnormal.
void test_flushing() {
  const float lowest = 0x1p-126f;
  check(same_number(multiply_add_flushing(-0x1p-75f, 0x1p-75f, lowest), 0.0f),
        "a result below 2^-126 is flushed before it is rounded to a subnormal");
  check(same_number(multiply_add_flushing(-0x1p-75f, 0x1p-76f, lowest), lowest),
        "half an ulp below 2^-126 rounds to it");
  check(same_number(multiply_add_flushing(-0x1p-70f, 0x1p-70f, -0.0f), -0.0f),
        "a flushed result keeps its sign");
}

// The pair products of every vocabulary against the documentation of VDPBF16PS.
void test_multiply_add(const PairKernels& kernels) {
  Random random(2);
  bool right = true;
  for (const Values values : {Values::ordinary, Values::tiny, Values::any}) {
    for (int turn = 0; turn < 3000; ++turn) {
      uint16_t a[32], b[32];
      float acc[16], before[16];
      for (uint16_t& x : a) x = random_half(random, values);
      for (uint16_t& x : b) x = random_half(random, values);
      for (float& x : acc) x = random_sum(random, values);
      std::copy(std::begin(acc), std::end(acc), before);
      kernels.multiply_add(a, b, acc);
      for (int i = 0; i < 16; ++i) {
        const auto wide = [](uint16_t bits) {
          return from_bits(static_cast<uint32_t>(bits) << 16);
        };
        const float odd = documented_fma(wide(a[2 * i + 1]), wide(b[2 * i + 1]), before[i]);
        const float both = documented_fma(wide(a[2 * i]), wide(b[2 * i]), odd);
        right = right && same_number(acc[i], both);
      }
    }
  }
  check(right, std::string(kernels.name) + ": pair products");
}

// ---- Parts.

// The nearest number of 8 bits, ties to even; exponents far from the ends.
double nearest_of_8_bits(double x) {
  int exponent;
  const double fraction = std::frexp(x, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(fraction, 8)), exponent - 8);
}

void test_split(const PairKernels& kernels) {
  Random random(3);
  std::vector<float> numbers;
  for (const int exponent : {-48, -20, -1, 0, 1, 30, 47}) {
    for (const uint32_t fraction : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0x18000u, 0x7f8000u,
                                    0x7f7fffu, 0x7fffffu, 0x008080u, 0x00807fu, 0x017f80u}) {
      numbers.push_back(from_bits(static_cast<uint32_t>(127 + exponent) << 23 | fraction));
    }
  }
  for (uint32_t bits = 0; bits < 0x7c00u; ++bits) {  // every finite float16
    numbers.push_back(to_float(Float16{static_cast<uint16_t>(bits)}));
  }
  const size_t halves = numbers.size();
  while (numbers.size() < 60000 || numbers.size() % 32 != 0) {
    numbers.push_back(std::ldexp(static_cast<float>(random.symmetric()),
                                 static_cast<int>(random.below(80)) - 40));
  }
  bool nearest = true, exact = true, two = true;
  for (size_t first = 0; first < numbers.size(); first += 32) {
    uint16_t parts[96];
    kernels.split(&numbers[first], parts);
    for (size_t i = 0; i < 32; ++i) {
      const float x = numbers[first + i];
      double rest = x;
      for (size_t p = 0; p < 3; ++p) {
        const double part = to_float(BFloat16{parts[32 * p + i]});
        // Of two that are as near either will do.
        const double least = std::fabs(rest - nearest_of_8_bits(rest));
        if (std::fabs(x) >= 0x1p-48f) nearest = nearest && std::fabs(rest - part) == least;
        rest -= part;
        if (p == 1) two = two && std::fabs(rest) <= 0x1p-17 * std::fabs(x);
        if (p == 1 && first + i >= halves - 0x7c00u && first + i < halves) two = two && rest == 0;
      }
      exact = exact && rest == 0;
    }
  }
  check(nearest, std::string(kernels.name) + ": no bfloat16 is nearer than a part");
  check(exact, std::string(kernels.name) + ": three parts are exact");
  check(two, std::string(kernels.name) + ": two parts are within 2^-17, and exact for float16");
}

// ---- Packing and products.

struct KindTraits {
  PairKind kind;
  const char* name;
  Storage left, right;
  int left_parts, right_parts, products;
  double dropped;  // of the sum of |x y|, see below
};

// What the products leave out, with |x - hi| <= 2^-8 |x|, |x - hi - mid| <= 2^-17 |x| and so
// |mid| <= (2^-8 + 2^-17) |x|, |lo| <= 2^-17 |x|:
//   highest         mid lo + lo mid + lo lo
//   high            mid mid + x y - (x - lo)(y - lo)
//   medium          x y - hi hi
//   mixed_float16   lo mid (a float16 has no lo)
//   mixed_high      lo y
//   rounded_float16 what a float16 of 11 bits lacks, 2^-11; and of a subnormal one, 2^-25
//   absolutely
constexpr double kMid = 0x1p-8 + 0x1p-17, kLo = 0x1p-17, kRest = 0x1p-8;
constexpr KindTraits kKinds[kPairKinds] = {
    {PairKind::highest, "highest", Storage::float32, Storage::float32, 3, 3, 6,
     2 * kMid* kLo + kLo* kLo},
    {PairKind::high, "high", Storage::float32, Storage::float32, 2, 2, 3,
     kMid* kMid + 2 * kLo + kLo* kLo},
    {PairKind::medium, "medium", Storage::float32, Storage::float32, 1, 1, 1,
     2 * kRest + kRest* kRest},
    {PairKind::bfloat16, "bfloat16", Storage::bfloat16, Storage::bfloat16, 1, 1, 1, 0},
    {PairKind::float16, "float16", Storage::float16, Storage::float16, 2, 2, 4, 0},
    {PairKind::mixed_float16, "float32 x float16", Storage::float32, Storage::float16, 3, 2, 5,
     kLo* kMid},
    {PairKind::mixed_bfloat16, "float32 x bfloat16", Storage::float32, Storage::bfloat16, 3, 1, 3,
     0},
    {PairKind::mixed_high, "float32 x bfloat16, high", Storage::float32, Storage::bfloat16, 2, 1, 2,
     kLo},
    {PairKind::whole_float16, "whole float16", Storage::float16, Storage::float16, 1, 1, 1, 0},
    {PairKind::rounded_float16, "float32 rounded to float16", Storage::float32, Storage::float16, 1,
     1, 1, 0x1p-11},
};

Index size_of(Storage storage) { return storage == Storage::float32 ? 4 : 2; }
Index up(Index n, Index multiple) { return (n + multiple - 1) / multiple * multiple; }

// A matrix in memory of its own, rows or columns contiguous, with gaps between them.
class Matrix {
 public:
  Matrix(Index rows, Index cols, bool transposed, Storage storage, int turn)
      : rows_(rows),
        cols_(cols),
        transposed_(transposed),
        storage_(storage),
        stride_((transposed ? rows : cols) + 3 * (turn % 2)),
        memory_(static_cast<size_t>(
                    ((transposed ? cols - 1 : rows - 1) * stride_ + (transposed ? rows : cols)) *
                    size_of(storage)),
                placement(turn), 2),
        values_(static_cast<size_t>(rows * cols)) {}

  void set(Index i, Index j, double x) {
    const Index at = transposed_ ? j * stride_ + i : i * stride_ + j;
    char* const p = memory_.data() + at * size_of(storage_);
    const auto write = [&](auto number) {
      from_float(static_cast<float>(x), number);
      std::memcpy(p, &number, sizeof(number));
      values_[static_cast<size_t>(i * cols_ + j)] = static_cast<double>(to_float(number));
    };
    if (storage_ == Storage::float32) write(0.0f);
    if (storage_ == Storage::float16) write(Float16{});
    if (storage_ == Storage::bfloat16) write(BFloat16{});
  }
  void fill(Random& random) {
    for (Index i = 0; i < rows_; ++i) {
      for (Index j = 0; j < cols_; ++j) {
        const double x = random.symmetric();
        // A quarter of them small, some of them zero.
        set(i, j, random.below(4) == 0 ? x * 0x1p-12 * static_cast<double>(random.below(3)) : x);
      }
    }
  }
  double operator()(Index i, Index j) const { return values_[static_cast<size_t>(i * cols_ + j)]; }
  const void* data() const { return memory_.data(); }
  Index rows() const { return rows_; }
  Index cols() const { return cols_; }
  Index stride() const { return stride_; }
  bool transposed() const { return transposed_; }

 private:
  Index rows_, cols_;
  bool transposed_;
  Storage storage_;
  Index stride_;
  Memory memory_;
  std::vector<double> values_;
};

// Roundings. Products of parts are exact inside a fused multiply-add, so each of the n terms of one
// product of parts is rounded at most once on its way into the sum, and a tile adds two roundings
// for every 32 of the depth. The small products come first: their sum is at most
// (mid + lo)(2 hi + mid + lo) <= 2^-6.9 of A = sum |x y|, and only the last product, hi hi, of at
// most (1 + 2^-8)^2 A <= 1.008 A, meets sums of A's size.
double rounding(double terms, int products) {
  const double gamma = terms * 0x1p-24 / (1 - products * terms * 0x1p-24);
  return gamma * (1.008 + 0x1p-6) + (products - 1) * gamma * 0x1p-6;
}

double g_worst[kPairKinds];

struct ProductCase {
  Index rows, depth, cols, begin, end;
  bool left_transposed, right_transposed, causal, panels, add, halves;
  int turn;
};

// Both operands are padded with zeros.
bool padding_is_zero(const KindTraits& kind, const ProductCase& c, const Memory& left_memory,
                     const Memory& right_memory) {
  const Index rows = up(c.rows, 16), depth = up(c.depth, 32), cols = up(c.cols, 32);
  const auto* const left = reinterpret_cast<const uint16_t*>(left_memory.data());
  const auto* const right = reinterpret_cast<const uint16_t*>(right_memory.data());
  bool zero = true;
  for (Index k = 0; k < depth; ++k) {
    const Index place = c.halves ? k % 16 * 2 + k % 32 / 16 : k % 32;  // in its 32
    for (Index i = 0; i < rows; ++i) {
      if (i < c.rows && k < c.depth) continue;
      for (Index p = 0; p < kind.left_parts; ++p) {
        zero = zero && left[p * rows * depth + k / 32 * rows * 32 + i * 32 + place] == 0;
      }
    }
    for (Index j = 0; j < cols; ++j) {
      if (j < c.cols && k < c.depth) continue;
      for (Index p = 0; p < kind.right_parts; ++p) {
        zero = zero && right[p * depth * cols + j / 32 * depth * 32 + k / 32 * 1024 +
                             j % 32 / 16 * 512 + place / 2 * 32 + j % 16 * 2 + place % 2] == 0;
      }
    }
  }
  return zero;
}

// The outputs, for comparing tables bit by bit.
std::vector<float> run_case(const PairKernels& kernels, const KindTraits& kind, ProductCase c) {
  // What is a bfloat16 already is not paired anew.
  c.halves = c.halves && kind.kind != PairKind::bfloat16;
  if (kernels.tiles || c.halves) {  // take the depth in steps of 32
    c.begin = c.begin / 32 * 32;
    c.end = up(c.end, 32);
  }
  Random random(static_cast<uint64_t>(c.turn) * 7919 + 5);
  Matrix left(c.rows, c.depth, c.left_transposed, kind.left, c.turn);
  Matrix right(c.depth, c.cols, c.right_transposed, kind.right, c.turn + 1);
  left.fill(random);
  right.fill(random);
  if (c.causal) {
    for (Index i = 0; i < c.rows; ++i) {
      for (Index k = i + 1; k < c.depth; ++k) left.set(i, k, 0);
    }
  }
  const Index padded_rows = up(c.rows, 16), padded_depth = up(c.depth, 32);
  const Index padded_cols = up(c.cols, 32), written_cols = up(c.cols, 16);
  const Memory left_memory(static_cast<size_t>(kind.left_parts * padded_rows * padded_depth * 2),
                           placement(c.turn), 64);
  const Memory right_memory(static_cast<size_t>(kind.right_parts * padded_depth * padded_cols * 2),
                            placement(c.turn + 1), 64);
  const Memory c_memory(static_cast<size_t>(padded_rows * padded_cols * 4), placement(c.turn), 64);
  float* const out = reinterpret_cast<float*>(c_memory.data());
  const Index row = c.panels ? 32 : padded_cols, panel = c.panels ? 32 * padded_rows : 32;
  const auto place = [&](Index i, Index j) { return i * row + j / 32 * panel + j % 32; };
  std::vector<double> before(static_cast<size_t>(padded_rows * padded_cols), 0.0);
  for (Index i = 0; i < padded_rows; ++i) {
    for (Index j = 0; j < written_cols && c.add; ++j) {
      out[place(i, j)] = static_cast<float>(random.symmetric());
      before[static_cast<size_t>(place(i, j))] = out[place(i, j)];
    }
  }
  PairCase task{};
  task.kind = kind.kind;
  task.rows = c.rows;
  task.depth = c.depth;
  task.cols = c.cols;
  task.left = left.data();
  task.left_stride = left.stride();
  task.left_transposed = left.transposed();
  task.right = right.data();
  task.right_stride = right.stride();
  task.right_transposed = right.transposed();
  task.left_memory = left_memory.data();
  task.right_memory = right_memory.data();
  task.begin = c.begin;
  task.end = c.end;
  task.causal = c.causal;
  task.halves = c.halves;
  task.c = out;
  task.c_row = row;
  task.c_panel = panel;
  task.add = c.add;
  kernels.run(task);

  const std::string name = std::string(kernels.name) + " " + kind.name + " " +
                           std::to_string(c.rows) + " x " + std::to_string(c.depth) + " x " +
                           std::to_string(c.cols) + " [" + std::to_string(c.begin) + ", " +
                           std::to_string(c.end) + ") turn " + std::to_string(c.turn);
  const int wanted = kBlockFinite | kBlockSplits;
  const bool rounded = kind.kind == PairKind::rounded_float16;  // may be too small to split
  check(((task.left_flags & wanted) == wanted || rounded) && (task.right_flags & wanted) == wanted,
        name + ": flags");
  double worst = 0;
  std::vector<float> all;
  bool untouched = true;
  const double steps = std::ceil(c.depth / 32.0);
  const double terms = static_cast<double>(c.end - c.begin) + 2 * steps;
  // Tile registers add products step by step to what is there, but of three parts.
  const double additions = kernels.tiles && kind.left_parts < 3 ? steps * kind.products : 1;
  for (Index i = 0; i < c.rows; ++i) {
    for (Index j = 0; j < padded_cols; ++j) {
      const float got = out[place(i, j)];
      if (j >= written_cols) {
        untouched = untouched && float_bits(got) == 0xffffffffu;
        continue;
      }
      const double start = before[static_cast<size_t>(place(i, j))];
      double sum = 0, size = 0, absolute = 0;
      for (Index k = c.begin; k < c.end && j < c.cols; ++k) {
        if (rounded && k < c.depth) absolute += 0x1p-25 * std::fabs(right(k, j));
        const double term = k < c.depth ? left(i, k) * right(k, j) : 0;
        sum += term;
        size += std::fabs(term);
      }
      double bound = (rounding(terms, kind.products) + kind.dropped) * size + absolute;
      if (c.add) bound += additions * 0x1p-24 * (std::fabs(start) + size + bound);
      const double error = std::fabs(static_cast<double>(got) - (start + sum));
      if (error > 0) worst = std::max(worst, error / bound);
      if (!(error <= bound)) worst = std::numeric_limits<double>::infinity();
      if (j < c.cols) all.push_back(got);
    }
  }
  // Rows of padding: zeros are added to them, or they are left alone.
  for (Index i = c.rows; i < padded_rows; ++i) {
    for (Index j = 0; j < written_cols; ++j) {
      const float got = out[place(i, j)];
      untouched =
          untouched && (got == static_cast<float>(before[static_cast<size_t>(place(i, j))]) ||
                        (!c.add && float_bits(got) == 0xffffffffu));
    }
  }
  check(padding_is_zero(kind, c, left_memory, right_memory), name + ": padding");
  g_worst[static_cast<int>(kind.kind)] = std::max(g_worst[static_cast<int>(kind.kind)], worst);
  check(worst <= 1, name + ": error / bound " + std::to_string(worst));
  check(untouched, name + ": writes past the columns");
  return all;
}

void test_products() {
  Random random(4);
  int turn = 0;
  std::vector<ProductCase> cases;
  for (const Index rows : {1, 4, 5, 12, 13, 16, 17, 31, 32, 33, 50, 96}) {
    for (const Index cols : {1, 15, 16, 17, 32, 33, 49, 128}) {
      const Index depths[] = {1, 2, 31, 32, 33, 64, 66, 127, 128};
      const Index depth = depths[turn % std::ssize(depths)];
      const Index whole = up(depth, 2);
      Index begin = 0, end = whole;
      if (turn % 3 == 1) begin = random.below(whole / 2) * 2;
      if (turn % 4 == 1) end = begin + 2 + random.below((whole - begin) / 2) * 2;
      cases.push_back({rows, depth, cols, begin, end, turn % 2 == 1, turn / 2 % 2 == 1,
                       turn % 5 == 2 && begin == 0, turn / 3 % 2 == 1, turn / 5 % 2 == 1,
                       turn % 8 == 4, turn});
      ++turn;
    }
  }
  for (const KindTraits& kind : kKinds) {
    for (const ProductCase& c : cases) {
      std::vector<float> first[2];  // of registers, of tiles
      for (int i = 0; const PairKernels* kernels = pair_kernels(i); ++i) {
        if (needs_float16(kind.kind) && !kernels->float16) continue;
        const std::vector<float> got = run_case(*kernels, kind, c);
        std::vector<float>& reference = first[kernels->tiles ? 1 : 0];
        if (reference.empty()) reference = got;
        check(got.size() == reference.size() &&
                  std::memcmp(got.data(), reference.data(), got.size() * sizeof(float)) == 0,
              std::string(kernels->name) + " " + kind.name + ": differs from plain C++ at turn " +
                  std::to_string(c.turn));
      }
    }
  }
}

struct WholeProduct {
  std::vector<float> c;  // by rows
  int left_flags, right_flags;
};
WholeProduct whole_product(const PairKernels& kernels, PairKind kind, const Matrix& left,
                           const Matrix& right) {
  PairCase t{};
  t.kind = kind;
  t.rows = left.rows();
  t.depth = left.cols();
  t.cols = right.cols();
  const Index rows = up(t.rows, 16), depth = up(t.depth, 32), cols = up(t.cols, 32);
  const Memory left_memory(static_cast<size_t>(3 * rows * depth * 2), placement(0), 64);
  const Memory right_memory(static_cast<size_t>(3 * depth * cols * 2), placement(1), 64);
  const Memory out(static_cast<size_t>(rows * cols * 4), placement(0), 64);
  t.left = left.data();
  t.left_stride = left.stride();
  t.left_transposed = left.transposed();
  t.right = right.data();
  t.right_stride = right.stride();
  t.right_transposed = right.transposed();
  t.left_memory = left_memory.data();
  t.right_memory = right_memory.data();
  t.end = up(t.depth, 2);
  t.c = reinterpret_cast<float*>(out.data());
  t.c_row = cols;
  t.c_panel = 32;
  kernels.run(t);
  WholeProduct result{{}, t.left_flags, t.right_flags};
  for (Index i = 0; i < t.rows; ++i) {
    result.c.insert(result.c.end(), t.c + i * cols, t.c + i * cols + t.cols);
  }
  return result;
}

// The small products of three parts come first: sums of 1 + 2^-23 are exact only then.
void test_order(const PairKernels& kernels) {
  const Index rows = 3, depth = 64, cols = 5;
  Matrix left(rows, depth, false, Storage::float32, 0);
  Matrix right(depth, cols, false, Storage::float32, 1);
  for (Index k = 0; k < depth; ++k) {
    for (Index i = 0; i < rows; ++i) left.set(i, k, 1 + 0x1p-23);
    for (Index j = 0; j < cols; ++j) right.set(k, j, 1);
  }
  const std::vector<float> out = whole_product(kernels, PairKind::highest, left, right).c;
  check(out[0] == 64 + 0x1p-17f && out.back() == out[0],
        std::string(kernels.name) + ": small products come first");
}

// The flags of both operands, packed in either orientation, with one remarkable element anywhere.
void test_range(const PairKernels& kernels) {
  struct Edge {
    float x;
    int flags;
  };
  constexpr int all = kBlockFinite | kBlockModerate | kBlockSplits;
  constexpr int splits = kBlockFinite | kBlockSplits;
  const float low = 0x1p-48f, high = 0x1p48f, infinity = std::numeric_limits<float>::infinity();
  const Edge edges[] = {{low, splits},
                        {std::nextafter(low, 0.0f), kBlockFinite},
                        {0x1p-40f, all},
                        {std::nextafter(0x1p-40f, 0.0f), splits},
                        {std::nextafter(0x1p20f, 0.0f), all},
                        {0x1p20f, splits},
                        {std::nextafter(high, 0.0f), splits},
                        {high, kBlockFinite},
                        {0.0f, all},
                        {-0.0f, all},
                        {0x1p-149f, kBlockFinite},
                        {0x1.fefffep127f, kBlockFinite},  // the last that rounds to a finite one
                        {0x1.ffp127f, 0},
                        {std::numeric_limits<float>::max(), 0},
                        {infinity, 0},
                        {std::nanf(""), 0}};
  const Index rows = 5, depth = 37, cols = 18;
  for (const bool transposed : {false, true}) {
    Matrix left(rows, depth, transposed, Storage::float32, 0);
    Matrix right(depth, cols, transposed, Storage::float32, 1);
    Random random(6);
    for (const Edge& edge : edges) {
      for (const float sign : {1.0f, -1.0f}) {
        bool flags = true;
        for (int turn = 0; turn < 8; ++turn) {
          left.fill(random);
          right.fill(random);
          const bool in_left = turn % 2 == 0;
          const Index k = turn < 4 ? depth - 1 : random.below(depth);
          if (in_left) left.set(turn < 4 ? rows - 1 : random.below(rows), k, sign * edge.x);
          if (!in_left) right.set(k, turn < 4 ? cols - 1 : random.below(cols), sign * edge.x);
          const WholeProduct got = whole_product(kernels, PairKind::highest, left, right);
          flags = flags && got.left_flags == (in_left ? edge.flags : all) &&
                  got.right_flags == (in_left ? all : edge.flags);
        }
        check(flags, std::string(kernels.name) + ": flags with " + std::to_string(edge.x));
      }
    }
  }
}

// Weights that come as the bits of a bfloat16 at once: every place of the last octaves and those
// between, against the bound in tests/bounds.py.
void test_rounded_weights(const PairKernels& kernels, bool last_bits) {
  const auto weights_of = [&](const float (&x)[32], float (&weights)[32]) {
    uint16_t bits[32];
    kernels.round_weights(x, last_bits, bits);
    for (int place = 0; place < 32; ++place)
      weights[place % 2 * 16 + place / 2] = to_float(BFloat16{bits[place]});
  };
  const std::string name =
      std::string(kernels.name) + ", weights at once" + (last_bits ? " in last bits: " : ": ");
  float x[32], weights[32], last = 0, worst = 0;
  bool exact = true, grows = true;
  constexpr int between = 4, octaves = 126;
  for (int first = -octaves * 512 * between; first <= 0; first += 32) {
    for (int i = 0; i < 32; ++i) {
      const int numerator = first + i < 0 ? first + i : 0;
      x[i] = static_cast<float>(numerator) / (512 * between);
    }
    weights_of(x, weights);
    for (int i = 0; i < 32; ++i) {
      const double right = std::exp2(static_cast<double>(x[i]));
      worst = std::max(worst, static_cast<float>(std::fabs(weights[i] / right - 1)));
      exact = exact && (x[i] != std::floor(x[i]) || weights[i] == static_cast<float>(right));
      grows = grows && weights[i] >= last;
      last = weights[i];
    }
  }
  check(worst < 1.27f * 0x1p-8f, name + "error " + std::to_string(worst * 0x1p8f) + " / 2^8");
  check(worst > 0.9f * 0x1p-8f, name + "they are of bfloat16");
  check(exact, name + "powers of 2 are exact");
  check(grows, name + "in order");

  constexpr float inf = std::numeric_limits<float>::infinity();
  if (last_bits) {
    for (int i = 0; i < 32; ++i) x[i] = i % 2 == 0 ? -inf : 0;
    weights_of(x, weights);
    for (int i = 0; i < 32; ++i)
      check(weights[i] == static_cast<float>(i % 2), name + std::to_string(x[i]));
    return;
  }
  const float ends[] = {-inf, -1e9f, -1000, -128, std::nanf(""), 0};
  for (int i = 0; i < 32; ++i) x[i] = ends[i % 6];
  weights_of(x, weights);
  for (int i = 0; i < 32; ++i) {
    const float w = weights[i];
    check(i % 6 == 5 ? w == 1 : i % 6 == 4 ? std::isnan(w) : w == 0, name + std::to_string(x[i]));
  }
}

// Weights by a table: numbers of all octaves, near the ends of each step of the table too.
void test_weights_by_table(const PairKernels& kernels) {
  const std::string name = std::string(kernels.name) + ", weights by a table: ";
  constexpr float inf = std::numeric_limits<float>::infinity();
  float x[16], weights[16];
  double worst = 0;
  bool exact = true;
  constexpr int steps = 32 * 16, octaves = 125;
  for (int first = -octaves * steps; first <= 0; first += 16) {
    for (int i = 0; i < 16; ++i) x[i] = static_cast<float>(std::min(first + i, 0)) / steps;
    for (const float rest : {0.0f, -0.375f}) {  // neither it nor the shift rounds the exponent
      kernels.weights_by_table(x, 3.0f, rest, weights);
      for (int i = 0; i < 16; ++i) {
        const double exponent = static_cast<double>(x[i]) - 3 - static_cast<double>(rest);
        if (exponent < -octaves) continue;
        const double right = std::exp2(exponent);
        worst = std::max(worst, std::fabs(static_cast<double>(weights[i]) / right - 1));
        exact =
            exact && (exponent != std::floor(exponent) || weights[i] == static_cast<float>(right));
      }
    }
  }
  // The polynomial, the table's rounding and the weight's own.
  check(worst < 5.4e-8 + 2 * 0x1p-24, name + "error " + std::to_string(worst * 0x1p24) + " / 2^24");
  check(worst > 5e-8, name + "they are of a table");
  check(exact, name + "powers of 2 are exact");

  const float ends[] = {-inf, -1e30f, -1e6f, -4e5f, -200, 0, std::nanf(""), 2};
  for (int i = 0; i < 16; ++i) x[i] = ends[i % 8];
  kernels.weights_by_table(x, 0, 0, weights);
  for (int i = 0; i < 16; ++i) {
    const float w = weights[i];
    const int end = i % 8;
    check(end == 7   ? w == 4
          : end == 6 ? std::isnan(w)
          : end == 5 ? w == 1
                     : w == 0,
          name + std::to_string(x[i]));
  }
  std::fill(x, x + 16, 5.0f);
  kernels.weights_by_table(x, inf, 0, weights);  // an empty row
  check(std::all_of(weights, weights + 16, [](float w) { return w == 0; }), name + "an empty row");
}

// The kernel's own list of what the CPU has.
void test_features() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line) && line.rfind("flags", 0) != 0) {
  }
  if (line.rfind("flags", 0) != 0) return;  // not Linux on x86
  std::istringstream words(line);
  const std::vector<std::string> flags{std::istream_iterator<std::string>(words), {}};
  const auto has = [&](const char* flag) {
    return std::find(flags.begin(), flags.end(), flag) != flags.end();
  };
  check(cpu_features().avx512_bf16 == (cpu_features().avx512 && has("avx512_bf16")),
        "AVX512-BF16 is found where the system has it");
  check(cpu_features().avx512_vbmi == (cpu_features().avx512 && has("avx512vbmi")),
        "AVX512-VBMI is found where the system has it");
  check(cpu_features().amx_bf16 == (cpu_features().avx512_bf16 && cpu_features().avx512_vbmi &&
                                    has("amx_tile") && has("amx_bf16")),
        "AMX is found where the system has it");
  check(cpu_features().amx_fp16 == (cpu_features().amx_bf16 && has("amx_fp16")),
        "AMX-FP16 is found where the system has it");
  check(!amx_permitted() || cpu_features().amx_bf16, "AMX is not permitted where it is not");
}

}  // namespace

void test_pairs() {
  test_features();
  test_emulated_tile<BFloat16>();
  test_emulated_tile<Float16>();
  test_flushing();
  for (int i = 0; const PairKernels* kernels = pair_kernels(i); ++i) {
    test_multiply_add(*kernels);
    test_split(*kernels);
    test_range(*kernels);
    test_order(*kernels);
    for (const bool last_bits : {false, true}) test_rounded_weights(*kernels, last_bits);
    if (kernels->weights_by_table) test_weights_by_table(*kernels);
  }
  test_products();
  for (const KindTraits& kind : kKinds) {
    std::printf("pairs, %s: error / bound up to %.3f\n", kind.name,
                g_worst[static_cast<int>(kind.kind)]);
  }
}

}  // namespace cattn::test
