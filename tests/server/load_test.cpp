// The load generator of `conclave bench serve` against a real server over a scripted engine.
#include <gtest/gtest.h>

#include <numeric>

#include "bench/load_report.h"
#include "server/harness.h"

namespace conclave::testing {
namespace {

LoadTarget target_of(const TestServer& s) { return {.url = {"127.0.0.1", std::to_string(s.port()), ""}, .model = "demo", .api_key = {}}; }
bool never() { return false; }

TEST(Load, ClosedLoopTimesEveryAnswer) {
  TestServer s;
  s.engine->script = [ids = s.ids("one two three four five six")](const Request&) { return ScriptedEngine::Answer{ids}; };
  s.engine->tick_us = 2000;
  const auto requests = random_requests({{4, 9}, {5, 5}, 900}, 24, 1);
  const LoadResult result = run_load(target_of(s), requests, {.concurrency = 6}, never);
  ASSERT_EQ(result.samples.size(), 24u);
  for (const LoadSample& sample : result.samples) {
    EXPECT_EQ(sample.error, "");
    EXPECT_EQ(sample.output_tokens, 5);
    EXPECT_TRUE(sample.prompt_tokens >= 4 && sample.prompt_tokens <= 9);
    EXPECT_GT(sample.first_ms, 0);
    const double between = std::accumulate(sample.gaps_ms.begin(), sample.gaps_ms.end(), 0.0);
    EXPECT_LE(sample.first_ms + between, sample.end_ms + 1e-6);
    EXPECT_LE(sample.gaps_ms.size(), 4u);
  }
  EXPECT_GE(s.engine->requests().size(), 24u);
  EXPECT_TRUE(s.engine->requests()[0].eos_ids.empty()) << "the end of the answer is ignored";
}

TEST(Load, OpenLoopSendsWhenDueWhateverTheServerDoes) {
  TestServer s;
  s.say("word");
  s.engine->tick_us = 50'000;
  const auto requests = random_requests({{3, 3}, {1, 1}, 900}, 40, 1);
  const LoadResult result = run_load(target_of(s), requests, {.rate = 400, .seed = 7}, never);
  ASSERT_EQ(result.samples.size(), 40u);
  double last = 0;
  for (const LoadSample& sample : result.samples) last = std::max(last, sample.sent_ms);
  EXPECT_GT(last, 30);
  EXPECT_LT(last, 400) << "40 requests at 400 per second take about 100 ms, waiting for each 2 s";
}

TEST(Load, FailuresAreCountedNeverDropped) {
  TestServer s;
  s.engine->script = [&s, ids = s.ids("hello"), count = 0](const Request&) mutable {
    return ++count % 3 == 0 ? ScriptedEngine::Answer{ids, FinishReason::error, "NaN"} : ScriptedEngine::Answer{ids};
  };
  auto requests = random_requests({{3, 3}, {4, 4}, 900}, 12, 1);
  requests[0].ids.assign(5000, 5);
  const LoadRow row = summarize("x", run_load(target_of(s), requests, {.concurrency = 1}, never), {});
  EXPECT_EQ(row.requests, 12u);
  EXPECT_EQ(row.errors.at("400 context_length_exceeded"), 1u);
  EXPECT_EQ(row.errors.at("event: numeric_error"), 3u);
  EXPECT_EQ(row.failed(), 4u);
  const LoadTarget nowhere{.url = {"127.0.0.1", "1", ""}, .model = "demo", .api_key = {}};
  const LoadRow none = summarize("x", run_load(nowhere, requests, {.concurrency = 3}, never), {});
  EXPECT_EQ(none.failed(), 12u);
  EXPECT_EQ(none.errors.size(), 1u) << "equal failures count as one";
}

}  // namespace
}  // namespace conclave::testing
