#pragma once
// One test body for every communicator: each rank calls it, in a thread or a process of its own. Expected values are plain sums in rank
// order of inputs that every rank can compute for all the others; they are compared bit by bit, which makes all communicators equal.
// A difference throws std::runtime_error with the rank, the call and the place.
#include "comm/communicator.h"

namespace conclave::test {

void check_collectives(Communicator& comm);
void check_messages(Communicator& comm);
/// Groups of groups, of even and uneven sizes, used at the same time.
void check_groups(Communicator& comm);
/// A few hundred calls of random kinds and sizes in a row.
void check_random_calls(Communicator& comm, unsigned seed, int calls);
inline void check_all(Communicator& comm) {
  check_collectives(comm);
  check_messages(comm);
  check_groups(comm);
  check_random_calls(comm, 7, 200);
}

}  // namespace conclave::test
