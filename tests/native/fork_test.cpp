// A child of a process that has used the library can use it too, threads and all; so can its child,
// and that of a process in which something else has used the same OpenMP runtime.
#include <sys/wait.h>
#include <unistd.h>

#include "attention_case.h"
#include "check.h"
#include "tests.h"

namespace cattn::test {
namespace {

constexpr unsigned kSeconds = 60;  // a child that hangs is ended after so long

// Runs f in a child and returns whether it returned true there.
template <class F>
bool in_child(F f) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(kSeconds);
    _exit(f() ? 0 : 1);
  }
  int status = 0;
  return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) &&
         WEXITSTATUS(status) == 0;
}

// What another library may do.
int run_region_of_two(bool (*in_region)() = nullptr) {
  int threads = 0;
#pragma omp parallel num_threads(2) reduction(+ : threads)
  {
    threads += 1;
#pragma omp master
    if (in_region) threads += in_region() ? 10 : 0;
  }
  return threads;
}

}  // namespace

void test_fork() {
  if (!options().openmp) {
    check(true, "a fork matters to OpenMP teams only");
    return;
  }
  Case c;
  c.rows = 150;
  c.keys = 500;
  c.head_dim = c.value_dim = 32;
  c.dbias = true;
  c.bias = Shape{1, 500};
  const Attention<float> attention(c);
  check(run_region_of_two() == 2, "a team of another's");
  check(in_child([&] { return attention.compute({.threads = 3}).out.size() > 0; }),
        "the first call, in a child of a process with such a team");
  const Outputs<float> expected = attention.compute({.threads = 3});
  Outputs<float> got = attention.make_outputs();
  const auto same = [&] {
    return attention.compute_into(got, {.threads = 3}) && same_bits(got, expected);
  };
  check(in_child(same), "a call in a child");
  check(in_child([&] { return same() && same() && in_child(same); }), "a call in a grandchild");
  check(same(), "a call in the parent after its children");
  const auto child_of_region = [] {
    return in_child([] {
      Case small;
      small.rows = small.keys = 70;
      small.head_dim = small.value_dim = 8;
      return Attention<float>(small).compute({.threads = 2}).out.size() > 0;
    });
  };
  check(run_region_of_two(child_of_region) == 12, "a call in a child of a parallel region");
  check(same(), "a call in the parent after that");
}

}  // namespace cattn::test
