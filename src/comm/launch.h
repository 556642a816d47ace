#pragma once
// How the ranks of a job find each other. Hides mpirun, the rendezvous at rank 0 for processes that something else has started (torchrun,
// Slurm, Kubernetes, our own launcher), and the start of rank processes on this host. Everything but the launcher runs in each rank.
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "comm/communicator.h"

namespace conclave {

/// Where this process stands in a job whose processes something else has started.
struct Rendezvous {
  int rank = 0;
  int size = 1;
  int local_rank = 0;
  std::string address = "127.0.0.1";  ///< of rank 0
  int port = 20030;                   ///< rank 0 takes the first free one of kPortsTried; the others ask all of them for their job
  std::string job;                    ///< keeps jobs on one host apart
  int timeout_ms = 0;                 ///< see make_threads
  int silence_ms = 4000;              ///< a peer that has not been heard of for so long is dead
  int start_ms = 300'000;             ///< for all ranks to come
};
constexpr int kPortsTried = 20;

/// Reads WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT and the job's name (CONCLAVE_JOB, else TORCHELASTIC_RUN_ID, else SLURM_JOB_ID);
/// `variable` is getenv, or a test's. A size of 0 says that they are not set. Throws bad_input naming the variable.
Rendezvous rendezvous_of(const std::function<const char*(const char*)>& variable);

/// Meets the other ranks at rank 0; data then goes straight from rank to rank through ZeroMQ. Null where the program was built without it.
/// Throws network naming the ranks that did not come.
std::unique_ptr<Communicator> make_sockets(const Rendezvous& place);

struct StartLimits {
  int timeout_ms = 0;
  int silence_ms = 4000;
  int start_ms = 300'000;
};
/// The ranks that this process was started as one of: of mpirun (or srun --mpi=pmix), of a rendezvous, or none: make_self().
std::unique_ptr<Communicator> make_from_environment(const StartLimits& limits = {});

/// Something that all ranks must have in common, like a checkpoint's or a build's digest.
struct Identity {
  std::string name;   ///< "checkpoint"
  std::string value;  ///< equal on all ranks
  std::string place;  ///< where this rank has it from: a path; may differ
};
/// Collective. Throws bad_model on every rank where one differs, naming two ranks, both values and both places.
void check_same_on_all_ranks(Communicator& comm, std::span<const Identity> identities);

/// Processes of one host that are ranks of one job.
struct LocalRanks {
  int size = 1;
  std::vector<std::string> command;           ///< program and arguments
  std::map<std::string, std::string> extra;   ///< variables for all of them
  int grace_ms = 7000;                        ///< for the others to end by themselves after one has failed
};
/// Runs them with the variables of a rendezvous on loopback and a job name of their own; returns when all have ended, and leaves none behind:
/// they die with this process. Lines that several ranks write to stderr are printed once. Returns 0, or the exit code of the rank that failed
/// first; a rank that was killed counts as 6, with one line that names it.
int run_local_ranks(const LocalRanks& ranks);

}  // namespace conclave
