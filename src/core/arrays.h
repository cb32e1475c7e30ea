// The caller's arrays: checks of one array at a time, and strided views of it.
#pragma once
#include <string>

#include "core/types.h"

namespace cattn {

// What messages call an array. exchanged: the caller gave it as (..., L, H, D), and sees it so.
struct Name {
  Name(const char* of, bool is_exchanged = false)  // NOLINT: meant to be implicit
      : text(of), exchanged(is_exchanged) {}
  const char* text;
  bool exchanged;
};

// One array, broadcast to (batch..., heads, rows, cols). Strides in elements, 0 where broadcast.
struct View {
  char* data = nullptr;
  Index element_size = 0;
  Index batch_strides[CATTN_MAX_NDIM];  // set up to the batch shape's ndim
  Index head_stride = 0, row_stride = 0, col_stride = 0;

  explicit operator bool() const { return data != nullptr; }
};

// The leading axes of several arrays, broadcast.
struct BatchShape {
  int ndim = 0;
  Index shape[CATTN_MAX_NDIM];  // set up to ndim

  // Broadcasts all but the last `inner` axes of an array into it.
  void join(Name name, const cattn_array& a, int inner);
  std::string text() const;
};

// The address of (batch entry b in C order, head h, row i).
char* element_at(const View& view, const BatchShape& batch, Index b, Index h, Index i);

// Which of (head, row, col) the last axes of an array are.
struct Inner {
  bool head, row, col;
};

// full_batch: the leading axes are all there; else they broadcast.
View make_view(Name name, const cattn_array& a, const BatchShape& batch, Inner inner,
               bool full_batch);

inline bool given(const cattn_array& a) { return a.data != nullptr; }
// Size of the axis that is `from_end` places before the end, 1 where the array has none.
Index axis(const cattn_array& a, int from_end);
// Between (..., L, H, D) and (..., H, L, D).
void exchange_layout(cattn_array& a);

std::string dtype_text(int32_t dtype);
// The shape of an array as the caller gave it.
std::string shown_shape(cattn_array a, bool exchanged);
// An argument for messages: its name and shape.
std::string described(Name name, const cattn_array& a);

// Each throws an Error that names the argument.
void check_array(Name name, const cattn_array& a, int least_ndim);
void check_dtype(Name name, const cattn_array& a, int32_t expected, const char* whose);
void check_contiguous(Name name, const cattn_array& a);
void check_axis(Name name, const cattn_array& a, int from_end, Index expected, const char* what);

}  // namespace cattn
