#include "core/parallel.h"

#include <omp.h>
#include <pthread.h>
#include <strings.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "core/cores.h"
#include "core/error.h"

namespace cattn {
namespace {

std::atomic<int32_t> g_num_threads{0};

// Whether this process is a forked child that has not executed a program since, as far as the
// system says.
bool is_forked_child() {
#if defined(__linux__)
  std::ifstream file("/proc/self/stat");
  std::string text;
  std::getline(file, text);
  std::istringstream fields(text.substr(text.rfind(')') + 1));  // the name may hold anything
  std::string skipped;
  for (int i = 0; i < 6; ++i) fields >> skipped;
  constexpr unsigned kForkedWithoutExec = 0x40;
  unsigned flags = 0;
  return fields >> flags && (flags & kForkedWithoutExec) != 0;
#else
  return false;
#endif
}

// An OpenMP runtime keeps the workers of a thread between its parallel regions. A forked child does
// not inherit them, and libgomp's next region there would wait for them for ever, whoever had begun
// the one before: this library or another that shares the runtime. So the forking thread gives them
// back. Where that cannot be, within a region, or was not, as the library came later than the fork,
// the child's regions start from a new thread each, which has a team of its own.
std::atomic<bool> g_team_lost{is_forked_child()};
thread_local bool t_keeps_team = false;  // of the forking thread

std::atomic<int32_t> g_calls{0};  // in progress; a forked child has none of the other threads'

void before_fork() { t_keeps_team = g_team_lost || omp_pause_resource_all(omp_pause_hard) != 0; }
void in_child() {
  if (t_keeps_team) g_team_lost = true;
  g_calls = 0;
}

struct ForkWatch {
  ForkWatch() { pthread_atfork(before_fork, nullptr, in_child); }
};
const ForkWatch g_fork_watch;

struct alignas(kAlignment) Section {
  std::atomic<Index> next{0};
  Index end = 0;
};

// Takes one in `share` of the items that are left of a section, or one, until none is. Returns how
// many it took.
Index work_on(Section& section, Index share, const ItemFunction& f, int32_t thread) {
  Index item = section.next.load(std::memory_order_relaxed), taken = 0;
  while (item < section.end) {
    const Index end = item + std::max<Index>((section.end - item) / share, 1);
    if (!section.next.compare_exchange_weak(item, end, std::memory_order_relaxed)) continue;
    for (taken += end - item; item < end; ++item) f(item, thread);
    item = section.next.load(std::memory_order_relaxed);
  }
  return taken;
}

// A phase at work.
class Stage {
 public:
  Stage(const Phase& phase, int32_t threads)
      : sections_(phase.order == Order::sections ? static_cast<size_t>(threads) : 1),
        f_(phase.f),
        undone_(phase.items) {
    Index begin = 0, left = static_cast<Index>(sections_.size());
    for (Section& section : sections_) {
      section.next = begin;
      begin += (phase.items - begin) / left--;
      section.end = begin;
    }
  }
  // Does items until none is left to take. Returns how many.
  Index work(int32_t thread) {
    constexpr Index share = 8;
    const size_t count = sections_.size(), own = static_cast<size_t>(thread);
    if (count == 1) return work_on(sections_[0], sections_[0].end, f_, thread);
    Index done = work_on(sections_[own], share, f_, thread);
    for (size_t i = 1; i < count; ++i)
      done += work_on(sections_[(own + i) % count], share * static_cast<Index>(count), f_, thread);
    return done;
  }
  // The same, and waits until those that other threads have taken are done too.
  void complete(int32_t thread) {
    undone_.fetch_sub(work(thread), std::memory_order_release);
    for (Patience patience; undone_.load(std::memory_order_acquire) > 0;) patience.wait();
  }

 private:
  std::vector<Section> sections_;  // one for each thread, or one
  const ItemFunction f_;
  std::atomic<Index> undone_;
};

struct Team {
  Stage* first;  // or null
  Stage& last;
  const ItemFunction* then;
};

void work(void* argument, int32_t thread) {
  Team& team = *static_cast<Team*>(argument);
  if (team.first) team.first->complete(thread);
  team.last.work(thread);
  if (team.then) (*team.then)(0, thread);
}

void run_openmp(Team& team, int32_t threads) {
#pragma omp parallel num_threads(threads)
  work(&team, omp_get_thread_num());
}

int32_t environment_threads() {
  if (const char* text = std::getenv("OMP_NUM_THREADS")) {
    const long n = std::strtol(text, nullptr, 10);  // a list gives its first number
    if (n > 0) return static_cast<int32_t>(std::min<long>(n, CATTN_MOST_THREADS));
  }
  return usable_cores();
}

}  // namespace

int32_t default_num_threads() {
  const int32_t n = g_num_threads.load(std::memory_order_relaxed);
  if (n > 0) return n;
  static const int32_t from_environment = environment_threads();
  return from_environment;
}

void set_default_num_threads(int32_t n) { g_num_threads = n; }

int32_t checked_num_threads(int32_t n) {
  if (n < 0 || n > CATTN_MOST_THREADS) {
    value_error("num_threads: is " + std::to_string(n) + ", expected 1 to " +
                std::to_string(CATTN_MOST_THREADS));
  }
  return n;
}

void Patience::wait() {
  constexpr int kSpins = 2000;
  if (spins_ >= kSpins) {
    std::this_thread::yield();
    return;
  }
  ++spins_;
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

namespace {

using Clock = std::chrono::steady_clock;

// Calls of one thread that follow each other.
struct CallsInARow {
  Clock::time_point end{};            // of the last one
  Clock::duration without_threads{};  // what those took that had no others to help
  bool woke_threads = false;
};
thread_local CallsInARow t_row;

// Whether threads go to sleep at once when there is no work.
bool sleeps_at_once() {
  const char* const policy = std::getenv("OMP_WAIT_POLICY");
  return policy && strcasecmp(policy, "passive") == 0;
}

}  // namespace

Call::Call() : is_only_(g_calls.fetch_add(1, std::memory_order_relaxed) == 0) {}

int32_t Call::threads(int32_t if_awake, int32_t if_asleep) {
  constexpr std::chrono::milliseconds soon{1}, long_enough{1};
  static const bool never = sleeps_at_once();
  begin_ = Clock::now();
  if (begin_ - t_row.end > soon) t_row = {};
  const bool awake = is_only_ && !never && !g_team_lost.load(std::memory_order_relaxed) &&
                     (t_row.woke_threads || t_row.without_threads > long_enough);
  return threads_ = awake ? if_awake : if_asleep;
}

Call::~Call() {
  g_calls.fetch_sub(1, std::memory_order_relaxed);
  if (threads_ == 0) return;
  t_row.end = Clock::now();
  if (threads_ == 1) t_row.without_threads += t_row.end - begin_;
  if (threads_ > 1) t_row.woke_threads = true;
}

void wait_for_turn(const std::atomic<Index>& turn, Index wanted) {
  for (Patience patience; turn.load(std::memory_order_acquire) != wanted;) patience.wait();
}

namespace {

// So many of `threads` as the system starts for the calling thread: where one cannot be had libgomp
// ends the process. Asked when a team is to be larger than all before; who computes is all the
// same.
int32_t startable_threads(int32_t threads) {
  thread_local int32_t t_largest = 1;
  if (threads <= t_largest) return threads;
  std::atomic<bool> done{false};
  std::vector<std::thread> others;
  try {
    others.reserve(static_cast<size_t>(threads - 1));
    while (static_cast<int32_t>(others.size()) < threads - 1) {
      others.emplace_back([&] { done.wait(false); });
    }
  } catch (const std::exception&) {  // these are all
  }
  done = true;
  done.notify_all();
  for (std::thread& other : others) other.join();
  const auto started = static_cast<int32_t>(others.size()) + 1;
  t_largest = std::max(t_largest, started);
  return started;
}

// `first` and `then` may be null.
void run_team(const Phase* first, const Phase& last, int32_t threads,
              const cattn_executor* executor, const ItemFunction* then) {
  if (threads <= 1) {
    for (Index i = 0; first && i < first->items; ++i) first->f(i, 0);
    for (Index i = 0; i < last.items; ++i) last.f(i, 0);
    return;
  }
  std::optional<Stage> first_stage;
  if (first) first_stage.emplace(*first, threads);
  Stage last_stage(last, threads);
  Team team{first ? &*first_stage : nullptr, last_stage, then};
  if (executor) {
    executor->run(executor->context, threads, work, &team);
    return;
  }
  if (g_team_lost.load(std::memory_order_relaxed)) {
    std::thread([&] { run_openmp(team, threads); }).join();
    return;
  }
  threads = startable_threads(threads);
  run_openmp(team, threads);
}

}  // namespace

void parallel_items(Index items, int32_t threads, const cattn_executor* executor, ItemFunction f,
                    Order order) {
  threads = static_cast<int32_t>(std::min<Index>(threads, items));
  run_team(nullptr, {items, f, order}, threads, executor, nullptr);
}

void parallel_phases(const Phase& first, const Phase& second, int32_t threads,
                     const cattn_executor* executor) {
  threads = static_cast<int32_t>(std::min<Index>(threads, std::max(first.items, second.items)));
  run_team(&first, second, threads, executor, nullptr);
}

void parallel_items(Index items, int32_t threads, const cattn_executor* executor, ItemFunction f,
                    ItemFunction then) {
  run_team(nullptr, {items, f}, threads, executor, &then);
}

}  // namespace cattn
