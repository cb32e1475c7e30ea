// The tile registers of AMX in plain C++: what amx/tile.h does, on any CPU, bit for bit as Intel
// documents the instructions (which of several NaN comes out is not documented). It is how layouts,
// splitting and tails of the tile kernels are tested where there is no AMX.
#include "kernels/amx/tile_shape.h"
#include "kernels/pair_product.h"

class EmulatedTiles {
 public:
  explicit EmulatedTiles(const TileShape (&shapes)[kTiles]) {
    for (int t = 0; t < kTiles; ++t) tiles_[t].shape = shapes[t];
    for (Register& t : tiles_) clear(t);
  }

  template <int kTile>
  void zero() {
    clear(tiles_[kTile]);
  }

  template <int kTile>
  void load(const void* p, Index stride) {
    Register& t = tiles_[kTile];
    clear(t);
    for (int r = 0; r < t.shape.rows; ++r) {
      __builtin_memcpy(t.rows[r], static_cast<const char*>(p) + r * stride,
                       static_cast<size_t>(t.shape.row_bytes));
    }
  }
  template <int kTile>
  void load_streamed(const void* p, Index stride) {
    load<kTile>(p, stride);
  }

  template <int kTile>
  void store(void* p, Index stride) const {
    const Register& t = tiles_[kTile];
    for (int r = 0; r < t.shape.rows; ++r) {
      __builtin_memcpy(static_cast<char*>(p) + r * stride, t.rows[r],
                       static_cast<size_t>(t.shape.row_bytes));
    }
  }

  // TDPBF16PS, or TDPFP16PS for Half = Float16. The products of the even and of the odd places are
  // summed in two accumulators that start at zero, by fused multiply-adds along the depth; then the
  // two are added, and the sum is added to c: each step rounded to nearest even, without subnormals
  // (pair_product.h). Subnormal numbers of float16 are none of float32 and count.
  template <class Half, int kC, int kA, int kB>
  void multiply_add() {
    product<Half>(tiles_[kC], tiles_[kA], tiles_[kB]);
  }

  static void stay_awake() {}

 private:
  static constexpr int kCols = kTileBytes / 4;

  struct Register {
    TileShape shape;
    alignas(64) unsigned char rows[kTileRows][kTileBytes];
  };

  static void clear(Register& t) { __builtin_memset(t.rows, 0, sizeof(t.rows)); }

  template <class Half>
  static void product(Register& c, const Register& a, const Register& b) {
    const int depth = a.shape.row_bytes / 4;  // in pairs; b has as many rows
    float b_even[kTileRows][kCols], b_odd[kTileRows][kCols];
    for (int k = 0; k < depth; ++k) split_pairs<Half>(b.rows[k], b_even[k], b_odd[k]);
    for (int m = 0; m < c.shape.rows; ++m) {
      float a_even[kCols], a_odd[kCols], sum[kCols], even[kCols] = {}, odd[kCols] = {};
      split_pairs<Half>(a.rows[m], a_even, a_odd);
      for (int k = 0; k < depth; ++k) {
        for (int n = 0; n < kCols; ++n) {
          even[n] = multiply_add_flushing(a_even[k], b_even[k][n], even[n]);
          odd[n] = multiply_add_flushing(a_odd[k], b_odd[k][n], odd[n]);
        }
      }
      __builtin_memcpy(sum, c.rows[m], sizeof(sum));
      for (int n = 0; n < kCols; ++n) {
        const float both = add(even[n], odd[n]);
        sum[n] = add(without_subnormal(sum[n]), both);
      }
      __builtin_memcpy(c.rows[m], sum, static_cast<size_t>(c.shape.row_bytes));
    }
  }

  static float add(float a, float b) {
    return round_flushing(static_cast<double>(a) + static_cast<double>(b));
  }

  template <class Half>
  static void split_pairs(const unsigned char* row, float (&even)[kCols], float (&odd)[kCols]) {
    Half halves[2 * kCols];
    static_assert(sizeof(halves) == kTileBytes);
    __builtin_memcpy(halves, row, sizeof(halves));
    for (int n = 0; n < kCols; ++n) {
      even[n] = without_subnormal(to_float(halves[2 * n]));
      odd[n] = without_subnormal(to_float(halves[2 * n + 1]));
    }
  }

  Register tiles_[kTiles];
};
