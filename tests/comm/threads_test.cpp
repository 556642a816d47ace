#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "comm/cases.h"
#include "comm/communicator.h"
#include "core/error.h"

namespace conclave {
namespace {

using Clock = std::chrono::steady_clock;

/// Runs `body` in one thread per rank; gives the text of the exception that ended each of them ("" if none).
std::vector<std::string> run_ranks(int size, int timeout_ms, const std::function<void(Communicator&)>& body) {
  auto ranks = make_threads(size, timeout_ms);
  std::vector<std::string> ends(ranks.size());
  std::vector<std::thread> threads;
  for (size_t r = 0; r < ranks.size(); ++r)
    threads.emplace_back([&, r] {
      const std::unique_ptr<Communicator> own = std::move(ranks[r]);
      try {
        body(*own);
      } catch (const std::exception& e) {
        ends[r] = e.what();
      }
    });
  for (std::thread& thread : threads) thread.join();
  return ends;
}

bool says(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST(Self, IsTheIdentityInEveryCall) {
  const auto self = make_self();
  EXPECT_EQ(self->name(), "self");
  test::check_all(*self);
  EXPECT_THROW(self->send({}, 0), Error);
  self->abort("the test says so");
  EXPECT_THROW(self->barrier(), Error);
}

class Threads : public testing::TestWithParam<int> {};

TEST_P(Threads, GiveTheSumsInRankOrderOnEveryRank) {
  for (const std::string& end : run_ranks(GetParam(), 60'000, test::check_all)) EXPECT_EQ(end, "");
}

INSTANTIATE_TEST_SUITE_P(Sizes, Threads, testing::Values(1, 2, 3, 4, 5, 6, 7, 8), testing::PrintToStringParamName());

TEST(ThreadsFault, DifferentSizesEndEveryRank) {
  const auto ends = run_ranks(3, 0, [](Communicator& comm) {
    std::vector<float> row(comm.rank() == 1 ? 5 : 4);
    comm.all_reduce_sum(row);
    comm.barrier();
  });
  for (const std::string& end : ends) EXPECT_TRUE(says(end, "all_reduce_sum") && says(end, "bytes")) << end;
}

TEST(ThreadsFault, DifferentCallsEndEveryRank) {
  const auto ends = run_ranks(2, 0, [](Communicator& comm) {
    std::vector<std::byte> bytes;
    if (comm.rank() == 0) comm.barrier();
    else comm.broadcast(bytes, 0);
  });
  for (const std::string& end : ends) EXPECT_TRUE(says(end, "barrier") && says(end, "broadcast")) << end;
}

TEST(ThreadsFault, ARankThatLeavesIsNamedWithItsPhase) {
  const auto ends = run_ranks(4, 0, [](Communicator& comm) {
    comm.phase(comm.rank() == 2 ? "loading" : "step");
    comm.barrier();
    if (comm.rank() == 2) throw std::runtime_error("disk gone");
    while (true) comm.barrier();
  });
  for (const size_t r : {0u, 1u, 3u}) EXPECT_TRUE(says(ends[r], "rank 2 (phase loading) left")) << ends[r];
}

TEST(ThreadsFault, ARankThatHangsIsNamedAfterTheLimit) {
  const auto start = Clock::now();
  const auto ends = run_ranks(3, 200, [](Communicator& comm) {
    comm.phase("step");
    if (comm.rank() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(600));
    comm.barrier();
  });
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(3));
  for (const std::string& end : ends) EXPECT_TRUE(says(end, "rank 1 (phase step) did not come to barrier within 200 ms")) << end;
}

TEST(ThreadsFault, AbortFromAnotherThreadEndsPendingCallsOfAllGroups) {
  auto ranks = make_threads(3);
  std::vector<std::string> ends(3);
  std::vector<std::thread> threads;
  for (size_t r = 0; r < 3; ++r)
    threads.emplace_back([&, r] {
      try {
        ranks[r]->phase("step");
        const auto group = ranks[r]->split(r == 0 ? 1 : 0, 0);
        std::vector<std::byte> one(1);
        if (r == 0) ranks[0]->receive(one, 1);
        else if (r == 1) group->barrier();
        else ranks[2]->receive(one, 0);
      } catch (const Error& e) {
        ends[r] = e.kind == Error::Kind::network ? e.what() : "other kind";
      }
    });
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  ranks[1]->abort("out of patience");
  for (std::thread& thread : threads) thread.join();
  for (const std::string& end : ends) EXPECT_EQ(end, "rank 1 (phase step) ended: out of patience");
}

TEST(ThreadsFault, MemoryThatOthersReadOutlivesAnAbort) {
  for (int round = 0; round < 30; ++round)
    run_ranks(4, 0, [round](Communicator& comm) {
      for (int i = 0;; ++i) {
        std::vector<float> row(20'000, 1);
        if (comm.rank() == round % 4 && i == 1 + round / 4) comm.abort("now");
        comm.all_reduce_sum(row);
      }
    });
}

TEST(ThreadsFault, ImpossibleSizesAreRefused) {
  EXPECT_THROW(make_threads(0), Error);
  EXPECT_THROW(make_threads(-3), Error);
  EXPECT_THROW(make_threads(1'000'000), Error);
}

}  // namespace
}  // namespace conclave
