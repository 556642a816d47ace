// What every command shares: help, versions, exit codes, one-line errors, configuration.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "cli/process.h"

namespace conclave::testing {
namespace {

const std::vector<std::string> kCommands = {"run",        "chat",     "dump",    "tokenize",
                                            "detokenize", "template", "inspect", "bench", "synth", "quantize", "serve"};

void expect_error(const ProcessResult& r, int code, const std::vector<std::string>& parts) {
  EXPECT_FALSE(r.timed_out);
  EXPECT_EQ(r.exit_code, code) << r.err;
  EXPECT_NE(r.err.find("conclave: error: "), std::string::npos) << r.err;
  const size_t at = r.err.find("conclave: error: ");
  if (at != std::string::npos) { EXPECT_EQ(r.err.find('\n', at), r.err.size() - 1) << "more than one line: " << r.err; }
  for (const std::string& part : parts)
    EXPECT_NE(r.err.find(part), std::string::npos) << "\"" << part << "\" not in: " << r.err;
}

TEST(Usage, VersionAndHelp) {
  const ProcessResult version = conclave({"--version"});
  EXPECT_EQ(version.exit_code, 0);
  EXPECT_TRUE(version.out.starts_with("conclave ")) << version.out;
  const ProcessResult help = conclave({"--help"});
  EXPECT_EQ(help.exit_code, 0);
  for (const std::string& command : kCommands) EXPECT_NE(help.out.find("\n  " + command), std::string::npos) << command;
  EXPECT_EQ(help.err, "");
}

TEST(Usage, EveryCommandHasHelpWithAnExample) {
  for (const std::string& command : kCommands) {
    for (const auto& arguments : {std::vector<std::string>{command, "--help"}, {command, "-h"}, {"help", command}}) {
      const ProcessResult r = conclave(arguments);
      EXPECT_EQ(r.exit_code, 0) << command;
      EXPECT_NE(r.out.find("usage: conclave " + command), std::string::npos) << r.out;
      EXPECT_NE(r.out.find("examples:\n  "), std::string::npos) << r.out;
    }
  }
}

TEST(Usage, MistakesExitWithTwoAndSuggest) {
  expect_error(conclave({}), 2, {"--help"});
  expect_error(conclave({"rnu"}), 2, {"rnu", "did you mean run?"});
  expect_error(conclave({"run", "--max-output-lenght", "3"}), 2,
               {"--max-output-lenght", "did you mean --max-output-length?"});
  expect_error(conclave({"run", "x", "--max-output-length", "many"}), 2, {"--max-output-length", "many"});
  expect_error(conclave({"run", "x", "--kv", "disk"}), 2, {"--kv", "disk", "paged, contiguous"});
  expect_error(conclave({"run", "x", "--block-size", "577"}), 2, {"--block-size", "577", "1 to 576"});
  expect_error(conclave({"run"}), 2, {"no model given"});
  expect_error(conclave({"tokenize"}), 2, {"no model given"});
  expect_error(conclave({"template"}), 2, {"--messages"});
  expect_error(conclave({"dump", golden("mixtral-gqa"), "extra"}), 2, {"extra"});
}

TEST(Usage, MissingModelsExitWithThree) {
  for (const std::string command : {"run", "chat", "dump", "inspect"}) {
    std::vector<std::string> arguments = {command, "/nonexistent/model"};
    if (command == "dump")
      arguments.insert(arguments.end(), {"--prompt-ids", "1", "--out", "/tmp/conclave_unused.safetensors"});
    expect_error(conclave(arguments), 3, {"/nonexistent/model"});
  }
  expect_error(conclave({"tokenize", "/nonexistent/model", "x"}), 3, {"/nonexistent/model"});
}

TEST(Usage, ManyRanksAndForeignFeaturesAreRefusedByName) {
  const std::string model = golden("mixtral-gqa");
  expect_error(conclave({"run", model, "hi", "--tp", "99"}), 2, {"--tp 99", "query heads"});
  expect_error(conclave({"run", model, "hi", "--pp", "2", "--dp", "2"}), 2, {"--pp 2", "--dp 2"});
  expect_error(conclave({"run", model, "hi", "--ranks", "processes"}), 2, {"--ranks", "mpirun"});
  expect_error(run_process(CONCLAVE_BINARY, {.arguments = {"run", model}, .environment = {{"TP_WORLD_SIZE", "77"}}}), 2,
               {"--tp", "77"});
  expect_error(conclave({"run", model, "--lora-modules", "{\"a\":\"b\"}"}), 2, {"--lora-modules", "LoRA"});
  expect_error(conclave({"run", model, "--is-embedding-model"}), 2, {"--is-embedding-model"});
  expect_error(conclave({"run", model, "--num-beams", "4"}), 2, {"--num-beams", "4"});
  EXPECT_EQ(conclave({"run", model, "hi", "--tp", "1", "--moe-ep", "-1", "--max-loras", "0"}).exit_code, 0);
}

TEST(Usage, PrintConfigShowsEveryOriginWithoutRunning) {
  const TemporaryFolder folder;
  const auto file = folder.write("c.toml", "block_size = 64\n[run]\nseed = 3\n");
  const ProcessResult r = run_process(
      CONCLAVE_BINARY,
      {.arguments = {"run", golden("mixtral-gqa"), "--print-config", "--config", file.string(), "--threads", "1"},
       .environment = {{"CONCLAVE_TEMPERATURE", "0.5"}, {"RESERVED_MEMORY_GB", "0.25"}}});
  EXPECT_EQ(r.exit_code, 0) << r.err;
  const auto line = [&](const std::string& key) {
    const size_t at = r.out.find("\n" + key + " = ");
    return at == std::string::npos ? "" : r.out.substr(at + 1, r.out.find('\n', at + 1) - at - 1);
  };
  const auto expect = [&](const std::string& key, const std::string& value, const std::string& origin) {
    EXPECT_TRUE(line(key).starts_with(key + " = " + value + " ")) << line(key);
    EXPECT_TRUE(line(key).ends_with("# " + origin)) << line(key);
  };
  expect("model", '"' + golden("mixtral-gqa") + '"', "argument");
  expect("threads", "1", "flag");
  expect("temperature", "0.5", "variable CONCLAVE_TEMPERATURE");
  expect("reserve_memory", "0.25", "variable RESERVED_MEMORY_GB");
  expect("block_size", "64", "file " + file.string() + ":1");
  expect("seed", "3", "file " + file.string() + ":3");
  expect("max_position_embeddings", "32768", "model: config.json");
  expect("max_output_length", "20", "default");
}

TEST(Usage, ConfigurationFileErrorsNameFileLineAndKey) {
  const TemporaryFolder folder;
  const auto file = folder.write("c.toml", "# mine\nblok_size = 64\n");
  expect_error(conclave({"run", golden("mixtral-gqa"), "--config", file.string()}), 2,
               {file.string() + ":2", "blok_size", "block_size"});
}

TEST(Usage, ReferenceVariablesWithoutEffectGetOneLine) {
  const ProcessResult r =
      run_process(CONCLAVE_BINARY, {.arguments = {"run", golden("mixtral-gqa"), "hi", "--max-output-length", "1"},
                                    .environment = {{"ASCEND_RT_VISIBLE_DEVICES", "0,1"}, {"TASK_QUEUE_ENABLE", "1"}}});
  EXPECT_EQ(r.exit_code, 0) << r.err;
  EXPECT_NE(r.err.find("conclave: ASCEND_RT_VISIBLE_DEVICES has no effect: devices are not chosen"), std::string::npos)
      << r.err;
  EXPECT_NE(r.err.find("conclave: TASK_QUEUE_ENABLE has no effect: "), std::string::npos) << r.err;
}

TEST(Usage, LogLevelAndLogFile) {
  const TemporaryFolder folder;
  const std::string log = (folder.path / "log.txt").string();
  const ProcessResult quiet = conclave({"run", golden("mixtral-gqa"), "hi", "--log-level", "off", "--log-file", log});
  EXPECT_EQ(quiet.exit_code, 0);
  EXPECT_EQ(quiet.err, "");
  const std::string inside = folder.write("file", "").string() + "/log";
  expect_error(conclave({"run", golden("mixtral-gqa"), "--log-file", inside}), 2, {"--log-file", inside});
}

TEST(Usage, OptionReferenceIsCurrent) {
  std::ifstream file(std::string(CONCLAVE_SOURCE) + "/docs/options.md");
  std::stringstream stored;
  stored << file.rdbuf();
  const ProcessResult r = conclave({"docs"});
  EXPECT_EQ(r.exit_code, 0);
  EXPECT_EQ(r.out, stored.str()) << "write it anew: build/conclave docs > docs/options.md";
}

}  // namespace
}  // namespace conclave::testing
