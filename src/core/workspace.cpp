#include "core/workspace.h"

#include <cstdlib>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "core/error.h"

namespace cattn {
namespace {

constexpr Index kHugePage = Index{2} << 20;
// What a thread keeps between calls at most; larger workspaces go back at once.
constexpr Index kKeep = Index{64} << 20;

struct Kept {
  char* data = nullptr;
  Index capacity = 0;
  ~Kept() { std::free(data); }
};
thread_local Kept t_kept;

char* allocate(Index bytes) {
  const bool large = bytes >= kHugePage;
  const Index alignment = large ? kHugePage : kAlignment;
  const Index rounded = ceil_div(bytes, alignment) * alignment;
  void* const data =
      std::aligned_alloc(static_cast<size_t>(alignment), static_cast<size_t>(rounded));
  if (!data) {
    throw Error(CATTN_ERROR_MEMORY,
                "no memory for a workspace of " + std::to_string(rounded) + " bytes");
  }
#if defined(__linux__)
  // Packed operands are walked many times: fewer TLB misses. Only a hint.
  if (large) madvise(data, static_cast<size_t>(rounded), MADV_HUGEPAGE);
#endif
  return static_cast<char*>(data);
}

}  // namespace

Workspace::Workspace(Index bytes) {
  if (bytes < 1) bytes = 1;
  if (t_kept.capacity >= bytes) {
    // Taken out while in use: a call inside an executor's callback gets a block of its own.
    data_ = t_kept.data;
    capacity_ = t_kept.capacity;
    t_kept.data = nullptr;
    t_kept.capacity = 0;
  } else {
    data_ = allocate(bytes);
    capacity_ = bytes;
  }
}

Workspace::~Workspace() {
  if (capacity_ <= kKeep && capacity_ > t_kept.capacity) {
    std::free(t_kept.data);
    t_kept.data = data_;
    t_kept.capacity = capacity_;
  } else {
    std::free(data_);
  }
}

Index Layout::add(Index bytes) {
  const Index at = end_;
  end_ = checked_add(end_, checked_multiply(ceil_div(bytes, kAlignment), kAlignment));
  return at;
}

}  // namespace cattn
