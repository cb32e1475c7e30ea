// What the CPU and the operating system allow.
#pragma once
#include <cstdint>

namespace cattn {

struct CpuFeatures {
  bool avx2 = false;         // AVX2 + FMA + F16C, with the OS saving ymm
  bool avx512 = false;       // F + BW + DQ + VL, with the OS saving zmm and masks
  bool avx512_bf16 = false;  // avx512 + AVX512-BF16
  bool avx512_vbmi = false;  // avx512 + AVX512-VBMI
  // Whether its products are faster than multiply-adds: on Zen 4 they are twice as fast, on a Xeon
  // that was measured 1.7 times slower.
  bool avx512_bf16_pays = false;
  bool amx_bf16 = false;  // both of these + AMX-TILE + AMX-BF16, with the OS saving tiles
  bool amx_fp16 = false;  // amx_bf16 + AMX-FP16
};

const CpuFeatures& cpu_features();

// Whether this process may use the tile registers of AMX. Linux gives them to those who ask, which
// the first call does (signal frames grow by 8 KB from then on, so nobody asks without need); a
// refusal is final.
bool amx_permitted();

// Bytes of the L2 cache of a core, or what is usual. How work is ordered depends on it, nothing
// else.
int64_t l2_cache_bytes();

}  // namespace cattn
