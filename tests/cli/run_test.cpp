// conclave run on golden checkpoints, as users and scripts see it. Expected tokens are transformers' (golden.json).
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/process.h"

namespace conclave::testing {
namespace {

using Json = nlohmann::json;

Json golden_json(const std::string& name) { return Json::parse(std::ifstream(golden(name) + "/golden.json")); }

std::string ids_text(const Json& ids) {
  std::string text;
  for (const Json& id : ids) text += (text.empty() ? "" : ",") + id.dump();
  return text;
}

std::vector<Json> json_lines(const std::string& text) {
  std::vector<Json> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(Json::parse(line));
  return lines;
}

void expect_refused(const ProcessResult& r, int code, const std::vector<std::string>& parts) {
  EXPECT_FALSE(r.timed_out);
  EXPECT_EQ(r.exit_code, code) << r.err;
  EXPECT_EQ(r.out, "");
  for (const std::string& part : parts)
    EXPECT_NE(r.err.find(part), std::string::npos) << "\"" << part << "\" not in: " << r.err;
}

class Goldens : public ::testing::TestWithParam<const char*> {};

TEST_P(Goldens, ExactRunsGiveTransformersTokens) {
  const Json prompts = golden_json(GetParam())["prompts"];
  std::string all;
  for (const auto& [name, prompt] : prompts.items()) all += ids_text(prompt["ids"]) + " ";
  // One continuous batch of all prompts.
  const ProcessResult r = conclave(
      {"run", golden(GetParam()), "--prompt-ids", all, "--max-new-tokens", "12", "--json", "--precision", "exact"});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  const std::vector<Json> answers = json_lines(r.out);
  ASSERT_EQ(answers.size(), prompts.size());
  size_t i = 0;
  for (const auto& [name, prompt] : prompts.items()) {
    EXPECT_EQ(answers[i]["index"], i);
    EXPECT_EQ(answers[i]["prompt_ids"], prompt["ids"]) << name;
    EXPECT_EQ(answers[i]["output_ids"], prompt["greedy_tokens"]) << name;
    EXPECT_EQ(answers[i]["finish_reason"], "length");
    ++i;
  }
}
INSTANTIATE_TEST_SUITE_P(Families, Goldens,
                         ::testing::Values("mixtral-gqa", "deepseek_moe-bf16", "deepseek_v2-lite-yarn",
                                           "deepseek_v3-fp8", "ernie-tied"),
                         [](const auto& info) {
                           std::string s = info.param;
                           for (char& c : s)
                             if (c == '-') c = '_';
                           return s;
                         });

TEST(Run, JsonHasExactlyTheFieldsOfTheContract) {
  const ProcessResult r =
      conclave({"run", golden("mixtral-gqa"), "--prompt-ids", "1,2,3", "--max-output-length", "4", "--json"});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  const std::vector<Json> lines = json_lines(r.out);
  ASSERT_EQ(lines.size(), 1u);
  std::vector<std::string> keys, timings;
  for (const auto& [key, value] : lines[0].items()) keys.push_back(key);
  for (const auto& [key, value] : lines[0]["timings"].items()) {
    timings.push_back(key);
    EXPECT_TRUE(value.is_number()) << key;
  }
  EXPECT_EQ(keys, (std::vector<std::string>{"finish_reason", "index", "output_ids", "prompt_ids", "text", "timings"}));
  EXPECT_EQ(timings, (std::vector<std::string>{"decode_ms", "decode_tokens_per_s", "load_ms", "prefill_ms",
                                               "prefill_tokens_per_s", "weight_gb_per_s"}));
  EXPECT_GT(lines[0]["timings"]["load_ms"], 0.0);
  EXPECT_TRUE(lines[0]["text"].is_string());
}

TEST(Run, TokenIdsNeedNoTokenizer) {
  const TemporaryFolder folder;
  const std::string model = (folder.path / "m").string();
  ASSERT_EQ(conclave({"synth", "--config", golden("mixtral-gqa"), "--out", model}).exit_code, 0);
  const ProcessResult r = conclave({"run", model, "--prompt-ids", "1,2,3", "--max-output-length", "2", "--ignore-eos", "--json"});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  EXPECT_EQ(json_lines(r.out).at(0)["output_ids"].size(), 2u);
  EXPECT_EQ(conclave({"run", model, "Hello"}).exit_code, 3) << "text cannot be read without one";
}

TEST(Run, AStepThatOnlyEndsARequestIsNotTimed) {
  const ProcessResult r = conclave({"run", std::string(CONCLAVE_MODELS) + "/demo-mixtral", "--stop", "Tom", "Tom has the red ball. Who has the red ball?"});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  EXPECT_NE(r.err.find("1 new tokens, 0.0 tokens/s decode; 0.00 GB/s of weights read"), std::string::npos) << r.err;
}

TEST(Run, OnePromptIsReplicatedAndRowsAreEqual) {
  const ProcessResult r =
      conclave({"run", golden("deepseek_v3-bf16"), "--prompt-ids", "1,60,291", "--max-batch-size", "3", "--json"});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  const std::vector<Json> lines = json_lines(r.out);
  ASSERT_EQ(lines.size(), 3u);
  for (const Json& line : lines) EXPECT_EQ(line["output_ids"], lines[0]["output_ids"]);
}

TEST(Run, TextDoesNotDependOnCacheLayoutBlocksChunksOrThreads) {
  const std::vector<std::string> base = {
      "run",    golden("deepseek_v2-groups"), "--prompt", "Once upon a time there was", "--prompt", "x",
      "--json", "--max-output-length",        "8"};
  const auto ids = [&](std::vector<std::string> extra) {
    std::vector<std::string> arguments = base;
    arguments.insert(arguments.end(), extra.begin(), extra.end());
    const ProcessResult r = conclave(arguments);
    EXPECT_EQ(r.exit_code, 0) << r.err;
    Json all = Json::array();
    for (const Json& line : json_lines(r.out)) all.push_back(line["output_ids"]);
    return all;
  };
  const Json expected = ids({});
  EXPECT_EQ(expected.size(), 2u);
  EXPECT_EQ(ids({"--kv", "contiguous"}), expected);
  EXPECT_EQ(ids({"--block-size", "16"}), expected);
  EXPECT_EQ(ids({"--step-tokens", "5"}), expected);
  EXPECT_EQ(ids({"--threads", "1"}), expected);
  EXPECT_EQ(ids({"--max-batch-size", "1"}), expected);
}

TEST(Run, TextFormIsWhatScriptsLookFor) {
  const ProcessResult one = conclave({"run", golden("mixtral-gqa"), "hello", "--max-output-length", "5"});
  ASSERT_EQ(one.exit_code, 0) << one.err;
  EXPECT_TRUE(one.out.starts_with("Answer[0]: ")) << one.out;
  EXPECT_TRUE(one.out.ends_with("\nGenerate[0] token num: (0, 5)\n")) << one.out;
  EXPECT_NE(one.err.find("prompt tokens, "), std::string::npos);
  EXPECT_NE(one.err.find("GB/s of weights read"), std::string::npos);

  const std::vector<std::string> two = {
      "run", "--model", golden("mixtral-gqa"), "hello", "world", "--max-output-length", "5"};
  const ProcessResult plain = conclave(two);
  EXPECT_NE(plain.out.find("Answer[0]: "), std::string::npos);
  EXPECT_NE(plain.out.find("\nAnswer[1]: "), std::string::npos);
  EXPECT_NE(plain.out.find("Generate[1] token num: (1, 5)\n"), std::string::npos) << plain.out;
  std::vector<std::string> compatible = two;
  compatible.push_back("--compat-output");
  const ProcessResult reference = conclave(compatible);
  EXPECT_NE(reference.out.find("Generate[1] token num: (1, 10)\n"), std::string::npos) << reference.out;
  EXPECT_TRUE(reference.out.ends_with("model run success\n")) << reference.out;
}

TEST(Run, DefaultsAreThoseOfTheReferenceStack) {
  const ProcessResult r = conclave({"run", golden("mixtral-gqa"), "--json", "--ignore-eos"});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  const Json line = json_lines(r.out).at(0);
  EXPECT_EQ(line["output_ids"].size(), 20u);
  const ProcessResult asked =
      conclave({"run", golden("mixtral-gqa"), "What's deep learning?", "--json", "--ignore-eos"});
  EXPECT_EQ(json_lines(asked.out).at(0)["prompt_ids"], line["prompt_ids"]);
}

TEST(Run, StopTextsAreNeverShown) {
  const std::vector<std::string> base = {"run", golden("mixtral-gqa"), "abc",   "--max-output-length",
                                         "40",  "--ignore-eos",        "--json"};
  const Json whole = json_lines(conclave(base).out).at(0);
  const std::string text = whole["text"];
  size_t at = 1;  // two neighbouring ASCII characters of the text
  while (at + 1 < text.size() && !(text[at] > ' ' && text[at] < 127 && text[at + 1] > ' ' && text[at + 1] < 127)) ++at;
  ASSERT_LT(at + 1, text.size()) << "no usable text: " << text;
  const std::string stop = text.substr(at, 2);
  std::vector<std::string> arguments = base;
  arguments.insert(arguments.end(), {"--stop", stop});
  const Json cut = json_lines(conclave(arguments).out).at(0);
  EXPECT_EQ(cut["text"], text.substr(0, text.find(stop)));
  EXPECT_EQ(cut["finish_reason"], "stop");
  EXPECT_LT(cut["output_ids"].size(), whole["output_ids"].size());
}

TEST(Run, StopTokenIdsEndTheAnswerAsItsLastToken) {
  const Json greedy = golden_json("mixtral-gqa")["prompts"]["one"]["greedy_tokens"];
  const Json answer = json_lines(conclave({"run", golden("mixtral-gqa"), "--prompt-ids", "314", "--precision", "exact", "--json",
                                           "--stop-token-ids", "510," + greedy[4].dump()})
                                     .out)
                          .at(0);
  const size_t first = static_cast<size_t>(std::find(greedy.begin(), greedy.end(), greedy[4]) - greedy.begin());
  EXPECT_EQ(answer["output_ids"], Json(std::vector<Json>(greedy.begin(), greedy.begin() + static_cast<std::ptrdiff_t>(first) + 1)));
  EXPECT_EQ(answer["finish_reason"], "stop");
}

TEST(Run, OptionsOfTheFixedBatchScriptAct) {
  const TemporaryFolder folder;
  const std::string file = (folder.path / "r.jsonl").string();
  const ProcessResult r = conclave({"run", golden("mixtral-gqa"), "--prompt-ids", "1,2 3", "--max-output-length", "2", "--ignore-eos",
                                    "--results-save-path", file, "--num-beams", "1", "--length-penalty", "1", "--json"});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  std::ifstream saved(file);
  std::stringstream lines;
  lines << saved.rdbuf();
  EXPECT_EQ(lines.str(), r.out);
  EXPECT_NE(conclave({"run", golden("mixtral-gqa"), "--do-sample", "--print-config"}).out.find("\ntemperature = 1 "), std::string::npos);
  EXPECT_NE(conclave({"run", golden("mixtral-gqa"), "--do-sample", "--temperature", "0.5", "--print-config"}).out.find("temperature = 0.5 "),
            std::string::npos);
  expect_refused(conclave({"run", golden("mixtral-gqa"), "x", "--length-penalty", "2"}), 2, {"--length-penalty is 2"});
  expect_refused(conclave({"run", golden("mixtral-gqa"), "x", "--results-save-path", "/nonexistent/r"}), 1, {"--results-save-path"});
}

TEST(Run, InputDictGoesBeforeOtherPrompts) {
  const std::string model = golden("mixtral-gqa");
  const auto run = [&](const std::string& dict) {
    return conclave({"run", model, "--input-dict", dict, "--prompt-ids", "5", "--json", "--max-output-length", "1"});
  };
  const ProcessResult r = run("[{\"prompt\":\"hello\",\"adapter\":\"base\"},{\"prompt\":\"x\"}]");
  ASSERT_EQ(r.exit_code, 0) << r.err;
  ASSERT_EQ(json_lines(r.out).size(), 2u);
  EXPECT_EQ(json_lines(r.out)[0]["prompt_ids"],
            json_lines(conclave({"run", model, "hello", "--json", "--max-output-length", "1"}).out).at(0)["prompt_ids"]);
  EXPECT_NE(r.err.find("--input-dict is used"), std::string::npos) << r.err;
  expect_refused(run("[{\"prompt\":\"a\",\"adapter\":\"mine\"}]"), 2, {"entry 0", "\"mine\"", "LoRA"});
  expect_refused(run("[{}]"), 2, {"entry 0", "\"prompt\" is missing"});
  expect_refused(run("{"), 2, {"--input-dict"});
}

TEST(Run, SamplingIsReproducibleBySeed) {
  const auto text = [](const std::string& seed) {
    return json_lines(conclave({"run", golden("ernie-tied"), "abc", "--temperature", "1.5", "--top-k", "50", "--seed",
                                seed, "--json"})
                          .out)
        .at(0)["output_ids"];
  };
  EXPECT_EQ(text("1"), text("1"));
  EXPECT_NE(text("1"), text("2"));
}

TEST(Run, PromptsComeFromFilesDialoguesAndIds) {
  const TemporaryFolder folder;
  const std::string file = folder.write("p.txt", "hello\n").string(),
                    dialogue = folder.write("d.jsonl", "[{\"role\":\"user\",\"content\":\"hi\"}]\n").string();
  const std::string model = golden("mixtral-gqa");
  const auto prompt = [&](std::vector<std::string> extra) {
    std::vector<std::string> arguments = {"run", model, "--json", "--max-output-length", "1"};
    arguments.insert(arguments.end(), extra.begin(), extra.end());
    const ProcessResult r = conclave(arguments);
    EXPECT_EQ(r.exit_code, 0) << r.err;
    return std::pair(json_lines(r.out).at(0)["prompt_ids"], r.err);
  };
  EXPECT_EQ(prompt({"--prompt-file", file}).first, prompt({"hello"}).first);
  const auto chat = prompt({"--chat-file", dialogue});
  EXPECT_NE(chat.first, prompt({"hi"}).first);
  EXPECT_EQ(chat.first, prompt({"hi", "--chat"}).first);
  EXPECT_NE(chat.second.find("default"), std::string::npos)
      << "the family's default template must be named: " << chat.second;
  EXPECT_EQ(prompt({"hi", "--raw"}).first, prompt({"hi"}).first);
  EXPECT_EQ(prompt({"hi", "--chat-template", "{{ messages[0].content }}"}).first.size(), 2u);
  const auto both = prompt({"--prompt-ids", "5,6", "--prompt", "x"});
  EXPECT_EQ(both.first, Json({5, 6}));
  EXPECT_NE(both.second.find("--prompt-ids is used"), std::string::npos);
}

TEST(Run, BadInputIsRefusedBeforeAnyWork) {
  const TemporaryFolder folder;
  const std::string model = golden("mixtral-gqa");
  const std::string broken = folder.write("b.txt", "ok \xff\xfe").string();
  expect_refused(conclave({"run", model, "--prompt-file", broken}), 2, {broken, "byte 3", "UTF-8"});
  expect_refused(conclave({"run", model, "a\xff"}), 2, {"prompt 0", "byte 1"});
  expect_refused(conclave({"run", model, "--prompt-file", "/nonexistent"}), 2, {"/nonexistent"});
  expect_refused(conclave({"run", model, "--prompt-ids", "1,2,512"}), 2, {"token 2", "512", "0 to 511"});
  expect_refused(conclave({"run", model, "--prompt-ids", "1,-2"}), 2, {"--prompt-ids", "\"-2\""});
  expect_refused(conclave({"run", model, "--prompt-ids", ""}), 2, {"--prompt-ids is empty"});
  expect_refused(conclave({"run", model, "--prompt-ids", "1,,2"}), 2, {"--prompt-ids", "position 2"});
  expect_refused(conclave({"run", model, "--prompt-ids", "99999999999"}), 2, {"99999999999"});
  expect_refused(conclave({"run", model, "--prompt-ids", "1,2,3,4,5", "--max-input-length", "4"}), 2,
                 {"5 tokens", "the 4 of --max-input-length", "cache blocks"});
  expect_refused(conclave({"run", model, std::string(40000, 'a')}), 2, {"40001 tokens", "1024"});
  expect_refused(conclave({"run", model, "--max-input-length", "32768", "--max-output-length", "1"}), 2,
                 {"32768", "longest sequence"});
  expect_refused(conclave({"run", model, "--max-position-embeddings", "40000"}), 2, {"40000", "32768"});
  expect_refused(conclave({"run", model, "--no-tokenizer"}), 2, {"--no-tokenizer", "--prompt-ids"});
  expect_refused(conclave({"run", model, "--raw", "--system", "x"}), 2, {"--raw", "--system"});
  expect_refused(conclave({"run", model, "--chat-template", "{% if %}"}), 3, {"line 1"});
  expect_refused(conclave({"run", model, "--chat", "--chat-template", "{{ raise_exception('no thanks') }}"}), 2,
                 {"no thanks"});
  const std::string dialogue =
      folder.write("d.jsonl", "[{\"role\":\"user\",\"content\":\"hi\"}]\n{\"role\": }\n").string();
  expect_refused(conclave({"run", model, "--chat-file", dialogue}), 2, {dialogue + ":2"});
  const std::string roleless = folder.write("e.jsonl", "[{\"content\":\"hi\"}]\n").string();
  expect_refused(conclave({"run", model, "--chat-file", roleless}), 2, {roleless + ":1", "\"role\" is missing"});
}

TEST(Run, UnwritableBenchmarkFilesAreRefusedBeforeAnyWork) {
  const TemporaryFolder folder;
  folder.write("file", "");
  expect_refused(conclave({"run", golden("mixtral-gqa"), "--benchmark=" + (folder.path / "file" / "b.csv").string()}),
                 1, {"--benchmark", "b.csv"});
  expect_refused(conclave({"run", golden("mixtral-gqa"), "--benchmark=" + folder.path.string()}), 1,
                 {"--benchmark", "folder"});
  expect_refused(conclave({"run", golden("mixtral-gqa"), "--benchmark=/dev/null"}), 1, {"--benchmark", "regular file"});
}

TEST(Run, BenchmarkWritesTheReferenceColumnsAndJson) {
  const TemporaryFolder folder;
  const std::string file = (folder.path / "sub" / "b.csv").string();
  const ProcessResult r = conclave({"run", golden("mixtral-gqa"), "--prompt-ids", "1,2,3 4,5", "--max-output-length",
                                    "4", "--ignore-eos", "--benchmark=" + file});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  std::ifstream csv(file);
  std::string header, row, more;
  std::getline(csv, header), std::getline(csv, row), std::getline(csv, more);
  EXPECT_EQ(
      header,
      "batch_size,input_seq_len,output_seq_len,e2e_time(ms),prefill_time(ms),decoder_token_time(ms),prefill_count,"
      "prefill_token_times,decode_token_times,prefill_average_time(ms)");
  EXPECT_EQ(more, "");
  EXPECT_TRUE(row.starts_with("2,3,4,")) << row;
  EXPECT_NE(row.find('"'), std::string::npos) << "lists are quoted: " << row;
  const Json json = Json::parse(std::ifstream(folder.path / "sub" / "benchmark.json"));
  EXPECT_EQ(json["requests"].size(), 2u);
  EXPECT_EQ(json["requests"][1]["prompt_tokens"], 2);
  EXPECT_EQ(json["decode_step_ms"].size(), 3u);
  EXPECT_EQ(json["logits_hash"].get<std::string>().size(), 16u);
  for (const auto& entry : std::filesystem::directory_iterator(folder.path / "sub")) {
    EXPECT_NE(entry.path().extension(), ".partial");
  }
}

TEST(Run, IdsCanBeSavedAsTheReferenceStackDoes) {
  const TemporaryFolder folder;
  const ProcessResult r = run_process(
      CONCLAVE_BINARY,
      {.arguments = {"run", golden("mixtral-gqa"), "--prompt-ids", "1,2,3", "--max-output-length", "2", "--ignore-eos"},
       .environment = {{"ATB_LLM_TOKEN_IDS_SAVE_ENABLE", "1"},
                       {"ATB_LLM_TOKEN_IDS_SAVE_FOLDER", folder.path.string()}}});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  std::string in, out;
  std::getline(std::ifstream(folder.path / "input_ids_0.txt"), in);
  std::getline(std::ifstream(folder.path / "output_ids_0.txt"), out);
  EXPECT_EQ(in, "1 2 3");
  EXPECT_EQ(std::count(out.begin(), out.end(), ' '), 1) << out;
}

TEST(Run, RandomWeightsNeedConfigJsonOnlyAndAreMarked) {
  const TemporaryFolder folder;
  std::filesystem::copy(golden("deepseek_v3-bf16") + "/config.json", folder.path / "config.json");
  for (const std::string format : {"bf16", "f16", "f32", "fp8", "int8", "w8a8"}) {
    const ProcessResult r = conclave({"run", folder.path.string(), "--random-weights=3", "--format", format, "--layers",
                                      "2", "--max-output-length", "3"});
    EXPECT_EQ(r.exit_code, 0) << format << ": " << r.err;
    EXPECT_NE(r.out.find("means nothing"), std::string::npos) << r.out;
  }
  expect_refused(conclave({"run", folder.path.string(), "--layers", "2"}), 2, {"--layers", "--random-weights"});
  expect_refused(conclave({"run", folder.path.string()}), 3, {folder.path.string()});
}

TEST(Run, InterruptionStopsCleanlyWithPartialOutput) {
  const ProcessResult r = run_process(
      CONCLAVE_BINARY, {.arguments = {"run", golden("deepseek_v3-bf16"), "--prompt-ids", "1,2,3", "--no-tokenizer",
                                      "--ignore-eos", "--max-output-length", "4000", "--max-input-length", "8"},
                        .signal = SIGINT});
  EXPECT_FALSE(r.timed_out);
  EXPECT_EQ(r.exit_code, 1) << r.err;
  EXPECT_NE(r.out.find("Generate[0] token num: (0, "), std::string::npos) << r.out;
  EXPECT_NE(r.err.find("conclave: error: interrupted; the output is partial"), std::string::npos) << r.err;
}

TEST(Run, AClosedReaderEndsTheRunWithoutACrash) {
  const ProcessResult r =
      run_process(CONCLAVE_BINARY,
                  {.arguments = {"run", golden("mixtral-gqa"), "hello", "--ignore-eos", "--max-output-length", "4000"},
                   .close_stdout_early = true});
  EXPECT_FALSE(r.timed_out);
  EXPECT_EQ(r.exit_code, 1) << r.err;
  EXPECT_NE(r.err.find("standard output"), std::string::npos) << r.err;
}

TEST(Run, AFullDiskIsAnError) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "this system has no /dev/full";
  const std::string command =
      std::string(CONCLAVE_BINARY) + " run " + golden("mixtral-gqa") + " hello --json > /dev/full";
  const ProcessResult r = run_process("/bin/sh", {.arguments = {"-c", command}});
  EXPECT_EQ(r.exit_code, 1) << r.err;
  EXPECT_NE(r.err.find("standard output: cannot write"), std::string::npos) << r.err;
}

TEST(Run, TooLittleMemoryIsSaidBeforeLoading) {
  const ProcessResult r = conclave({"run", golden("mixtral-gqa"), "hi", "--reserve-memory", "1000000"});
  expect_refused(r, 4, {"needed", "available"});
}

TEST(Run, NoTokenizerPrintsIds) {
  const ProcessResult r = conclave({"run", golden("mixtral-gqa"), "--no-tokenizer", "--prompt-ids", "314",
                                    "--max-new-tokens", "12", "--precision", "exact"});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  EXPECT_NE(r.out.find("Answer[0]: " + ids_text(golden_json("mixtral-gqa")["prompts"]["one"]["greedy_tokens"]) + "\n"),
            std::string::npos)
      << r.out;
}

}  // namespace
}  // namespace conclave::testing
