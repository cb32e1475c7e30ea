// Strided arrays of the tests: a shape, a layout in memory, and logical row-major access.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "cattn.h"
#include "half.h"
#include "memory.h"

namespace cattn::test {

using Index = int64_t;
using Shape = std::vector<Index>;

inline Index product(const Shape& shape) {
  Index n = 1;
  for (const Index axis : shape) n *= axis;
  return n;
}

enum class Layout {
  contiguous,
  padded,    // unused elements between rows and between heads
  swapped,   // the axes before the last one in the other order, as in (..., L, H, D)
  reversed,  // negative strides
  repeated,  // the first axis has stride 0 (inputs only)
};
inline constexpr int kLayouts = 5;

// Whether the last axis has stride 1 in every layout.
enum class LastAxis { contiguous, any };

template <class T>
constexpr int32_t kDtype = std::is_same_v<T, float>     ? CATTN_FLOAT32
                           : std::is_same_v<T, double>  ? CATTN_FLOAT64
                           : std::is_same_v<T, Half>    ? CATTN_FLOAT16
                           : std::is_same_v<T, Brain>   ? CATTN_BFLOAT16
                           : std::is_same_v<T, uint8_t> ? CATTN_BOOL
                                                        : CATTN_INT64;

template <class T>
class Tensor {
 public:
  Tensor() = default;  // "not given"
  Tensor(Shape shape, Layout layout, LastAxis last, Placement placement)
      : shape_(std::move(shape)), strides_(shape_.size()) {
    set_strides(layout, last);
    Index lowest = 0, highest = 0;
    for (size_t a = 0; a < shape_.size(); ++a) {
      const Index reach = (shape_[a] - 1) * strides_[a];
      (reach < 0 ? lowest : highest) += reach;
    }
    const Index elements = size() == 0 ? 0 : highest - lowest + 1;
    first_ = size() == 0 ? 0 : -lowest;
    // A vector, so that the tensor can be empty and moved.
    memory_.emplace_back(static_cast<size_t>(elements) * sizeof(T), placement, sizeof(T));
  }

  bool given() const { return !memory_.empty(); }
  const Shape& shape() const { return shape_; }
  Index size() const { return product(shape_); }
  T* data() const { return reinterpret_cast<T*>(memory_.front().data()) + first_; }

  // The element at a row-major position of the shape.
  T& operator[](Index position) const { return data()[offset(position)]; }
  // The element that the row-major position of a wider shape broadcasts from.
  T& broadcast(Index position, const Shape& wide) const {
    Index offset = 0;
    for (size_t back = 1; back <= wide.size(); ++back) {
      const Index i = position % wide[wide.size() - back];
      position /= wide[wide.size() - back];
      if (back <= shape_.size() && shape_[shape_.size() - back] != 1) {
        offset += i * strides_[shape_.size() - back];
      }
    }
    return data()[offset];
  }
  template <class To>
  std::vector<To> expanded(const Shape& wide) const {
    std::vector<To> all(static_cast<size_t>(product(wide)));
    for (size_t i = 0; i < all.size(); ++i) {
      all[i] = static_cast<To>(broadcast(static_cast<Index>(i), wide));
    }
    return all;
  }

  cattn_array array() const {
    cattn_array a{};
    if (!given()) return a;
    a.data = data();
    a.dtype = kDtype<T>;
    a.ndim = static_cast<int32_t>(shape_.size());
    for (size_t i = 0; i < shape_.size(); ++i) {
      a.shape[i] = shape_[i];
      a.strides[i] = strides_[i];
    }
    return a;
  }

  // Whether the memory between the elements still holds what it was made with.
  bool gaps_untouched() const {
    const size_t elements = memory_.front().bytes() / sizeof(T);
    std::vector<bool> used(elements, false);
    for (Index i = 0; i < size(); ++i) used[static_cast<size_t>(first_ + offset(i))] = true;
    unsigned char poison[sizeof(T)];
    std::memset(poison, Memory::kPoison, sizeof(T));
    for (size_t i = 0; i < elements; ++i) {
      if (!used[i] && std::memcmp(memory_.front().data() + i * sizeof(T), poison, sizeof(T)) != 0) {
        return false;
      }
    }
    return true;
  }
  bool same_bits(const Tensor& other) const {
    for (Index i = 0; i < size(); ++i) {
      if (std::memcmp(&(*this)[i], &other[i], sizeof(T)) != 0) return false;
    }
    return size() == other.size();
  }

 private:
  void set_strides(Layout layout, LastAxis last) {
    const size_t n = shape_.size();
    std::vector<size_t> order(n);  // innermost first
    for (size_t a = 0; a < n; ++a) order[a] = n - 1 - a;
    const size_t fixed = last == LastAxis::contiguous ? 1 : 0;
    if (layout == Layout::swapped && n >= fixed + 2) std::swap(order[fixed], order[fixed + 1]);
    const Index gap = layout == Layout::padded ? 3 : 0;
    Index next = 1;
    for (size_t a = 0; a < n; ++a) {
      if (gap > 0 && (a > 0 || fixed == 0)) next += gap;
      strides_[order[a]] = next;
      next *= std::max<Index>(shape_[order[a]], 1);
    }
    for (size_t a = 0; layout == Layout::reversed && a + fixed < n; ++a) strides_[a] *= -1;
    if (layout == Layout::repeated && n > fixed) strides_[0] = 0;
  }
  Index offset(Index position) const { return &broadcast(position, shape_) - data(); }

  Shape shape_;
  std::vector<Index> strides_;
  Index first_ = 0;  // of the first logical element within the memory
  std::vector<Memory> memory_;
};

}  // namespace cattn::test
