// The check harness: checks count, failures print, the program's last line sums up.
#pragma once
#include <string>

namespace cattn::test {

// Counts one check; prints what failed. Safe to call from any thread.
void check(bool passed, const std::string& what);

// Prints "N passed, N failed" and returns the program's exit code. No check at all is a failure.
int summary();

// Settings of this run, from the command line.
struct Options {
  bool openmp = true;  // false: every team of threads comes from an executor of std::threads
  std::string isa;     // cases run on this instruction set only, if it is not empty
};
Options& options();

}  // namespace cattn::test
