// Latency of collectives: ranks as threads, MPI's own calls, and the communicator over MPI, interleaved in one run.
//   mpirun --bind-to none -n 2 build/bench/comm_bench [ROUNDS]
// Every round measures each of them for some milliseconds; printed are the medians of the rounds in microseconds and the ratio of MPI's
// time to that of the threads. Threads run in rank 0's process while the other processes sleep.
#include <mpi.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include <fmt/format.h>

#include "comm/communicator.h"

namespace {

using namespace conclave;
using Clock = std::chrono::steady_clock;

constexpr int kCalls = 300;
constexpr int kWarmUp = 30;

/// Microseconds of one call.
template <class F>
double time_of(F call) {
  for (int i = 0; i < kWarmUp; ++i) call();
  const auto start = Clock::now();
  for (int i = 0; i < kCalls; ++i) call();
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count() / kCalls;
}

enum class Kind { all_reduce, all_to_all };

double on(Communicator& comm, Kind kind, size_t bytes) {
  if (kind == Kind::all_reduce) {
    std::vector<float> row(bytes / sizeof(float), 0);
    return time_of([&] { comm.all_reduce_sum(row); });
  }
  const auto ranks = static_cast<size_t>(comm.size());
  std::vector<std::byte> in(bytes / ranks * ranks), out(in.size());
  const std::vector<int64_t> counts(ranks, static_cast<int64_t>(bytes / ranks));
  return time_of([&] { comm.all_to_all(out, in, counts, counts); });
}

double on_threads(int size, Kind kind, size_t bytes) {
  auto ranks = make_threads(size);
  std::vector<double> times(ranks.size());
  std::vector<std::thread> threads;
  for (size_t r = 0; r < ranks.size(); ++r) threads.emplace_back([&, r] { times[r] = on(*ranks[r], kind, bytes); });
  for (std::thread& thread : threads) thread.join();
  return *std::ranges::max_element(times);
}

double on_mpi(Kind kind, size_t bytes, int size) {
  if (kind == Kind::all_reduce) {
    std::vector<float> row(bytes / sizeof(float), 0);
    return time_of([&] { MPI_Allreduce(MPI_IN_PLACE, row.data(), static_cast<int>(row.size()), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD); });
  }
  const int part = static_cast<int>(bytes) / size;
  std::vector<std::byte> in(bytes), out(bytes);
  return time_of([&] { MPI_Alltoall(in.data(), part, MPI_BYTE, out.data(), part, MPI_BYTE, MPI_COMM_WORLD); });
}

/// The other processes must not spin while the threads of rank 0 are measured.
void meet_asleep() {
  MPI_Request request;
  MPI_Ibarrier(MPI_COMM_WORLD, &request);
  for (int done = 0; !done; MPI_Test(&request, &done, MPI_STATUS_IGNORE)) std::this_thread::sleep_for(std::chrono::microseconds(200));
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 9;
  const auto comm = make_mpi();
  if (!comm || comm->size() < 2) {
    fmt::print(stderr, "start it with mpirun -n 2 (or more), in a build with MPI\n");
    return 2;
  }
  const bool first = comm->rank() == 0;
  if (first) fmt::print("{:<12}{:>8}{:>10}{:>10}{:>14}{:>14}\n", "call", "KiB", "threads", "MPI", "over MPI", "MPI/threads");
  for (const Kind kind : {Kind::all_reduce, Kind::all_to_all})
    for (const size_t bytes :
         {size_t{1} << 10, size_t{4} << 10, size_t{8} << 10, size_t{16} << 10, size_t{32} << 10, size_t{64} << 10}) {
      std::array<std::vector<double>, 4> times;
      for (int round = 0; round < rounds; ++round) {
        const double threads = first ? on_threads(comm->size(), kind, bytes) : 0;
        meet_asleep();
        const double mpi = on_mpi(kind, bytes, comm->size());
        const double over = on(*comm, kind, bytes);
        times[0].push_back(threads);
        times[1].push_back(mpi);
        times[2].push_back(over);
        times[3].push_back(first ? mpi / threads : 0);
      }
      if (first)
        fmt::print("{:<12}{:>8}{:>10.2f}{:>10.2f}{:>14.2f}{:>14.2f}\n", kind == Kind::all_reduce ? "all_reduce" : "all_to_all",
                   bytes >> 10, median(times[0]), median(times[1]), median(times[2]), median(times[3]));
    }
  return 0;
}
