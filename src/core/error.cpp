#include "core/error.h"

namespace cattn {

void value_error(const std::string& message) { throw Error(CATTN_ERROR_VALUE, message); }
void type_error(const std::string& message) { throw Error(CATTN_ERROR_TYPE, message); }

std::string shape_text(const cattn_array& array) {
  std::string text = "(";
  for (int i = 0; i < array.ndim; ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(array.shape[i]);
  }
  return text + (array.ndim == 1 ? ",)" : ")");
}

Index checked_multiply(Index a, Index b) {
  Index result;
  if (__builtin_mul_overflow(a, b, &result)) {
    value_error("the arrays are too large: a size does not fit into 64 bits");
  }
  return result;
}

Index checked_add(Index a, Index b) {
  Index result;
  if (__builtin_add_overflow(a, b, &result)) {
    value_error("the arrays are too large: a size does not fit into 64 bits");
  }
  return result;
}

}  // namespace cattn
