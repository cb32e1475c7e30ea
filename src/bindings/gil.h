// Letting go of the GIL, and taking it back in a process whose interpreter may be ending.
#pragma once
#include <pybind11/pybind11.h>

#include <chrono>
#include <thread>

namespace cattn::python {

// Returns f(), a C function that may wait for the GIL. It does not return when the interpreter ends
// meanwhile, as it may around a daemon thread: up to CPython 3.13 such a thread then ends by
// pthread_exit, which would unwind our frames, drop references without the GIL and abort the
// process at the first noexcept function. From here the thread sleeps until the process is gone,
// which is what CPython 3.14 does by itself.
template <class F>
auto returning_to_python(F f) -> decltype(f()) {
  try {
    return f();
  } catch (...) {  // not an exception, C functions have none
    while (true) std::this_thread::sleep_for(std::chrono::hours(1));
  }
}

// Returns f(), which does not touch Python, while other Python threads run.
template <class F>
auto without_gil(F f) -> decltype(f()) {
  PyThreadState* const state = PyEval_SaveThread();
  const auto result = f();
  returning_to_python([&] { PyEval_RestoreThread(state); });
  return result;
}

}  // namespace cattn::python
