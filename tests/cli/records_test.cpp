// What `conclave run` writes down about its steps, by option and by the reference stack's variables. Expected logits and
// experts are transformers' (golden.safetensors).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/process.h"
#include "io/safetensors.h"

namespace conclave::testing {
namespace {

using Json = nlohmann::json;
namespace fs = std::filesystem;
constexpr const char* kModel = "mixtral-gqa";
constexpr int kLayers = 3, kExperts = 8, kTopK = 2, kVocab = 512;

std::string read_all(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

Json prompt_of(const char* name) { return Json::parse(std::ifstream(golden(kModel) + "/golden.json"))["prompts"][name]; }

std::string ids_of(const char* name) {
  std::string text;
  const Json prompt = prompt_of(name);
  for (const Json& id : prompt["ids"]) text += (text.empty() ? "" : ",") + id.dump();
  return text;
}

ProcessResult run_with(std::vector<std::string> extra, std::map<std::string, std::string> environment = {}) {
  std::vector<std::string> arguments = {"run", golden(kModel), "--ignore-eos", "--precision", "exact"};
  arguments.insert(arguments.end(), extra.begin(), extra.end());
  return run_process(CONCLAVE_BINARY, {.arguments = arguments, .environment = std::move(environment)});
}

/// Values of a version 1.0 NumPy file of little-endian f32; empty when it is not one of that shape.
std::vector<float> read_npy(const fs::path& file, const std::string& shape) {
  const std::string bytes = read_all(file);
  if (bytes.size() < 10 || bytes.substr(0, 8) != std::string("\x93NUMPY\x01\x00", 8)) return {};
  const size_t header = static_cast<unsigned char>(bytes[8]) + 256u * static_cast<unsigned char>(bytes[9]);
  EXPECT_EQ((10 + header) % 64, 0u);
  const std::string text = bytes.substr(10, header);
  EXPECT_NE(text.find("'descr': '<f4'"), std::string::npos) << text;
  EXPECT_NE(text.find("'shape': " + shape), std::string::npos) << text;
  EXPECT_TRUE(text.ends_with("\n"));
  std::vector<float> values((bytes.size() - 10 - header) / sizeof(float));
  std::memcpy(values.data(), bytes.data() + 10 + header, values.size() * sizeof(float));
  return values;
}

TEST(Records, LogitsOfEveryStepAreTransformers) {
  const TemporaryFolder folder;
  const ProcessResult r = run_with({"--prompt-ids", ids_of("mid"), "--max-output-length", "12", "--dump-logits",
                                    (folder.path / "new" / "logits").string()});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  const SafetensorsFile reference(golden(kModel) + "/golden.safetensors");
  const auto* wanted = reinterpret_cast<const float*>(reference.tensors().at("mid.greedy.logits").data);
  float largest = 0;
  for (int i = 0; i < 12 * kVocab; ++i) largest = std::max(largest, std::fabs(wanted[i]));
  for (int step = 0; step < 12; ++step) {
    const fs::path file = folder.path / "new" / "logits" / ("logits_" + std::to_string(step) + ".npy");
    const std::vector<float> got = read_npy(file, "(1, 512)");
    ASSERT_EQ(got.size(), size_t{kVocab}) << file;
    for (size_t i = 0; i < got.size(); ++i)
      ASSERT_NEAR(got[i], wanted[static_cast<size_t>(step) * kVocab + i], 1e-4f * largest) << step << " " << i;
  }
  std::istringstream index(read_all(folder.path / "new" / "logits" / "logits.jsonl"));
  int lines = 0;
  for (std::string line; std::getline(index, line); ++lines)
    EXPECT_EQ(Json::parse(line), (Json{{"step", lines}, {"requests", {0}}}));
  EXPECT_EQ(lines, 12);
}

TEST(Records, ExpertStatisticsCountTransformersExperts) {
  const TemporaryFolder folder;
  const std::string file = (folder.path / "e.json").string();
  const ProcessResult r =
      run_with({"--prompt-ids", ids_of("mid"), "--max-output-length", "1", "--expert-stats", file});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  const SafetensorsFile reference(golden(kModel) + "/golden.safetensors");
  const size_t tokens = prompt_of("mid")["ids"].size();
  Json layers = Json::array();
  for (int layer = 0; layer < kLayers; ++layer) {
    std::vector<int> counts(kExperts);
    const auto& experts = reference.tensors().at("mid.layer." + std::to_string(layer) + ".experts");
    const auto* ids = reinterpret_cast<const int32_t*>(experts.data);
    for (size_t i = 0; i < tokens * kTopK; ++i) ++counts[static_cast<size_t>(ids[i])];
    layers.push_back({{"layer", layer}, {"tokens", counts}});
  }
  EXPECT_EQ(Json::parse(read_all(file)), (Json{{"layers", layers}, {"steps", 1}, {"tokens", tokens}}));
}

TEST(Records, ExpertStatisticsListOnlyLayersWithExperts) {
  const TemporaryFolder folder;
  const std::string file = (folder.path / "e.json").string();
  const ProcessResult r = conclave({"run", golden("deepseek_v3-bf16"), "--prompt-ids", "1,60,291",
                                    "--max-output-length", "3", "--ignore-eos", "--expert-stats", file});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  const Json config = Json::parse(std::ifstream(golden("deepseek_v3-bf16") + "/config.json"));
  const Json stats = Json::parse(read_all(file));
  EXPECT_EQ(stats["steps"], 3);
  EXPECT_EQ(stats["tokens"], 5);
  ASSERT_FALSE(stats["layers"].empty());
  EXPECT_EQ(stats["layers"][0]["layer"], config["first_k_dense_replace"]);
  for (const Json& layer : stats["layers"]) {
    EXPECT_EQ(layer["tokens"].size(), config["n_routed_experts"].get<size_t>());
    int sum = 0;
    for (const Json& n : layer["tokens"]) sum += n.get<int>();
    EXPECT_EQ(sum, 5 * config["num_experts_per_tok"].get<int>());
  }
}

TEST(Records, TraceHoldsTheStagesOfEveryStepInsideEachOther) {
  const TemporaryFolder folder;
  const std::string file = (folder.path / "t.json").string();
  const ProcessResult r =
      run_with({"--prompt-ids", "1,2,3 4,5", "--max-output-length", "3", "--trace", file});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  const Json trace = Json::parse(read_all(file));
  std::map<std::string, std::vector<Json>> events;
  for (const Json& event : trace["traceEvents"])
    if (event["ph"] == "X") events[event["name"]].push_back(event);
  for (const char* stage : {"step", "schedule", "forward", "head", "sample", "commit"})
    EXPECT_EQ(events[stage].size(), 3u) << stage;
  for (const char* part : {"attention", "router", "ffn"}) EXPECT_EQ(events[part].size(), 3u * kLayers) << part;
  const auto end = [](const Json& e) { return e["ts"].get<double>() + e["dur"].get<double>(); };
  const auto inside = [&](const Json& outer, const Json& inner) {
    constexpr double kRounding = 0.002;
    return inner["ts"].get<double>() >= outer["ts"].get<double>() - kRounding && end(inner) <= end(outer) + kRounding;
  };
  for (size_t step = 0; step < 3; ++step) {
    const Json& whole = events["step"][step];
    EXPECT_EQ(whole["args"]["sequences"], 2);
    EXPECT_EQ(whole["args"]["rows"], step == 0 ? 5 : 2);
    EXPECT_EQ(whole["args"]["prompt_rows"], step == 0 ? 5 : 0);
    double parts = events["head"][step]["dur"].get<double>();
    for (int layer = 0; layer < kLayers; ++layer) {
      for (const char* part : {"attention", "router", "ffn"}) {
        const Json& event = events[part][step * kLayers + static_cast<size_t>(layer)];
        EXPECT_EQ(event["args"]["layer"], layer);
        EXPECT_TRUE(inside(events["forward"][step], event)) << part;
        parts += event["dur"].get<double>();
      }
    }
    EXPECT_NEAR(parts, events["forward"][step]["dur"].get<double>(), 0.1);
    for (const char* stage : {"schedule", "forward", "sample", "commit"}) EXPECT_TRUE(inside(whole, events[stage][step]));
  }
}

TEST(Records, VariablesOfTheReferenceStackAskForTheSameFiles) {
  const TemporaryFolder folder;
  const std::string at = folder.path.string();
  const ProcessResult r =
      run_with({"--prompt-ids", "1,2,3", "--max-output-length", "2"}, {{"ATB_LLM_LOGITS_SAVE_ENABLE", "1"},
                                                                       {"ATB_LLM_LOGITS_SAVE_FOLDER", at + "/l"},
                                                                       {"ATB_PROFILING_ENABLE", "1"},
                                                                       {"PROFILING_FILEPATH", at + "/p"},
                                                                       {"MINDIE_ENABLE_EXPERT_HOTPOT_GATHER", "1"},
                                                                       {"MINDIE_EXPERT_HOTPOT_DUMP_PATH", at + "/e"}});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  for (const char* file : {"/l/logits_0.npy", "/l/logits_1.npy", "/l/logits.jsonl", "/p/trace.json", "/e/expert_stats.json"})
    EXPECT_TRUE(fs::is_regular_file(at + file)) << file;
  EXPECT_EQ(r.err.find("has no effect"), std::string::npos) << r.err;
  const ProcessResult off = run_with({"--prompt-ids", "1", "--print-config"}, {{"ATB_LLM_LOGITS_SAVE_ENABLE", "0"},
                                                                             {"ATB_PROFILING_ENABLE", "0"},
                                                                             {"MINDIE_ENABLE_EXPERT_HOTPOT_GATHER", "0"}});
  for (const char* option : {"dump_logits", "trace", "expert_stats"})
    EXPECT_NE(off.out.find(std::string("\n") + option + " = \"\""), std::string::npos) << off.out;
}

TEST(Records, UnwritablePlacesAreRefusedBeforeAnyWork) {
  const TemporaryFolder folder;
  const std::string inside = folder.write("file", "").string() + "/x";
  for (const std::string option : {"--dump-logits", "--trace", "--expert-stats"}) {
    const ProcessResult r = run_with({"--prompt-ids", "1", option, inside});
    EXPECT_EQ(r.exit_code, 1) << r.err;
    EXPECT_EQ(r.out, "");
    EXPECT_NE(r.err.find(option + ": cannot make the folder"), std::string::npos) << r.err;
  }
}

TEST(ReferenceVariables, SwitchesActAndSayWhereTheyCameFrom) {
  const auto line = [](const std::string& variable, const std::string& value, const std::string& key) {
    const ProcessResult r = run_with({"--print-config"}, {{variable, value}});
    const size_t at = r.out.find("\n" + key + " = ");
    return at == std::string::npos ? r.out : r.out.substr(at + 1, r.out.find('\n', at + 1) - at - 1);
  };
  const auto expect = [&](const std::string& variable, const std::string& value, const std::string& key,
                          const std::string& wanted) {
    const std::string got = line(variable, value, key);
    EXPECT_TRUE(got.starts_with(key + " = " + wanted + " ")) << got;
    EXPECT_TRUE(got.ends_with("# variable " + variable)) << got;
  };
  expect("INF_NAN_MODE_ENABLE", "0", "fp16_overflow", "\"saturate\"");
  expect("INF_NAN_MODE_ENABLE", "1", "fp16_overflow", "\"inf\"");
  expect("INF_NAN_MODE_FORCE_DISABLE", "1", "fp16_overflow", "\"saturate\"");
  expect("LCCL_DETERMINISTIC", "1", "deterministic", "\"true\"");
  expect("HCCL_DETERMINISTIC", "true", "deterministic", "\"true\"");
  expect("ATB_MATMUL_SHUFFLE_K_ENABLE", "0", "deterministic", "\"true\"");
  expect("MINDIE_LOG_TO_STDOUT", "1", "log_stdout", "true");
  expect("MINDIE_LOG_TO_STDOUT", "server:0; llm:1", "log_stdout", "true");
  expect("BIND_CPU", "0", "bind", "\"off\"");
  EXPECT_TRUE(line("LCCL_DETERMINISTIC", "0", "deterministic").ends_with("# default"));
}

TEST(ReferenceVariables, LogsGoToTheFolderOrTheStateDirectory) {
  const TemporaryFolder folder;
  const std::string at = folder.path.string();
  const auto path = [](std::map<std::string, std::string> environment) {
    const ProcessResult r = run_with({"--print-config"}, std::move(environment));
    const size_t begin = r.out.find("\nlog_file = \"") + 13;
    return r.out.substr(begin, r.out.find('"', begin) - begin);
  };
  EXPECT_EQ(path({{"MINDIE_LOG_TO_FILE", "1"}, {"MINDIE_LOG_PATH", at}}), at + "/conclave.log");
  EXPECT_EQ(path({{"MINDIE_LOG_TO_FILE", "1"}, {"XDG_STATE_HOME", at}}), at + "/conclave/conclave.log");
  EXPECT_EQ(path({{"MINDIE_LOG_TO_FILE", "0"}, {"MINDIE_LOG_PATH", at}}), "");
  const ProcessResult r = run_with({"--prompt-ids", "1", "--max-output-length", "1"},
                                   {{"MINDIE_LOG_TO_FILE", "1"}, {"MINDIE_LOG_PATH", at + "/new"}});
  EXPECT_EQ(r.exit_code, 0) << r.err;
  EXPECT_NE(read_all(folder.path / "new" / "conclave.log").find("loaded in"), std::string::npos);
}

TEST(Logs, StandOnStandardOutputOnlyBetweenProse) {
  const ProcessResult prose = run_with({"--prompt-ids", "1", "--max-output-length", "1", "--log-stdout"});
  EXPECT_EQ(prose.exit_code, 0) << prose.err;
  EXPECT_EQ(prose.err, "");
  EXPECT_NE(prose.out.find("conclave: MixtralForCausalLM"), std::string::npos) << prose.out;
  EXPECT_NE(prose.out.find("\nAnswer[0]: "), std::string::npos) << prose.out;
  const ProcessResult json = run_with({"--prompt-ids", "1", "--json"}, {{"MINDIE_LOG_TO_STDOUT", "1"}});
  EXPECT_EQ(json.exit_code, 0) << json.err;
  EXPECT_TRUE(Json::accept(json.out)) << json.out;
  EXPECT_NE(json.err.find("conclave: MixtralForCausalLM"), std::string::npos) << json.err;
  const ProcessResult refused = run_with({"--prompt-ids", "1", "--json", "--log-stdout"});
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_NE(refused.err.find("--log-stdout"), std::string::npos) << refused.err;
}

TEST(WarmUp, RunsWhenAskedOrMeasuredAndChangesNothing) {
  const auto run = [](std::vector<std::string> extra) {
    extra.insert(extra.end(), {"--prompt-ids", "1,60,291", "--max-output-length", "4", "--max-input-length", "64"});
    return run_with(extra);
  };
  const ProcessResult plain = run({}), warm = run({"--warm-up"});
  EXPECT_EQ(plain.err.find("warm-up"), std::string::npos) << plain.err;
  EXPECT_NE(warm.err.find("begin warm-up: 1 prompt of 64 tokens, 1 new token"), std::string::npos) << warm.err;
  EXPECT_NE(warm.err.find("end warm-up: "), std::string::npos) << warm.err;
  EXPECT_EQ(warm.out, plain.out);
  const ProcessResult reference = run({"--compat-output", "--max-batch-size", "2"});
  for (const char* part : {"begin warm-up: 2 prompts of 64 tokens", "2 requests", "begin inference", "end inference"})
    EXPECT_NE(reference.err.find(part), std::string::npos) << part << " not in " << reference.err;
  EXPECT_EQ(run({"--compat-output", "--warm-up=off"}).err.find("warm-up"), std::string::npos);
}

}  // namespace
}  // namespace conclave::testing
