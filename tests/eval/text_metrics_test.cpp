// Scores of texts and answers out of texts, against the packages that define them (tests/data/eval/metrics.jsonl) and by hand.
#include "eval/text_metrics.h"

#include <gtest/gtest.h>

#include "eval/data_files.h"
#include "eval/extract.h"
#include "eval/longbench_metrics.h"
#include "eval/programs.h"
#include "eval/report.h"

namespace conclave {
namespace {

TEST(TextMetrics, EqualThePackagesThatDefineThem) {
  int texts = 0, numbers = 0, letters = 0;
  const NumberFinder number_finder;
  const LetterFinder letter_finder(LetterFinder::Kind::exam);
  for (const JsonRow& row : read_json_lines(std::string(CONCLAVE_TEST_DATA) + "/eval/metrics.jsonl")) {
    if (row.has("prediction")) {
      const std::string said = row.text("prediction"), target = row.text("target");
      const RougeScores rouge = rouge_scores(said, target);
      EXPECT_NEAR(sentence_bleu(said, target), row.value["bleu"].get<double>(), 1e-9) << row.where;
      EXPECT_NEAR(rouge.rouge1, row.value["rouge1"].get<double>(), 1e-12) << row.where;
      EXPECT_NEAR(rouge.rouge2, row.value["rouge2"].get<double>(), 1e-12) << row.where;
      EXPECT_NEAR(rouge.rouge_lsum, row.value["rougeLsum"].get<double>(), 1e-12) << row.where;
      EXPECT_NEAR(rouge_l_f(said, target), row.value["rouge_l"].get<double>(), 1e-12) << row.where;
      ++texts;
    } else if (row.value.contains("number")) {
      const auto found = number_finder.last(row.text("text"));
      EXPECT_EQ(found ? nlohmann::ordered_json(*found) : nlohmann::ordered_json(), row.value["number"]) << row.where << " " << row.text("text");
      ++numbers;
    } else {
      EXPECT_EQ(letter_finder.find(row.text("text")), row.text("letter")) << row.where << " " << row.text("text");
      ++letters;
    }
  }
  EXPECT_GE(texts, 15);
  EXPECT_GE(numbers, 20);
  EXPECT_GE(letters, 30);
}

TEST(TextMetrics, CountEdits) {
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3u);
  EXPECT_EQ(edit_distance("", "abc"), 3u);
  EXPECT_EQ(edit_distance("東京", "東都"), 1u);
  EXPECT_EQ(similarity_percent("abcd", "bcde"), 75);  // 2 * 3 common of 8 characters
  EXPECT_EQ(similarity_percent("", "x"), 0);
}

TEST(TextMetrics, JudgeNumbersWithinATolerance) {
  EXPECT_TRUE(same_number("72", "72.00009"));
  EXPECT_FALSE(same_number("72", "72.001"));
  EXPECT_TRUE(same_number("3.", "3"));
  EXPECT_FALSE(same_number("", "0"));
  EXPECT_FALSE(same_number("1x", "1"));
}

TEST(Letters, OfGpqaComeFromTheGroupOfThePattern) {
  const LetterFinder finder(LetterFinder::Kind::gpqa);
  EXPECT_EQ(finder.find("ANSWER: C"), "C");
  EXPECT_EQ(finder.find("The correct answer is (B)"), "B");
  EXPECT_EQ(finder.find("The correct answer is: A long way to \\boxed{D}"), "A");  // the plain pattern stands before the boxed one
  EXPECT_EQ(finder.find("The correct option is\nso \\boxed{D}."), "D");
  EXPECT_EQ(finder.find("The answer is **C**"), "C");
  EXPECT_EQ(finder.find("nothing"), "");
}

TEST(Letters, OfAnswersAfterExamplesAreTheFirstCharacter) {
  EXPECT_EQ(first_character(" \n\tC. because"), "C");
  EXPECT_EQ(first_character("答案"), "答");
  EXPECT_EQ(first_character("  "), "-1");
}

TEST(LongBench, ScoresByHand) {
  const std::vector<std::string> none;
  // {"blue", "car"} and {"blue", "bike"}: precision and recall 1/2
  EXPECT_DOUBLE_EQ(longbench_score("hotpotqa", "The blue car!", {"red", "a blue bike"}, none), 0.5);
  EXPECT_DOUBLE_EQ(longbench_score("passage_count", "There are 3, not 4.", {"3"}, none), 0.5);
  EXPECT_DOUBLE_EQ(longbench_score("passage_retrieval_en", "Paragraph 12", {"Paragraph 12"}, none), 1.0);
  EXPECT_DOUBLE_EQ(longbench_score("passage_retrieval_zh", "段落3 或 段落4", {"段落3"}, none), 0.5);
  EXPECT_DOUBLE_EQ(longbench_score("trec", "\nDate\nLocation", {"Date"}, {"Date", "Location"}), 1.0);  // the first line alone
  EXPECT_DOUBLE_EQ(longbench_score("lsht", "Date or Location", {"Date"}, {"Date", "Location"}), 0.5);
  EXPECT_DOUBLE_EQ(longbench_score("lcc", "# comment\nreturn x\n", {"return x"}, none), 1.0);
  EXPECT_DOUBLE_EQ(longbench_score("multifieldqa_zh", "北京。", {"北京"}, none), 1.0);
  EXPECT_THROW(longbench_score("nothing", "", {""}, none), std::exception);
  EXPECT_EQ(longbench_datasets(false).size(), 21u);
  EXPECT_EQ(longbench_datasets(true).size(), 13u);
}

TEST(Programs, AreCutWhereSomethingElseBegins) {
  EXPECT_EQ(cut_completion("    return 1\n\ndef other():\n    pass"), "    return 1\n");
  EXPECT_EQ(cut_completion("\n    x = 1\n    return x"), "\n    x = 1\n    return x");
  EXPECT_EQ(cut_completion("return 1"), "");
  EXPECT_EQ(humaneval_program("def f():\n", "    return 1", "def check(c):\n  assert c() == 1", "f"),
            "def f():\n    return 1\ndef check(c):\n  assert c() == 1\ncheck(f)");
  EXPECT_EQ(cut_generation("  return 1;\n}\nint main() {\n}\n junk", "cpp"), "  return 1;\n}\nint main() {\n}");
  EXPECT_EQ(cut_generation("    return a;\n    }\n}\n    public static void main(String[] a) { }", "java"), "    return a;\n    }\n}\n    }");
  EXPECT_EQ(cut_generation("  return 1\n}\nfunc main() {\n}", "go"), "  return 1\n}");
  EXPECT_EQ(cut_generation("    return 1\n\nprint(1)", "python"), "    return 1\n");
}

TEST(Programs, OfOtherLanguagesGetTheirSurroundings) {
  EXPECT_EQ(polyglot_program({"js", "// language: JavaScript\nconst f = () => {\n", "test();", "", ""}, "  return 1; }"),
            "// language: JavaScript\nconst f = () => {\n  return 1; }\ntest();");
  const std::string go = polyglot_program({"go", "// language: Go\nimport (\n)\nfunc F() {\n", "func TestF() {}", "import (\n)\n", "package main"},
                                          "  strings.ToUpper(\"a\") }");
  EXPECT_EQ(go, "package main\nimport (\n\"strings\"\n)\n// language: Go\nfunc F() {\n  strings.ToUpper(\"a\") }\nfunc TestF() {}");
  const std::string cpp = polyglot_program({"cpp", "#include<vector>\nint f() {\n", "int main() {}", "", ""}, "return 1; }");
  EXPECT_EQ(cpp.find("#include<vector>", cpp.find("#include<vector>") + 1), std::string::npos);
  EXPECT_NE(cpp.find("#include<string>\n"), std::string::npos);
}

TEST(Programs, PassAtKIsUnbiased) {
  EXPECT_DOUBLE_EQ(pass_at_k(1, 1, 1), 1);
  EXPECT_DOUBLE_EQ(pass_at_k(4, 1, 1), 0.25);
  EXPECT_DOUBLE_EQ(pass_at_k(4, 2, 2), 1 - 1.0 / 6);  // of 6 pairs of 4 one has no right program
  EXPECT_DOUBLE_EQ(pass_at_k(5, 0, 5), 0);
}

TEST(Comparison, McNemarByHand) {
  EXPECT_DOUBLE_EQ(mcnemar_p(0, 0), 1);
  EXPECT_NEAR(mcnemar_p(1, 5), 2 * (1 + 6) / 64.0, 1e-12);  // binomial: (C(6,0) + C(6,1)) / 2^6, both sides
  EXPECT_NEAR(mcnemar_p(3, 3), 1, 1e-12);
  EXPECT_NEAR(mcnemar_p(600, 500), 0.0028, 2e-4);  // chi-square (99^2 / 1100) = 8.91, one degree of freedom
}

}  // namespace
}  // namespace conclave
