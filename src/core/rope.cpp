#include "core/rope.h"

#include <algorithm>
#include <string>

#include "core/arrays.h"
#include "core/error.h"
#include "core/parallel.h"

namespace cattn {

void apply_rope(const cattn_rope& problem, const KernelSet& kernels) {
  cattn_array x = problem.x, out = problem.out;
  const bool exchanged = (problem.flags & CATTN_BLHD) != 0;
  const Name of_x{"x", exchanged}, of_out{"out", exchanged};
  if (exchanged) {
    exchange_layout(x);
    exchange_layout(out);
  }
  if (!given(x) || !given(out) || !given(problem.cos) || !given(problem.sin)) {
    value_error("rope: x, out, cos and sin are required");
  }
  switch (x.dtype) {
    case CATTN_FLOAT32:
    case CATTN_FLOAT64:
    case CATTN_FLOAT16:
    case CATTN_BFLOAT16: break;
    default:
      type_error("x: dtype " + dtype_text(x.dtype) +
                 ", expected float32, float64, float16 or bfloat16");
  }
  check_array(of_x, x, 2);
  check_contiguous("x", x);
  const Index head_dim = axis(x, 1), rows = axis(x, 2), heads = axis(x, 3);
  BatchShape shape;
  shape.join(of_x, x, 3);
  constexpr Inner matrix{true, true, true}, table{false, true, true};

  check_dtype("out", out, x.dtype, " like x");
  check_array(of_out, out, 2);
  check_contiguous("out", out);
  check_axis(of_out, out, 1, head_dim, "columns");
  check_axis(of_out, out, 2, rows, "rows");
  check_axis(of_out, out, 3, heads, "heads");
  const View x_view = make_view(of_x, x, shape, matrix, true);
  const View out_view = make_view(of_out, out, shape, matrix, true);

  const Index pairs = axis(problem.cos, 1);
  if (2 * pairs > head_dim) {
    value_error("cos: shape " + shape_text(problem.cos) + ": at most " +
                std::to_string(head_dim / 2) + " pairs fit into the head size " +
                std::to_string(head_dim));
  }
  const auto table_view = [&](const char* name, const cattn_array& a) {
    const bool wide = x.dtype == CATTN_FLOAT64;
    check_dtype(name, a, wide ? CATTN_FLOAT64 : CATTN_FLOAT32, wide ? " like x" : "");
    check_array(name, a, 1);
    check_contiguous(name, a);
    check_axis(name, a, 1, pairs, "columns");
    if (axis(a, 2) != 1) check_axis(name, a, 2, rows, "rows");
    return make_view(name, a, shape, table, false);
  };
  const View cos = table_view("cos", problem.cos), sin = table_view("sin", problem.sin);

  Index batch = 1;
  for (int i = 0; i < shape.ndim; ++i) batch = checked_multiply(batch, shape.shape[i]);
  constexpr Index kRows = 64;
  const Index blocks = ceil_div(rows, kRows);
  const Index items = checked_multiply(checked_multiply(batch, heads), blocks);
  const auto at = [&](const View& view, Index b, Index h, Index row) {
    return element_at(view, shape, b, h, row);
  };
  // A thread is worth waking for some ten thousand numbers.
  const Index numbers = checked_multiply(checked_multiply(batch, heads), rows * head_dim);
  const int32_t asked = checked_num_threads(problem.num_threads);
  const int32_t most = asked > 0 ? asked : default_num_threads();
  const auto threads = static_cast<int32_t>(std::clamp<Index>(numbers / 16384, 1, most));
  parallel_items(items, threads, problem.executor, [&](Index item, int32_t) {
    const Index row = item % blocks * kRows, h = item / blocks % heads, b = item / blocks / heads;
    RopeTask task{};
    task.x = {at(x_view, b, h, row), x_view.row_stride};
    task.out = {at(out_view, b, h, row), out_view.row_stride};
    task.rows = std::min(kRows, rows - row);
    task.head_dim = head_dim;
    task.pairs = pairs;
    task.cos = {at(cos, b, 0, row), cos.row_stride};
    task.sin = {at(sin, b, 0, row), sin.row_stride};
    task.interleaved = problem.interleaved != 0;
    task.inverse = problem.inverse != 0;
    kernels.rope(task);
  });
}

}  // namespace cattn
