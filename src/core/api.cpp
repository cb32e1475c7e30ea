// The C interface: struct in, status out.
#include <cstring>
#include <new>

#include "cattn.h"
#include "core/attention.h"
#include "core/dispatch.h"
#include "core/error.h"
#include "core/parallel.h"
#include "core/problem.h"

namespace {

thread_local std::string t_message;

template <class F>
cattn_status guarded(F f) {
  try {
    f();
    return CATTN_OK;
  } catch (const cattn::Error& error) {
    t_message = error.what();
    return error.status();
  } catch (const std::bad_alloc&) {
    t_message = "out of memory";
    return CATTN_ERROR_MEMORY;
  } catch (const std::exception& error) {
    t_message = error.what();
    return CATTN_ERROR_INTERNAL;
  }
}

void check_version(const cattn_attention* problem) {
  if (!problem || problem->struct_size != sizeof(cattn_attention)) {
    cattn::value_error("the problem was not set up by this version's cattn_attention_init");
  }
}

}  // namespace

extern "C" {

void cattn_attention_init(cattn_attention* problem) {
  std::memset(problem, 0, sizeof(*problem));
  problem->struct_size = sizeof(*problem);
}

cattn_status cattn_attention_shapes(const cattn_attention* problem, cattn_array* out,
                                    cattn_array* lse, cattn_array* weights) {
  return guarded([&] {
    check_version(problem);
    cattn::Problem(*problem, cattn::Direction::inputs_only).describe_outputs(out, lse, weights);
  });
}

cattn_status cattn_attention_forward(const cattn_attention* problem) {
  return guarded([&] {
    check_version(problem);
    const cattn::Problem checked(*problem, cattn::Direction::forward);
    cattn::attention_forward(checked, cattn::kernel_set(cattn::kernel_table(), checked.dtype));
  });
}

cattn_status cattn_attention_backward(const cattn_attention* problem) {
  return guarded([&] {
    check_version(problem);
    const cattn::Problem checked(*problem, cattn::Direction::backward);
    cattn::attention_backward(checked, cattn::kernel_set(cattn::kernel_table(), checked.dtype));
  });
}

const char* cattn_error_message(void) { return t_message.c_str(); }

cattn_status cattn_set_num_threads(int32_t n) {
  return guarded([&] {
    if (n < 0) {
      cattn::value_error("num_threads: is " + std::to_string(n) + ", expected at least 1");
    }
    cattn::set_default_num_threads(n);
  });
}

int32_t cattn_get_num_threads(void) { return cattn::default_num_threads(); }

const char* cattn_isa(void) {
  const char* name = nullptr;
  guarded([&] { name = cattn::kernel_table().name; });
  return name;
}

cattn_status cattn_set_isa(const char* name) {
  return guarded([&] { cattn::set_isa(name ? name : ""); });
}

const char* cattn_available_isa(int32_t i) {
  const cattn::KernelTable* table = cattn::available_table(i);
  return table ? table->name : nullptr;
}

const char* cattn_version(void) { return CATTN_VERSION; }

}  // extern "C"
