// Errors inside core/ are C++ exceptions; api.cpp turns them into status codes.
#pragma once
#include <stdexcept>
#include <string>

#include "core/types.h"

namespace cattn {

class Error : public std::runtime_error {
 public:
  Error(cattn_status status, const std::string& message)
      : std::runtime_error(message), status_(status) {}
  cattn_status status() const { return status_; }

 private:
  cattn_status status_;
};

[[noreturn]] void value_error(const std::string& message);
[[noreturn]] void type_error(const std::string& message);

// "(2, 3, 4)", as Python prints a shape.
std::string shape_text(const cattn_array& array);

// a * b and a + b, or an error that the sizes do not fit into memory.
Index checked_multiply(Index a, Index b);
Index checked_add(Index a, Index b);

}  // namespace cattn
