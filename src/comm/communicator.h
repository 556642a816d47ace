#pragma once
// Ranks that compute one model together. Hides how bytes travel: not at all (one rank), through the memory of one process (threads) or
// through MPI. Collectives are called by every rank of a group in the same order; one thread per rank at a time. Sums are taken in rank
// order, 0 + 1 + 2 ..., so that every rank and every implementation gets the same bits. A peer that is gone, or that does not answer within
// the group's time limit, ends every call with Error::Kind::network naming the rank and the phase.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

namespace conclave {

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual std::string_view name() const = 0;  ///< "self", "threads", "mpi"
  virtual int rank() const = 0;
  virtual int size() const = 0;

  virtual void all_reduce_sum(std::span<float> inout) = 0;
  virtual void all_reduce_max(std::span<float> inout) = 0;
  /// `out` holds every rank's `in`, in rank order; `counts[r]` bytes come from rank r (their sum is out.size()).
  virtual void all_gather(std::span<std::byte> out, std::span<const std::byte> in, std::span<const int64_t> counts) = 0;
  /// Rank r gets the sum of everybody's r-th part of `in`; `counts[r]` floats are rank r's (its out.size()).
  virtual void reduce_scatter_sum(std::span<float> out, std::span<const float> in, std::span<const int64_t> counts) = 0;
  /// `in` is what goes to ranks 0, 1, ... one after the other (`send` bytes each), `out` what comes from them (`receive` bytes each).
  virtual void all_to_all(std::span<std::byte> out, std::span<const std::byte> in, std::span<const int64_t> send,
                          std::span<const int64_t> receive) = 0;
  /// Everybody gets the root's bytes, whatever their number: the control plane.
  virtual void broadcast(std::vector<std::byte>& bytes, int root) = 0;
  /// Messages between two ranks arrive in order; the receiver knows their size. A sender may be a few messages ahead, then it waits.
  virtual void send(std::span<const std::byte> bytes, int to) = 0;
  virtual void receive(std::span<std::byte> bytes, int from) = 0;
  virtual void barrier() = 0;

  /// The ranks of equal `color` as a group of their own, ordered by `key` and then by rank here. Collective.
  virtual std::unique_ptr<Communicator> split(int color, int key) = 0;
  /// What this rank is doing, for its peers' messages when it fails: "loading", "step". Not collective.
  virtual void phase(std::string_view what) = 0;
  /// Ends every rank's pending and later calls with `reason`. Not collective; safe from another thread.
  virtual void abort(std::string_view reason) = 0;
};

/// One rank: every collective is the identity.
std::unique_ptr<Communicator> make_self();
/// `size` ranks of this process, one for each thread; a call that waits longer than `timeout_ms` for a peer ends with an error (0: never).
std::vector<std::unique_ptr<Communicator>> make_threads(int size, int timeout_ms = 0);
/// The processes of an MPI job, or null where the program was built without MPI.
std::unique_ptr<Communicator> make_mpi(int timeout_ms = 0);

}  // namespace conclave
