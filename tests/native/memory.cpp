#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CATTN_TEST_ASAN 1
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define CATTN_TEST_ASAN 1
#endif

namespace cattn::test {

Placement placement([[maybe_unused]] int turn) {
#if defined(CATTN_TEST_ASAN)
  return Placement::heap;
#else
  return turn % 2 == 0 ? Placement::before_guard : Placement::after_guard;
#endif
}

Memory::Memory(std::size_t bytes, Placement placement, std::size_t alignment) : bytes_(bytes) {
  if (placement == Placement::heap) {
    void* block = nullptr;
    const std::size_t least = sizeof(void*);  // that posix_memalign allows
    if (posix_memalign(&block, alignment < least ? least : alignment, bytes) != 0) {
      throw std::bad_alloc();
    }
    data_ = static_cast<char*>(block);
  } else {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t inside = (bytes + page - 1) / page * page;
    mapped_bytes_ = inside + 2 * page;
    mapping_ = mmap(nullptr, mapped_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping_ == MAP_FAILED) throw std::bad_alloc();
    char* const first = static_cast<char*>(mapping_) + page;
    if (inside > 0 && mprotect(first, inside, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
    const std::size_t slack = placement == Placement::before_guard ? inside - bytes : 0;
    data_ = first + slack / alignment * alignment;
  }
  std::memset(data_, kPoison, bytes_);
}

Memory::~Memory() {
  if (mapping_) {
    munmap(mapping_, mapped_bytes_);
  } else {
    std::free(data_);
  }
}

Memory::Memory(Memory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      mapping_(std::exchange(other.mapping_, nullptr)),
      mapped_bytes_(std::exchange(other.mapped_bytes_, 0)) {}

}  // namespace cattn::test
