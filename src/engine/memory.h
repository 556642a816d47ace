#pragma once
// How much memory this process may still take, from /proc and cgroup files. The roots are parameters so that tests can lay out their own.
#include <filesystem>

namespace conclave {

struct MemoryFiles {
  std::filesystem::path proc = "/proc", cgroup = "/sys/fs/cgroup";
};

/// The smaller of MemAvailable and what every cgroup (v1 or v2) above this process has left, counting reclaimable page cache as free.
size_t available_memory(const MemoryFiles& files);

}  // namespace conclave
