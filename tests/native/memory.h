// Memory of exactly the size that was asked for, where an access outside it does not go unnoticed:
// AddressSanitizer watches heap blocks, a protected page stops everything else at once.
#pragma once
#include <cstddef>

namespace cattn::test {

enum class Placement {
  heap,          // a block of its own
  before_guard,  // the last byte is the last before a protected page
  after_guard,   // the first byte is the first after a protected page
};

// Guard pages in turn, but the heap where AddressSanitizer watches it.
Placement placement(int turn);

class Memory {
 public:
  // Bytes start out as a pattern that is a NaN in both float types.
  Memory(std::size_t bytes, Placement placement, std::size_t alignment = alignof(double));
  ~Memory();
  Memory(Memory&& other) noexcept;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  char* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

  static constexpr unsigned char kPoison = 0xff;

 private:
  char* data_ = nullptr;
  std::size_t bytes_ = 0;
  void* mapping_ = nullptr;  // null: data_ is from the heap
  std::size_t mapped_bytes_ = 0;
};

}  // namespace cattn::test
