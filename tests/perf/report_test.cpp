#include "perf/report.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "perf/plot.h"

namespace conclave {
namespace {

/// 0.25 s for two prompts and 0.1 s for each of four further tokens: figures that can be worked out by hand.
PerfResult simple() {
  return {.what = {2, 16, 5}, .e2e_s = 0.8, .prefill_s = {0.125, 0.125}, .decode_s = {0.1, 0.1, 0.1, 0.1}, .first_token_s = {0.125, 0.25}, .mean_input = 16};
}
PerfResult broken(const std::string& error) {
  return {.what = {64, 16, 5}, .error = error, .prefill_s = {}, .decode_s = {}, .first_token_s = {}};
}
constexpr const char* kHeader =
    "Model,Batchsize,In_seq,Out_seq,Total time(s),Prefill all time(ms),Prefill average time(ms),Non-first token time(ms),"
    "Non-first token Throughput(Tokens/s),Throughput(Tokens/s),Non-first token Throughput Average(Tokens/s),E2E Throughput Average(Tokens/s)\n";

TEST(PerfReport, HasTheColumnsOfTheReferenceStackAndAveragesOnTheLastRow) {
  EXPECT_EQ(perf_csv({"mixtral", {simple(), simple()}}),
            std::string(kHeader) + "mixtral,2,16,5,0.8,250,125,100,20,12.5,,\nmixtral,2,16,5,0.8,250,125,100,20,12.5,20,12.5\n");
}

TEST(PerfReport, ErrorsStandInThePlaceOfFiguresAndDoNotCount) {
  EXPECT_EQ(perf_csv({"m", {simple(), broken("no, \"really\"")}}),
            std::string(kHeader) + "m,2,16,5,0.8,250,125,100,20,12.5,,\nm,64,16,5,\"no, \"\"really\"\"\",,,,,,20,12.5\n");
  EXPECT_EQ(perf_csv({"m", {broken("x")}}), std::string(kHeader) + "m,64,16,5,x,,,,,,0,0\n");
  EXPECT_EQ(perf_csv({"m", {}}), kHeader);
}

TEST(PerfReport, TheTableHasTheSameCellsPadded) {
  const std::string table = perf_table({"m", {simple(), broken("a|b\nc")}});
  EXPECT_EQ(table.substr(0, 32), "Model          |Batchsize      |");
  EXPECT_NE(table.find("|E2E Throughput(Tokens/s) |"), std::string::npos);
  EXPECT_NE(table.find("\nm              |2              |16             |5              |0.8            |250                      |125"), std::string::npos) << table;
  EXPECT_NE(table.find("|a b c"), std::string::npos) << "an error cannot break the table";
}

TEST(PerfReport, JsonHasEveryStepInMilliseconds) {
  const nlohmann::ordered_json json = perf_json({"m", {simple(), broken("x")}});
  const auto& first = json["cases"][0];
  EXPECT_EQ(first["decode_step_ms"].size(), 4u);
  EXPECT_DOUBLE_EQ(first["decode_step_ms"][0].get<double>(), 100);
  EXPECT_EQ(first["prefill_step_ms"], (nlohmann::ordered_json{125.0, 125.0}));
  EXPECT_EQ(first["first_token_ms"], (nlohmann::ordered_json{125.0, 250.0}));
  EXPECT_DOUBLE_EQ(first["token_ms"].get<double>(), 100);
  EXPECT_EQ(json["cases"][1]["error"], "x");
  EXPECT_FALSE(json["cases"][1].contains("token_ms"));
}

TEST(PerfReport, QuantilesLieBetweenNeighbours) {
  EXPECT_EQ(quantile({}, 0.5), 0);
  EXPECT_EQ(quantile({3}, 0.99), 3);
  EXPECT_DOUBLE_EQ(quantile({4, 1, 2, 3}, 0.5), 2.5);
  EXPECT_DOUBLE_EQ(quantile({1, 2, 3, 4, 5}, 0.9), 4.6);
}

}  // namespace
}  // namespace conclave
