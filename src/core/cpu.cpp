#include "core/cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace cattn {
namespace {

#if defined(__x86_64__)
uint64_t extended_control_register() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

CpuFeatures detect() {
  CpuFeatures features;
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return features;
  const bool os_saves_registers = (c >> 27 & 1) != 0;
  const bool fma = (c >> 12 & 1) != 0, f16c = (c >> 29 & 1) != 0;
  if (!os_saves_registers || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return features;
  const uint64_t state = extended_control_register();
  const bool ymm = (state & 0x6) == 0x6;
  const bool zmm = (state & 0xe6) == 0xe6;
  const auto bit = [&](int i) { return (b >> i & 1) != 0; };
  features.avx2 = ymm && fma && f16c && bit(5);
  features.avx512 = features.avx2 && zmm && bit(16) && bit(17) && bit(30) && bit(31);
  features.avx512_vbmi = features.avx512 && (c >> 1 & 1) != 0;
  const bool tiles = (state & 0x60000) == 0x60000;  // their configuration and their data
  const bool amx = tiles && (d >> 24 & 1) != 0 && (d >> 22 & 1) != 0;  // AMX-TILE, AMX-BF16
  if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) {
    features.avx512_bf16 = features.avx512 && (a >> 5 & 1) != 0;
    features.amx_bf16 = features.avx512_bf16 && features.avx512_vbmi && amx;
    features.amx_fp16 = features.amx_bf16 && (a >> 21 & 1) != 0;
    constexpr unsigned kGenu = 0x756e6547;  // "GenuineIntel" in three registers
    unsigned vendor = 0;
    __get_cpuid(0, &a, &vendor, &c, &d);
    features.avx512_bf16_pays = features.avx512_bf16 && vendor != kGenu;
  }
  return features;
}
#else
CpuFeatures detect() { return {}; }
#endif

#if defined(__x86_64__) && defined(__linux__)
bool ask_for_tiles() {
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM, which old headers lack
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#else
bool ask_for_tiles() { return false; }
#endif

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

bool amx_permitted() {
  static const bool permitted = cpu_features().amx_bf16 && ask_for_tiles();
  return permitted;
}

int64_t l2_cache_bytes() {
  static const int64_t bytes = [] {
    constexpr int64_t usual = 1 << 20;
#if defined(_SC_LEVEL2_CACHE_SIZE)
    const int64_t known = sysconf(_SC_LEVEL2_CACHE_SIZE);  // 0 or -1: the system does not say
    if (known > 0) return known;
#endif
    return usual;
  }();
  return bytes;
}

}  // namespace cattn
