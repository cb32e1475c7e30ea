// The tile registers of AMX. Included inside the ISA's anonymous namespace, as is
// amx/emulated_tile.h, whose class has the same interface: kernels are templates of either.
//
// The instructions are written out, since the compilers' intrinsics take the number of a register
// only as a literal, and say nothing of the memory that they read and write.
#include "kernels/amx/tile_shape.h"

class HardwareTiles {
 public:
  // The registers are the thread's: configured here, and released at the end, after which the
  // operating system has nothing of them to save.
  explicit HardwareTiles(const TileShape (&shapes)[kTiles]) {
    struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    static_assert(sizeof(config) == 64);
    for (int t = 0; t < kTiles; ++t) {
      config.row_bytes[t] = static_cast<uint16_t>(shapes[t].row_bytes);
      config.rows[t] = static_cast<uint8_t>(shapes[t].rows);
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
  }
  ~HardwareTiles() { __asm__ volatile("tilerelease" : : : "memory"); }
  HardwareTiles(const HardwareTiles&) = delete;
  HardwareTiles& operator=(const HardwareTiles&) = delete;

  template <int kTile>
  CATTN_INLINE void zero() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
  }
  // The tile's rows, `stride` bytes apart.
  template <int kTile>
  CATTN_INLINE void load(const void* p, Index stride) {
    __asm__ volatile("tileloadd (%1,%2,1), %%tmm%c0"
                     :
                     : "i"(kTile), "r"(p), "r"(stride)
                     : "memory");
  }
  // The same of what is not to drive other lines out of the L1 cache.
  template <int kTile>
  CATTN_INLINE void load_streamed(const void* p, Index stride) {
    __asm__ volatile("tileloaddt1 (%1,%2,1), %%tmm%c0"
                     :
                     : "i"(kTile), "r"(p), "r"(stride)
                     : "memory");
  }
  template <int kTile>
  CATTN_INLINE void store(void* p, Index stride) const {
    __asm__ volatile("tilestored %%tmm%c0, (%1,%2,1)"
                     :
                     : "i"(kTile), "r"(p), "r"(stride)
                     : "memory");
  }
  // c (m, n) float32 += a (m, k) times b (k, n), pairs of Half.
  template <class Half, int kC, int kA, int kB>
  CATTN_INLINE void multiply_add() {
    multiply_add<kC, kA, kB>(Half{});
  }

  // The unit goes to sleep when it has had no product for some 1,500 cycles, and takes 1,000 to
  // wake up (measured on one Xeon; loads and zeros do not count). Long work beside it
  // calls this every few hundred cycles; register 3 is lost.
  CATTN_INLINE static void stay_awake() { multiply_add<3, 5, 7>(BFloat16{}); }

 private:
  template <int kC, int kA, int kB>
  CATTN_INLINE static void multiply_add(BFloat16) {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
  }
  // tdpfp16ps, which many assemblers do not know yet: VEX.128.F2.0F38.W0 5C, with c in the
  // register field, a in r/m and b, inverted, in vvvv.
  template <int kC, int kA, int kB>
  CATTN_INLINE static void multiply_add(Float16) {
    __asm__ volatile(".byte 0xc4, 0xe2, %c0, 0x5c, %c1"
                     :
                     : "i"((~kB & 15) << 3 | 3), "i"(0xc0 | kC << 3 | kA));
  }
};
