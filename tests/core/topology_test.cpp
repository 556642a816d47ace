#include "core/topology.h"

#include <sched.h>

#include <numeric>
#include <set>
#include <string>
#include <thread>

#include <gtest/gtest.h>

#include "core/error.h"
#include "core/thread_pool.h"

namespace conclave {
namespace {

Topology machine_of(int nodes, int processors) {
  Topology machine;
  for (int n = 0; n < nodes; ++n) {
    Topology::Node node{n, std::vector<int>(static_cast<size_t>(processors)), 0};
    std::iota(node.processors.begin(), node.processors.end(), n * processors);
    machine.nodes.push_back(node);
  }
  return machine;
}

std::vector<std::string> described(const std::vector<Place>& places) {
  std::vector<std::string> texts;
  for (const Place& place : places) texts.push_back(describe(place));
  return texts;
}

using Texts = std::vector<std::string>;

TEST(Placement, GivesWholeNodesWhereThereAreEnough) {
  EXPECT_EQ(described(place_ranks(machine_of(4, 8), 4)), (Texts{"processors 0-7 of node 0", "processors 8-15 of node 1",
                                                                "processors 16-23 of node 2", "processors 24-31 of node 3"}));
  EXPECT_EQ(described(place_ranks(machine_of(4, 8), 2)), (Texts{"processors 0-15 of nodes 0,1", "processors 16-31 of nodes 2,3"}));
  EXPECT_EQ(described(place_ranks(machine_of(2, 4), 1)), (Texts{"processors 0-7 of nodes 0,1"}));
}

TEST(Placement, SharesNodesEvenly) {
  EXPECT_EQ(described(place_ranks(machine_of(2, 4), 4)),
            (Texts{"processors 0-1 of node 0", "processors 2-3 of node 0", "processors 4-5 of node 1", "processors 6-7 of node 1"}));
  EXPECT_EQ(described(place_ranks(machine_of(1, 2), 2)), (Texts{"processor 0 of node 0", "processor 1 of node 0"}));
  EXPECT_EQ(described(place_ranks(machine_of(1, 2), 3)),
            (Texts{"processors 0-1 of node 0", "processors 0-1 of node 0", "processors 0-1 of node 0"}));
  EXPECT_EQ(described(place_ranks(machine_of(2, 4), 3)),
            (Texts{"processors 0-1 of node 0", "processors 2-3 of node 0", "processors 4-7 of node 1"}));
}

TEST(Placement, FollowsAMap) {
  EXPECT_EQ(described(place_ranks(machine_of(2, 4), 3, "2:0,0:1,1:1")),
            (Texts{"processors 4-5 of node 1", "processors 6-7 of node 1", "processors 0-3 of node 0"}));
}

TEST(Placement, RefusesAMapByItsEntry) {
  const auto refused = [](std::string_view map, const std::string& part) {
    try {
      place_ranks(machine_of(2, 4), 2, map);
    } catch (const Error& e) {
      return e.kind == Error::Kind::bad_input && std::string(e.what()).find(part) != std::string::npos;
    }
    return false;
  };
  EXPECT_TRUE(refused("", "not two whole numbers"));
  EXPECT_TRUE(refused("0:0", "rank 1 is missing"));
  EXPECT_TRUE(refused("0:0,0:1", "named twice"));
  EXPECT_TRUE(refused("0:0,2:1", "too large"));
  EXPECT_TRUE(refused("0:0,1:2", "no node 2"));
  EXPECT_TRUE(refused("0:0,1:-1", "\"1:-1\""));
  EXPECT_TRUE(refused("0:0,1:1,", "not two whole numbers"));
  EXPECT_TRUE(refused("0:0;1:1", "not two whole numbers"));
}

TEST(ThisMachine, NamesExactlyTheAllowedProcessors) {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  ASSERT_EQ(sched_getaffinity(0, sizeof mask, &mask), 0);
  std::set<int> named;
  for (const Topology::Node& node : this_machine().nodes) named.insert(node.processors.begin(), node.processors.end());
  EXPECT_EQ(named.size(), static_cast<size_t>(CPU_COUNT(&mask)));
  for (const int processor : named) EXPECT_TRUE(CPU_ISSET(static_cast<size_t>(processor), &mask)) << processor;
}

TEST(ThisMachine, BindsAThreadAndThePoolItStarts) {
  const std::vector<Place> places = place_ranks(this_machine(), 2);
  if (places[0].processors.size() == this_machine().nodes[0].processors.size()) GTEST_SKIP() << "one processor only";
  std::thread([&] {
    if (!bind_this_thread(places[1])) return;  // refused: not what is tested
    EXPECT_LE(available_processors(), static_cast<int>(places[1].processors.size()));
    ThreadPool pool(0);
    const std::set<int> wanted(places[1].processors.begin(), places[1].processors.end());
    pool.run([&](int) { EXPECT_TRUE(wanted.contains(sched_getcpu())); });
  }).join();
}

}  // namespace
}  // namespace conclave
