#include "core/cores.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <thread>

namespace cattn {
namespace {

constexpr double kUnlimited = std::numeric_limits<double>::infinity();

// The quota of one group: microseconds of a period, "max" or -1 where there is none.
double granted_by(const std::string& folder) {
  double quota = 0, period = 0;
  std::ifstream version2(folder + "/cpu.max");
  if (!version2) {
    std::ifstream(folder + "/cpu.cfs_quota_us") >> quota;
    std::ifstream(folder + "/cpu.cfs_period_us") >> period;
  } else if (!(version2 >> quota >> period)) {
    return kUnlimited;
  }
  return quota > 0 && period > 0 ? quota / period : kUnlimited;
}

int32_t affine_cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
#endif
  const unsigned n = std::thread::hardware_concurrency();
  return n > 0 ? static_cast<int32_t>(n) : 1;
}

}  // namespace

double granted_cores(const std::string& membership, const std::string& root) {
  double least = kUnlimited;
  std::ifstream lines(membership);
  for (std::string line; std::getline(lines, line);) {  // hierarchy:controller,controller:/group
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    std::string controllers = line.substr(first, second - first + 1);
    controllers.front() = controllers.back() = ',';
    const bool version1 = controllers.find(",cpu,") != std::string::npos;
    if (!version1 && controllers != ",,") continue;
    // Every group above has a say. A container may see its own as the root, whatever the name.
    const std::string mounted = version1 ? root + "/cpu" : root;
    for (std::string group = line.substr(second + 1);; group.resize(group.rfind('/'))) {
      least = std::min(least, granted_by(mounted + group));
      if (group.find('/') == std::string::npos) break;
    }
  }
  return least;
}

// A thread more than the time is for would stop in the middle, while the others wait for it.
int32_t usable_cores() {
  const double granted = granted_cores("/proc/self/cgroup", "/sys/fs/cgroup");
  return static_cast<int32_t>(std::max(1.0, std::min<double>(affine_cores(), granted)));
}

}  // namespace cattn
