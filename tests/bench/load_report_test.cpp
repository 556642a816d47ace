#include "bench/load_report.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/error.h"

namespace conclave {
namespace {

TEST(LoadReport, PercentilesAreNearestRanks) {
  const Percentiles ten = percentiles({10, 1, 2, 3, 4, 5, 6, 7, 8, 9});
  EXPECT_EQ(ten.p50, 5);
  EXPECT_EQ(ten.p90, 9);
  EXPECT_EQ(ten.p99, 10);
  EXPECT_EQ(percentiles({7}).p99, 7);
  EXPECT_EQ(percentiles({}).p50, 0);
}

LoadResult three_answers() {
  LoadResult result;
  result.seconds = 2;
  result.samples = {{.sent_ms = 0, .first_ms = 100, .end_ms = 400, .gaps_ms = {100, 200}, .prompt_tokens = 10, .output_tokens = 3, .inside_ms = 90, .error = {}},
                    {.sent_ms = 0, .first_ms = 300, .end_ms = 500, .gaps_ms = {50, 150}, .prompt_tokens = 20, .output_tokens = 5, .inside_ms = 280, .error = {}},
                    {.sent_ms = 0, .first_ms = 1, .end_ms = 2, .gaps_ms = {}, .prompt_tokens = 0, .output_tokens = 7, .inside_ms = -1, .error = "503 server_is_overloaded"}};
  return result;
}

TEST(LoadReport, RatesCountWholeAnswersAndErrorsStand) {
  const LoadRow row = summarize("concurrency 2", three_answers(), {.ttft = 200, .itl = 150, .e2e = 0});
  EXPECT_EQ(row.requests, 3u);
  EXPECT_EQ(row.failed(), 1u);
  EXPECT_EQ(row.requests_per_s, 1);
  EXPECT_EQ(row.output_tokens_per_s, 4) << "8 tokens of whole answers in 2 s";
  EXPECT_EQ(row.prompt_tokens, 15);
  EXPECT_EQ(row.ttft.p50, 100);
  EXPECT_EQ(row.itl.p50, 100) << "of 50, 100, 150, 200";
  EXPECT_EQ(row.e2e.p99, 500);
  EXPECT_EQ(row.outside.p50, 10);
  EXPECT_EQ(row.goodput, 0.5) << "the second came too late, the third never";
  EXPECT_NE(load_markdown({row}, {.ttft = 200}).find("1 x 503 server_is_overloaded"), std::string::npos);
  EXPECT_EQ(load_json({row}, {})["rows"][0]["errors"]["503 server_is_overloaded"], 1);
  const std::string csv = load_csv({row});
  EXPECT_EQ(std::count(csv.begin(), csv.begin() + static_cast<std::ptrdiff_t>(csv.find('\n')), ','),
            std::count(csv.begin() + static_cast<std::ptrdiff_t>(csv.find('\n')), csv.end(), ','));
}

TEST(Load, LengthsAndPromptsFollowTheSeed) {
  EXPECT_EQ(parse_length("128", "prompt-tokens", 1).most, 128);
  EXPECT_EQ(parse_length("64-256", "prompt-tokens", 1).least, 64);
  for (const char* bad : {"", "x", "5-", "-5", "9-3", "0", "1-2-3", "99999999999"}) EXPECT_THROW(parse_length(bad, "prompt-tokens", 1), Error) << bad;
  const LoadShape shape{{3, 8}, {1, 4}, 50};
  const auto first = random_requests(shape, 20, 5), again = random_requests(shape, 20, 5), other = random_requests(shape, 20, 6);
  int differ = 0;
  for (size_t i = 0; i < first.size(); ++i) {
    EXPECT_EQ(first[i].ids, again[i].ids);
    differ += first[i].ids != other[i].ids;
    EXPECT_TRUE(first[i].ids.size() >= 3 && first[i].ids.size() <= 8 && first[i].max_tokens >= 1 && first[i].max_tokens <= 4);
    for (const int32_t id : first[i].ids) EXPECT_TRUE(id >= 0 && id < 50);
  }
  EXPECT_GT(differ, 15);
  EXPECT_FALSE(random_requests({{3, 3}, {1, 1}, 0}, 1, 5)[0].text.empty());
  EXPECT_THROW(run_load({}, first, {}, [] { return false; }), Error);
}

}  // namespace
}  // namespace conclave
