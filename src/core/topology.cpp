#include "core/topology.h"

#include <hwloc.h>
#include <sched.h>

#include <memory>

#include <fmt/format.h>

#include "core/error.h"

namespace conclave {
namespace {

struct Machine {
  Machine() {
    if (hwloc_topology_init(&topology) != 0) throw Error(Error::Kind::internal, "hwloc cannot start");
    if (hwloc_topology_load(topology) != 0) {
      hwloc_topology_destroy(topology);
      throw Error(Error::Kind::internal, "hwloc cannot read this machine");
    }
  }
  ~Machine() { hwloc_topology_destroy(topology); }
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;
  hwloc_topology_t topology = nullptr;
};

using Bitmap = std::unique_ptr<hwloc_bitmap_s, decltype(&hwloc_bitmap_free)>;
Bitmap bitmap() { return {hwloc_bitmap_alloc(), hwloc_bitmap_free}; }

Bitmap bitmap_of(const std::vector<int>& members) {
  Bitmap set = bitmap();
  for (const int member : members) hwloc_bitmap_set(set.get(), static_cast<unsigned>(member));
  return set;
}

}  // namespace

Topology this_machine() {
  const Machine machine;
  cpu_set_t mask;
  CPU_ZERO(&mask);
  const bool masked = sched_getaffinity(0, sizeof mask, &mask) == 0;
  const auto allowed = [&](unsigned processor) { return !masked || (processor < CPU_SETSIZE && CPU_ISSET(processor, &mask)); };
  Topology found;
  for (hwloc_obj_t node = nullptr; (node = hwloc_get_next_obj_by_type(machine.topology, HWLOC_OBJ_NUMANODE, node));) {
    Topology::Node here{static_cast<int>(node->os_index), {}, static_cast<int64_t>(node->attr->numanode.local_memory)};
    for (hwloc_obj_t unit = nullptr; (unit = hwloc_get_next_obj_by_type(machine.topology, HWLOC_OBJ_PU, unit));)
      if (hwloc_bitmap_isset(node->cpuset, unit->os_index) && allowed(unit->os_index))
        here.processors.push_back(static_cast<int>(unit->os_index));
    if (!here.processors.empty()) found.nodes.push_back(std::move(here));
  }
  if (found.nodes.empty()) throw Error(Error::Kind::internal, "hwloc finds no processor that this process may use");
  return found;
}

bool bind_this_thread(const Place& place) {
  const Machine machine;
  const Bitmap processors = bitmap_of(place.processors), nodes = bitmap_of(place.nodes);
  const bool bound = hwloc_set_cpubind(machine.topology, processors.get(), HWLOC_CPUBIND_THREAD) == 0;
  return hwloc_set_membind(machine.topology, nodes.get(), HWLOC_MEMBIND_BIND, HWLOC_MEMBIND_THREAD | HWLOC_MEMBIND_BYNODESET) == 0 &&
         bound;
}

}  // namespace conclave
