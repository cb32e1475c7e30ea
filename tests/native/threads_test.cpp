// Who computes does not matter: any number of threads, any executor, many callers at once give the
// same bits.
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "attention_case.h"
#include "check.h"
#include "core/cores.h"
#include "core/parallel.h"
#include "tests.h"

namespace cattn::test {
namespace {

std::vector<Case> cases() {
  Case few_heads;
  few_heads.rows = 110;
  few_heads.keys = 900;
  few_heads.head_dim = few_heads.value_dim = 32;
  few_heads.causal = true;
  few_heads.bias = Shape{110, 1};
  few_heads.dbias = few_heads.weights = few_heads.dlse = true;

  Case many_heads;
  many_heads.rows = 64;
  many_heads.keys = 80;
  many_heads.head_dim = 24;
  many_heads.value_dim = 40;
  many_heads.batch_q = many_heads.batch_k = many_heads.batch_v = {10};
  many_heads.heads_q = 6;
  many_heads.heads_kv = 3;
  many_heads.lse = true;

  // Key blocks wait for each other, and there are enough for runs if these were allowed.
  Case long_heads;
  long_heads.rows = 64;
  long_heads.keys = 1500;
  long_heads.head_dim = long_heads.value_dim = 64;
  long_heads.heads_q = long_heads.heads_kv = 3;
  long_heads.lse = true;
  return {few_heads, many_heads, long_heads};
}

// Runs work(argument, t) for every t, but all on one other thread.
void run_elsewhere(void* context, int32_t threads, void (*work)(void*, int32_t), void* argument) {
  *static_cast<int32_t*>(context) = threads;
  std::thread([&] {
    for (int32_t t = 0; t < threads; ++t) work(argument, t);
  }).join();
}

template <class T>
void test_same_bits(const Case& c) {
  const Attention<T> attention(c);
  for (const std::string& isa : available_isas()) {
    cattn_set_isa(isa.c_str());
    const Outputs<T> expected = attention.compute({.threads = 1});
    const auto same = [&](const Run& run, const std::string& how) {
      check(same_bits(attention.compute(run), expected), isa + " " + c.text() + ": " + how);
    };
    for (const int32_t threads : {2, 5}) {
      same({.threads = threads}, "depends on the number of threads");
      same({.threads = threads, .executor = &thread_executor()}, "executor of threads");
      same({.threads = threads, .executor = &reverse_executor()}, "executor in reverse order");
    }
    int32_t asked_for = 0;
    const cattn_executor elsewhere{&asked_for, run_elsewhere};
    same({.threads = 3, .executor = &elsewhere}, "executor on another thread");
    check(asked_for > 1 && asked_for <= 3,
          isa + ": the executor was asked for " + std::to_string(asked_for) + " of 3 threads");
  }
}

// Every item is done once, however many there are and however threads take them.
void test_items() {
  for (const Index items : {0, 1, 2, 7, 31, 1000, 4097}) {
    for (const int32_t threads : {1, 2, 5}) {
      for (const Order order : {Order::sections, Order::one_by_one}) {
        for (const cattn_executor* const executor : {&thread_executor(), &reverse_executor()}) {
          std::vector<std::atomic<int>> times(static_cast<size_t>(items));
          std::atomic<bool> known = true;
          parallel_items(
              items, threads, executor,
              [&](Index item, int32_t thread) {
                ++times[static_cast<size_t>(item)];
                if (thread < 0 || thread >= threads) known = false;
              },
              order);
          bool once = true;
          for (const std::atomic<int>& n : times) once = once && n == 1;
          check(once, std::to_string(items) + " items: some not done once");
          check(known, std::to_string(items) + " items: an unknown thread");
        }
      }
    }
  }
}

// All items of one phase are done before any of the next one begins.
void test_phases() {
  for (const Index before : {0, 1, 7, 300}) {
    for (const Index after : {0, 1, 7, 300}) {
      for (const int32_t threads : {1, 2, 5}) {
        for (const cattn_executor* const executor : {&thread_executor(), &reverse_executor()}) {
          std::vector<std::atomic<int>> times(static_cast<size_t>(before + after));
          std::atomic<Index> done = 0;
          std::atomic<bool> in_turn = true;
          const auto first = [&](Index item, int32_t) {
            std::this_thread::yield();
            ++times[static_cast<size_t>(item)];
            ++done;
          };
          const auto second = [&](Index item, int32_t) {
            if (done != before) in_turn = false;
            ++times[static_cast<size_t>(before + item)];
          };
          parallel_phases({before, first}, {after, second, Order::one_by_one}, threads, executor);
          bool once = true;
          for (const std::atomic<int>& n : times) once = once && n == 1;
          const std::string text = std::to_string(before) + ", " + std::to_string(after);
          check(once, text + " items in phases: some not done once");
          check(in_turn, text + " items in phases: one began too early");
        }
      }
    }
  }
}

// Calls get threads if they follow each other for long enough and no other thread is in one.
void test_calls() {
  using Clock = std::chrono::steady_clock;
  constexpr int32_t awake = 2, asleep = 1;
  const auto call = [] { return Call().threads(awake, asleep); };
  const auto get_threads = [&] {  // in a second of calls
    const auto deadline = Clock::now() + std::chrono::seconds(1);
    int32_t threads = asleep;
    while (threads == asleep && Clock::now() < deadline) {
      Call one;
      threads = one.threads(awake, asleep);
      // As long as a call.
      for (const auto end = Clock::now() + std::chrono::microseconds(20); Clock::now() < end;) {
      }
    }
    return threads;
  };
  std::thread([&] {
    check(call() == asleep && call() == asleep, "calls: the first two of a thread get threads");
    const char* const policy = std::getenv("OMP_WAIT_POLICY");
    if (policy && std::string(policy) == "passive") {
      check(get_threads() == asleep, "calls: some get threads that sleep at once");
      return;
    }
    check(get_threads() == awake, "calls: none of a row get threads");
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    check(call() == asleep, "calls: one after a pause gets threads");
    const Call other;
    check(get_threads() == asleep, "calls: one beside another gets threads");
  }).join();
}

// How large a call must be for threads that somebody else keeps.
void test_least_work() {
  int32_t asked_for = 0;
  const cattn_executor elsewhere{&asked_for, run_elsewhere};
  for (const Index queries : {56, 64, 128}) {
    Case c;
    c.heads_q = c.heads_kv = 1;
    c.rows = queries;
    c.keys = 64;
    c.head_dim = c.value_dim = 64;
    asked_for = 0;
    Attention<float>(c).compute({.threads = 2, .executor = &elsewhere});
    const bool wanted = queries >= 64;  // from 1 MFLOP on: 4 * 64 * 64 * 64 are a little more
    check((asked_for == 2) == wanted, std::to_string(queries) + " queries: " +
                                          std::to_string(asked_for) + " threads were asked for");
  }
}

// A thread begins with its own section, the same in every call, and ends with what others left.
void test_sections() {
  using Clock = std::chrono::steady_clock;
  const auto deadline = Clock::now() + std::chrono::seconds(20);
  std::atomic<Index> first[2] = {-1, -1};
  std::atomic<int> done = 0;
  parallel_items(100, 2, &thread_executor(), [&](Index item, int32_t thread) {
    Index none = -1;
    first[thread].compare_exchange_strong(none, item);
    ++done;
    while (first[1 - thread] < 0 && Clock::now() < deadline) std::this_thread::yield();
    // The first one is held up until all is done but what it took itself: an eighth of its half.
    while (item == 0 && done < 95 && Clock::now() < deadline) std::this_thread::yield();
  });
  check(first[0] == 0 && first[1] == 50, "sections: a thread began with another's");
  check(done == 100, "sections: some items were not done");
}

// Each part is done once, and a thread begins no item while a part of its last one is undone.
void test_parts() {
  for (const Index items : {0, 1, 3, 40}) {
    for (const int32_t threads : {1, 2, 5}) {
      for (const cattn_executor* const executor : {&thread_executor(), &reverse_executor()}) {
        const auto parts_of = [](Index item) { return item * 7 % 11; };  // of some none, or one
        std::vector<std::atomic<int>> begun(static_cast<size_t>(items)), done(11 * begun.size());
        std::vector<std::atomic<Index>> at(static_cast<size_t>(threads));
        std::vector<std::atomic<int>> undone(at.size());
        std::atomic<bool> right = true;
        parallel_parts(
            items, threads, executor, parts_of,
            [&](Index item, int32_t thread) {
              const auto mine = static_cast<size_t>(thread);
              if (undone[mine] != 0) right = false;
              ++begun[static_cast<size_t>(item)];
              at[mine] = item;
              undone[mine] = static_cast<int>(parts_of(item));
            },
            [&](Index item, Index part, int32_t owner, int32_t thread) {
              if (at[static_cast<size_t>(owner)] != item || thread >= threads) right = false;
              std::this_thread::yield();
              ++done[static_cast<size_t>(11 * item + part)];
              --undone[static_cast<size_t>(owner)];
            });
        const std::string name = std::to_string(items) + " items with parts: ";
        check(right, name + "begun too early, or by an unknown thread");
        for (Index item = 0; item < items; ++item) {
          check(begun[static_cast<size_t>(item)] == 1, name + "one not begun once");
          for (Index part = 0; part < 11; ++part) {
            check(done[static_cast<size_t>(11 * item + part)] == (part < parts_of(item) ? 1 : 0),
                  name + "a part not done once");
          }
        }
      }
    }
  }
}

// Threads that have no item help with the parts of the one that there is.
void test_help() {
  using Clock = std::chrono::steady_clock;
  const auto deadline = Clock::now() + std::chrono::seconds(20);
  std::atomic<int> by[2] = {0, 0};
  parallel_parts(
      1, 2, &thread_executor(), [](Index) { return Index{3}; }, [](Index, int32_t) {},
      [&](Index, Index, int32_t, int32_t thread) {
        ++by[thread];
        while (by[1 - thread] == 0 && Clock::now() < deadline) std::this_thread::yield();
      });
  check(by[0] + by[1] == 3 && by[0] > 0 && by[1] > 0, "help: one thread had all parts");
}

// Eight callers, each with a problem of its own, over and over.
template <class T>
void test_calls_at_once() {
  constexpr int kCallers = 8, kTimes = 5;
  std::vector<std::unique_ptr<Attention<T>>> problems;
  std::vector<Outputs<T>> expected, got;
  for (int i = 0; i < kCallers; ++i) {
    Case c;
    c.seed = static_cast<uint64_t>(i + 1);
    c.rows = 20 + 17 * i;
    c.keys = 300 - 31 * i;
    c.head_dim = 16 + i;
    c.heads_q = 2;
    c.causal = i % 2 == 0;
    c.threads = 1 + i % 3;
    problems.push_back(std::make_unique<Attention<T>>(c));
    expected.push_back(problems.back()->compute());
    got.push_back(problems.back()->make_outputs());
  }
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (size_t i = 0; i < kCallers; ++i) {
    callers.emplace_back([&, i] {
      for (int time = 0; time < kTimes; ++time) {
        if (!problems[i]->compute_into(got[i], {}) || !same_bits(got[i], expected[i])) ++wrong;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  check(wrong == 0, "calls at once: " + std::to_string(wrong) + " differ");
}

// The error message belongs to the thread whose call failed.
void test_messages() {
  cattn_attention empty;
  cattn_attention_init(&empty);
  check(cattn_attention_forward(&empty) == CATTN_ERROR_VALUE, "an empty problem is an error");
  const std::string mine = cattn_error_message();
  std::string before, after;
  std::thread([&] {
    before = cattn_error_message();
    cattn_set_isa("nonsense");
    after = cattn_error_message();
  }).join();
  check(before.empty(), "a new thread has no message");
  check(after.find("nonsense") != std::string::npos, "a thread has its own message: " + after);
  check(mine == cattn_error_message(), "another thread's error changed the message");
}

// A folder of control groups, and what a process in one of them is granted.
class ControlGroups {
 public:
  ControlGroups() {
    std::string name = std::filesystem::temp_directory_path() / "cattn-groups-XXXXXX";
    root_ = mkdtemp(name.data());
  }
  ~ControlGroups() { std::filesystem::remove_all(root_); }
  ControlGroups(const ControlGroups&) = delete;
  ControlGroups& operator=(const ControlGroups&) = delete;

  void write(const std::string& file, const std::string& text) const {
    const std::filesystem::path path = root_ / file;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text << "\n";
  }
  double granted(const std::string& membership) const {
    write("membership", membership);
    return granted_cores(root_ / "membership", root_);
  }

 private:
  std::filesystem::path root_;
};

void test_granted_cores() {
  constexpr double kNoQuota = std::numeric_limits<double>::infinity();
  const ControlGroups groups;
  check(groups.granted("0::/") == kNoQuota, "no groups");
  groups.write("a/cpu.max", "max 100000");
  check(groups.granted("0::/a") == kNoQuota, "a group without a quota");
  groups.write("a/b/cpu.max", "250000 100000");
  check(groups.granted("0::/a") == kNoQuota, "the quota of a group below");
  check(groups.granted("0::/a/b/c") == 2.5, "the quota of a group above");
  groups.write("a/b/c/cpu.max", "400000 100000");
  check(groups.granted("0::/a/b/c") == 2.5, "the smallest quota of several");
  groups.write("cpu.max", "50000 100000");
  check(groups.granted("0::/a/b") == 0.5, "the quota of a container, which sees it at the root");

  groups.write("cpu/cpu.cfs_quota_us", "-1");
  groups.write("cpu/cpu.cfs_period_us", "100000");
  check(groups.granted("4:cpu,cpuacct:/x") == kNoQuota, "version 1, no quota");
  groups.write("cpu/x/cpu.cfs_quota_us", "300000");
  groups.write("cpu/x/cpu.cfs_period_us", "100000");
  check(groups.granted("9:name=systemd:/\n3:cpuset:/y\n4:cpu,cpuacct:/x") == 3, "version 1");
  check(groups.granted("nonsense\n\n1:cpu:/x/y") == 3, "version 1, a name from outside");
  check(granted_cores("/no/such/file", "/") == kNoQuota, "no membership");
  check(usable_cores() >= 1, "a core at least");
}

}  // namespace

void test_threads() {
  test_granted_cores();
  test_items();
  test_sections();
  test_phases();
  test_calls();
  test_least_work();
  test_parts();
  test_help();
  for (const Case& c : cases()) {
    test_same_bits<float>(c);
    test_same_bits<double>(c);
  }
  for (const std::string& isa : available_isas()) {
    cattn_set_isa(isa.c_str());
    test_calls_at_once<float>();
    test_calls_at_once<double>();
  }
  test_messages();
}

}  // namespace cattn::test
