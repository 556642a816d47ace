// `conclave perf`, `conclave plot` and the benchmark file of `conclave run`, as programs.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/process.h"

namespace conclave::testing {
namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

std::string text_of(const fs::path& file) {
  std::stringstream text;
  text << std::ifstream(file).rdbuf();
  return text.str();
}

std::vector<std::string> lines_of(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

/// Splits at plain commas; enough where no cell is quoted.
std::vector<std::string> cells_of(const std::string& line) {
  std::vector<std::string> cells(1);
  for (const char c : line)
    if (c == ',') cells.emplace_back();
    else cells.back() += c;
  return cells;
}

constexpr const char* kHeader =
    "Model,Batchsize,In_seq,Out_seq,Total time(s),Prefill all time(ms),Prefill average time(ms),Non-first token time(ms),"
    "Non-first token Throughput(Tokens/s),Throughput(Tokens/s),Non-first token Throughput Average(Tokens/s),E2E Throughput Average(Tokens/s)";

TEST(Perf, WritesTheReferenceStacksTree) {
  const TemporaryFolder folder;
  const ProcessResult r = conclave({"perf", golden("mixtral-gqa"), "--cases", "[[24,6],[12,3]]", "--batch", "1,3", "--output-dir", folder.path.string()});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  const fs::path tree = folder.path / "results/CPU/performance_test/performance/bf16/mixtral";
  const auto lines = lines_of(text_of(tree / "performance_pa_batch3_tp1_result.csv"));
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[0], kHeader);
  const auto first = cells_of(lines[1]), last = cells_of(lines[2]);
  EXPECT_EQ(std::vector(first.begin(), first.begin() + 4), (std::vector<std::string>{"mixtral", "3", "24", "6"}));
  const auto figure = [](const std::vector<std::string>& row, size_t column) { return std::stod(row.at(column)); };
  EXPECT_NEAR(figure(first, 6), figure(first, 5) / 3, 1e-6);
  EXPECT_NEAR(figure(first, 8), 3 / figure(first, 7) * 1000, 1e-3 * figure(first, 8));
  EXPECT_NEAR(figure(first, 9), 3 * 6 / figure(first, 4), 1e-3 * figure(first, 9));
  EXPECT_EQ(first[10] + first[11], "");
  EXPECT_NEAR(figure(last, 10), (figure(first, 8) + figure(last, 8)) / 2, 1e-6 * figure(last, 10));
  EXPECT_NEAR(figure(last, 11), (figure(first, 9) + figure(last, 9)) / 2, 1e-6 * figure(last, 11));
  EXPECT_TRUE(text_of(tree / "performance_pa_batch1_tp1_formatted_result.csv").starts_with("Model          |Batchsize      |"));
  const Json json = Json::parse(text_of(tree / "performance_pa_batch3_tp1_result.json"));
  EXPECT_EQ(json["cases"][0]["decode_step_ms"].size(), 5u);
  EXPECT_EQ(json["cases"][0]["first_token_ms"].size(), 3u);
  EXPECT_EQ(json["architecture"], "MixtralForCausalLM");
  EXPECT_EQ(lines_of(r.out).size(), 5u) << r.out;
}

TEST(Perf, NamesTheRanksThatItMeasured) {
  const TemporaryFolder folder;
  const ProcessResult r = conclave({"perf", golden("mixtral-gqa"), "--cases", "[[24,6]]", "--batch", "2", "--tp", "2", "--threads", "1", "--output-dir",
                                    folder.path.string()});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  const auto lines = lines_of(text_of(folder.path / "results/CPU/performance_test/performance/bf16/mixtral/performance_pa_batch2_tp2_result.csv"));
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_GT(std::stod(cells_of(lines[1]).at(9)), 0);
}

TEST(Perf, AFailingCaseIsARowAndTheOthersRun) {
  const TemporaryFolder folder;
  const std::string csv = (folder.path / "all.csv").string(), json = (folder.path / "all.json").string();
  const ProcessResult r =
      conclave({"perf", golden("mixtral-gqa"), "--cases", "[[32000,1000],[8,2]]", "--batch", "1", "--csv", csv, "--json", json, "--output-dir", folder.path.string()});
  EXPECT_EQ(r.exit_code, 1);
  EXPECT_NE(r.err.find("1 of 2 cases failed"), std::string::npos) << r.err;
  const auto lines = lines_of(text_of(csv));
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_TRUE(lines[1].starts_with("mixtral,1,32000,1000,32000 + 1000 tokens exceed the model's longest sequence of 32768,")) << lines[1];
  EXPECT_TRUE(lines[2].starts_with("mixtral,1,8,2,")) << lines[2];
  EXPECT_GT(std::stod(cells_of(lines[2]).at(4)), 0) << lines[2];
  EXPECT_EQ(Json::parse(text_of(json))["cases"].size(), 2u);
  EXPECT_FALSE(fs::exists(folder.path / "results")) << "--csv replaces the tree";
}

TEST(Perf, RunsRandomWeightsOfAPublishedShape) {
  const TemporaryFolder folder;
  const ProcessResult r = conclave({"perf", golden("deepseek_v2-lite-yarn") + "/config.json", "--random-weights", "--layers", "2", "--format", "int8", "--cases",
                                    "[[8,3]]", "--kv", "contiguous", "--output-dir", folder.path.string()});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  EXPECT_TRUE(fs::exists(folder.path / "results/CPU/performance_test/performance/fp32_w8a8_dynamic/deepseekv2/performance_fa_batch1_tp1_result.csv") ||
              fs::exists(folder.path / "results/CPU/performance_test/performance/bf16_w8a8_dynamic/deepseekv2/performance_fa_batch1_tp1_result.csv"))
      << r.err;
}

TEST(Perf, TakesPromptsOfADataSet) {
  const TemporaryFolder folder;
  const std::string data = folder.write("d.jsonl", "{\"question\":\"one\"}\n{\"prompt\":\"two\"}\n\n{\"question\":\"three\",\"answer\":\"x\"}\n").string(),
                    json = (folder.path / "o.json").string(), csv = (folder.path / "o.csv").string();
  const ProcessResult r = conclave({"perf", golden("mixtral-gqa"), "--cases", "[[20,2]]", "--batch", "2", "--dataset", data, "--pad", "--batches", "all", "--json",
                                    json, "--csv", csv});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  const Json cases = Json::parse(text_of(json))["cases"];
  ASSERT_EQ(cases.size(), 2u) << "two prompts, then the one that is left";
  EXPECT_EQ(cases[0]["mean_input"], 20);
  EXPECT_EQ(cases[1]["batch"], 1);
  const ProcessResult bare = conclave({"perf", golden("mixtral-gqa"), "--cases", "[[20,2]]", "--batch", "2", "--dataset", data, "--json", json, "--csv", csv});
  ASSERT_EQ(bare.exit_code, 0) << bare.err;
  EXPECT_LT(Json::parse(text_of(json))["cases"][0]["mean_input"], 20);
  const std::string broken = folder.write("b.jsonl", "{\"question\":\"one\"}\n{\"other\":1}\n").string();
  const ProcessResult refused = conclave({"perf", golden("mixtral-gqa"), "--dataset", broken, "--csv", csv});
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_NE(refused.err.find(broken + ":2: no text \"question\" or \"prompt\""), std::string::npos) << refused.err;
  const ProcessResult empty = conclave({"perf", golden("mixtral-gqa"), "--dataset", folder.write("e.jsonl", "").string(), "--csv", csv});
  EXPECT_EQ(empty.exit_code, 2);
}

TEST(Perf, FindsTheLargestBatch) {
  const TemporaryFolder folder;
  const ProcessResult r = conclave(
      {"perf", golden("mixtral-gqa"), "--cases", "[[8,3]]", "--max-batch", "1,5", "--limit-ms", "100000", "--output-dir", folder.path.string()});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  EXPECT_TRUE(r.out.starts_with("[8,3]: 5\n")) << r.out;
  const fs::path tree = folder.path / "results/CPU/performance_test/performance_maxbs/bf16/mixtral";
  EXPECT_EQ(lines_of(text_of(tree / "performance_maxbs_pa_tp1_round_result.csv")).size(), 1 + 3u) << "3, 4, 5";
  EXPECT_TRUE(lines_of(text_of(tree / "performance_maxbs_pa_tp1_final_result.csv"))[1].starts_with("mixtral,5,8,3,"));
  const ProcessResult none = conclave({"perf", golden("mixtral-gqa"), "--cases", "[[8,3]]", "--max-batch", "1,2", "--limit-ms", "0", "--output-dir", folder.path.string()});
  EXPECT_EQ(none.exit_code, 1);
  EXPECT_NE(none.out.find("no batch of 1 to 2 within 0 ms per token"), std::string::npos) << none.out;
}

TEST(Perf, BadArgumentsAreRefusedBeforeAnyWork) {
  const auto refused = [](std::vector<std::string> arguments, const std::string& why) {
    arguments.insert(arguments.begin(), {"perf", golden("mixtral-gqa")});
    const ProcessResult r = conclave(arguments);
    EXPECT_EQ(r.exit_code, 2) << r.err;
    EXPECT_NE(r.err.find(why), std::string::npos) << r.err;
    EXPECT_EQ(r.err.find("loaded in"), std::string::npos);
  };
  refused({"--cases", "[[0,1]]"}, "--cases");
  refused({"--batch", "x"}, "--batch");
  refused({"--max-batch", "1,5"}, "--limit-ms");
  refused({"--limit-ms", "5"}, "--max-batch");
  refused({"--max-batch", "1,5", "--limit-ms", "5", "--batch", "2"}, "--batch");
  refused({"--pad"}, "--dataset");
  refused({"--batches", "0", "--dataset", "x"}, "--batches");
  refused({"--max-position-embeddings", "99999"}, "99999");
  refused({"extra"}, "extra");
}

TEST(Perf, InterruptionIsSaid) {
  const TemporaryFolder folder;
  const ProcessResult r = run_process("/bin/sh", {.arguments = {"-c", "timeout -s INT 2 '" + std::string(CONCLAVE_BINARY) + "' perf '" + golden("mixtral-gqa") +
                                                                        "' --cases '[[8,30000]]' --output-dir '" + folder.path.string() + "'"}});
  EXPECT_NE(r.err.find("conclave: error: interrupted"), std::string::npos) << r.err;
}

TEST(Plot, DrawsWhatPerfWrote) {
  const TemporaryFolder folder;
  const std::string csv = (folder.path / "p.csv").string();
  ASSERT_EQ(conclave({"perf", golden("mixtral-gqa"), "--cases", "[[8,3]]", "--batch", "1,2", "--csv", csv}).exit_code, 0);
  const ProcessResult missing = run_process(CONCLAVE_BINARY, {.arguments = {"plot", csv, "--out", (folder.path / "p.svg").string()}, .environment = {{"PATH", "/nonexistent"}}});
  EXPECT_EQ(missing.exit_code, 3);
  EXPECT_NE(missing.err.find("apt-get install gnuplot-nox"), std::string::npos) << missing.err;
  EXPECT_FALSE(fs::exists(folder.path / "p.svg"));
  const ProcessResult bad = conclave({"plot", csv, "--out", "p.pdf"});
  EXPECT_EQ(bad.exit_code, 2);
  EXPECT_NE(bad.err.find(".svg or .png"), std::string::npos);
  EXPECT_EQ(conclave({"plot"}).exit_code, 2);
  if (std::system("command -v gnuplot > /dev/null") != 0) GTEST_SKIP() << "no gnuplot on this machine";
  const ProcessResult drawn = conclave({"plot", csv, "--out", (folder.path / "p.svg").string()});
  ASSERT_EQ(drawn.exit_code, 0) << drawn.err;
  EXPECT_NE(text_of(folder.path / "p.svg").find("mixtral 8/3"), std::string::npos);
}

TEST(Plot, ANameIsNeverACommand) {
  const TemporaryFolder folder;
  const std::string csv = (folder.path / "a;touch made;.csv").string();
  ASSERT_EQ(conclave({"perf", golden("mixtral-gqa"), "--cases", "[[8,3]]", "--name", "x'; system('touch made'); '", "--csv", csv}).exit_code, 0);
  const ProcessResult r = run_process("/bin/sh", {.arguments = {"-c", "cd '" + folder.path.string() + "' && '" + CONCLAVE_BINARY + "' plot ./*.csv --out '$(touch made).svg'"}});
  if (r.err.find("gnuplot cannot be started") != std::string::npos) GTEST_SKIP() << "no gnuplot on this machine";
  EXPECT_EQ(r.exit_code, 0) << r.err;
  EXPECT_FALSE(fs::exists(folder.path / "made"));
  EXPECT_TRUE(fs::exists(folder.path / "$(touch made).svg"));
}

TEST(Benchmark, PromptsComeBeforeGenerationAndUnitsAreTheReferenceStacks) {
  const TemporaryFolder folder;
  const ProcessResult r = conclave({"run", golden("mixtral-gqa"), "--prompt-ids", "1,2,3,4,5,6,7,8 2,3,4,5,6,7,8,9 3,4,5,6,7,8,9,1", "--step-tokens", "8", "--max-output-length",
                                    "5", "--ignore-eos", "--warm-up=off", "--benchmark=" + (folder.path / "b.csv").string()});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  const std::string row = lines_of(text_of(folder.path / "b.csv")).at(1);
  const Json json = Json::parse(text_of(folder.path / "benchmark.json"));
  EXPECT_EQ(json["prefill_step_ms"].size(), 3u) << "a step per prompt, and no generated token in between";
  EXPECT_EQ(json["decode_step_ms"].size(), 4u);
  std::istringstream in(row);
  double figures[10] = {};
  std::string cell;
  for (int i = 0; i < 7; ++i) std::getline(in, cell, ','), figures[i] = std::stod(cell);
  EXPECT_EQ(figures[0], 3);  // batch_size
  EXPECT_EQ(figures[1], 8);  // input_seq_len
  EXPECT_EQ(figures[2], 5);  // output_seq_len
  EXPECT_EQ(figures[6], 3);  // prefill_count
  EXPECT_NEAR(figures[3], figures[4] + 4 * figures[5], 1e-6 * figures[3]) << "milliseconds: all = prefill + 4 tokens";
  const size_t list = row.find('"') + 1;
  const double first_s = std::stod(row.substr(list));
  EXPECT_NEAR(first_s * 1000, json["prefill_step_ms"][0].get<double>(), 1e-9) << "the lists are in seconds";
}

}  // namespace
}  // namespace conclave::testing
