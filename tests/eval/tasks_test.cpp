// Prompts byte by byte, and whole tasks on a golden checkpoint against what transformers computes for the same items.
#include <gtest/gtest.h>

#include <fstream>

#include "core/error.h"
#include "engine/service.h"
#include "eval/data_files.h"
#include "eval/evaluate.h"
#include "eval/likelihood.h"
#include "eval/report.h"
#include "server/app.h"
#include "server/engine_port.h"
#include "server/harness.h"
#include "support/golden.h"
#include "support/temp_folder.h"

namespace conclave {
namespace {

const std::filesystem::path kData = std::filesystem::path(CONCLAVE_TEST_DATA) / "eval";

/// A model, its text side and an engine.
struct Model {
  explicit Model(const std::filesystem::path& folder, int batch, int context = 4096)
      : files(folder), tokenizer(Tokenizer::load(folder)), encoder(*tokenizer, std::nullopt) {
    EngineOptions options;
    options.precision = Precision::exact;
    options.threads = 1;
    options.pin_threads = false;
    options.max_sequences = batch;
    options.max_context = context;
    engine = std::make_unique<Engine>(files.spec, *files.source, options);
    runner = make_engine_runner(*engine, *tokenizer, {batch, files.spec.eos_ids});
  }
  std::vector<ItemLine> items(std::string_view task, TaskOptions options = {.data = kData}, size_t limit = 0) {
    return evaluate(*make_task(task, options, encoder), *runner, {.limit = limit});
  }
  testing_support::OpenModel files;
  std::unique_ptr<Tokenizer> tokenizer;
  PromptEncoder encoder;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<Runner> runner;
};

std::string text_of(const std::vector<ItemLine>& lines) {
  std::string text;
  for (const ItemLine& line : lines) text += item_text(line) + "\n";
  return text;
}

const std::filesystem::path kGolden = testing_support::golden_root() / "mixtral-gqa";

TEST(Prompts, OfTheReferenceStack) {
  const auto tokenizer = Tokenizer::load(kGolden);
  const PromptEncoder encoder(*tokenizer, std::nullopt);
  const auto prompt = [&](std::string_view task, size_t index, TaskOptions options) { return make_task(task, options, encoder)->plan(index).text; };
  const test::TempFolder folder;
  std::filesystem::create_directories(folder / "boolq");
  folder.write("boolq/dev.jsonl", R"({"title": "Sky", "question": "is it blue", "passage": "The sky is blue.", "answer": true})");
  EXPECT_EQ(prompt("boolq", 0, {.data = folder.path()}), "Sky -- The sky is blue.\nQuestion: is it blue?\nAnswer:");
  EXPECT_EQ(prompt("boolq", 0, {.data = folder.path(), .style = Style::lm_eval}), "The sky is blue.\nQuestion: is it blue?\nAnswer:");
  const std::string question = "A lesion causing compression of the facial nerve at the stylomastoid foramen will cause ipsilateral\nA. paralysis of the facial "
      "muscles.\nB. paralysis of the facial muscles and loss of taste.\nC. paralysis of the facial muscles, loss of taste and lacrimation.\nD. paralysis "
      "of the facial muscles, loss of taste, lacrimation and decreased salivation.\n";
  EXPECT_EQ(prompt("mmlu", 0, {.data = kData}), "\nThere is a single choice question about anatomy. Answer the question by replying A, B, C or D.\nQ: " + question +
                                                    "Let's think step by step. A: ");
  const std::string example = "What is the embryological origin of the hyoid bone?\nA. The first pharyngeal arch\nB. The first and second pharyngeal arches\n"
      "C. The second pharyngeal arch\nD. The second and third pharyngeal arches\nAnswer: D\n\n";
  EXPECT_EQ(prompt("mmlu", 0, {.data = kData, .shots = 1}),
            "The following are multiple choice questions (with answers) about  anatomy.\n\n" + example + question + "Answer:");
  EXPECT_EQ(prompt("mmlu", 0, {.data = kData, .shots = 1, .style = Style::lm_eval}),
            "The following are multiple choice questions (with answers) about anatomy.\n\n" + example + question + "Answer:");
  EXPECT_EQ(prompt("mmlu", 12, {.data = kData}).substr(0, 52), "\nThere is a single choice question about computer se");
  EXPECT_TRUE(prompt("truthfulqa", 0, {.data = kData}).ends_with("A: The 1992 Olympics were held in Barcelona, Spain.\n\nQ: What happens to you if you eat watermelon seeds?"));
}

TEST(Prompts, OfChineseExaminations) {
  const auto tokenizer = Tokenizer::load(kGolden);
  const PromptEncoder encoder(*tokenizer, std::nullopt);
  const test::TempFolder folder;
  for (const char* name : {"ceval/val", "cmmlu/test", "cmmlu/dev"}) std::filesystem::create_directories(folder / name);
  folder.write("ceval/subject_mapping.json", R"({"law": ["Law", "法学", "Social Science"]})");
  folder.write("ceval/val/law_val.csv", "id,question,A,B,C,D,answer\n0,问,一,二,三,四,B\n");
  folder.write("cmmlu/test/arts.csv", ",Question,A,B,C,D,Answer\n0,问,一,二,三,四,C\n");
  folder.write("cmmlu/dev/arts.csv", ",Question,A,B,C,D,Answer\n0,例,1,2,3,4,D\n");
  EXPECT_EQ(make_task("ceval", {.data = folder.path()}, encoder)->plan(0).text,
            "\n以下是中国关于法学考试的单项选择题，请选出其中的正确答案。\n问\nA. 一\nB. 二\nC. 三\nD. 四\n让我们一步一步思考。答案: ");
  const auto cmmlu = make_task("cmmlu", {.data = folder.path(), .shots = 1}, encoder);
  EXPECT_EQ(cmmlu->plan(0).text, "以下是关于艺术学的单项选择题，请直接给出正确答案的选项。\n\n题目：例\nA. 1\nB. 2\nC. 3\nD. 4\n答案是：D\n\n题目：问\nA. 一\nB. 二\nC. "
                                 "三\nD. 四\n答案是：");
  EXPECT_EQ(cmmlu->categories("arts"), std::vector<std::string>{"Humanities"});
}

TEST(Prompts, OfGpqaRotateTheOptions) {
  const auto tokenizer = Tokenizer::load(kGolden);
  const PromptEncoder encoder(*tokenizer, std::nullopt);
  const test::TempFolder folder;
  std::filesystem::create_directories(folder / "gpqa");
  folder.write("gpqa/gpqa_diamond.csv", "Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3\nq,r,x,y,z\nq,r,x,y,z\nq,r,x,y,z\nq,r,x,y,z\n");
  const auto task = make_task("gpqa", {.data = folder.path()}, encoder);
  const char* options[] = {"(A)r\n(B)x\n(C)y\n(D)z", "(A)x\n(B)y\n(C)z\n(D)r", "(A)y\n(B)z\n(C)r\n(D)x", "(A)z\n(B)r\n(C)x\n(D)y"};
  const std::string gold[] = {"A", "D", "C", "B"};
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(task->plan(i).text, std::string("What is the correct answer to this question: q\nChoices:\n") + options[i] +
                                      "\nFormat your response as follows: \"The correct answer is (insert answer here)\"");
    const Reply reply{.text = "The correct answer is " + gold[i]};
    EXPECT_EQ(task->judge(i, std::span(&reply, 1))["score"], 1.0);
  }
}

TEST(Tasks, EqualTransformersItemByItem) {
  Model model(kGolden, 4);
  std::map<std::string, std::vector<ItemLine>> items;
  size_t compared = 0;
  for (const JsonRow& row : read_json_lines(kData / "reference-mixtral-gqa.jsonl")) {
    const std::string task = row.text("task");
    if (!items.contains(task)) items[task] = model.items(task);
    const ItemLine& item = items[task].at(static_cast<size_t>(row.integer("index")));
    for (const auto& [key, wanted] : row.value.items()) {
      const bool near = key.starts_with("logprob") || key == "mc2" || key.ends_with("_diff");
      if (near && wanted.is_number()) EXPECT_NEAR(item.at(key).get<double>(), wanted.get<double>(), 1e-4) << row.where << " " << key;
      else EXPECT_EQ(item.at(key), wanted) << row.where << " " << key;
    }
    ++compared;
  }
  EXPECT_EQ(compared, 24u + 24u + 16u + 10u);
}

TEST(Tasks, GiveTheSameBytesAtAnyBatchSize) {
  Model alone(kGolden, 1), together(kGolden, 16);
  for (const char* task : {"boolq", "mmlu"}) EXPECT_EQ(text_of(alone.items(task, {.data = kData}, 16)), text_of(together.items(task, {.data = kData}, 16))) << task;
  const TaskOptions likelihood{.data = kData, .shots = 2, .style = Style::lm_eval};
  EXPECT_EQ(text_of(alone.items("mmlu", likelihood, 8)), text_of(together.items("mmlu", likelihood, 8)));
}

/// A server in this process over a checkpoint.
struct TaskServer {
  explicit TaskServer(const std::filesystem::path& folder) {
    const testing_support::OpenModel files(folder);
    EngineOptions options;
    options.precision = Precision::exact;
    options.threads = 1;
    options.pin_threads = false;
    options.max_sequences = 4;
    options.max_context = 1024;
    model = testing::demo_model();
    model->context = 1024;
    model->engine = std::make_unique<ServicePort>(std::make_unique<Engine>(files.spec, *files.source, options), ServiceOptions{});
    ServerSetup setup;
    setup.addresses = {{"127.0.0.1", 0, Plane::all}};
    server = std::make_unique<Server>(std::move(setup), log);
    server->app().publish(model);
  }
  ~TaskServer() { server->ask_stop(true); }
  Log log{"off"};
  std::shared_ptr<ServedModel> model;
  std::unique_ptr<Server> server;
};

TEST(Tasks, GiveTheSameBytesOverHttp) {
  const auto folder = std::filesystem::path(CONCLAVE_MODELS) / "demo-mixtral";
  Model model(folder, 4, 1024);
  const TaskServer server(folder);
  RunnerOptions options{3, model.files.spec.eos_ids};
  const auto remote = make_server_runner(parse_http_url("http://127.0.0.1:" + std::to_string(server.server->ports().front())), *model.tokenizer, options);
  EXPECT_EQ(remote->max_context(), 1024u);
  const std::pair<const char*, TaskOptions> cases[] = {{"demo", {.data = CONCLAVE_TEST_DATA}},
                                                       {"boolq", {.data = kData}},
                                                       {"gsm8k", {.data = kData, .style = Style::lm_eval}},
                                                       {"mmlu", {.data = kData, .style = Style::lm_eval}},
                                                       {"truthfulqa", {.data = kData}}};
  for (const auto& [name, task_options] : cases) {
    const auto task = make_task(name, task_options, model.encoder);
    EXPECT_EQ(text_of(evaluate(*task, *remote, {.limit = 5})), text_of(evaluate(*task, *model.runner, {.limit = 5}))) << name;
  }
}

TEST(Tasks, ScoreTheDemoModelAsTransformersDoes) {
  const auto folder = std::filesystem::path(CONCLAVE_MODELS) / "demo-mixtral";
  Model model(folder, 16, 512);
  const auto wanted = read_json_file(std::filesystem::path(CONCLAVE_TEST_DATA) / "demo" / "scores-demo-mixtral.json");
  const PromptEncoder chat(*model.tokenizer, ChatTemplate::from_folder(folder));
  const std::pair<const char*, const PromptEncoder*> forms[] = {{"plain", &model.encoder}, {"chat", &chat}};
  for (const auto& [form, encoder] : forms) {
    const auto task = make_task("demo", {.data = CONCLAVE_TEST_DATA}, *encoder);
    const Summary summary = summarize(*task, evaluate(*task, *model.runner, {}));
    ASSERT_EQ(summary.rows.size(), 1 + wanted.size());
    for (size_t i = 1; i < summary.rows.size(); ++i)
      EXPECT_NEAR(summary.rows[i].values[0].mean, wanted[summary.rows[i].name][form].get<double>(), 6e-4) << form << " " << summary.rows[i].name;
  }
}

TEST(Tasks, ThatDoNotFitAreCountedAndNotCut) {
  Model model(kGolden, 2, 700);
  const auto task = make_task("boolq", {.data = kData}, model.encoder);
  const std::vector<ItemLine> lines = evaluate(*task, *model.runner, {});
  const Summary summary = summarize(*task, lines);
  size_t longer = 0;
  for (size_t i = 0; i < task->size(); ++i) longer += task->plan(i).queries[0].length() > 700;
  ASSERT_GT(longer, 0u);
  EXPECT_EQ(summary.skipped.size(), longer);
  EXPECT_EQ(summary.rows[0].values[0].count, task->size() - longer);
  EXPECT_TRUE(lines[summary.skipped[0]]["score"].is_null());
  EXPECT_NE(lines[summary.skipped[0]]["skipped"].get<std::string>().find("there are 700"), std::string::npos);
  const Summary summaries[] = {summary};
  EXPECT_NE(summary_table(summaries).find("do not fit the context and are not in the score"), std::string::npos);
}

TEST(Programs, AreJudgedByWhoeverRunsThem) {
  Model model(kGolden, 4, 2048);
  std::vector<Program> seen;
  TaskOptions options{.data = kData, .samples = 2, .temperature = 1, .pass_at = {1, 2}};
  EXPECT_THROW(make_task("humaneval", options, model.encoder), Error);  // nothing to run them
  options.judge = [&](const Program& p) {
    seen.push_back(p);
    return Verdict{seen.size() % 2 == 0, "said"};
  };
  const std::vector<ItemLine> lines = model.items("humaneval", options, 2);
  ASSERT_EQ(seen.size(), 4u);
  EXPECT_TRUE(seen[0].source.starts_with("from typing import List\n\n\ndef has_close_elements("));
  EXPECT_TRUE(seen[0].source.ends_with("\ncheck(has_close_elements)"));
  EXPECT_EQ(lines[0]["pass@1"], 0.5);
  EXPECT_EQ(lines[0]["pass@2"], 1.0);
}

TEST(Summaries, WeighGroupsAsTheTaskSays) {
  const std::vector<double> values = {1, 0, 1, 1};
  const Estimate e = estimate(values);
  EXPECT_DOUBLE_EQ(e.mean, 0.75);
  EXPECT_DOUBLE_EQ(e.error, 0.25);  // sample deviation 0.5, over the root of 4
}

TEST(Summaries, CompareRuns) {
  const auto line = [](size_t index, double score) { return ItemLine{{"task", "t"}, {"index", index}, {"prompt_ids", {1}}, {"extracted", "x"}, {"gold", "y"}, {"score", score}}; };
  const std::vector<ItemLine> a = {line(0, 1), line(1, 0), line(2, 1)}, b = {line(0, 1), line(1, 1), line(2, 0)};
  const std::string text = compare_runs(a, b, 10);
  EXPECT_NE(text.find("| t     | 3     | 0.6667 | 0.6667 | +0.0000"), std::string::npos) << text;
  EXPECT_NE(text.find("t 1: \"x\" -> \"x\" (gold \"y\"), score 0 -> 1"), std::string::npos) << text;
  const std::vector<ItemLine> other = {{{"task", "t"}, {"index", 0}, {"prompt_ids", {2}}, {"score", 1.0}}}, none = {{{"task", "u"}, {"index", 0}, {"score", 1.0}}};
  EXPECT_THROW(compare_runs(a, other, 10), Error);
  EXPECT_THROW(compare_runs(a, none, 10), Error);
}

TEST(ItemLogs, GoOnWhereTheyWereCut) {
  const test::TempFolder folder;
  const auto file = folder / "items.jsonl";
  const ItemLine run = {{"model", "m"}};
  const auto line = [](size_t index) { return ItemLine{{"task", "t"}, {"index", index}}; };
  {
    ItemLog log(file, run);
    log.add(line(0));
    log.add(line(1));
  }
  {
    std::ofstream cut(file.string() + ".partial", std::ios::app);
    cut << R"({"task": "t", "ind)";
  }
  EXPECT_THROW(ItemLog(file, {{"model", "other"}}), Error);
  ItemLog log(file, run);
  EXPECT_EQ(log.finished("t").size(), 2u);
  log.add(line(2));
  log.finish();
  EXPECT_EQ(text_of(read_items(file)), text_of({line(0), line(1), line(2)}));
  EXPECT_FALSE(std::filesystem::exists(file.string() + ".partial"));
}

TEST(Likelihood, WindowsScoreEveryTokenOnce) {
  const std::vector<int32_t> ids = {10, 11, 12, 13, 14, 15, 16};
  const auto windows = windows_of(ids, {.window = 4, .stride = 2, .limit = 0, .begin_id = 1});
  ASSERT_EQ(windows.size(), 3u);
  EXPECT_EQ(windows[0].ids, (std::vector<int32_t>{1, 10, 11, 12, 13}));
  EXPECT_EQ(windows[0].scored_from, 1u);
  EXPECT_EQ(windows[1].ids, (std::vector<int32_t>{1, 12, 13, 14, 15}));
  EXPECT_EQ(windows[1].scored_from, 3u);
  EXPECT_EQ(windows[2].ids, (std::vector<int32_t>{1, 14, 15, 16}));
  EXPECT_EQ(windows[2].scored_from, 3u);
  EXPECT_THROW(windows_of(ids, {.window = 4, .stride = 5}), Error);
}

TEST(Likelihood, PerplexityFollowsFromGoldenLogits) {
  const testing_support::Golden golden("mixtral-gqa");
  Model model(kGolden, 1);
  const std::vector<int32_t> ids = golden.prompt("mid");
  const auto logits = golden.values<float>("mid.logits");
  const size_t vocab = logits.size() / ids.size();
  double nll = 0;
  for (size_t i = 1; i < ids.size(); ++i) {
    double sum = 0;
    for (size_t v = 0; v < vocab; ++v) sum += std::exp(static_cast<double>(logits[(i - 1) * vocab + v]));
    nll += std::log(sum) - static_cast<double>(logits[(i - 1) * vocab + static_cast<size_t>(ids[i])]);
  }
  const Perplexity p = measure_perplexity(windows_of(ids, {.window = ids.size(), .stride = ids.size()}), *model.runner);
  EXPECT_EQ(p.tokens, ids.size() - 1);
  EXPECT_NEAR(p.nll, nll / static_cast<double>(ids.size() - 1), 1e-4);
}

TEST(Likelihood, DivergenceByHand) {
  const float p[] = {std::log(0.5f), std::log(0.25f), std::log(0.25f)}, q[] = {std::log(0.25f), std::log(0.5f), std::log(0.25f)};
  EXPECT_NEAR(row_divergence(p, q), 0.5 * std::log(2.0) - 0.25 * std::log(2.0), 1e-7);
  EXPECT_EQ(row_divergence(p, p), 0);
  Model model(kGolden, 1);
  const Divergence same = measure_divergence(windows_of(std::vector<int32_t>{5, 6, 7, 8}, {.window = 4, .stride = 4}), *model.engine, *model.engine);
  EXPECT_EQ(same.most, 0);
  EXPECT_EQ(same.same_top.mean, 1);
  EXPECT_EQ(same.tokens, 3u);
}

}  // namespace
}  // namespace conclave
