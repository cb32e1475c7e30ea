// What the CPU and the operating system allow.
#pragma once

namespace cattn {

struct CpuFeatures {
  bool avx2 = false;    // AVX2 + FMA + F16C, with the OS saving ymm
  bool avx512 = false;  // F + BW + DQ + VL, with the OS saving zmm and masks
};

const CpuFeatures& cpu_features();

}  // namespace cattn
