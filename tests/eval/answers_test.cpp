// Answers written by hand, through the tasks that golden checkpoints cannot get right: NeedleBench, AIME 2024, HumanEval and HumanEval-X. Programs
// go through the judge of `conclave eval` and its sandbox.
#include <gtest/gtest.h>

#include "cli/judge.h"
#include "core/error.h"
#include "eval/programs.h"
#include "eval/sandbox.h"
#include "eval/task.h"
#include "support/golden.h"
#include "support/temp_folder.h"

namespace conclave {
namespace {

const std::filesystem::path kData = std::filesystem::path(CONCLAVE_TEST_DATA) / "eval";

class Answers : public ::testing::Test {
 protected:
  static Judgement judged(const Task& task, size_t index, const std::string& text) {
    const Reply reply{.text = text};
    return task.judge(index, std::span(&reply, 1));
  }
  std::unique_ptr<Tokenizer> tokenizer_ = Tokenizer::load(testing_support::golden_root() / "mixtral-gqa");
  PromptEncoder encoder_{*tokenizer_, std::nullopt};
};

TEST_F(Answers, OfNeedleBenchAreTheKeyWordOrAFifthOfTheLikeness) {
  const test::TempFolder folder;
  std::filesystem::create_directories(folder / "needlebench");
  folder.write("needlebench/prompts_4k.jsonl", R"({"name": "essays_1000_0", "prompt": "The document is X.", "answer": "\nabcde fghij.\n*fgh"}
{"name": "zh_1000_0", "prompt": "文档", "answer": "\n藏宝图在月亮湖。\n*月亮湖"}
{"name": "zh_1000_0", "prompt": "文档", "answer": "no star"}
)");
  EXPECT_THROW(make_task("needlebench", {.data = folder.path(), .context = "8k"}, encoder_), Error);
  const auto task = make_task("needlebench", {.data = folder.path()}, encoder_);
  ASSERT_EQ(task->size(), 3u);
  const ItemPlan plan = task->plan(0);
  EXPECT_EQ(plan.group, "essays_1000_0");
  EXPECT_EQ(plan.text, "The document is X.");
  ASSERT_EQ(plan.queries.size(), 1u);
  EXPECT_EQ(plan.queries[0].max_new_tokens, 256);
  EXPECT_EQ(plan.queries[0].prompt, tokenizer_->encode(plan.text, {.add_special_tokens = true, .parse_special = false}));

  // The reference without white space has 11 characters: answers are cut at 13, and at a full stop behind the eighth.
  const struct {
    std::string said, extracted;
    double likeness;
  } cases[] = {{"abcde fgxij.", "abcdefgxij.", 10.0 / 11}, {"abcde fgxij. And more.", "abcdefgxij.", 10.0 / 11}, {"abcdefgxij and more", "abcdefgxijand", 9.0 / 13},
               {"abc", "abc", 3.0 / 11},                   {"f g\nh", "fgh", 3.0 / 11},                         {"zzz", "zzz", 0},
               {"", "", 0}};
  for (const auto& c : cases) {
    const Judgement j = judged(*task, 0, c.said);
    EXPECT_EQ(j["extracted"], c.extracted);
    EXPECT_DOUBLE_EQ(j["score"].get<double>(), 0.2 * c.likeness) << c.said;
  }
  EXPECT_EQ(judged(*task, 0, "a long answer that has no full stop but the key word fgh in it")["score"], 1.0);
  EXPECT_EQ(judged(*task, 1, "在月亮湖")["score"], 1.0);
  EXPECT_DOUBLE_EQ(judged(*task, 1, "藏宝图 在太阳湖。")["score"].get<double>(), 0.2 * 6 / 8);
  EXPECT_THROW(judged(*task, 2, "x"), Error);
}

TEST_F(Answers, OfAimeAreTheLastNumber) {
  const test::TempFolder folder;
  std::filesystem::create_directories(folder / "aime2024");
  folder.write("aime2024/aime_2024_problems.jsonl", "{\"ID\": \"2024-I-1\", \"Problem\": \"Find $x$.\", \"Solution\": \"s\", \"Answer\": 33}\n"
                                                    "{\"ID\": \"2024-I-2\", \"Problem\": \"Find $y$.\", \"Solution\": \"s\", \"Answer\": \"204\"}\n");
  const auto task = make_task("aime2024", {.data = folder.path()}, encoder_);
  ASSERT_EQ(task->size(), 2u);
  const ItemPlan plan = task->plan(1);
  EXPECT_EQ(plan.text, "Find $y$.\nPlease reason step by step, and put your final answer within \\boxed{}.");
  EXPECT_EQ(plan.queries.at(0).max_new_tokens, 512);
  EXPECT_EQ(judged(*task, 0, "so 7 + 26 is \\boxed{33}.")["score"], 1.0);
  EXPECT_EQ(judged(*task, 0, "\\boxed{033}")["score"], 1.0);
  EXPECT_EQ(judged(*task, 0, "\\boxed{34}")["score"], 0.0);
  const Judgement right = judged(*task, 1, "It is \\boxed{204}");
  EXPECT_EQ(right["score"], 1.0);
  EXPECT_EQ(right["extracted"], "204");
  EXPECT_EQ(right["gold"], "204");
  EXPECT_EQ(judged(*task, 1, "\\boxed{204}, found in 2 ways")["score"], 0.0) << "the last number counts";
  const Judgement none = judged(*task, 1, "I do not know");
  EXPECT_EQ(none["score"], 0.0);
  EXPECT_TRUE(none["extracted"].is_null());
}

TEST(PassAtK, EqualsCountingSubsets) {
  EXPECT_DOUBLE_EQ(pass_at_k(5, 2, 3), 1 - 1.0 / 10);     // C(3, 3) of C(5, 3) subsets hold no right program
  EXPECT_DOUBLE_EQ(pass_at_k(10, 3, 5), 1 - 21.0 / 252);  // C(7, 5) of C(10, 5)
  EXPECT_DOUBLE_EQ(pass_at_k(5, 3, 3), 1);                // every subset of three holds one
  EXPECT_NEAR(pass_at_k(200, 1, 100), 0.5, 1e-12);        // the right one is in half of them
}

class JudgedPrograms : public Answers {
 protected:
  void SetUp() override {
    if (const std::string obstacle = sandbox_obstacle(); !obstacle.empty()) GTEST_SKIP() << "no sandbox on this machine: " << obstacle;
  }
};

constexpr const char* kRight[] = {  // for the first problems of the data set
    "    numbers = sorted(numbers)\n    return any(b - a < threshold for a, b in zip(numbers, numbers[1:]))\n\n\ndef other():\n    return 1 / 0\n",
    ("    groups, depth = [''], 0\n    for c in paren_string.replace(' ', ''):\n        groups[-1] += c\n        depth += 1 if c == '(' else -1\n"
    "        if depth == 0:\n            groups.append('')\n    return groups[:-1]\n"),
    "    return number - int(number)\nprint(truncate_number(",
    "    balance = 0\n    for o in operations:\n        balance += o\n        if balance < 0:\n            return True\n    return False",
};

TEST_F(JudgedPrograms, OfHumanEvalPassWhenTheyAreRight) {
  const auto task = make_task("humaneval", {.data = kData, .judge = make_judge({})}, encoder_);
  for (size_t i = 0; i < std::size(kRight); ++i) {
    const Judgement j = judged(*task, i, kRight[i]);
    EXPECT_EQ(j["score"], 1.0) << j.dump(1);
    EXPECT_EQ(j["results"], Judgement({"passed"}));
  }
  EXPECT_EQ(judged(*task, 1, kRight[3])["score"], 0.0) << "another problem's program";
}

TEST_F(JudgedPrograms, OfHumanEvalFailWithTheReason) {
  const auto task = make_task("humaneval", {.data = kData, .judge = make_judge({})}, encoder_);
  const std::pair<const char*, const char*> cases[] = {{"    return False\n", "failed: exit code 1"},
                                                       {"    return (\n", "failed: exit code 1"},
                                                       {"", "failed: exit code 1"},
                                                       {"    import os\n    os._exit(0)\n", "failed: it ended before its last line"},
                                                       {"    while True:\n        pass\n", "timed out"},
                                                       {"    return bytearray(1 << 40)\n", "failed: exit code 1"}};
  for (const auto& [said, why] : cases) {
    const Judgement j = judged(*task, 0, said);
    EXPECT_EQ(j["score"], 0.0) << said;
    EXPECT_EQ(j["results"], Judgement({why})) << said;
  }
}

TEST_F(JudgedPrograms, OfHumanEvalAreCountedOverTheSamples) {
  const TaskOptions options{.data = kData, .samples = 4, .temperature = 1, .pass_at = {1, 2, 3}, .judge = make_judge({})};
  const auto task = make_task("humaneval", options, encoder_);
  const std::vector<Reply> one = {{.text = "    return 0\n"}, {.text = "    return 1\n"}, {.text = "    return number % 1\n"}, {.text = "    return number\n"}};
  const Judgement first = task->judge(2, one);
  EXPECT_DOUBLE_EQ(first["pass@1"].get<double>(), 0.25);
  EXPECT_DOUBLE_EQ(first["pass@2"].get<double>(), 0.5);   // of 6 pairs 3 hold the third program
  EXPECT_DOUBLE_EQ(first["pass@3"].get<double>(), 0.75);  // of 4 triples 3 do
  std::vector<Reply> two = one;
  two[0].text = kRight[2];
  const Judgement second = task->judge(2, two);
  EXPECT_DOUBLE_EQ(second["pass@1"].get<double>(), 0.5);
  EXPECT_DOUBLE_EQ(second["pass@2"].get<double>(), 1 - 1.0 / 6);
  EXPECT_EQ(second["pass@3"], 1.0);
}

TEST_F(JudgedPrograms, ThatOnlySayNumpyIsMissingFail) {
  const Judge judge = make_judge({});
  const bool numpy = run_sandboxed(Language::python, "import numpy\n").succeeded();
  const Program claims{.language = "python", .source = "raise ImportError(\"No module named 'numpy'\")\n"};
  if (numpy) EXPECT_FALSE(judge(claims).passed);
  else EXPECT_THROW(judge(claims), Error);
}

/// The same small problem in the five layouts of HumanEval-X.
struct Polyglot {
  const char *language, *rows, *right, *wrong;
};
constexpr Polyglot kPolyglots[] = {
    {"cpp", R"({"task_id": "CPP/0", "prompt": "#include<vector>\nusing namespace std;\nint sum(vector<int> v){\n", "test": "#undef NDEBUG\n#include<assert.h>\nint main(){\n    assert(sum({1,2})==3);\n}\n"})",
     "    int s=0;\n    for(int x:v) s+=x;\n    return s;\n}\n", "    return v[0];\n}\n"},
    {"go", R"({"task_id": "Go/0", "prompt": "import (\n)\n\nfunc Sum(v []int) int {\n", "import": "import (\n)\n", "test_setup": "package main\n\nimport (\n    \"testing\"\n)\n", "test": "func TestSum(t *testing.T) {\n    if Sum([]int{1, 2}) != 3 {\n        t.Fatal(\"wrong\")\n    }\n}\n"})",
     "    s := 0\n    for _, x := range v {\n        s += x\n    }\n    return s\n}\n", "    return v[0]\n}\n"},
    {"java", R"({"task_id": "Java/0", "prompt": "import java.util.*;\n\nclass Solution {\n    public int sum(List<Integer> v) {\n", "test": "public class Main {\n    public static void main(String[] args) {\n        if (new Solution().sum(Arrays.asList(1, 2)) != 3) throw new AssertionError();\n    }\n}\n"})",
     "        int s = 0;\n        for (int x : v) s += x;\n        return s;\n    }\n}", "        return v.get(0);\n    }\n}"},
    {"js", R"({"task_id": "JavaScript/0", "prompt": "const sum = (v) => {\n", "test": "const testSum = () => {\n  console.assert(sum([1, 2]) === 3)\n}\n\ntestSum()\n"})",
     "  return v.reduce((a, b) => a + b, 0)\n}\n", "  return v[0]\n}\n"},
    {"python", R"({"task_id": "Python/0", "prompt": "def total(v: List[int]) -> int:\n", "test": "def check(total):\n    assert total([1, 2]) == 3\n\ncheck(total)\n"})",
     "    return sum(v)\n", "    return v[0]\n"},
};

TEST_F(JudgedPrograms, OfHumanEvalXAreJudgedInTheirLanguages) {
  size_t judged_languages = 0;
  for (const Polyglot& p : kPolyglots) {
    if (const std::string obstacle = language_obstacle(language_named(p.language)); !obstacle.empty()) {
      std::cout << p.language << " is left out: " << obstacle << "\n";
      continue;
    }
    const test::TempFolder folder;
    const std::string data = std::string("humaneval_x/") + p.language + "/data";
    std::filesystem::create_directories(folder / data);
    folder.write(data + "/data_" + p.language + "_data_humaneval.jsonl", std::string(p.rows) + "\n");
    const auto task = make_task("humaneval_x", {.data = folder.path(), .judge = make_judge({})}, encoder_);
    ASSERT_EQ(task->size(), 1u);
    try {
      const Judgement right = judged(*task, 0, p.right), wrong = judged(*task, 0, p.wrong);
      EXPECT_EQ(right["score"], 1.0) << p.language << right.dump(1);
      EXPECT_EQ(wrong["score"], 0.0) << p.language << wrong.dump(1);
      ++judged_languages;
    } catch (const Error& e) {  // Python without numpy
      EXPECT_EQ(e.kind, Error::Kind::unsupported);
      std::cout << p.language << " is left out: " << e.what() << "\n";
    }
  }
  EXPECT_GT(judged_languages, 0u);
}

}  // namespace
}  // namespace conclave
