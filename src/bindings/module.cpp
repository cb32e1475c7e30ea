// Registers the functions; see attention.cpp for what they do.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "bindings/arrays.h"
#include "bindings/attention.h"
#include "bindings/options.h"
#include "cattn.h"

namespace py = pybind11;
using namespace cattn::python;

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.doc() = "The compiled core; use the functions of the package instead.";
  m.def("attention", &attention);
  m.def("attention_backward", &attention_backward);
  m.def("attention_jvp", &attention_jvp);
  m.def("dropout_mask", &dropout_mask);
  m.def("rope", &rope);
  m.def("as_array", &as_array);

  m.def("set_num_threads",
        [](const py::object& n) { raise_on_error(cattn_set_num_threads(parse_num_threads(n))); });
  m.def("get_num_threads", &cattn_get_num_threads);
  m.def("version", &cattn_version);

  m.def("isa", [] {
    const char* const name = cattn_isa();
    if (!name) throw py::value_error(cattn_error_message());
    return std::string(name);
  });
  m.def("set_isa", [](const std::string& name) { raise_on_error(cattn_set_isa(name.c_str())); });
  m.def("available_isas", [] {
    py::list names;
    for (int32_t i = 0; const char* const name = cattn_available_isa(i); ++i) names.append(name);
    return names;
  });
}
