#include "bindings/result_memory.h"

#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace cattn::python {
namespace {

namespace py = pybind11;

constexpr size_t kHugePage = size_t{2} << 20;

struct Block {
  void* data = nullptr;
  size_t capacity = 0;
};

Block allocate(size_t bytes) {
  Block block{nullptr, (bytes + 4095) / 4096 * 4096};
  if (posix_memalign(&block.data, bytes < kHugePage ? 4096 : kHugePage, block.capacity) != 0) {
    throw std::bad_alloc();
  }
#if defined(__linux__)
  madvise(block.data, block.capacity, MADV_HUGEPAGE);  // only a hint
#endif
  return block;
}

// Blocks that are not in use, the oldest first. No call waits for it: whoever finds it locked goes
// without, also the child of a fork that happened while it was.
class Kept {
 public:
  // One that fits without much waste, if there is any; of equals the last, which may be in a cache.
  Block take(size_t bytes) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return {};
    auto best = blocks_.end();
    for (auto b = blocks_.begin(); b != blocks_.end(); ++b) {
      if (b->capacity < bytes || b->capacity > bytes + bytes / 4) continue;
      if (best == blocks_.end() || b->capacity <= best->capacity) best = b;
    }
    if (best == blocks_.end()) return {};
    const Block block = *best;
    blocks_.erase(best);
    bytes_ -= block.capacity;
    return block;
  }

  void put(Block block) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock || block.capacity > kKeptResults) {
      std::free(block.data);
      return;
    }
    blocks_.push_back(block);
    bytes_ += block.capacity;
    while (bytes_ > kKeptResults) {
      std::free(blocks_.front().data);
      bytes_ -= blocks_.front().capacity;
      blocks_.pop_front();
    }
  }

 private:
  std::mutex mutex_;
  std::deque<Block> blocks_;
  size_t bytes_ = 0;
};

// Never destroyed: arrays may outlive static objects.
Kept& kept() {
  static Kept* const instance = new Kept;
  return *instance;
}

}  // namespace

ResultMemory result_memory(size_t bytes) {
  Block block = kept().take(bytes);
  if (!block.data) block = allocate(bytes);
  const auto release = [](void* p) {
    auto* const mine = static_cast<Block*>(p);
    kept().put(*mine);
    delete mine;
  };
  auto mine = std::make_unique<Block>(block);
  py::capsule owner(mine.get(), release);
  mine.release();
  return {block.data, std::move(owner)};
}

}  // namespace cattn::python
