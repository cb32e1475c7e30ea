// How many cores this process may use.
#pragma once
#include <string>

#include "core/types.h"

namespace cattn {

// Those of its affinity, but no more than the time that its control groups grant: at least 1.
int32_t usable_cores();

// The time that control groups grant, in cores; infinite without a quota. `membership` is a file
// like /proc/self/cgroup, `root` where the groups are mounted. Either version of them is read.
double granted_cores(const std::string& membership, const std::string& root);

}  // namespace cattn
