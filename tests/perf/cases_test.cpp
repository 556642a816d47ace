#include "perf/cases.h"

#include <gtest/gtest.h>

#include "perf/prompts.h"
#include "support/temp_folder.h"

namespace conclave {
namespace {

using test::error_of;

TEST(PerfCases, AreReadAsTheHarnessWritesThem) {
  EXPECT_EQ(parse_cases("[[2048,2048],[256,20]]"), (std::vector<PerfCase>{{1, 2048, 2048}, {1, 256, 20}}));
  EXPECT_EQ(parse_cases("[256,20]"), (std::vector<PerfCase>{{1, 256, 20}}));
  EXPECT_EQ(parse_cases(" 256, 20 "), (std::vector<PerfCase>{{1, 256, 20}}));
}

TEST(PerfCases, MistakesAreNamed) {
  for (const char* text : {"", "[]", "[[]]", "256", "[[256]]", "[[1,2,3]]", "[[1,2],3]", "[[1,0]]", "[[1,-2]]", "[[1,2.5]]", "[[1,\"2\"]]", "[[1,99999999999]]",
                           "[[1,2]", "[[1,2]]x", "[[[1,2]]]", "{\"a\":1}", "nonsense"})
    EXPECT_NE(error_of([&] { parse_cases(text); }).find("--cases"), std::string::npos) << text;
  EXPECT_NE(error_of([&] { parse_cases("[[1,0]]"); }).find("0 stands where a whole number of 1 to"), std::string::npos);
  std::string many = "[[1,1]";
  for (int i = 0; i < 1000; ++i) many += ",[1,1]";
  EXPECT_NE(error_of([&] { parse_cases(many + "]"); }).find("1001 cases"), std::string::npos);
}

TEST(PerfCases, BatchesAreRunOneSizeAfterTheOther) {
  const std::vector<PerfCase> cases = parse_cases("[[8,4],[2,1]]");
  const std::vector<PerfCase> both{{4, 8, 4}, {4, 2, 1}, {1, 8, 4}, {1, 2, 1}};
  EXPECT_EQ(with_batches(cases, "4,1"), both);
  EXPECT_EQ(with_batches(cases, "[4,1]"), both);
  EXPECT_EQ(with_batches(cases, "4"), (std::vector<PerfCase>{{4, 8, 4}, {4, 2, 1}}));
  EXPECT_EQ(with_batches(cases, "[[16,1],[4,1]]"), (std::vector<PerfCase>{{1, 8, 4}, {1, 2, 1}, {4, 2, 1}, {16, 8, 4}}));
  for (const char* text : {"", "0", "x", "[[1]]", "[[1],[]]", "[[1],2]", "70000"})
    EXPECT_NE(error_of([&] { with_batches(cases, text); }).find("--batch"), std::string::npos) << text;
}

TEST(PerfCases, RangesAreForAllCasesOrForEach) {
  const std::vector<BatchRange> one = parse_ranges("1,64", 2), each = parse_ranges("[[1,50],[40,150]]", 2);
  EXPECT_EQ(one[1].high, 64);
  EXPECT_EQ(each[0].high, 50);
  EXPECT_EQ(each[1].low, 40);
  for (const char* text : {"", "1", "1,2,3", "5,4", "[[1,2]]", "0,3"})
    EXPECT_NE(error_of([&] { parse_ranges(text, 2); }).find("--max-batch"), std::string::npos) << text;
}

TEST(PerfPrompts, RandomIdsAreDifferentPerSequenceAndTheSameInEveryRun) {
  const PromptRuns a = random_prompts({3, 50, 1}, 100, 2), b = random_prompts({3, 50, 1}, 100);
  EXPECT_EQ(a.runs[0], b.runs[0]);
  EXPECT_EQ(a.runs[0], a.runs[1]);
  EXPECT_NE(a.runs[0][0], a.runs[0][1]);
  for (const int32_t id : a.runs[0][2]) EXPECT_TRUE(id >= 0 && id < 100);
}

TEST(PerfPrompts, DataSetsAreCutIntoBatchesAndNothingIsDropped) {
  const Prompts dataset{{1}, {2, 2}, {3, 3, 3}, {4}, {5}};
  const auto all = dataset_prompts({2, 2, 1}, dataset, 100, false);
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0].runs, (std::vector<Prompts>{{{1}, {2, 2}}, {{3, 3}, {4}}}));
  EXPECT_EQ(all[1].what, (PerfCase{1, 2, 1})) << "the rest has its true size";
  EXPECT_EQ(all[1].runs, (std::vector<Prompts>{{{5}}}));
  EXPECT_EQ(dataset_prompts({2, 2, 1}, dataset, 2, false).size(), 1u);
  EXPECT_EQ(dataset_prompts({2, 5, 1}, {{1}, {2, 3}}, 1, true)[0].runs, (std::vector<Prompts>{{{1, 1, 1, 1, 1}, {2, 3, 2, 3, 2}}}));
  EXPECT_EQ(dataset_prompts({3, 5, 1}, {{1}, {2}}, 9, false)[0].runs, (std::vector<Prompts>{{{1}, {2}, {1}}})) << "too few are repeated";
}

}  // namespace
}  // namespace conclave
