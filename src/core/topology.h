#pragma once
// NUMA nodes and processors of this machine, and which of them a rank gets. Hides hwloc; without it the machine is one node. Only
// processors that this process may use are named. Binding is an optimisation: where the system refuses it, everything still works.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace conclave {

struct Topology {
  struct Node {
    int number = 0;               ///< the operating system's
    std::vector<int> processors;  ///< hyperthreads of one core side by side
    int64_t memory_bytes = 0;     ///< 0: unknown
  };
  std::vector<Node> nodes;  ///< those with processors; at least one
};

Topology this_machine();

/// Where a rank's threads run and its memory lies.
struct Place {
  std::vector<int> processors;
  std::vector<int> nodes;
};

/// Places for the ranks of one host, neighbouring ranks on neighbouring nodes: whole nodes for each where there are enough, else equal
/// shares of a node's processors. More ranks than a node has processors share all of them.
std::vector<Place> place_ranks(const Topology& machine, int ranks);
/// The same by a map "rank:node,rank:node", one entry for each rank. Throws bad_input naming the entry.
std::vector<Place> place_ranks(const Topology& machine, int ranks, std::string_view map);
/// "processors 0-3,8 of node 0"
std::string describe(const Place& place);

/// Binds the calling thread, and those that it starts from now on, to the processors, and their memory to the nodes. False: the system
/// refuses.
bool bind_this_thread(const Place& place);

}  // namespace conclave
