// The only file that knows about threads. Work is a number of items that any thread may take; what
// an item computes depends on its index alone, so results do not depend on the threads.
#pragma once
#include <atomic>

#include "core/types.h"

namespace cattn {

int32_t default_num_threads();
void set_default_num_threads(int32_t n);  // 0: back to the environment's

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

// How threads take items. Neighbours are near each other in memory, so that a thread does best with
// a run of them, which is the shorter the fewer are left; one at a time where items wait for
// others.
enum class Order : uint8_t { runs, one_by_one };

// Waits until `turn` is `wanted`, which another thread is about to say: work whose order is part of
// the result. The other thread must work on an item that was taken before.
void wait_for_turn(const std::atomic<Index>& turn, Index wanted);

// Calls f(item, thread) once for every item in [0, items), thread in [0, threads); items are taken
// in order, so the heavy ones go first. With one thread it is a plain loop. f must not throw.
void parallel_items(Index items, int32_t threads, const cattn_executor* executor, ItemFunction f,
                    Order order = Order::runs);

}  // namespace cattn
