// The only file that knows about threads. Work is a number of items that any thread may take; what
// an item computes depends on its index alone, so results do not depend on the threads.
#pragma once
#include <atomic>
#include <chrono>
#include <vector>

#include "core/types.h"

namespace cattn {

int32_t default_num_threads();
void set_default_num_threads(int32_t n);  // 0: back to the environment's
int32_t checked_num_threads(int32_t n);   // n, or an error; 0 stands for the default

// Non-owning reference to a callable (items are taken often: no allocation).
class ItemFunction {
 public:
  template <class F>
  ItemFunction(const F& f)  // NOLINT: meant to be implicit
      : object_(&f), call_([](const void* object, Index item, int32_t thread) {
          (*static_cast<const F*>(object))(item, thread);
        }) {}
  void operator()(Index item, int32_t thread) const { call_(object_, item, thread); }

 private:
  const void* object_;
  void (*call_)(const void*, Index, int32_t);
};

// How threads take items. Neighbours are near each other in memory, and what a thread worked on in
// the call before is in its caches: it does best with a section of its own, the same in each call,
// of which it takes runs, the shorter the fewer are left, so that threads that are done take some.
// One at a time, in order, where items wait for others, or the heavy ones are to go first.
enum class Order : uint8_t { sections, one_by_one };

// A call of the library, while it lasts. Threads that wait for work are awake for some milliseconds
// and then sleep: to wake one takes longer than a small call, and more where its core is not free.
class Call {
 public:
  Call();
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  // How many threads are to work on it: so many if they are likely to be awake and to find cores,
  // or to be wanted for long enough, else so many. Calls of a thread that follow each other are a
  // row: they are awake if one of a row woke them, and are woken when a row has taken long without.
  // Where another thread is in a call too, cores are not free.
  int32_t threads(int32_t if_awake, int32_t if_asleep);

 private:
  const bool is_only_;
  int32_t threads_ = 0;  // 0: not asked
  std::chrono::steady_clock::time_point begin_;
};

// Waits for another thread, which must be at work already: mostly that is soon done, but it may
// have lost its core.
class Patience {
 public:
  void wait();

 private:
  int spins_ = 0;
};

// Waits until `turn` is `wanted`, which another thread is about to say: work whose order is part of
// the result. The other thread must work on an item that was taken before.
void wait_for_turn(const std::atomic<Index>& turn, Index wanted);

// Calls f(item, thread) once for every item in [0, items), thread in [0, threads). With one thread
// it is a plain loop. f must not throw.
void parallel_items(Index items, int32_t threads, const cattn_executor* executor, ItemFunction f,
                    Order order = Order::sections);
// The same for two kinds of items, with one team, which takes microseconds to start: no thread
// begins an item of `second` before all of `first` are done.
struct Phase {
  Index items;
  ItemFunction f;
  Order order = Order::sections;
};
void parallel_phases(const Phase& first, const Phase& second, int32_t threads,
                     const cattn_executor* executor);
// Items of one kind, and on each of several threads then(0, thread) when no item is left to take;
// others may still be at work on theirs.
void parallel_items(Index items, int32_t threads, const cattn_executor* executor, ItemFunction f,
                    ItemFunction then);

// The parts of an item that is one thread's, for others to take when there are no items left. What
// they work on may be that thread's own memory: it waits for them before it begins anew.
class alignas(kAlignment) Parts {
 public:
  // The item's own thread does `count` parts, or waits until others have done them.
  template <class F>
  void share(Index item, Index count, F f) {
    item_ = item;
    count_ = count;
    undone_.store(count, std::memory_order_relaxed);
    left_.store(count, std::memory_order_release);
    help(f);
    for (Patience patience; undone_.load(std::memory_order_acquire) > 0;) patience.wait();
  }
  // Calls f(item, part) for the parts that are left, in order.
  template <class F>
  void help(F f) {
    while (left_.load(std::memory_order_relaxed) > 0) {
      const Index left = left_.fetch_sub(1, std::memory_order_acq_rel);
      if (left <= 0) return;
      f(item_, count_ - left);  // these stay as they are while a part is undone
      undone_.fetch_sub(1, std::memory_order_release);
    }
  }
  // The items that the own thread is done with.
  void finish() { finished_.store(finished() + 1, std::memory_order_relaxed); }
  Index finished() const { return finished_.load(std::memory_order_relaxed); }

 private:
  std::atomic<Index> left_{0}, undone_{0}, finished_{0};
  Index item_ = 0, count_ = 0;
};

// Items of which a thread makes ready one after the other, begin(item, thread), and then does the
// parts_of(item) parts, part(item, i, owner, thread); threads for which no item is left help with
// the parts of those `owner`s that have one, until all are done.
template <class PartsOf, class Begin, class Part>
void parallel_parts(Index items, int32_t threads, const cattn_executor* executor, PartsOf parts_of,
                    Begin begin, Part part) {
  std::vector<Parts> all(static_cast<size_t>(threads));
  const auto done_by = [&](int32_t owner, int32_t thread) {
    return [&part, owner, thread](Index item, Index i) { part(item, i, owner, thread); };
  };
  const auto own = [&](Index item, int32_t thread) {
    Parts& parts = all[static_cast<size_t>(thread)];
    const Index count = parts_of(item);
    begin(item, thread);
    if (count > 1) {
      parts.share(item, count, done_by(thread, thread));
    } else if (count == 1) {
      part(item, 0, thread, thread);
    }
    parts.finish();
  };
  const auto help = [&](Index, int32_t thread) {
    for (Patience patience;; patience.wait()) {
      Index finished = 0;
      for (int32_t owner = 0; owner < threads; ++owner) {
        Parts& parts = all[static_cast<size_t>(owner)];
        parts.help(done_by(owner, thread));
        finished += parts.finished();
      }
      if (finished == items) return;
    }
  };
  parallel_items(items, threads, executor, own, help);
}

}  // namespace cattn
