// One rank of a job for the tests of communicators between processes: started by mpirun, by variables, or by our launcher.
//   comm_rank cases                       the test body of all communicators
//   comm_rank fault KIND RANK STEP        endless work in the phases loading, step and draining; RANK does KIND at STEP
//   comm_rank digest RANK                 RANK has another checkpoint than the others
//   comm_rank launch SIZE GRACE_MS ...    starts SIZE ranks that run the rest of the line
// Exit codes are those of Error; what a rank saw stands on stderr.
#include <signal.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <fmt/format.h>

#include "comm/cases.h"
#include "comm/communicator.h"
#include "comm/launch.h"
#include "core/error.h"

namespace {

using namespace conclave;

void do_fault(Communicator& comm, const std::string& kind) {
  if (kind == "kill") raise(SIGKILL);
  if (kind == "stop") raise(SIGSTOP);
  if (kind == "exit") _exit(3);
  if (kind == "throw") throw Error(Error::Kind::internal, "the disk is full");
  if (kind == "abort") comm.abort("the test says so");
  if (kind == "thread") std::thread([&] { comm.abort("the test says so"); }).join();
  if (kind == "hang") std::this_thread::sleep_for(std::chrono::seconds(60));
  if (kind == "leave") throw std::string();  // ends this rank without an error
}

/// Work like an engine's: a broadcast plan, sums per layer, a gather at the end, messages between neighbours; long computations between.
void work(Communicator& comm, const std::string& kind, int rank, int step) {
  std::vector<float> row(3000, 1), large(60'000, 1);
  const auto pair = comm.split(comm.rank() / 2, 0);
  const std::vector<int64_t> counts(static_cast<size_t>(comm.size()), 4);
  std::vector<std::byte> gathered(4 * counts.size()), one(4);
  const std::array<const char*, 3> phases{"loading", "step", "draining"};
  for (int i = 0;; ++i) {
    comm.phase(phases[static_cast<size_t>(i / 10) % 3]);
    if (comm.rank() == rank && i == step) do_fault(comm, kind);
    if (i % 10 == 5) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    std::vector<std::byte> plan(comm.rank() == 0 ? 300 : 0);
    comm.broadcast(plan, 0);
    for (int layer = 0; layer < 4; ++layer) pair->all_reduce_sum(row);
    if (comm.rank() == rank && i == step + 1000) return;
    comm.all_reduce_max(large);
    comm.all_gather(gathered, one, counts);
    if (comm.size() > 1 && comm.rank() == 0) comm.send(one, 1);
    if (comm.rank() == 1) comm.receive(one, 0);
  }
}

int run(const std::vector<std::string>& arguments) {
  const std::string mode = arguments.empty() ? "" : arguments[0];
  if (mode == "launch") {
    LocalRanks ranks;
    ranks.size = std::stoi(arguments.at(1));
    ranks.grace_ms = std::stoi(arguments.at(2));
    ranks.command = {"/proc/self/exe"};
    ranks.command.insert(ranks.command.end(), arguments.begin() + 3, arguments.end());
    return run_local_ranks(ranks);
  }
  StartLimits limits;
  limits.start_ms = 20'000;
  limits.timeout_ms = mode == "fault" && arguments.at(1) == "hang" ? 1500 : 0;
  const auto comm = make_from_environment(limits);
  if (mode == "cases") {
    test::check_all(*comm);
    if (comm->rank() == 0) fmt::print("{} ranks over {}: all cases hold\n", comm->size(), comm->name());
  } else if (mode == "fault") {
    try {
      work(*comm, arguments.at(1), std::stoi(arguments.at(2)), std::stoi(arguments.at(3)));
    } catch (const std::string&) {
    } catch (const Error& e) {
      if (e.kind == Error::Kind::internal) comm->abort(e.what());
      throw;
    }
  } else if (mode == "digest") {
    const bool other = comm->rank() == std::stoi(arguments.at(1));
    check_same_on_all_ranks(*comm, std::vector<Identity>{{"build", "0.1.0", "here"}, {"checkpoint", other ? "bb22" : "aa11", fmt::format("/models/{}", comm->rank())}});
  } else {
    throw Error(Error::Kind::bad_input, "comm_rank cases|fault|digest|launch");
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run({argv + 1, argv + argc});
  } catch (const Error& e) {
    fmt::print(stderr, "error: {}\n", e.what());
    return exit_code(e.kind);
  } catch (const std::exception& e) {
    fmt::print(stderr, "error: {}\n", e.what());
    return 1;
  }
}
