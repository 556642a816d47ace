// Many ranks from the command line: threads of one process, split folders, and processes that a launcher names.
#include <gtest/gtest.h>

#include <future>
#include <nlohmann/json.hpp>

#include "cli/process.h"

namespace conclave::testing {
namespace {

using Json = nlohmann::json;

std::vector<int> output_ids(const ProcessResult& r) {
  EXPECT_EQ(r.exit_code, 0) << r.err;
  return r.exit_code == 0 ? Json::parse(r.out).at("output_ids").get<std::vector<int>>() : std::vector<int>{};
}

std::vector<std::string> ask(const std::string& model, std::vector<std::string> more = {}) {
  std::vector<std::string> arguments{"run", model, "--prompt-ids", "5,17,9,33,2,41", "--no-tokenizer", "--ignore-eos", "--max-output-length", "8",
                                     "--precision", "exact", "--threads", "1", "--json"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

TEST(Ranks, ThreadsAnswerAsOneRankDoes) {
  const std::string model = golden("deepseek_v3-bf16");
  const auto want = output_ids(conclave(ask(model)));
  ASSERT_EQ(want.size(), 8u);
  for (const std::vector<std::string>& layout : {std::vector<std::string>{"--tp", "2"}, {"--tp", "2", "--moe-ep", "2"}, {"--pp", "2"}, {"--dp", "2"},
                                                 {"--tp", "2", "--sp", "2"}, {"--tp", "4", "--moe-ep", "2", "--deterministic=world"}})
    EXPECT_EQ(output_ids(conclave(ask(model, layout))), want) << layout[0] << layout[1];
}

TEST(Ranks, SplitFoldersBringTheirLayoutAndJoinAgain) {
  const std::string model = golden("mixtral-gqa");
  const TemporaryFolder folder;
  const std::string split = (folder.path / "split").string(), joined = (folder.path / "joined").string();
  ASSERT_EQ(conclave({"split", "--in", model, "--out", split, "--world", "2"}).exit_code, 0);
  const auto want = output_ids(conclave(ask(model)));
  EXPECT_EQ(output_ids(conclave(ask(split))), want);
  const ProcessResult other = conclave(ask(split, {"--tp", "4"}));
  EXPECT_EQ(other.exit_code, 3);
  EXPECT_NE(other.err.find("--tp 2"), std::string::npos) << other.err;
  ASSERT_EQ(conclave({"split", "--join", "--in", split, "--out", joined}).exit_code, 0);
  EXPECT_EQ(output_ids(conclave(ask(joined))), want);
  EXPECT_EQ(conclave({"split", "--in", model, "--out", model}).exit_code, 2);
}

TEST(Ranks, ProcessesOfARendezvousAnswerOnceThroughRankZero) {
  const std::string model = golden("mixtral-gqa");
  const auto start = [&](int rank) {
    return std::async(std::launch::async, [&model, rank] {
      return run_process(CONCLAVE_BINARY, {.arguments = ask(model, {"--tp", "2"}),
                                           .environment = {{"WORLD_SIZE", "2"}, {"RANK", std::to_string(rank)}, {"LOCAL_RANK", std::to_string(rank)},
                                                           {"MASTER_ADDR", "127.0.0.1"}, {"CONCLAVE_JOB", "ranks-test"}}});
    });
  };
  auto zero = start(0), one = start(1);
  const ProcessResult first = zero.get(), second = one.get();
  if (first.err.find("built without") != std::string::npos) GTEST_SKIP() << first.err;
  EXPECT_EQ(output_ids(first), output_ids(conclave(ask(model))));
  EXPECT_EQ(second.exit_code, 0) << second.err;
  EXPECT_EQ(second.out, "");
}

}  // namespace
}  // namespace conclave::testing
