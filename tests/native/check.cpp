#include "check.h"

#include <atomic>
#include <cstdio>

namespace cattn::test {
namespace {

std::atomic<long> g_passed{0}, g_failed{0};

}  // namespace

void check(bool passed, const std::string& what) {
  if (passed) {
    ++g_passed;
    return;
  }
  constexpr long kMostPrinted = 100;
  if (++g_failed <= kMostPrinted) std::printf("FAILED: %s\n", what.c_str());
}

int summary() {
  std::printf("%ld passed, %ld failed\n", g_passed.load(), g_failed.load());
  return g_failed == 0 && g_passed > 0 ? 0 : 1;
}

Options& options() {
  static Options options;
  return options;
}

}  // namespace cattn::test
