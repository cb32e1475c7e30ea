// The only allocator: one aligned block per call, kept per calling thread for the next call.
#pragma once
#include "core/types.h"

namespace cattn {

class Workspace {
 public:
  // At least `bytes` bytes, aligned to a page for large blocks and to kAlignment for small ones.
  explicit Workspace(Index bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  char* data() const { return data_; }

 private:
  char* data_;
  Index capacity_;
};

// Lays out parts of a workspace: first add() them all, then allocate.
class Layout {
 public:
  // Offset of a part of `bytes` bytes, aligned to kAlignment.
  Index add(Index bytes);
  Index bytes() const { return end_; }

 private:
  Index end_ = 0;
};

}  // namespace cattn
