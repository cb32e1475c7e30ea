// The C interface: struct in, status out.
#include <cstring>
#include <limits>
#include <new>

#include "cattn.h"
#include "core/attention.h"
#include "core/dispatch.h"
#include "core/dropout.h"
#include "core/error.h"
#include "core/parallel.h"
#include "core/problem.h"
#include "core/rope.h"

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

template <class P>
void check_version(const P* problem, const char* init) {
  if (!problem || problem->struct_size != sizeof(P)) {
    cattn::value_error(std::string("the problem was not set up by this version's ") + init);
  }
}

// Of sequences packed along the rows the lengths do not count: which kernels compute one must not
// depend on the others.
cattn::HeadSize head_size(const cattn::Problem& problem) {
  constexpr cattn::Index any = std::numeric_limits<cattn::Index>::max();
  return {problem.head_dim + problem.value_dim, problem.packed ? any : problem.queries,
          problem.packed ? any : problem.keys};
}

// Runs a loop nest on a checked problem.
cattn_status run(const cattn_attention* problem, cattn::Direction direction,
                 void (*nest)(const cattn::Problem&, const cattn::Kernels&)) {
  return guarded([&] {
    check_version(problem, "cattn_attention_init");
    const cattn::Problem checked(*problem, direction);
    const auto kernels = [&](const cattn::KernelTable& table) -> const cattn::KernelSet& {
      return cattn::kernel_set(table, checked.dtype, checked.precision, head_size(checked));
    };
    const cattn::KernelTable& table = cattn::kernel_table();
    nest(checked, {kernels(table), kernels(table.multiply_adds ? *table.multiply_adds : table)});
  });
}

}  // namespace

extern "C" {

void cattn_attention_init(cattn_attention* problem) {
  std::memset(problem, 0, sizeof(*problem));
  problem->struct_size = sizeof(*problem);
  problem->window_left = problem->window_right = -1;
}

cattn_status cattn_attention_shapes(const cattn_attention* problem, cattn_array* out,
                                    cattn_array* lse, cattn_array* weights) {
  return guarded([&] {
    check_version(problem, "cattn_attention_init");
    cattn::Problem(*problem, cattn::Direction::inputs_only).describe_outputs(out, lse, weights);
  });
}

cattn_status cattn_attention_forward(const cattn_attention* problem) {
  return run(problem, cattn::Direction::forward, cattn::attention_forward);
}

cattn_status cattn_attention_backward(const cattn_attention* problem) {
  return run(problem, cattn::Direction::backward, cattn::attention_backward);
}

cattn_status cattn_attention_jvp(const cattn_attention* problem) {
  return run(problem, cattn::Direction::tangent, cattn::attention_jvp);
}

cattn_status cattn_dropout_mask(double dropout, uint64_t seed, const cattn_array* mask) {
  return guarded([&] {
    const cattn::Dropout chosen = cattn::dropout_of(dropout, seed);
    if (!mask || !cattn::given(*mask)) cattn::value_error("mask: is required");
    cattn::dropout_mask(chosen, *mask, cattn::kernel_table().dropout_row);
  });
}

void cattn_rope_init(cattn_rope* problem) {
  std::memset(problem, 0, sizeof(*problem));
  problem->struct_size = sizeof(*problem);
}

cattn_status cattn_rope_apply(const cattn_rope* problem) {
  return guarded([&] {
    check_version(problem, "cattn_rope_init");
    // Rotary embedding multiplies no matrices: whatever the size, the kernel is the same.
    cattn::apply_rope(*problem, cattn::kernel_set(cattn::kernel_table(), problem->x.dtype,
                                                  CATTN_PRECISION_HIGHEST, {}));
  });
}

const char* cattn_error_message(void) { return t_message.c_str(); }

cattn_status cattn_set_num_threads(int32_t n) {
  return guarded([&] { cattn::set_default_num_threads(cattn::checked_num_threads(n)); });
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
