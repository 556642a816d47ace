// conclave eval, ppl and kl as programs: files, resumption, refusals. The tasks themselves: tests/eval.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/process.h"

namespace conclave::testing {
namespace {

const std::string kData = std::string(CONCLAVE_TEST_DATA) + "/eval";
const std::string kDemo = std::string(CONCLAVE_SOURCE) + "/models/demo-mixtral";

std::string content(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

ProcessResult eval(std::vector<std::string> more) {
  std::vector<std::string> arguments{"eval", golden("mixtral-gqa"), "--threads", "1"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return conclave(arguments);
}

TEST(Eval, WritesTableItemsAndTheReferenceStacksFiles) {
  const TemporaryFolder folder;
  const auto items = folder.path / "items.jsonl";
  const ProcessResult r = eval({"--tasks", "boolq,mmlu", "--data", kData, "--limit", "4", "--batch-size", "4", "--items", items.string(), "--output",
                                folder.path.string(), "--model-name", "mixtral"});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  EXPECT_NE(r.out.find("| Tasks     | N-Shot | Total | Pass | Metric   | Value  | Stderr |"), std::string::npos) << r.out;
  EXPECT_NE(r.out.find("items have no title"), std::string::npos);
  const std::string lines = content(items);
  EXPECT_EQ(std::count(lines.begin(), lines.end(), '\n'), 8);
  for (const char* field : {"\"task\":\"boolq\"", "\"prompt_ids\":[1,", "\"extracted\":", "\"gold\":", "\"score\":", "\"logprob_yes\":", "\"logprob_no\":"})
    EXPECT_NE(lines.find(field), std::string::npos) << field;
  const std::string result = content(folder.path / "results/CPU/precision_test/full/bf16/mixtral/BoolQ_pa_batch4_tp1_full_result.csv");
  EXPECT_TRUE(result.starts_with("file_name,value,correct,sum\ntotal,")) << result;
  EXPECT_NE(result.find("\ndev.jsonl,"), std::string::npos);
  EXPECT_TRUE(content(folder.path / "debug/CPU/precision_test/full/bf16/mixtral/MMLU_pa_batch4_tp1_debug_info.csv")
                  .starts_with("key,queries,input_token_ids,output_token_ids,test_result,golden_result,pass\nanatomy_0,"));
  const ProcessResult same = conclave({"eval", "--compare", items.string(), items.string()});
  EXPECT_EQ(same.exit_code, 0) << same.err;
  EXPECT_NE(same.out.find("no item changed"), std::string::npos) << same.out;
}

/// Starts the program and sends it `signal` once `file` has `lines` lines; its exit code, 128 + signal when that ended it.
int interrupted(const std::vector<std::string>& arguments, const std::filesystem::path& file, std::ptrdiff_t lines, int signal) {
  const pid_t child = ::fork();
  if (child == 0) {
    std::vector<char*> argv{const_cast<char*>(CONCLAVE_BINARY)};
    for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    ::execv(CONCLAVE_BINARY, argv.data());
    ::_exit(127);
  }
  int status = 0;
  for (int i = 0; i < 12000 && ::waitpid(child, &status, WNOHANG) == 0; ++i) {
    const std::string text = content(file);
    if (std::count(text.begin(), text.end(), '\n') >= lines) {
      ::kill(child, signal);
      ::waitpid(child, &status, 0);
      return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    }
    ::usleep(5000);
  }
  ::kill(child, SIGKILL);
  return -1;
}

TEST(Eval, GoesOnAfterAnInterruptionWithTheSameBytes) {
  const TemporaryFolder folder;
  const auto whole = folder.path / "whole.jsonl", cut = folder.path / "cut.jsonl";
  const auto arguments = [&](const std::filesystem::path& items) {
    return std::vector<std::string>{"eval", golden("mixtral-gqa"), "--threads", "1", "--tasks", "boolq,gsm8k", "--data", kData, "--items", items.string()};
  };
  ASSERT_EQ(conclave(arguments(whole)).exit_code, 0);
  const std::filesystem::path partial = cut.string() + ".partial";
  EXPECT_EQ(interrupted(arguments(cut), partial, 27, SIGINT), 1);  // the description, boolq's 24 items, two of gsm8k's 16
  EXPECT_FALSE(std::filesystem::exists(cut));
  std::ofstream(partial, std::ios::app) << R"({"task":"gsm8k","ind)";
  EXPECT_EQ(interrupted(arguments(cut), partial, 30, SIGKILL), 128 + SIGKILL);
  std::vector<std::string> other = arguments(cut);
  other.insert(other.end(), {"--limit", "3"});
  const ProcessResult refused = conclave(other);
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_NE(refused.err.find("is the beginning of another run: its limit is 0, now it is 3"), std::string::npos) << refused.err;
  const ProcessResult resumed = conclave(arguments(cut));
  ASSERT_EQ(resumed.exit_code, 0) << resumed.err;
  EXPECT_NE(resumed.err.find("boolq: going on after 24 items of an earlier run"), std::string::npos) << resumed.err;
  EXPECT_EQ(content(cut), content(whole));
}

TEST(Eval, RefusesWhatCannotBeScored) {
  const TemporaryFolder folder;
  const auto refused = [&](std::vector<std::string> more, const char* why, int code = 2) {
    const ProcessResult r = eval(std::move(more));
    EXPECT_EQ(r.exit_code, code) << r.err;
    EXPECT_NE(r.err.find(why), std::string::npos) << r.err;
  };
  refused({"--tasks", "boolq", "--data", kData, "--chat"}, "has no chat template");
  refused({"--tasks", "boolq", "--data", folder.path.string()}, "https://github.com/google-research-datasets/boolean-questions");
  refused({"--tasks", "nothing", "--data", kData}, "there is no task \"nothing\"");
  refused({"--data", kData}, "no --tasks given");
  refused({"--tasks", "boolq"}, "no --data DIR given");
  refused({"--tasks", "boolq,boolq", "--data", kData}, "stands twice");
  refused({"--tasks", "boolq", "--data", kData, "--shots", "5"}, "takes no examples");
  refused({"--tasks", "truthfulqa", "--data", kData, "--style", "lm-eval"}, "reference stack's form only", 3);
  const ProcessResult samples = eval({"--tasks", "humaneval", "--data", kData, "--samples", "4"});
  EXPECT_TRUE(samples.err.find("give a temperature") != std::string::npos || samples.err.find("no sandbox on this machine") != std::string::npos)
      << samples.err;
  std::filesystem::create_directories(folder.path / "boolq");
  folder.write("boolq/dev.jsonl", "{\"question\": \"q\", \"passage\": \"p\", \"answer\": true}\n{\"question\": 1.5, \"passage\": [], \"answer\": true}\n");
  refused({"--tasks", "boolq", "--data", folder.path.string()}, "dev.jsonl:2: \"passage\" is array, wanted text");
}

TEST(Eval, RunsTheProgramsOfHumanEval) {
  const ProcessResult r = eval({"--tasks", "humaneval", "--data", kData, "--limit", "1"});
  if (r.exit_code == 3) GTEST_SKIP() << r.err;
  EXPECT_EQ(r.exit_code, 0) << r.err;
  EXPECT_NE(r.out.find("pass@1"), std::string::npos) << r.out;
}

/// Item lines without what rounding may change; `prompt_ids` and the other fields stay.
std::vector<nlohmann::json> without_logprobs(const std::string& lines) {
  std::vector<nlohmann::json> items;
  std::istringstream in(lines);
  for (std::string line; std::getline(in, line);) {
    items.push_back(nlohmann::json::parse(line));
    items.back().erase("logprob_yes");
    items.back().erase("logprob_no");
  }
  return items;
}

TEST(Eval, GivesTheSameItemsOnTwoRanks) {
  const TemporaryFolder folder;
  const auto items = [&](const std::string& name, std::vector<std::string> layout) {
    const auto file = folder.path / (name + ".jsonl");
    std::vector<std::string> arguments{"--tasks", "boolq,mmlu", "--data", kData, "--limit", "6", "--batch-size", "4", "--items", file.string(), "--output",
                                       (folder.path / name).string(), "--model-name", "m"};
    arguments.insert(arguments.end(), layout.begin(), layout.end());
    const ProcessResult r = eval(arguments);
    EXPECT_EQ(r.exit_code, 0) << r.err;
    return content(file);
  };
  const std::string one = items("one", {});
  EXPECT_EQ(std::count(one.begin(), one.end(), '\n'), 12);
  EXPECT_EQ(items("world", {"--tp", "2", "--deterministic=world"}), one);
  EXPECT_EQ(items("experts", {"--tp", "2", "--moe-ep", "2", "--deterministic=world"}), one);
  EXPECT_EQ(items("stages", {"--pp", "2"}), one);
  EXPECT_EQ(without_logprobs(items("two", {"--tp", "2"})), without_logprobs(one));
  EXPECT_TRUE(std::filesystem::exists(folder.path / "two/results/CPU/precision_test/full/bf16/m/BoolQ_pa_batch4_tp2_full_result.csv"));
}

TEST(Ppl, OfTwoRanksIsThatOfOne) {
  const auto measured = [](std::vector<std::string> layout) {
    std::vector<std::string> arguments{"ppl", kDemo, "--text", kDemo + "/question.txt", "--window", "16", "--threads", "1", "--json"};
    arguments.insert(arguments.end(), layout.begin(), layout.end());
    const ProcessResult r = conclave(arguments);
    EXPECT_EQ(r.exit_code, 0) << r.err;
    return r.out;
  };
  const std::string one = measured({});
  EXPECT_EQ(measured({"--tp", "2", "--deterministic=world"}), one);
  const auto two = nlohmann::json::parse(measured({"--tp", "2"})), alone = nlohmann::json::parse(one);
  EXPECT_EQ(two["tokens"], alone["tokens"]);
  EXPECT_NEAR(two["nll"].get<double>(), alone["nll"].get<double>(), 1e-4);
}

TEST(Ppl, StatesWindowsAndErrorBar) {
  const std::string question = kDemo + "/question.txt";
  const ProcessResult alone = conclave({"ppl", kDemo, "--text", question, "--window", "16", "--stride", "8", "--threads", "1", "--json"});
  ASSERT_EQ(alone.exit_code, 0) << alone.err;
  EXPECT_NE(alone.out.find("\"window\":16,\"stride\":8"), std::string::npos) << alone.out;
  const ProcessResult batch = conclave({"ppl", kDemo, "--text", question, "--window", "16", "--stride", "8", "--threads", "1", "--batch-size", "4", "--json"});
  EXPECT_EQ(alone.out, batch.out);
  EXPECT_EQ(conclave({"ppl", kDemo}).exit_code, 2);
  EXPECT_EQ(conclave({"ppl", kDemo, "--text", question, "--stride", "0", "--window", "1"}).exit_code, 2);
}

TEST(Kl, OfAModelFromItselfIsZero) {
  const ProcessResult r = conclave({"kl", kDemo, kDemo, "--text", kDemo + "/question.txt", "--threads", "1"});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  EXPECT_NE(r.out.find("mean 0 +- 0"), std::string::npos) << r.out;
  EXPECT_NE(r.out.find("100.000 %"), std::string::npos);
  EXPECT_EQ(conclave({"kl", kDemo, golden("mixtral-gqa"), "--text", kDemo + "/question.txt"}).exit_code, 2);
  EXPECT_EQ(conclave({"kl", kDemo, "--text", kDemo + "/question.txt"}).exit_code, 2);
}

TEST(Kl, MeasuresEachOfTwoModelsAsPplDoes) {
  const auto measured = [](std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--text", kDemo + "/question.txt", "--window", "32", "--threads", "1", "--json"});
    const ProcessResult r = conclave(arguments);
    EXPECT_EQ(r.exit_code, 0) << r.err;
    return nlohmann::json::parse(r.out);
  };
  const std::string two = golden("mixtral-sharded"), three = golden("mixtral-gqa");  // layers
  for (const auto& [a, b] : {std::pair(two, three), std::pair(three, two)}) {
    const auto kl = measured({"kl", a, b});
    EXPECT_NEAR(kl["nll_a"].get<double>(), measured({"ppl", a})["nll"].get<double>(), 1e-4) << a;
    EXPECT_NEAR(kl["nll_b"].get<double>(), measured({"ppl", b})["nll"].get<double>(), 1e-4) << b;
    EXPECT_GT(kl["kl_mean"].get<double>(), 0);
  }
  const ProcessResult other = conclave({"kl", three, golden("ernie-interval2"), "--text", kDemo + "/question.txt"});
  EXPECT_EQ(other.exit_code, 2);
  EXPECT_NE(other.err.find("read the text as different ids"), std::string::npos) << other.err;
}

}  // namespace
}  // namespace conclave::testing
