#include "core/forward_task.h"

#include <algorithm>

namespace cattn {

ForwardTask forward_task(const Problem& problem, const Attended& entry, Index head,
                         Index first_query, Index rows, const ScoreTerms& terms) {
  const Index b = entry.batch, row = entry.sequence.first_query + first_query;
  ForwardTask task{};
  task.q = problem.rows(problem.q, b, head, row);
  task.rows = rows;
  task.first_query = first_query;
  task.head_dim = problem.head_dim;
  task.value_dim = problem.value_dim;
  task.band = entry.band;
  task.first_block = entry.blocks.first;
  task.end_block = entry.blocks.first + entry.blocks.count;
  task.terms = &terms;
  task.sink = problem.sink(head);
  task.out = problem.writable_rows(problem.out, b, head, row);
  if (problem.lse) {
    task.lse = problem.at(problem.lse, b, head, row);
    task.lse_stride = problem.lse.row_stride;
  }
  return task;
}

WeightsTask weights_task(const Problem& problem, const Attended& entry, Index head,
                         const ForwardTask& task) {
  const Sequence& sequence = entry.sequence;
  Rows weights = problem.writable_rows(problem.weights, entry.batch, head,
                                       sequence.first_query + task.first_query);
  if (!problem.packed) return {&task, problem.keys, weights};
  const Index element = problem.weights.element_size;
  for (Index r = 0; r < task.rows; ++r) {
    char* const whole = static_cast<char*>(weights.data) + r * weights.row_stride * element;
    std::fill_n(whole, problem.keys * element, char{0});
  }
  weights.data = static_cast<char*>(weights.data) + sequence.first_key * element;
  return {&task, sequence.keys, weights};
}

double forward_flops(const Problem& problem, Entries entries) {
  return 2 * estimated_scores(problem, entries) *
         static_cast<double>(problem.head_dim + problem.value_dim);
}

}  // namespace cattn
