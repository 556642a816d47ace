#pragma once
// The inside of the sandbox: what the first process of the new namespaces does between its birth and its death. It is born by clone() from
// a program with threads, so it allocates nothing and takes no lock: everything it needs was prepared in a SandboxPlan.
#include <linux/filter.h>
#include <sys/resource.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace conclave {

/// One command of the chain "compile, then run".
struct SandboxStep {
  std::vector<std::string> words;
  std::vector<char*> argv;  ///< into `words`, ended by null
  rlim_t cpu_s = 0;
};

/// A file or folder of the outside that is seen inside, read-only; or with `link` a symbolic link to make.
struct SandboxPlace {
  std::string source, target, link;
  bool folder = true;
};

struct SandboxPlan {
  std::vector<SandboxPlace> places;
  std::vector<SandboxStep> steps;
  std::vector<std::string> environment;
  std::vector<char*> envp;
  std::string file_name, text;
  std::string root_options, tmp_options;  ///< of the two tmpfs
  std::vector<sock_filter> filter;
  size_t memory_bytes = 0, disk_bytes = 0;
  int processes = 0;
  uid_t uid = 0;  ///< inside
  bool drops_groups = false;
  int out = -1, err = -1, go = -1, report = -1;  ///< descriptors of the child's side
};

enum class SandboxStage : uint8_t {
  start, identity, private_mounts, root, place, tmp, pivot, read_only, host_name, program, capabilities, privileges, filter, fork, limits, exec
};
/// What the stage does, for messages.
const char* name_of(SandboxStage stage);

/// Written whole into `report`: a pipe delivers it in one piece.
struct SandboxReport {
  enum class Kind : uint8_t { failed, started, ended };
  Kind kind;
  SandboxStage stage;
  int step;
  int value;  ///< errno of `failed`, wait status of `ended`
};

/// Body of the first process. Waits on `go` for a byte, which comes when its ids are mapped.
[[noreturn]] void sandbox_child(const SandboxPlan& plan);

}  // namespace conclave
