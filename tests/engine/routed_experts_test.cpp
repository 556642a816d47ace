// The experts of generated tokens against the published ones, and the load that is counted from them.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>
#include <numeric>

#include "engine/engine.h"
#include "support/golden.h"

namespace conclave {
namespace {

using namespace testing_support;
using Rows = std::vector<std::vector<int32_t>>;

EngineOptions options_for(int sequences) {
  EngineOptions o;
  o.threads = 1, o.max_sequences = sequences, o.max_context = 64, o.block_size = 4;
  o.precision = Precision::exact;
  return o;
}

struct Answer {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
  Rows experts;
};

std::map<RequestId, Answer> run(Engine& engine) {
  std::map<RequestId, Answer> answers;
  while (!engine.idle()) {
    for (Delta& delta : engine.step()) {
      Answer& a = answers[delta.id];
      a.tokens.insert(a.tokens.end(), delta.tokens.begin(), delta.tokens.end());
      for (const TokenLogprob& l : delta.logprobs) a.logprobs.push_back(l.logprob);
      if (!delta.experts.empty()) a.experts.push_back(std::move(delta.experts));
    }
  }
  return answers;
}

Request ask(std::vector<int32_t> prompt, int new_tokens, bool experts = true) {
  Request r;
  r.prompt = std::move(prompt), r.max_new_tokens = new_tokens, r.logprobs = 0, r.return_experts = experts;
  return r;
}

/// [T][layers x k] of the golden prompt.
Rows golden_rows(const Golden& golden, const std::string& prompt, const std::vector<MoeLayer>& layers) {
  Rows rows(golden.prompt(prompt).size());
  for (const MoeLayer& layer : layers) {
    const auto experts = golden.values<int32_t>(fmt::format("{}.layer.{}.experts", prompt, layer.layer));
    const auto k = static_cast<std::ptrdiff_t>(layer.top_k);
    EXPECT_EQ(experts.size(), rows.size() * static_cast<size_t>(k));
    for (auto [row, at] = std::pair(rows.begin(), experts.begin()); row != rows.end(); ++row, at += k) row->insert(row->end(), at, at + k);
  }
  return rows;
}

TEST(RoutedExperts, AreThePublishedOnesOfTheTokenBefore) {
  for (const char* name : {"mixtral-gqa", "deepseek_moe-bf16", "deepseek_v3-bf16", "ernie-interval2"}) {
    const Golden golden(name);
    const OpenModel model(golden.folder);
    const Rows published = golden_rows(golden, "mid", moe_layers(model.spec));
    Engine engine(model.spec, *model.source, options_for(4));
    const auto prompt = golden.prompt("mid");
    std::map<RequestId, size_t> last;  // position that each request's pass reads
    for (size_t t = 0; t < prompt.size(); ++t)
      last[engine.submit(ask({prompt.begin(), prompt.begin() + static_cast<std::ptrdiff_t>(t) + 1}, 1))] = t;
    for (const auto& [id, answer] : run(engine)) {
      ASSERT_EQ(answer.experts.size(), 1u) << name;
      EXPECT_EQ(answer.experts[0], published[last[id]]) << name << " position " << last[id];
    }
  }
}

TEST(RoutedExperts, OfGeneratedTokensAreThoseOfTheSameTextAsAPrompt) {
  const Golden golden("mixtral-gqa");
  const OpenModel model(golden.folder);
  Engine engine(model.spec, *model.source, options_for(2));
  auto text = golden.prompt("mid");
  const RequestId id = engine.submit(ask(text, 6));
  const Answer answer = run(engine)[id];
  ASSERT_EQ(answer.experts.size(), 6u);
  for (size_t i = 0; i < answer.experts.size(); ++i) {
    const RequestId again = engine.submit(ask(text, 1));
    EXPECT_EQ(run(engine)[again].experts, Rows{answer.experts[i]}) << "token " << i;
    text.push_back(answer.tokens[i]);
  }
}

TEST(RoutedExperts, ChangeNoBitAndStayTheSameInABatchAndAfterPreemption) {
  const Golden golden("deepseek_v3-bf16");
  const OpenModel model(golden.folder);
  const auto prompt = golden.prompt("mid");
  const auto mix = [&](bool experts, int64_t cache_tokens, int sampling) {
    EngineOptions o = options_for(4);
    o.cache_tokens = cache_tokens, o.expert_sampling = sampling, o.max_step_tokens = 8;
    Engine engine(model.spec, *model.source, o);
    std::vector<RequestId> ids;
    for (int i = 0; i < 4; ++i) {
      Request r = ask({prompt.begin() + i, prompt.end()}, 12, experts && i % 2 == 0);
      r.prompt_logprobs = i == 2 ? 0 : -1;
      ids.push_back(engine.submit(std::move(r)));
    }
    auto answers = run(engine);
    EXPECT_EQ(engine.load().preemptions > 0, cache_tokens > 0) << engine.load().preemptions;
    std::vector<Answer> ordered;
    for (const RequestId id : ids) ordered.push_back(std::move(answers[id]));
    return ordered;
  };
  const auto plain = mix(false, 0, 0), asked = mix(true, 0, 1), tight = mix(true, 2 * static_cast<int64_t>(prompt.size()) + 16, 3);
  for (size_t i = 0; i < plain.size(); ++i) {
    EXPECT_TRUE(plain[i].experts.empty());
    for (const auto* other : {&asked[i], &tight[i]}) {
      EXPECT_EQ(plain[i].tokens, other->tokens);
      EXPECT_EQ(plain[i].logprobs, other->logprobs);
      EXPECT_EQ(other->experts.size(), i % 2 == 0 ? other->logprobs.size() : 0u) << "only who asks is told";
    }
    EXPECT_EQ(asked[i].experts, tight[i].experts);
  }
}

TEST(ExpertLoad, CountsTheRowsThatEachLayerComputes) {
  const Golden golden("ernie-interval2");
  const OpenModel model(golden.folder);
  EngineOptions o = options_for(1);
  EXPECT_EQ(Engine(model.spec, *model.source, o).expert_load(), nullptr);
  o.expert_sampling = 1;
  Engine engine(model.spec, *model.source, o);
  const ExpertLoad& load = *engine.expert_load();
  const Rows published = golden_rows(golden, "mid", load.layers());
  std::vector<uint64_t> expected(load.num_counts());
  size_t column = 0;
  for (size_t l = 0; l < load.layers().size(); ++l) {
    const MoeLayer& layer = load.layers()[l];
    const bool last = layer.layer + 1 == model.spec.num_layers();  // computes only the row that is sampled
    for (size_t t = last ? published.size() - 1 : 0; t < published.size(); ++t)
      for (int k = 0; k < layer.top_k; ++k) ++expected[load.first(l) + static_cast<size_t>(published[t][column + static_cast<size_t>(k)])];
    column += static_cast<size_t>(layer.top_k);
  }
  engine.submit(ask(golden.prompt("mid"), 1, false));
  run(engine);
  const ExpertLoad::Counts counts = load.counts(std::chrono::steady_clock::now());
  EXPECT_EQ(counts.steps, 1u);
  EXPECT_EQ(counts.total, expected);
  EXPECT_EQ(counts.recent, expected);
}

TEST(ExpertLoad, SamplesOneStepOfMany) {
  const Golden golden("mixtral-gqa");
  const OpenModel model(golden.folder);
  EngineOptions o = options_for(1);
  o.expert_sampling = 4;
  Engine engine(model.spec, *model.source, o);
  engine.submit(ask(golden.prompt("mid"), 9, false));
  run(engine);
  EXPECT_EQ(engine.steps(), 9);
  const auto counts = engine.expert_load()->counts(std::chrono::steady_clock::now());
  EXPECT_EQ(counts.steps, 3u) << "steps 1, 5 and 9";
  const MoeLayer layer = engine.expert_load()->layers().front();
  const auto first = engine.expert_load()->of_layer(counts.total, 0);
  EXPECT_EQ(std::accumulate(first.begin(), first.end(), uint64_t{0}), (golden.prompt("mid").size() + 2) * static_cast<size_t>(layer.top_k));
}

TEST(ExpertLoad, ForgetsWhatLeavesTheWindow) {
  using namespace std::chrono_literals;
  ExpertLoad load({{.layer = 1, .num_experts = 2, .top_k = 1}, {.layer = 3, .num_experts = 3, .top_k = 2}}, 1);
  const auto start = std::chrono::steady_clock::now();
  const auto window = std::chrono::seconds(ExpertLoad::kSpanSeconds * ExpertLoad::kSpans);
  load.add(std::vector<uint32_t>{1, 2, 3, 0, 5}, start);
  load.add(std::vector<uint32_t>{1, 0, 0, 0, 0}, start + 10s);
  auto history = load.history(0, start + 12s);
  ASSERT_EQ(history.size(), 2u);
  EXPECT_EQ(history[0].counts, (std::vector<uint32_t>{1, 2}));
  EXPECT_EQ(history[1].counts, (std::vector<uint32_t>{1, 0}));
  EXPECT_GT(history[0].age_s, history[1].age_s);
  EXPECT_EQ(load.history(1, start + 12s)[0].counts, (std::vector<uint32_t>{3, 0, 5}));
  EXPECT_EQ(load.counts(start + 12s).recent, (std::vector<uint64_t>{2, 2, 3, 0, 5}));
  EXPECT_EQ(load.counts(start + window + 5s).recent, (std::vector<uint64_t>{1, 0, 0, 0, 0}));
  EXPECT_TRUE(load.history(0, start + 3 * window).empty());
  EXPECT_EQ(load.counts(start + 3 * window).total, (std::vector<uint64_t>{2, 2, 3, 0, 5})) << "totals stay";
}

TEST(ExpertLoad, ImbalanceIsTheLargestOverTheMean) {
  EXPECT_DOUBLE_EQ(*imbalance(std::vector<uint64_t>{3, 3, 3, 3}), 1.0);
  EXPECT_DOUBLE_EQ(*imbalance(std::vector<uint64_t>{0, 8, 0, 0}), 4.0);
  EXPECT_DOUBLE_EQ(*imbalance(std::vector<uint64_t>{1, 2, 3}), 1.5);
  EXPECT_FALSE(imbalance(std::vector<uint64_t>{0, 0}));
}

}  // namespace
}  // namespace conclave
