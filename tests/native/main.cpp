// cattn_native_tests [--no-openmp] [--isa NAME] [section...]
#include <cstdio>
#include <string_view>
#include <vector>

#include "attention_case.h"
#include "check.h"
#include "tests.h"

// A workspace that cannot be had is an error of the library, not of the sanitizer.
extern "C" CATTN_API const char* __asan_default_options() { return "allocator_may_return_null=1"; }
extern "C" CATTN_API const char* __tsan_default_options() { return "allocator_may_return_null=1"; }

namespace {

struct Section {
  std::string_view name;
  void (*run)();
};
constexpr Section kSections[] = {
    {"accuracy", cattn::test::test_accuracy}, {"edges", cattn::test::test_edges},
    {"variants", cattn::test::test_variants}, {"kernels", cattn::test::test_kernels},
    {"errors", cattn::test::test_errors},     {"threads", cattn::test::test_threads},
    {"fork", cattn::test::test_fork},         {"environment", cattn::test::test_environment},
    {"pairs", cattn::test::test_pairs},
};

int usage() {
  std::printf("usage: cattn_native_tests [--no-openmp] [--isa NAME] [section...]\nsections:");
  for (const Section& section : kSections) std::printf(" %s", section.name.data());
  std::printf("\n");
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IONBF, 0);  // a crash must not take what was said before with it
  std::vector<Section> chosen;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--no-openmp") {
      cattn::test::options().openmp = false;
      continue;
    }
    if (argument == "--isa" && i + 1 < argc) {
      cattn::test::options().isa = argv[++i];
      if (cattn::test::available_isas().empty()) {
        std::printf("%s does not run here\n", argv[i]);
        return 2;
      }
      continue;
    }
    const size_t before = chosen.size();
    for (const Section& section : kSections) {
      if (section.name == argument) chosen.push_back(section);
    }
    if (chosen.size() == before) return usage();
  }
  if (chosen.empty()) chosen.assign(std::begin(kSections), std::end(kSections));
  for (const Section& section : chosen) section.run();
  cattn::test::print_worst_ratios();
  return cattn::test::summary();
}
