// Ranks as processes: all cases over sockets and MPI, the start from variables, and faults of every kind at every phase.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <future>
#include <map>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "comm/launch.h"
#include "core/error.h"

namespace conclave {
namespace {

using Clock = std::chrono::steady_clock;

struct Outcome {
  int code = 0;
  std::string text;        ///< stdout and stderr
  double named_after = 0;  ///< seconds from the fault to the first line with " (phase "
  double seconds = 0;
};

Outcome run(const std::string& command) {
  Outcome outcome;
  const auto start = Clock::now();
  const auto seconds = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  FILE* pipe = popen(fmt::format("( {} ) 2>&1", command).c_str(), "r");
  std::array<char, 4096> line;
  double fault = 0;
  while (fgets(line.data(), line.size(), pipe)) {
    outcome.text += line.data();
    if (std::string_view(line.data()) == "fault: now\n") fault = seconds();
    if (outcome.named_after == 0 && outcome.text.find(" (phase ") != std::string::npos) outcome.named_after = seconds() - fault;
  }
  const int status = pclose(pipe);
  outcome.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  outcome.seconds = seconds();
  return outcome;
}

std::string quoted(const std::string& text) {
  std::string result = "'";
  for (const char c : text) result += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return result + "'";
}

Outcome launch(int size, const std::string& rest, int grace_ms = 1000) {
  return run(fmt::format("timeout 60 {} launch {} {} {}", CONCLAVE_COMM_RANK, size, grace_ms, rest));
}

Outcome mpirun(int size, const std::string& rest) {
  return run(fmt::format("OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 timeout 60 mpirun --oversubscribe -n {} {} {}",
                         size, CONCLAVE_COMM_RANK, rest));
}

bool has_sockets() { return launch(2, "digest 9").code != 3; }
bool has_mpi() { return run("command -v mpirun").code == 0 && mpirun(1, "digest 9").code == 0; }

/// Processes whose command line holds `mark`.
int processes_with(const std::string& mark) {
  int found = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    std::ifstream file(entry.path() / "cmdline");
    std::stringstream text;
    text << file.rdbuf();
    found += text.str().find(mark) != std::string::npos;
  }
  return found;
}

std::vector<std::string> shared_memory() {
  std::vector<std::string> names;
  std::error_code none;
  for (const char* folder : {"/dev/shm", "/tmp"})
    for (const auto& entry : std::filesystem::directory_iterator(folder, none)) {
      const std::string name = entry.path().string();
      if (name.starts_with("/dev/shm/") || name.find("vader") != std::string::npos) names.push_back(name);
    }
  std::ranges::sort(names);
  return names;
}

class Sizes : public testing::TestWithParam<int> {};

TEST_P(Sizes, AllCasesHoldOverSockets) {
  if (!has_sockets()) GTEST_SKIP() << "built without ZeroMQ";
  const Outcome outcome = launch(GetParam(), "cases");
  EXPECT_EQ(outcome.code, 0) << outcome.text;
  EXPECT_NE(outcome.text.find("over sockets: all cases hold"), std::string::npos) << outcome.text;
}

TEST_P(Sizes, AllCasesHoldOverMpi) {
  if (!has_mpi()) GTEST_SKIP() << "built without MPI, or no mpirun";
  const Outcome outcome = mpirun(GetParam(), "cases");
  EXPECT_EQ(outcome.code, 0) << outcome.text;
  EXPECT_NE(outcome.text.find("over mpi: all cases hold"), std::string::npos) << outcome.text;
}

INSTANTIATE_TEST_SUITE_P(Ranks, Sizes, testing::Values(2, 3, 4), testing::PrintToStringParamName());

TEST(Start, TwoJobsOfOneHostFindTheirOwnRanks) {
  if (!has_sockets()) GTEST_SKIP() << "built without ZeroMQ";
  std::string command;
  for (const char* job : {"red", "blue"})
    for (const int rank : {1, 0})
      command += fmt::format("CONCLAVE_JOB={} WORLD_SIZE=2 RANK={} LOCAL_RANK={} MASTER_ADDR=localhost timeout 50 {} cases & ", job,
                             rank, rank, CONCLAVE_COMM_RANK);
  const Outcome outcome = run(command + "wait");
  size_t jobs = 0;
  for (size_t at = 0; (at = outcome.text.find("2 ranks over sockets: all cases hold", at)) != std::string::npos; ++at) ++jobs;
  EXPECT_EQ(jobs, 2u) << outcome.text;
}

TEST(Start, StrangersAtTheRendezvousAreIgnored) {
  if (!has_sockets()) GTEST_SKIP() << "built without ZeroMQ";
  const std::string variables = "CONCLAVE_JOB=strangers WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=21030";
  const auto rank = [&](int r) { return fmt::format("{} RANK={} timeout 50 {} cases", variables, r, CONCLAVE_COMM_RANK); };
  const std::string greeting = R"(\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL)";  // of the ZeroMQ protocol, followed by nonsense
  const Outcome outcome = run(
      "exec bash -c " +
      quoted(rank(0) +
             " & sleep 0.3; for i in 1 2 3; do head -c 2000 /dev/urandom > /dev/tcp/127.0.0.1/21030; printf 'GET / HTTP/1.1\r\n\r\n' > "
             "/dev/tcp/127.0.0.1/21030; { printf '" +
             greeting + "'; head -c 3000 /dev/urandom; } > /dev/tcp/127.0.0.1/21030; done; " + rank(1) + "; wait"));
  EXPECT_NE(outcome.text.find("2 ranks over sockets: all cases hold"), std::string::npos) << outcome.text;
}

TEST(Start, APortThatSomebodyElseHoldsIsPassedOver) {
  if (!has_sockets()) GTEST_SKIP() << "built without ZeroMQ";
  const std::string holder = "import socket, time; s = socket.create_server(('127.0.0.1', 21060)); print('held', flush=True); time.sleep(20)";
  std::string ranks;
  for (const int r : {1, 0})
    ranks += fmt::format("CONCLAVE_JOB=held WORLD_SIZE=2 RANK={} MASTER_ADDR=127.0.0.1 MASTER_PORT=21060 timeout 50 {} cases & ", r, CONCLAVE_COMM_RANK);
  const Outcome outcome = run(fmt::format("python3 -c {} & holder=$!; sleep 1; {} wait %2 %3; kill $holder", quoted(holder), ranks));
  EXPECT_NE(outcome.text.find("held"), std::string::npos) << outcome.text;
  EXPECT_NE(outcome.text.find("2 ranks over sockets: all cases hold"), std::string::npos) << outcome.text;
}

TEST(Start, ARankThatDoesNotComeIsNamed) {
  Rendezvous place{.size = 3, .job = "lonely " + std::to_string(::getpid()), .start_ms = 300};
  try {
    if (!make_sockets(place)) GTEST_SKIP() << "built without ZeroMQ";
    FAIL() << "three ranks met without two of them";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind, Error::Kind::network);
    EXPECT_NE(std::string(e.what()).find("ranks 1, 2 of 3 did not come"), std::string::npos) << e.what();
  }
  place.rank = 2;
  EXPECT_THROW(make_sockets(place), Error);
}

TEST(Start, VariablesAreCheckedByName) {
  const auto read = [](std::map<std::string, std::string> variables) {
    return rendezvous_of([variables](const char* name) {
      const auto found = variables.find(name);
      return found == variables.end() ? nullptr : found->second.c_str();
    });
  };
  const auto refused = [&](const std::map<std::string, std::string>& variables, const std::string& name) {
    try {
      read(variables);
    } catch (const Error& e) {
      return e.kind == Error::Kind::bad_input && std::string(e.what()).find(name) != std::string::npos;
    }
    return false;
  };
  EXPECT_EQ(read({}).size, 0);
  const Rendezvous place =
      read({{"WORLD_SIZE", "8"}, {"RANK", "5"}, {"LOCAL_RANK", "1"}, {"MASTER_ADDR", "node-0"}, {"SLURM_JOB_ID", "77"}});
  EXPECT_EQ(place.size, 8);
  EXPECT_EQ(place.rank, 5);
  EXPECT_EQ(place.local_rank, 1);
  EXPECT_EQ(place.address, "node-0");
  EXPECT_EQ(place.port, 20030);
  EXPECT_EQ(place.job, "77");
  EXPECT_EQ(read({{"WORLD_SIZE", "2"},
                  {"RANK", "0"},
                  {"MASTER_ADDR", "h"},
                  {"MASTER_PORT", "29500"},
                  {"CONCLAVE_JOB", "a"},
                  {"SLURM_JOB_ID", "77"}})
                .job,
            "a");
  EXPECT_TRUE(refused({{"WORLD_SIZE", "2"}}, "RANK"));
  EXPECT_TRUE(refused({{"RANK", "2"}}, "WORLD_SIZE"));
  EXPECT_TRUE(refused({{"WORLD_SIZE", "2"}, {"RANK", "2"}, {"MASTER_ADDR", "h"}}, "RANK"));
  EXPECT_TRUE(refused({{"WORLD_SIZE", "2"}, {"RANK", "0"}}, "MASTER_ADDR"));
  for (const char* bad : {"0", "-1", "two", "2x", "99999999999", " 2"})
    EXPECT_TRUE(refused({{"WORLD_SIZE", bad}, {"RANK", "0"}, {"MASTER_ADDR", "h"}}, "WORLD_SIZE")) << bad;
  for (const char* bad : {"0", "65536", "port"})
    EXPECT_TRUE(refused({{"WORLD_SIZE", "2"}, {"RANK", "0"}, {"MASTER_ADDR", "h"}, {"MASTER_PORT", bad}}, "MASTER_PORT")) << bad;
}

TEST(Start, DifferentCheckpointsAreRefusedOnEveryRank) {
  if (!has_sockets()) GTEST_SKIP() << "built without ZeroMQ";
  const Outcome outcome = launch(3, "digest 1");
  EXPECT_EQ(outcome.code, 3) << outcome.text;
  EXPECT_EQ(outcome.text,
            "error: checkpoint differs between ranks: rank 0 has aa11 (/models/0), rank 1 has bb22 (/models/1); give all ranks the "
            "same checkpoint\n");
  EXPECT_EQ(launch(3, "digest 9").code, 0);
}

struct Fault {
  std::string kind;
  int size, rank, step;
};

/// One fault: everybody ends in time, with one message that names the rank and its phase, and nothing stays behind.
std::string check_fault(const Fault& fault, int number) {
  const std::string mark = fmt::format("mark-{}-{}", getpid(), number);
  const Outcome outcome = launch(fault.size, fmt::format("fault {} {} {} {}", fault.kind, fault.rank, fault.step, mark));
  const std::string what =
      fmt::format("{} of rank {} of {} at step {}: exit code {} after {:.1f} s, named after {:.1f} s: {}", fault.kind, fault.rank,
                  fault.size, fault.step, outcome.code, outcome.seconds, outcome.named_after, outcome.text);
  if (processes_with(mark) > 0) return "processes are left: " + what;
  if (outcome.code != 6) return "exit code: " + what;
  if (fault.kind == "early")
    return outcome.text.find(fmt::format("rank {} of {} ended with exit code 3", fault.rank, fault.size)) == std::string::npos ? what
                                                                                                                               : "";
  constexpr std::array<const char*, 3> kPhases{"loading", "step", "draining"};
  const std::string wanted = fmt::format("error: rank {} (phase {})", fault.rank, kPhases[static_cast<size_t>(fault.step / 10) % 3]);
  size_t named = 0;
  for (size_t at = 0; (at = outcome.text.find(wanted, at)) != std::string::npos; ++at) ++named;
  if (named != 1 || outcome.named_after > 5) return "message: " + what;
  return "";
}

/// Steps are chosen a little after the beginning of a phase: who is killed in the instant of a change may be named with the phase
/// before.
TEST(Faults, EveryRankEndsInTimeAndNamesTheCulprit) {
  if (!has_sockets()) GTEST_SKIP() << "built without ZeroMQ";
  const char* number = std::getenv("CONCLAVE_FAULTS");
  const int faults = number ? std::atoi(number) : 20;
  const std::vector<std::string> kinds{"kill", "stop", "exit", "throw", "abort", "thread", "leave", "hang", "early"};
  std::mt19937 random(11);
  constexpr int kAtOnce = 4;
  for (int first = 0; first < faults; first += kAtOnce) {
    std::vector<std::future<std::string>> running;
    for (int i = first; i < std::min(faults, first + kAtOnce); ++i) {
      const int size = 2 + static_cast<int>(random() % 3);
      const Fault fault{kinds[static_cast<size_t>(i) % kinds.size()], size, static_cast<int>(random() % static_cast<unsigned>(size)),
                        static_cast<int>(random() % 6 * 10 + 2 + random() % 8)};
      running.push_back(std::async(std::launch::async, check_fault, fault, i));
    }
    for (auto& one : running) EXPECT_EQ(one.get(), "");
  }
}

TEST(Faults, ASupervisedGroupStartsAgain) {
  if (!has_sockets()) GTEST_SKIP() << "built without ZeroMQ";
  const Outcome outcome = run(fmt::format("TEST_RESTARTS=2 timeout 60 {} launch 3 1000 fault kill 1 15", CONCLAVE_COMM_RANK));
  EXPECT_EQ(outcome.code, 0) << outcome.text;
  EXPECT_NE(outcome.text.find("all 3 ranks start again (1 of at most 2 times)"), std::string::npos) << outcome.text;
  EXPECT_NE(outcome.text.find("3 ranks over sockets: all cases hold"), std::string::npos) << outcome.text;
}

TEST(Faults, TheLauncherPassesSigtermOnAndLeavesNobody) {
  if (!has_sockets()) GTEST_SKIP() << "built without ZeroMQ";
  const std::string mark = fmt::format("term-mark-{}", getpid());
  const Outcome outcome = run(fmt::format("timeout -s TERM 2 {} launch 3 1000 fault none 0 0 {}", CONCLAVE_COMM_RANK, mark));
  EXPECT_LT(outcome.seconds, 5);
  EXPECT_EQ(processes_with(mark), 0);
  run(fmt::format("timeout -s KILL 2 {} launch 3 1000 fault none 0 0 {}", CONCLAVE_COMM_RANK, mark));
  usleep(200'000);
  EXPECT_EQ(processes_with(mark), 0) << "ranks outlive their killed launcher";
}

TEST(Faults, UnderMpirunTheJobEndsAndLeavesNothing) {
  if (!has_mpi()) GTEST_SKIP() << "built without MPI, or no mpirun";
  const auto before = shared_memory();
  for (const std::string kind : {"kill", "stop", "throw"}) {
    const std::string mark = fmt::format("mpi-mark-{}-{}", getpid(), kind);
    const Outcome outcome = mpirun(3, fmt::format("fault {} 1 15 {}", kind, mark));
    EXPECT_NE(outcome.code, 0) << outcome.text;
    EXPECT_LT(outcome.seconds, 12) << outcome.text;
    if (kind != "kill") {
      EXPECT_NE(outcome.text.find("rank 1 (phase step)"), std::string::npos) << outcome.text;
    }
    EXPECT_EQ(processes_with(mark), 0) << kind;
  }
  EXPECT_EQ(shared_memory(), before);
}

}  // namespace
}  // namespace conclave
