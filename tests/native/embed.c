/* The smallest program that embeds cattn, in C99: out = softmax(q k^T / sqrt(D)) v for one head,
 * then the same written out. */
#include <math.h>
#include <stdio.h>

#include "cattn.h"

enum { kQueries = 3, kKeys = 5, kSize = 4 };

static cattn_array matrix(float* data, int64_t rows, int64_t cols) {
  cattn_array a = {0};
  a.data = data;
  a.dtype = CATTN_FLOAT32;
  a.ndim = 2;
  a.shape[0] = rows;
  a.shape[1] = cols;
  a.strides[0] = cols;
  a.strides[1] = 1;
  return a;
}

static double largest_difference(const float* q, const float* k, const float* v, const float* out) {
  double largest = 0;
  int i, j, d;
  for (i = 0; i < kQueries; ++i) {
    double weight[kKeys], sum = 0;
    for (j = 0; j < kKeys; ++j) {
      double score = 0;
      for (d = 0; d < kSize; ++d) score += (double)q[i * kSize + d] * k[j * kSize + d];
      weight[j] = exp(score / sqrt((double)kSize));
      sum += weight[j];
    }
    for (d = 0; d < kSize; ++d) {
      double expected = 0;
      for (j = 0; j < kKeys; ++j) expected += weight[j] / sum * v[j * kSize + d];
      largest = fmax(largest, fabs(expected - out[i * kSize + d]));
    }
  }
  return largest;
}

int main(void) {
  float q[kQueries * kSize], k[kKeys * kSize], v[kKeys * kSize], out[kQueries * kSize];
  cattn_attention problem;
  double difference;
  int i;
  for (i = 0; i < kQueries * kSize; ++i) q[i] = (float)sin(i);
  for (i = 0; i < kKeys * kSize; ++i) {
    k[i] = (float)cos(i);
    v[i] = (float)sin(2 * i + 1);
  }

  cattn_attention_init(&problem);
  problem.q = matrix(q, kQueries, kSize);
  problem.k = matrix(k, kKeys, kSize);
  problem.v = matrix(v, kKeys, kSize);
  problem.out = matrix(out, kQueries, kSize);
  if (cattn_attention_forward(&problem) != CATTN_OK) {
    fprintf(stderr, "cattn: %s\n", cattn_error_message());
    return 1;
  }
  difference = largest_difference(q, k, v, out);
  printf("cattn %s on %s: largest difference %.2g\n", cattn_version(), cattn_isa(), difference);
  /* |out| < 1 and |score| < 2: some twenty roundings. */
  return difference <= 20 * 6e-8 ? 0 : 1;
}
