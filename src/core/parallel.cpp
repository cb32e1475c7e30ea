#include "core/parallel.h"

#include <omp.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <thread>
#include <vector>

namespace cattn {
namespace {

std::atomic<int32_t> g_num_threads{0};

// libgomp keeps its worker threads between parallel regions, a forked child does not inherit them,
// and its next region would wait for them for ever. A thread that is new in the child has a team
// of its own, so the child's regions start from such a thread.
std::atomic<bool> g_team_used{false};
std::atomic<bool> g_team_lost{false};

void note_fork() {
  if (g_team_used.load(std::memory_order_relaxed)) g_team_lost = true;
}

struct ForkWatch {
  ForkWatch() { pthread_atfork(nullptr, nullptr, note_fork); }
};

struct alignas(kAlignment) Section {
  std::atomic<Index> next{0};
  Index end = 0;
};

// Takes one in `share` of the items that are left of a section, or one, until none is.
void work_on(Section& section, Index share, const ItemFunction& f, int32_t thread) {
  Index item = section.next.load(std::memory_order_relaxed);
  while (item < section.end) {
    const Index end = item + std::max<Index>((section.end - item) / share, 1);
    if (!section.next.compare_exchange_weak(item, end, std::memory_order_relaxed)) continue;
    for (; item < end; ++item) f(item, thread);
    item = section.next.load(std::memory_order_relaxed);
  }
}

struct Team {
  std::vector<Section> sections;  // one for each thread, or one
  const ItemFunction& f;
  const ItemFunction* then;
};

void work(void* argument, int32_t thread) {
  constexpr Index share = 8;
  Team& team = *static_cast<Team*>(argument);
  const size_t count = team.sections.size(), own = static_cast<size_t>(thread);
  if (count == 1) {
    work_on(team.sections[0], team.sections[0].end, team.f, thread);
  } else {
    work_on(team.sections[own], share, team.f, thread);
    for (size_t i = 1; i < count; ++i)
      work_on(team.sections[(own + i) % count], share * static_cast<Index>(count), team.f, thread);
  }
  if (team.then) (*team.then)(0, thread);
}

void run_openmp(Team& team, int32_t threads) {
#pragma omp parallel num_threads(threads)
  work(&team, omp_get_thread_num());
}

int32_t environment_threads() {
  if (const char* text = std::getenv("OMP_NUM_THREADS")) {
    const long n = std::strtol(text, nullptr, 10);  // a list gives its first number
    if (n > 0 && n < 4096) return static_cast<int32_t>(n);
  }
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
#endif
  const unsigned n = std::thread::hardware_concurrency();
  return n > 0 ? static_cast<int32_t>(n) : 1;
}

}  // namespace

int32_t default_num_threads() {
  const int32_t n = g_num_threads.load(std::memory_order_relaxed);
  if (n > 0) return n;
  static const int32_t from_environment = environment_threads();
  return from_environment;
}

void set_default_num_threads(int32_t n) { g_num_threads = n; }

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

void wait_for_turn(const std::atomic<Index>& turn, Index wanted) {
  for (Patience patience; turn.load(std::memory_order_acquire) != wanted;) patience.wait();
}

namespace {

// In `sections` sections.
void run_team(Index items, int32_t threads, const cattn_executor* executor, const ItemFunction& f,
              const ItemFunction* then, Index sections) {
  if (threads <= 1) {
    for (Index i = 0; i < items; ++i) f(i, 0);
    return;
  }
  Team team{std::vector<Section>(static_cast<size_t>(sections)), f, then};
  Index begin = 0;
  for (Section& section : team.sections) {
    section.next = begin;
    const Index left = sections--;
    begin += (items - begin) / left;
    section.end = begin;
  }
  if (executor) {
    executor->run(executor->context, threads, work, &team);
    return;
  }
  static const ForkWatch watch;
  if (g_team_lost.load(std::memory_order_relaxed)) {
    std::thread([&] { run_openmp(team, threads); }).join();
    return;
  }
  g_team_used.store(true, std::memory_order_relaxed);
  run_openmp(team, threads);
}

}  // namespace

void parallel_items(Index items, int32_t threads, const cattn_executor* executor, ItemFunction f,
                    Order order) {
  threads = static_cast<int32_t>(std::min<Index>(threads, items));
  run_team(items, threads, executor, f, nullptr, order == Order::sections ? threads : 1);
}

void parallel_items(Index items, int32_t threads, const cattn_executor* executor, ItemFunction f,
                    ItemFunction then) {
  run_team(items, threads, executor, f, &then, threads);
}

}  // namespace cattn
