#include "core/arrays.h"

#include <utility>

#include "core/error.h"

namespace cattn {

std::string dtype_text(int32_t dtype) {
  switch (dtype) {
    case CATTN_FLOAT32: return "float32";
    case CATTN_FLOAT64: return "float64";
    case CATTN_BOOL: return "bool";
    case CATTN_INT64: return "int64";
    case CATTN_FLOAT16: return "float16";
    case CATTN_BFLOAT16: return "bfloat16";
    default: return "dtype " + std::to_string(dtype);
  }
}

void exchange_layout(cattn_array& a) {
  if (a.ndim < 3 || a.ndim > CATTN_MAX_NDIM) return;
  std::swap(a.shape[a.ndim - 2], a.shape[a.ndim - 3]);
  std::swap(a.strides[a.ndim - 2], a.strides[a.ndim - 3]);
}

std::string shown_shape(cattn_array a, bool exchanged) {
  if (exchanged) exchange_layout(a);
  return shape_text(a);
}

std::string described(Name name, const cattn_array& a) {
  return std::string(name.text) + ": shape " + shown_shape(a, name.exchanged);
}

void check_array(Name name, const cattn_array& a, int least_ndim) {
  if (a.ndim < 0 || a.ndim > CATTN_MAX_NDIM) {
    value_error(std::string(name.text) + ": has " + std::to_string(a.ndim) +
                " axes, expected at most " + std::to_string(CATTN_MAX_NDIM));
  }
  if (a.ndim < least_ndim) {
    value_error(described(name, a) + " has too few axes, expected at least " +
                std::to_string(least_ndim));
  }
  // Offsets of elements, in bytes and from either end, must fit into an Index.
  Index count = 1, extent = 1;
  bool fits = true;
  for (int i = 0; i < a.ndim; ++i) {
    const Index n = a.shape[i];
    if (n < 0) value_error(described(name, a) + " has a negative axis");
    if (n <= 1) continue;
    Index step, length;
    fits = fits && !__builtin_mul_overflow(count, n, &count) &&
           !__builtin_mul_overflow(a.strides[i], a.strides[i] < 0 ? -1 : 1, &step) &&
           !__builtin_mul_overflow(step, n - 1, &length) &&
           !__builtin_add_overflow(extent, length, &extent);
  }
  const Index size = dtype_size(a.dtype);
  Index bytes;
  if (!fits || __builtin_mul_overflow(count, size, &bytes) ||
      __builtin_mul_overflow(extent, size, &bytes)) {
    value_error(described(name, a) + ": its sizes or strides do not fit into 64 bits");
  }
}

Index axis(const cattn_array& a, int from_end) {
  return a.ndim >= from_end ? a.shape[a.ndim - from_end] : 1;
}

void BatchShape::join(Name name, const cattn_array& a, int inner) {
  const int n = a.ndim > inner ? a.ndim - inner : 0;
  if (n > ndim) {
    for (int i = 0; i < ndim; ++i) shape[n - 1 - i] = shape[ndim - 1 - i];
    for (int i = 0; i < n - ndim; ++i) shape[i] = 1;
    ndim = n;
  }
  for (int i = 0; i < n; ++i) {
    Index& mine = shape[ndim - 1 - i];
    const Index theirs = a.shape[n - 1 - i];
    if (mine == 1) {
      mine = theirs;
    } else if (theirs != 1 && theirs != mine) {
      value_error(described(name, a) + " does not broadcast: its leading axes meet " + text());
    }
  }
}

std::string BatchShape::text() const {
  cattn_array a{};
  a.ndim = ndim;
  for (int i = 0; i < ndim; ++i) a.shape[i] = shape[i];
  return shape_text(a);
}

View make_view(Name name, const cattn_array& a, const BatchShape& batch, Inner inner,
               bool full_batch) {
  View view;
  view.data = static_cast<char*>(a.data);
  view.element_size = dtype_size(a.dtype);
  int at = a.ndim - 1;
  const auto stride = [&](bool wanted) -> Index {
    if (!wanted || at < 0) return 0;
    const Index s = a.shape[at] == 1 ? 0 : a.strides[at];
    --at;
    return s;
  };
  view.col_stride = stride(inner.col);
  view.row_stride = stride(inner.row);
  view.head_stride = stride(inner.head);
  if (at + 1 > batch.ndim) {
    value_error(described(name, a) + " has more leading axes than " + batch.text());
  }
  for (int i = 0; i < batch.ndim; ++i) {
    const int mine = at - i, b = batch.ndim - 1 - i;
    view.batch_strides[b] = 0;
    if (mine < 0) {
      if (full_batch && batch.shape[b] != 1) {
        value_error(described(name, a) + " lacks leading axes, expected " + batch.text());
      }
      continue;
    }
    const Index n = a.shape[mine];
    if (n != batch.shape[b] && (full_batch || n != 1)) {
      value_error(described(name, a) + " does not fit the leading axes " + batch.text());
    }
    view.batch_strides[b] = n == 1 ? 0 : a.strides[mine];
  }
  return view;
}

void check_dtype(Name name, const cattn_array& a, int32_t expected, const char* whose) {
  if (a.dtype != expected) {
    type_error(std::string(name.text) + ": dtype " + dtype_text(a.dtype) + ", expected " +
               dtype_text(expected) + whose);
  }
}

void check_contiguous(Name name, const cattn_array& a) {
  bool empty = false;
  for (int i = 0; i < a.ndim; ++i) empty = empty || a.shape[i] == 0;
  if (!empty && a.ndim > 0 && a.shape[a.ndim - 1] > 1 && a.strides[a.ndim - 1] != 1) {
    value_error(std::string(name.text) + ": the last axis must be contiguous");
  }
}

void check_axis(Name name, const cattn_array& a, int from_end, Index expected, const char* what) {
  if (axis(a, from_end) != expected) {
    value_error(described(name, a) + " has " + std::to_string(axis(a, from_end)) + " " + what +
                ", expected " + std::to_string(expected));
  }
}

char* element_at(const View& view, const BatchShape& batch, Index b, Index h, Index i) {
  Index offset = h * view.head_stride + i * view.row_stride;
  for (int a = batch.ndim - 1; a >= 0 && b > 0; --a) {
    offset += b % batch.shape[a] * view.batch_strides[a];
    b /= batch.shape[a];
  }
  return view.data + offset * view.element_size;
}

}  // namespace cattn
