#include "perf/sweep.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "support/golden.h"
#include "support/temp_folder.h"

namespace conclave {
namespace {

class PerfSweep : public ::testing::Test {
 protected:
  std::unique_ptr<Engine> start(const EngineOptions& options) {
    ++started_;
    if (options.max_sequences > most_sequences_) throw Error(Error::Kind::out_of_memory, "too much memory");
    return std::make_unique<Engine>(model_.spec, *model_.source, options);
  }
  Sweep sweep(std::vector<PerfCase> cases) {
    EngineOptions options;
    options.threads = 1, options.block_size = 16, options.max_step_tokens = 32;
    return Sweep({.start = [this](const EngineOptions& o) { return start(o); },
                  .options = options,
                  .longest = 200,
                  .tokenizer = nullptr,
                  .interrupted = [this] { return interrupted_; }},
                 std::move(cases));
  }
  PromptRuns random(const PerfCase& what, int runs = 1) const { return random_prompts(what, model_.spec.vocab_size, runs); }

  testing_support::OpenModel model_{testing_support::golden_root() / "mixtral-gqa"};
  int started_ = 0, most_sequences_ = 1000;
  bool interrupted_ = false;
};

TEST_F(PerfSweep, PromptsComeFirstAndThenEveryStepGivesEverySequenceAToken) {
  const PerfCase what{3, 40, 5};
  Sweep s = sweep({what});
  const PerfResult r = s.run(random(what, 2));
  ASSERT_EQ(r.error, "");
  EXPECT_EQ(r.runs, 2);
  EXPECT_EQ(r.prefill_s.size(), 2u * 4u) << "3 x 40 tokens in steps of 32, twice: nothing was found in a cache";
  EXPECT_EQ(r.decode_s.size(), 2u * 4u) << "4 tokens after the first";
  EXPECT_EQ(r.first_token_s.size(), 6u);
  EXPECT_LT(r.first_token_s[0], r.first_token_s[2]);
  EXPECT_EQ(r.mean_input, 40);
  double prefill = 0, decode = 0;
  for (const double t : r.prefill_s) prefill += t;
  for (const double t : r.decode_s) decode += t;
  EXPECT_GE(r.e2e_s, (prefill + decode) / 2);
  EXPECT_DOUBLE_EQ(r.prefill_ms(), prefill / 2 * 1000);
  EXPECT_DOUBLE_EQ(r.prefill_average_ms(), prefill / 2 * 1000 / 3);
  EXPECT_DOUBLE_EQ(r.decode_ms(), decode / 2 * 1000 / 4);
  EXPECT_DOUBLE_EQ(r.decode_rate(), 3 / r.decode_ms() * 1000);
  EXPECT_DOUBLE_EQ(r.e2e_rate(), 15 / r.e2e_s);
}

TEST_F(PerfSweep, OneTokenHasNoTimePerFurtherToken) {
  const PerfCase what{2, 10, 1};
  Sweep s = sweep({what});
  const PerfResult r = s.run(random(what));
  ASSERT_EQ(r.error, "");
  EXPECT_TRUE(r.decode_s.empty());
  EXPECT_EQ(r.decode_ms(), 0);
  EXPECT_EQ(r.decode_rate(), 0);
  EXPECT_GT(r.e2e_rate(), 0);
}

TEST_F(PerfSweep, CasesShareAnEngineAndAFailedOneDoesNotEndTheOthers) {
  const std::vector<PerfCase> cases{{1, 150, 100}, {2, 20, 3}, {4, 10, 2}};
  Sweep s = sweep(cases);
  EXPECT_NE(s.run(random(cases[0])).error.find("150 + 100 tokens exceed the model's longest sequence of 200"), std::string::npos);
  EXPECT_EQ(s.run(random(cases[1])).error, "");
  EXPECT_EQ(s.run(random(cases[2])).error, "");
  EXPECT_EQ(started_, 1);
  PromptRuns wrong = random(cases[1]);
  wrong.runs[0][1][3] = model_.spec.vocab_size;
  EXPECT_FALSE(s.run(wrong).error.empty());
  EXPECT_EQ(s.run(random(cases[1])).error, "") << "the requests of the failed case may not be in the way";
}

TEST_F(PerfSweep, WhatDoesNotFitTogetherIsRunApart) {
  most_sequences_ = 2;
  const std::vector<PerfCase> cases{{8, 20, 3}, {2, 20, 3}, {1, 20, 3}};
  Sweep s = sweep(cases);
  EXPECT_EQ(s.run(random(cases[0])).error, "too much memory");
  EXPECT_EQ(s.run(random(cases[1])).error, "");
  EXPECT_EQ(s.run(random(cases[2])).error, "");
}

TEST_F(PerfSweep, InterruptionEndsIt) {
  Sweep s = sweep({{1, 20, 3}});
  interrupted_ = true;
  EXPECT_EQ(test::error_of([&] { s.run(random({1, 20, 3})); }), "interrupted");
}

TEST(PerfSearch, FindsTheLargestBatchWithinTheLimit) {
  for (int answer = 0; answer <= 20; ++answer) {
    std::vector<int> tried;
    const BatchSearch search = search_batch({1, 8, 3}, {1, 20}, 10, [&](const PerfCase& what) {
      tried.push_back(what.batch);
      PerfResult r{.what = what, .prefill_s = {}, .decode_s = {0.005, 0.005}, .first_token_s = {}};
      if (what.batch > answer) r.decode_s = {0.02, 0.02};
      if (what.batch > answer + 3) r.error = "out of memory";
      return r;
    });
    EXPECT_EQ(search.best ? search.best->what.batch : 0, answer);
    EXPECT_LE(tried.size(), 5u);
    EXPECT_EQ(search.rounds.size(), tried.size());
  }
}

}  // namespace
}  // namespace conclave
