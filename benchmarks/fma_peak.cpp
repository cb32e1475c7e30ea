// The machine's peak of float32 multiply-adds: independent chains in registers, nothing else.
// Prints floating-point operations per second. Arguments: threads, seconds.
// The compiler's flags choose the vector width, so that one source serves every instruction set.

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int kBytes = 64, kChains = 24;
#elif defined(__AVX__)
constexpr int kBytes = 32, kChains = 12;
#elif defined(__aarch64__)
constexpr int kBytes = 16, kChains = 24;
#else
constexpr int kBytes = 16, kChains = 12;
#endif

typedef float Vector __attribute__((vector_size(kBytes)));

// Read and written where the compiler must not look, so that it leaves no work out.
static volatile float g_start = 0, g_sum;

// 2·kChains·lanes operations per step.
static void multiply_add(long steps) {
  const Vector zero = {};
  Vector chain[kChains];
  for (int i = 0; i < kChains; ++i) chain[i] = zero + (g_start + static_cast<float>(i));
  // Values converge to 1: no overflow and no subnormal.
  const Vector factor = zero + 0.999f, summand = zero + 0.001f;
  for (long step = 0; step < steps; ++step) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) chain[i] = chain[i] * factor + summand;
  }
  Vector sum = zero;
  for (int i = 0; i < kChains; ++i) sum += chain[i];
  for (size_t lane = 0; lane < kBytes / sizeof(float); ++lane) g_sum = sum[lane];
}

int main(int argc, char** argv) {
  using Clock = std::chrono::steady_clock;
  if (argc != 3) return 2;
  const int threads = std::atoi(argv[1]);
  const double seconds = std::atof(argv[2]);
  constexpr long kSteps = 20000;
  constexpr double kOperations = 2.0 * kChains * (kBytes / sizeof(float)) * kSteps;

  std::vector<double> rate(threads);
  std::atomic<int> ready{0};
  const auto work = [&](int thread) {
    multiply_add(50 * kSteps);  // clocks and vector units wake up
    ++ready;
    while (ready < threads) {
    }
    const auto start = Clock::now();
    double elapsed = 0;
    long rounds = 0;
    while (elapsed < seconds) {
      multiply_add(kSteps);
      ++rounds;
      elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    }
    rate[thread] = static_cast<double>(rounds) * kOperations / elapsed;
  };
  std::vector<std::thread> team;
  for (int thread = 0; thread < threads; ++thread) team.emplace_back(work, thread);
  for (std::thread& member : team) member.join();
  double total = 0;
  for (const double one : rate) total += one;
  std::printf("%.6g\n", total);
  return 0;
}
