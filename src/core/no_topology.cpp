// Linked where the program is built without hwloc: one node with all processors, bound by the scheduler's own call.
#include <sched.h>

#include "core/topology.h"

namespace conclave {

Topology this_machine() {
  Topology::Node all;
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (sched_getaffinity(0, sizeof mask, &mask) == 0)
    for (int i = 0; i < CPU_SETSIZE; ++i)
      if (CPU_ISSET(static_cast<size_t>(i), &mask)) all.processors.push_back(i);
  if (all.processors.empty()) all.processors.push_back(0);
  return {{all}};
}

bool bind_this_thread(const Place& place) {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  for (const int processor : place.processors) CPU_SET(static_cast<size_t>(processor), &mask);
  return sched_setaffinity(0, sizeof mask, &mask) == 0;
}

}  // namespace conclave
