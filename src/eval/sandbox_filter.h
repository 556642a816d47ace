#pragma once
// The system calls that a program in the sandbox may make, as a program for the kernel's seccomp filter. Everything else fails with ENOSYS,
// as if the kernel did not have it; another architecture's calls kill the process.
#include <linux/filter.h>

#include <vector>

namespace conclave {

/// Empty on an architecture for which no list exists. `socket_pairs`: also pairs of connected sockets, without which a Java runtime opens no
/// file.
std::vector<sock_filter> sandbox_filter(bool socket_pairs);

}  // namespace conclave
