#include "engine/memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <string>

#include "engine/engine.h"

namespace conclave {
namespace {

namespace fs = std::filesystem;
constexpr size_t kUnlimited = std::numeric_limits<size_t>::max();

/// First number of a file; "max", a missing or a malformed file give nothing.
std::optional<size_t> read_number(const fs::path& file) {
  std::ifstream in(file);
  size_t value = 0;
  if (in >> value) return value;
  return std::nullopt;
}

/// Number after `key` in a file of "key value" lines.
std::optional<size_t> read_field(const fs::path& file, std::string_view key) {
  std::ifstream in(file);
  std::string line;
  while (std::getline(in, line)) {
    std::istringstream words(line);
    std::string name;
    size_t value = 0;
    if (words >> name >> value && name == key) return value;
  }
  return std::nullopt;
}

/// Names of one cgroup version's files.
struct CgroupFiles {
  const char *limit, *usage, *reclaimable;
};
constexpr CgroupFiles kV2{"memory.max", "memory.current", "inactive_file"};
constexpr CgroupFiles kV1{"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"};

/// What the group at `root`/`group` and its parents up to `root` leave. A container often sees its own group as the root.
size_t cgroup_rest(const fs::path& root, const std::string& group, const CgroupFiles& names) {
  size_t rest = kUnlimited;
  for (fs::path path = fs::path(group).relative_path();; path = path.parent_path()) {
    const fs::path folder = root / path;
    if (const auto limit = read_number(folder / names.limit)) {
      const size_t usage = read_number(folder / names.usage).value_or(0);
      const size_t cache = std::min(usage, read_field(folder / "memory.stat", names.reclaimable).value_or(0));
      rest = std::min(rest, *limit - std::min(*limit, usage - cache));
    }
    if (path.empty()) return rest;
  }
}

}  // namespace

size_t available_memory(const MemoryFiles& files) {
  size_t rest = kUnlimited;
  if (const auto kilobytes = read_field(files.proc / "meminfo", "MemAvailable:")) rest = *kilobytes * 1024;
  std::ifstream groups(files.proc / "self" / "cgroup");
  std::string line;
  while (std::getline(groups, line)) {  // "0::/path" is v2, "4:memory:/path" v1
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1), group = line.substr(second + 1);
    if (controllers.empty()) rest = std::min(rest, cgroup_rest(files.cgroup, group, kV2));
    else if (("," + controllers + ",").find(",memory,") != std::string::npos)
      rest = std::min(rest, cgroup_rest(files.cgroup / "memory", group, kV1));
  }
  return rest;
}

size_t available_memory() { return available_memory(MemoryFiles{}); }

}  // namespace conclave
