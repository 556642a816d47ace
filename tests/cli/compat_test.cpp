// The documented command lines of the reference stack, through the wrappers of compat/, on tiny checkpoints.
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/process.h"

namespace conclave::testing {
namespace {

namespace fs = std::filesystem;

std::string text_of(const fs::path& file) {
  std::stringstream text;
  text << std::ifstream(file).rdbuf();
  return text.str();
}

class Compat : public ::testing::Test {
 protected:
  /// A command line as a guide prints it, in a folder of its own; `compat/` stands for the wrappers. The tiny models have too few heads for 8
  /// ranks: two are started.
  ProcessResult sh(const std::string& line, std::map<std::string, std::string> environment = {}) const {
    environment.emplace("CONCLAVE", CONCLAVE_BINARY);
    environment.emplace("COMPAT_RANKS", "2");
    environment.emplace("CONCLAVE_THREADS", "1");  // threads of tiny models wait for each other more than they work
    std::string text = line;
    for (size_t at = text.find("compat/"); at != std::string::npos; at = text.find("compat/", at + 30))
      text.replace(at, 7, CONCLAVE_SOURCE "/compat/");
    return run_process("/bin/bash", {.arguments = {"-c", "cd '" + folder_.path.string() + "' && " + text}, .environment = environment});
  }
  void expect_answer(const ProcessResult& r, int tokens) const {
    EXPECT_EQ(r.exit_code, 0) << r.err;
    EXPECT_NE(r.out.find("Answer[0]: "), std::string::npos) << r.out;
    EXPECT_NE(r.out.find("Generate[0] token num: (0, " + std::to_string(tokens) + ")"), std::string::npos) << r.out;
    EXPECT_TRUE(r.out.ends_with("model run success\n")) << r.out;
  }
  TemporaryFolder folder_;
};

/// In quotation marks for the shell.
std::string quoted(const std::string& text) { return "'" + text + "'"; }
std::string deepseek() { return quoted(golden("deepseek_moe-bf16")); }
std::string mixtral() { return quoted(golden("mixtral-gqa")); }
std::string ernie() { return quoted(golden("ernie-tied")); }

TEST_F(Compat, DialogueOfTheDeepseekMoeGuide) {
  const ProcessResult r = sh("ASCEND_RT_VISIBLE_DEVICES=0,1,2,3,4,5,6,7 bash compat/run_pa_deepseek_moe.sh " + deepseek() + " -trust_remote_code");
  expect_answer(r, 10);
  EXPECT_NE(r.err.find("no remote code is ever run"), std::string::npos) << r.err;
  EXPECT_NE(r.err.find("Who\\ is\\ the\\ CEO\\ of\\ Google"), std::string::npos) << r.err;
}

TEST_F(Compat, DialogueOfTheMixtralGuide) {
  const std::string answer = sh("bash compat/run_pa.sh " + mixtral() + " -trust_remote_code").out;
  for (const std::string& line : std::vector<std::string>{"-trust_remote_code " + mixtral(), "--trust_remote_code " + mixtral() + " 1 2 2 1",
                                                          mixtral() + " 1 2 -trust_remote_code 1 2", mixtral() + " 2 1 1 -1"}) {
    const ProcessResult r = sh("bash compat/run_pa.sh " + line);
    expect_answer(r, 10);
    EXPECT_EQ(r.out, answer) << "the flag may stand anywhere, and a layout does not change the answer: " << line;
  }
  for (const std::string world : {"8", "10", "16"}) {  // the guide's own worlds, which this model's four heads do not divide among
    const ProcessResult r = sh("bash compat/run_pa.sh " + mixtral() + " 1 " + world + " " + world + " 1 -trust_remote_code");
    EXPECT_NE(r.exit_code, 0);
    EXPECT_NE(r.err.find("--tp " + world + " --moe-tp " + world + " --moe-ep 1 --ranks threads"), std::string::npos) << r.err;
    EXPECT_NE(r.err.find("num_attention_heads"), std::string::npos) << r.err;
  }
  EXPECT_EQ(sh("bash compat/run_pa.sh " + mixtral() + " 1 8").exit_code, 2);
  EXPECT_EQ(sh("bash compat/run_pa.sh").exit_code, 2);
  const ProcessResult missing = sh("bash compat/run_pa.sh /nonexistent");
  EXPECT_EQ(missing.exit_code, 2);
  EXPECT_NE(missing.err.find("/nonexistent/config.json"), std::string::npos) << missing.err;
}

TEST_F(Compat, DialogueOfTheErnieGuide) {
  const ProcessResult r = sh("ASCEND_RT_VISIBLE_DEVICES=0,1,2,3 bash compat/run_pa.sh " + ernie() + " -trust_remote_code --ignore-eos");
  expect_answer(r, 20);
  EXPECT_NE(r.err.find("Deep\\ Learning"), std::string::npos) << r.err;
}

TEST_F(Compat, PerformanceOfAllGuides) {
  const struct {
    std::string name, folder, type, chips, tree;
  } guides[] = {{"deepseek", deepseek(), "pa_fp16", "8", "fp16/deepseek"}, {"mixtral", mixtral(), "pa_fp16", "8", "fp16/mixtral"},
                {"ernie_moe", ernie(), "pa_fp16", "4", "fp16/ernie"},      {"ernie_moe", ernie(), "pa_bf16", "4", "bf16/ernie"}};
  for (const auto& guide : guides) {
    const ProcessResult r = sh("export ATB_LLM_BENCHMARK_ENABLE=1; bash compat/modeltest/run.sh " + guide.type + " performance [[2048,2048],[1024,1024],[512,512],[256,256]] 1 " +
                               guide.name + " " + guide.folder + " " + guide.chips);
    EXPECT_EQ(r.exit_code, 0) << r.err;
    EXPECT_NE(r.err.find(guide.type + ": weights are held as"), std::string::npos) << r.err;
    size_t files = 0;
    const fs::path tree = folder_.path / "outputs/results/CPU/performance_test/performance" / guide.tree;
    for (const auto& entry : fs::directory_iterator(tree)) {
      const std::string name = entry.path().filename().string();
      if (!name.starts_with("performance_pa_batch1_tp") || !name.ends_with("_result.csv") || name.find("formatted") != std::string::npos) continue;
      const std::string text = text_of(entry.path());
      EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 5) << text;
      ++files;
    }
    EXPECT_EQ(files, 1u) << tree;
  }
}

TEST_F(Compat, PerformanceModesOfTheHarness) {
  fs::create_directories(folder_.path / "data/boolq");
  std::ofstream(folder_.path / "data/boolq/dev.jsonl") << "{\"question\":\"is it\"}\n{\"question\":\"was it\"}\n{\"question\":\"will it\"}\n";
  const std::string run = "bash compat/modeltest/run.sh ";
  const auto good = [&](const std::string& line, const std::string& said) {
    const ProcessResult r = sh(run + line);
    EXPECT_EQ(r.exit_code, 0) << line << "\n" << r.err;
    EXPECT_NE((r.out + r.err).find(said), std::string::npos) << line << "\n" << r.out << r.err;
  };
  good("pa_fp16 performance [[16,4]] [1,2] mixtral " + mixtral() + " 8", "batch 2, 16 + 4 tokens");
  good("pa_fp16 performance [[16,4],[8,2]] [[1],[2]] mixtral base " + mixtral() + " trust_remote_code 8", "batch 2, 8 + 2 tokens");
  good("pa_bf16 performance [[16,4]] 2 1 mixtral " + mixtral() + " 8 [-1,-1,-1,-1,-1,-1,-1] 64", "--tp 2 --ranks threads");
  good("pa_bf16 performance [[16,4]] 1 mixtral " + mixtral() + " 8 [2,-1,-1,1,2]", "--dp 2 --moe-tp 1 --moe-ep 2 --tp 1 --ranks threads");
  good("pa_bf16 performance [[16,4]] 1 mixtral " + mixtral() + " 8 [1,2,2,2,1,2,2]", "--dp 1 --tp 2 --sp 2 --moe-tp 2 --moe-ep 1 --pp 2 --microbatch 2 --ranks threads");
  good("pa_fp16 performance [[16,4]] 2 dataset boolq padding INF mixtral " + mixtral() + " 1", "batch 1, 16 + 4 tokens");
  good("pa_fp16 performance_maxbs [[16,4]] [[1,3]] 100000 mixtral " + mixtral() + " 4", "[16,4]: 3");
  good("pa_fp16 performance_single [[32,4]] '[\"hello\"]' 2 mixtral chat " + mixtral() + " 8", "Generate[1] token num: (1, 8)");
  good("pa_fp16 precision_single [[32,4]] data/boolq/dev.jsonl 3 mixtral " + mixtral() + " 8", "Answer[2]: ");
  good("fa performance [[16,4]] 1 mixtral " + mixtral() + " 1", "performance_fa_batch1");
  EXPECT_TRUE(fs::exists(folder_.path / "benchmark_result/benchmark.csv"));
}

TEST_F(Compat, TheHarnessRefusesWhatItCannotDo) {
  const auto refused = [&](const std::string& line, const std::string& why) {
    const ProcessResult r = sh("bash compat/modeltest/run.sh " + line);
    EXPECT_EQ(r.exit_code, 2) << line << r.err;
    EXPECT_NE(r.err.find(why), std::string::npos) << line << "\n" << r.err;
  };
  refused("", "the first argument is");
  refused("pa_fp64 performance [[1,1]] 1 mixtral " + mixtral() + " 8", "pa_fp64");
  refused("pa_fp16", "mode is");
  refused("pa_fp16 fast [[1,1]] 1 mixtral " + mixtral() + " 8", "\"fast\"");
  refused("pa_fp16 performance 1 mixtral " + mixtral() + " 8", "[[input,output],...]");
  refused("pa_fp16 performance [[16,4]] 1 deepseek " + mixtral() + " 8", "model_type \"mixtral\"");
  refused("pa_fp16 performance [[16,4]] 1 mixtral " + mixtral(), "missing");
  refused("pa_fp16 performance [[16,4]] 1 mixtral " + mixtral() + " rank_table.json 16 2", "HOSTS FIRST_RANK MASTER_ADDR");
  refused("pa_fp16 performance [[16,4]] 1 mixtral " + mixtral() + " rank_table.json 16 3 0 127.0.0.1", "do not divide among 3 hosts");
  refused("pa_fp16 performance [[16,4]] 1 mixtral " + mixtral() + " rank_table.json 16 two 0 127.0.0.1", "\"two\" stands where a number");
  refused("pa_fp16 performance [[16,4]] 1 mixtral lora x " + mixtral() + " 8", "lora");
  refused("pa_fp16 performance [[16,4]] 1 mixtral " + mixtral() + " 8 [1,2,3,4,5,6,7,8,9]", "at most 8 numbers");
  refused("pa_fp16 performance [[16,4]] 1 mixtral " + mixtral() + " 8 [3]", "dp, pp and cp make 3, which does not divide 2 ranks");
  refused("pa_fp16 simplified_GSM8K 1 mixtral " + mixtral() + " 8", "conclave kl");
}

TEST_F(Compat, RanksOfAHostAreProcesses) {
  const std::string port = std::to_string(20000 + ::getpid() % 20000);
  const ProcessResult r = sh("bash compat/modeltest/run.sh pa_bf16 performance [[16,4]] 1 ernie_moe " + ernie() + " rank_table.json 2 1 0 127.0.0.1",
                             {{"MASTER_PORT", port}, {"CONCLAVE_JOB", "compat-" + port}});
  if (r.err.find("built without") != std::string::npos) GTEST_SKIP() << r.err;
  EXPECT_EQ(r.exit_code, 0) << r.err;
  EXPECT_NE(r.err.find("ranks 0 to 1 of 2"), std::string::npos) << r.err;
  EXPECT_TRUE(fs::exists(folder_.path / "outputs/results/CPU/performance_test/performance/bf16/ernie/performance_pa_batch1_tp2_result.csv")) << r.err;
}

TEST_F(Compat, AccuracyOfAllGuides) {
  fs::create_directories(folder_.path / "data/boolq");
  std::ofstream(folder_.path / "data/boolq/dev.jsonl") << "{\"title\":\"T\",\"question\":\"is it so\",\"passage\":\"It is so.\",\"answer\":true}\n"
                                                         "{\"title\":\"T\",\"question\":\"is it not\",\"passage\":\"It is so.\",\"answer\":false}\n";
  const struct {
    std::string line, tree;
  } guides[] = {{"pa_fp16 full_BoolQ 1 deepseek " + deepseek() + " 8", "fp16/deepseek"},
                {"pa_fp16 full_BoolQ 1 mixtral " + mixtral() + " 8", "fp16/mixtral"},
                {"pa_fp16 full_BoolQ 1 ernie_moe " + ernie() + " 4", "fp16/ernie"},
                {"pa_bf16 full_BoolQ 1 ernie_moe " + ernie() + " 4", "bf16/ernie"}};
  for (const auto& [line, tree] : guides) {
    const ProcessResult r = sh("bash compat/modeltest/run.sh " + line);
    EXPECT_EQ(r.exit_code, 0) << line << r.err;
    EXPECT_NE(r.err.find(": weights are held as"), std::string::npos) << r.err;
    EXPECT_NE(r.out.find("| boolq "), std::string::npos) << r.out;
    const std::string result = text_of(folder_.path / "outputs/results/CPU/precision_test/full" / tree / "BoolQ_pa_batch1_tp2_full_result.csv");
    EXPECT_TRUE(result.starts_with("file_name,value,correct,sum\ntotal,")) << line << "\n" << result;
    EXPECT_NE(result.find("\ndev.jsonl,"), std::string::npos) << result;
  }
}

TEST_F(Compat, QuantiserOfTheMixtralGuide) {
  const ProcessResult r = sh("python3 compat/convert_quant_weights.py --model_path " + mixtral() + " --save_directory w8a8");
  ASSERT_EQ(r.exit_code, 0) << r.err;
  EXPECT_TRUE(fs::exists(folder_.path / "w8a8/quant_model_weight_w8a8_dynamic.safetensors"));
  EXPECT_TRUE(fs::exists(folder_.path / "w8a8/quant_model_description.json"));
  EXPECT_NE(text_of(folder_.path / "w8a8/config.json").find("w8a8_dynamic"), std::string::npos);
  expect_answer(sh("bash compat/run_pa.sh w8a8"), 10);
  const ProcessResult same = sh("python3 compat/convert_quant_weights.py --model_path " + mixtral() + " --save_directory " + mixtral());
  EXPECT_EQ(same.exit_code, 2) << same.err;
  const ProcessResult more = sh("python3 compat/convert_quant_weights.py --model_path " + mixtral() + " --save_directory again --calib_file x --trust_remote_code");
  EXPECT_EQ(more.exit_code, 0) << more.err;
  EXPECT_NE(more.err.find("without effect here: --calib_file x"), std::string::npos) << more.err;
}

TEST_F(Compat, StartOfThePort) {
  const ProcessResult r = sh("weight_dir=" + deepseek() + " bash compat/port/run.sh");
  expect_answer(r, 10);
  for (int rank = 1; rank < 8; ++rank)
    EXPECT_NE(r.err.find("rank " + std::to_string(rank) + " of 8 is part of rank 0's process"), std::string::npos) << r.err;
  const ProcessResult loop = sh("for((RANK_ID=0;RANK_ID<2;RANK_ID++)); do export LOCAL_RANK=$RANK_ID RANK=$RANK_ID WORLD_SIZE=2; python3 compat/port/run_deepseek.py --load_path " +
                                deepseek() + " || exit; done");
  expect_answer(loop, 10);
  EXPECT_EQ(loop.out, r.out);
  EXPECT_EQ(sh("bash compat/port/run.sh").exit_code, 2);
  EXPECT_EQ(sh("RANK=2 WORLD_SIZE=2 python3 compat/port/run_deepseek.py --load_path x").exit_code, 2);
  EXPECT_EQ(sh("RANK=x WORLD_SIZE=2 python3 compat/port/run_deepseek.py --load_path x").exit_code, 2);
}

TEST_F(Compat, SplitterOfTheV3Sample) {
  const ProcessResult r = sh("python3 compat/split_weight.py --model-path " + quoted(golden("deepseek_v3-fp8")) + " --output-path split --world-size 2");
  ASSERT_EQ(r.exit_code, 0) << r.err;
  EXPECT_TRUE(fs::is_directory(folder_.path / "split/rank_0"));
  EXPECT_TRUE(fs::is_directory(folder_.path / "split/rank_1"));
  const ProcessResult whole = sh("$CONCLAVE run --model " + quoted(golden("deepseek_v3-fp8")) + " --prompt-ids 5,17,9 --no-tokenizer --max-output-length 4 --json");
  const ProcessResult parts = sh("$CONCLAVE run --model split --prompt-ids 5,17,9 --no-tokenizer --max-output-length 4 --json");
  EXPECT_EQ(parts.exit_code, 0) << parts.err;
  EXPECT_EQ(nlohmann::json::parse(parts.out).at("output_ids"), nlohmann::json::parse(whole.out).at("output_ids"));
}

TEST_F(Compat, RunnerOfTheV3Sample) {
  const std::string model = "MODEL_DIR=" + quoted(golden("deepseek_v3-bf16")) + " MODEL_NAME=deepseek_v3 ";
  expect_answer(sh(model + "bash compat/v3/infer.sh"), 32);
  expect_answer(sh(model + "INPUT_MAX_LEN=128 MAX_NEW_TOKENS=24 TOKENIZER_MODE=chat EXE_MODE=dynamo ENABLE_ACLGRAPH=1 bash compat/v3/infer.sh"), 24);
  const ProcessResult two = sh(model + "INPUT_MAX_LEN=128 MAX_NEW_TOKENS=4 BATCH_SIZE=2 NO_CKPT=1 bash compat/v3/infer.sh");
  EXPECT_EQ(two.exit_code, 0) << two.err;
  EXPECT_NE(two.out.find("Answer[1]: "), std::string::npos);
  EXPECT_NE(two.out.find("means nothing"), std::string::npos) << "random weights are marked";
  EXPECT_EQ(sh("bash compat/v3/infer.sh").exit_code, 2);
  EXPECT_EQ(sh(model + "EXE_MODE=fast bash compat/v3/infer.sh").exit_code, 2);
}

TEST_F(Compat, AMissingProgramIsSaid) {
  const ProcessResult shell = sh("bash compat/run_pa.sh " + mixtral(), {{"CONCLAVE", "/nonexistent/conclave"}});
  EXPECT_NE(shell.exit_code, 0);
  EXPECT_NE(shell.err.find("/nonexistent/conclave"), std::string::npos) << shell.err;
  const ProcessResult python = sh("python3 compat/convert_quant_weights.py --model_path a --save_directory b", {{"CONCLAVE", "/nonexistent/conclave"}});
  EXPECT_EQ(python.exit_code, 2);
  EXPECT_NE(python.err.find("/nonexistent/conclave cannot be started"), std::string::npos) << python.err;
}

}  // namespace
}  // namespace conclave::testing
