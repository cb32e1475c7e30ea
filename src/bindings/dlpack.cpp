#include "bindings/dlpack.h"

#include <cstdint>
#include <string>
#include <vector>

namespace cattn::python {
namespace {

// The structures of DLPack 1.1 (https://dmlc.github.io/dlpack), an ABI.
struct DlDevice {
  int32_t type, id;
};
struct DlType {
  uint8_t code, bits;
  uint16_t lanes;
};
struct DlTensor {
  void* data;
  DlDevice device;
  int32_t ndim;
  DlType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; null: C order
  uint64_t byte_offset;
};
struct DlManaged {
  DlTensor tensor;
  void* context;
  void (*deleter)(DlManaged*);
};
struct DlManagedVersioned {
  uint32_t major, minor;
  void* context;
  void (*deleter)(DlManagedVersioned*);
  uint64_t flags;
  DlTensor tensor;
};
enum : uint8_t { kInteger = 0, kUnsigned = 1, kFloat = 2, kBfloat = 4, kBool = 6 };
constexpr int kCpu = 1;

std::string type_text(const DlType& type) {
  return "DLPack type " + std::to_string(type.code) + " of " + std::to_string(type.bits) + " bits";
}

// The NumPy dtype of elements; bfloat16 travels as uint16.
py::dtype numpy_dtype(const char* name, const DlType& type) {
  const auto of = [&](char kind) {
    return py::dtype(std::string(1, kind) + std::to_string(type.bits / 8));
  };
  if (type.lanes == 1 && type.bits % 8 == 0) {
    switch (type.code) {
      case kInteger: return of('i');
      case kUnsigned: return of('u');
      case kFloat: return of('f');
      case kBfloat: return of('u');
      case kBool: return py::dtype("bool");
      default: break;
    }
  }
  throw py::type_error(std::string(name) + ": " + type_text(type) + ", which is not supported");
}

template <class Managed>
DlpackArray adopt(const char* name, const py::object& capsule, const char* used) {
  auto* const managed =
      static_cast<Managed*>(PyCapsule_GetPointer(capsule.ptr(), PyCapsule_GetName(capsule.ptr())));
  PyCapsule_SetName(capsule.ptr(), used);  // from here on it is ours to delete
  const py::capsule owner(managed, [](void* p) {
    auto* const m = static_cast<Managed*>(p);
    if (m->deleter) m->deleter(m);
  });
  const DlTensor& tensor = managed->tensor;
  const py::dtype dtype = numpy_dtype(name, tensor.dtype);
  const auto size = static_cast<py::ssize_t>(tensor.dtype.bits / 8);
  std::vector<py::ssize_t> shape(tensor.shape, tensor.shape + tensor.ndim);
  std::vector<py::ssize_t> strides(shape.size());
  py::ssize_t next = size;
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = tensor.strides ? tensor.strides[i] * size : next;
    next *= shape[i];
  }
  char* const data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  return {py::array(dtype, shape, strides, data, owner), tensor.dtype.code == kBfloat};
}

// `__dlpack__` by the protocol's first version has no arguments.
py::object export_capsule(const py::object& object) {
  try {
    return object.attr("__dlpack__")(py::arg("max_version") = py::make_tuple(1, 1));
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
  }
  return object.attr("__dlpack__")();
}

}  // namespace

bool has_dlpack(const py::object& object) {
  return py::hasattr(object, "__dlpack__") && py::hasattr(object, "__dlpack_device__");
}

DlpackArray from_dlpack(const char* name, const py::object& object) {
  const py::tuple device = object.attr("__dlpack_device__")();
  if (device[0].cast<int>() != kCpu) {
    throw py::type_error(std::string(name) + ": its memory is not the CPU's");
  }
  py::object capsule;
  try {
    capsule = export_capsule(object);
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_Exception) || error.matches(PyExc_MemoryError)) throw;
    py::raise_from(
        error, PyExc_TypeError,
        (std::string(name) + ": cannot be read: " + py::str(error.value()).cast<std::string>())
            .c_str());
    throw py::error_already_set();
  }
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    return adopt<DlManagedVersioned>(name, capsule, "used_dltensor_versioned");
  }
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
    return adopt<DlManaged>(name, capsule, "used_dltensor");
  }
  throw py::type_error(std::string(name) + ": __dlpack__ gave no tensor");
}

}  // namespace cattn::python
