#include "core/dispatch.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <iterator>
#include <vector>

#include "core/cpu.h"
#include "core/error.h"

namespace cattn {

namespace generic {
extern const KernelTable table;
}
namespace avx2 {
extern const KernelTable table;
}
namespace avx512 {
extern const KernelTable table;
}
namespace avx512bf16 {
extern const PairKernels kernels;
}
namespace amx {
extern const PairKernels kernels, fp16_kernels;
}
namespace amx_emulated {
extern const PairKernels kernels, fp16_kernels;
}
namespace neon {
extern const KernelTable table;
}

namespace {

// `base` with the kernels on pairs of half numbers in their places.
[[maybe_unused]] KernelTable with_pairs(const char* name, const KernelTable& base,
                                        const PairKernels& pairs) {
  KernelTable table = base;
  table.name = name;
  table.multiply_adds = &base;
  const auto put = [](KernelSet& set, const MatrixKernels* kernels) {
    if (kernels) static_cast<MatrixKernels&>(set) = *kernels;
  };
  put(table.float32, pairs.float32);
  put(table.float32_high, pairs.float32_high);
  put(table.float32_medium, pairs.float32_medium);
  put(table.float16, pairs.float16);
  put(table.bfloat16, pairs.bfloat16);
  table.float32_sizes = pairs.float32_sizes;
  return table;
}

// Slowest first.
const std::vector<const KernelTable*>& runnable() {
  static const std::vector<const KernelTable*> tables = [] {
    std::vector<const KernelTable*> found{&generic::table};
#if defined(CATTN_HAVE_AMX_EMULATED)
    if (cpu_features().avx512_bf16 && cpu_features().avx512_vbmi) {
      static const KernelTable table =
          with_pairs("amx_emulated", avx512::table, amx_emulated::kernels);
      static const KernelTable fp16_table =
          with_pairs("amx_fp16_emulated", avx512::table, amx_emulated::fp16_kernels);
      found.push_back(&table);
      found.push_back(&fp16_table);
    }
#endif
#if defined(CATTN_HAVE_AVX2)
    if (cpu_features().avx2) found.push_back(&avx2::table);
#endif
#if defined(CATTN_HAVE_AVX512)
    if (cpu_features().avx512) found.push_back(&avx512::table);
#endif
#if defined(CATTN_HAVE_AVX512BF16)
    if (cpu_features().avx512_bf16) {
      static const KernelTable table = with_pairs("avx512bf16", avx512::table, avx512bf16::kernels);
      found.insert(found.end() - (cpu_features().avx512_bf16_pays ? 0 : 1), &table);
    }
#endif
#if defined(CATTN_HAVE_AMX)
    if (amx_permitted()) {
      static const KernelTable table = with_pairs("amx", avx512::table, amx::kernels);
      found.push_back(&table);
      if (cpu_features().amx_fp16) {
        static const KernelTable fp16_table =
            with_pairs("amx_fp16", avx512::table, amx::fp16_kernels);
        found.push_back(&fp16_table);
      }
    }
#endif
#if defined(CATTN_HAVE_NEON)
    found.push_back(&neon::table);  // every aarch64 has it
#endif
    return found;
  }();
  return tables;
}

const KernelTable* find(const std::string& name, const char* who) {
  std::string names;
  for (const KernelTable* table : runnable()) {
    if (name == table->name) return table;
    names += (names.empty() ? "" : ", ") + std::string(table->name);
  }
  value_error(std::string(who) + ": '" + name + "' is not an instruction set that runs here (" +
              names + ")");
}

std::atomic<const KernelTable*> g_table{nullptr};

bool holds(const HeadSizes& sizes, const HeadSize& size) {
  return std::any_of(std::begin(sizes.least), std::end(sizes.least), [&](const HeadSize& least) {
    return size.depth >= least.depth && size.queries >= least.queries && size.keys >= least.keys;
  });
}

}  // namespace

const KernelTable& kernel_table() {
  const KernelTable* table = g_table.load(std::memory_order_acquire);
  if (!table) {
    const char* const name = std::getenv("CATTN_ISA");
    table = name && *name ? find(name, "CATTN_ISA") : runnable().back();
    g_table.store(table, std::memory_order_release);
  }
  return *table;
}

const KernelSet& kernel_set(const KernelTable& table, int32_t dtype, cattn_precision precision,
                            const HeadSize& size) {
  switch (storage_of(dtype)) {
    case Storage::float64: return table.float64;
    case Storage::float16: return table.float16;
    case Storage::bfloat16: return table.bfloat16;
    case Storage::float32: break;
  }
  switch (precision) {
    case CATTN_PRECISION_HIGH: return table.float32_high;
    case CATTN_PRECISION_MEDIUM: return table.float32_medium;
    case CATTN_PRECISION_HIGHEST: break;
  }
  return holds(table.float32_sizes, size) ? table.float32 : table.multiply_adds->float32;
}

void set_isa(const std::string& name) {
  g_table.store(find(name, "isa"), std::memory_order_release);
}

const KernelTable* available_table(int32_t i) {
  const auto& tables = runnable();
  return i >= 0 && static_cast<size_t>(i) < tables.size() ? tables[static_cast<size_t>(i)]
                                                          : nullptr;
}

}  // namespace cattn
