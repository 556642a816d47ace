#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

#include "core/error.h"
#include "core/json.h"
#include "engine/logprobs.h"

namespace conclave {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::map<int32_t, double> kept(Sampler& sampler, const std::vector<float>& logits, const Sampling& s, const TokenHistory& history = {}) {
  std::map<int32_t, double> result;
  SamplerState state;
  for (const auto& c : sampler.distribution(logits, s, history, state)) result[c.id] = c.probability;
  return result;
}

Draw draw(Sampler& sampler, const std::vector<float>& logits, const Sampling& s, const TokenHistory& history) {
  SamplerState state;
  return sampler.draw(logits, s, history, state);
}

Sampling read_sampling(const nlohmann::ordered_json& j) {
  Sampling s{.temperature = j.value("temperature", 1.0f), .top_p = j.value("top_p", 1.0f), .min_p = j.value("min_p", 0.0f),
             .top_k = j.value("top_k", 0), .repetition_penalty = j.value("repetition_penalty", 1.0f)};
  s.typical_p = j.value("typical_p", 1.0f), s.top_n_sigma = j.value("top_n_sigma", 0.0f);
  s.xtc_probability = j.value("xtc_probability", 0.0f), s.xtc_threshold = j.value("xtc_threshold", 0.1f);
  s.mirostat = j.value("mirostat", 0), s.mirostat_tau = j.value("mirostat_tau", 5.0f), s.min_tokens = j.value("min_tokens", 0);
  s.allowed_token_ids = j.value("allowed_token_ids", std::vector<int32_t>{});
  s.bad_words = j.value("bad_words", std::vector<std::vector<int32_t>>{});
  s.logit_bias = j.value("logit_bias", std::vector<std::pair<int32_t, float>>{});
  if (!j.contains("dry")) return s;
  const auto& d = j["dry"];
  s.dry = {d["multiplier"], d["base"], d["allowed_length"], d["range"], d["breakers"].get<std::vector<int32_t>>()};
  return s;
}

nlohmann::ordered_json reference_cases() { return read_json_file(std::string(CONCLAVE_TEST_DATA) + "/engine/sampling.json"); }

TEST(Sampler, RulesAndFiltersLeaveWhatTheReferencesLeave) {
  const auto cases = reference_cases();
  ASSERT_GE(cases.size(), 90u);
  for (const auto& c : cases) {
    const auto& given = c["sampling"];
    const auto logits = c["logits"].get<std::vector<float>>();
    const auto tokens = c["tokens"].get<std::vector<int32_t>>();
    const auto eos = c["eos"].get<std::vector<int32_t>>();
    Sampler sampler(static_cast<int>(logits.size()));
    const auto got = kept(sampler, logits, read_sampling(given), {tokens, c["prompt_len"], eos});
    const auto ids = c["kept"].get<std::vector<int32_t>>();
    const auto probabilities = c["probabilities"].get<std::vector<double>>();
    ASSERT_EQ(got.size(), ids.size()) << given.dump();
    for (size_t i = 0; i < ids.size(); ++i) {
      ASSERT_TRUE(got.contains(ids[i])) << given.dump() << " drops " << ids[i];
      EXPECT_NEAR(got.at(ids[i]), probabilities[i], 2e-6) << given.dump() << " id " << ids[i];
    }
  }
}

TEST(Sampler, LogprobsAreTheLogSoftmaxOfTheModelsLogits) {
  int seen = 0;
  for (const auto& c : reference_cases()) {
    const auto expected = c["logprobs"].get<std::vector<double>>();
    if (expected.empty()) continue;
    ++seen;
    const auto logits = c["logits"].get<std::vector<float>>();
    std::vector<int32_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)]; });
    for (size_t place = 0; place < order.size(); place += 7) {
      const TokenLogprob got = token_logprob(logits, order[place], 20);
      EXPECT_EQ(got.id, order[place]);
      EXPECT_EQ(got.rank, static_cast<int>(place) + 1);
      EXPECT_NEAR(got.logprob, expected[static_cast<size_t>(got.id)], 2e-6);
      ASSERT_EQ(got.top.size(), 20u);
      for (size_t i = 0; i < 20; ++i) {
        EXPECT_EQ(got.top[i].first, order[i]) << i;
        EXPECT_NEAR(got.top[i].second, expected[static_cast<size_t>(order[i])], 2e-6);
      }
    }
  }
  EXPECT_GE(seen, 10);
  EXPECT_TRUE(token_logprob(std::vector<float>{1, 2}, 0, 0).top.empty());
  EXPECT_EQ(token_logprob(std::vector<float>{1, 2}, 0, 20).top.size(), 2u);
}

/// mu <- mu - eta (surprise - tau), surprise = -log2 of the drawn token's probability among those kept (Basu et al. 2020, algorithm 2).
TEST(Sampler, MirostatSteersTheSurpriseOfWhatItDraws) {
  Sampler sampler(4);
  const std::vector<float> logits{std::log(0.5f), std::log(0.25f), std::log(0.2f), std::log(0.05f)};
  const Sampling s{.temperature = 1, .seed = 4, .mirostat = 2, .mirostat_tau = 1.1f, .mirostat_eta = 0.5f};
  SamplerState state;
  double limit = 2.2;  // bits: the fourth token has 4.3, the third 2.32
  std::vector<int32_t> history{1};
  for (int i = 0; i < 50; ++i) {
    const std::vector<double> all{0.5, 0.25, 0.2, 0.05};
    std::vector<double> p;
    for (const double x : all)
      if (p.empty() || -std::log2(x) <= limit) p.push_back(x);
    const double sum = std::accumulate(p.begin(), p.end(), 0.0);
    const auto token = static_cast<size_t>(sampler.draw(logits, s, {history, 1}, state).token);
    ASSERT_LT(token, p.size());
    limit -= 0.5 * (-std::log2(p[token] / sum) - 1.1);
    EXPECT_NEAR(state.surprise_limit, limit, 1e-5);
    history.push_back(static_cast<int32_t>(token));
  }
}

TEST(Sampler, XtcActsAsOftenAsAsked) {
  Sampler sampler(3);
  const std::vector<float> logits{2, 1.5f, 0};
  std::vector<int32_t> history;
  int acted = 0;
  constexpr int kDraws = 4000;
  for (int i = 0; i < kDraws; ++i, history.push_back(0))
    acted += !kept(sampler, logits, {.temperature = 1, .seed = 9, .xtc_probability = 0.3f, .xtc_threshold = 0.1f}, {history, 0}).contains(0);
  EXPECT_NEAR(acted, kDraws * 0.3, 5 * std::sqrt(kDraws * 0.3 * 0.7));
}

TEST(Sampler, RulesHoldForGreedyChoicesToo) {
  Sampler sampler(4);
  const std::vector<float> logits{1, 4, 3, 2};
  const std::vector<int32_t> tokens{0, 3};
  EXPECT_EQ(draw(sampler, logits, {.logit_bias = {{3, 2.5f}}}, {tokens, 1}).token, 3);
  EXPECT_EQ(draw(sampler, logits, {.bad_words = {{3, 1}}}, {tokens, 1}).token, 2);
  EXPECT_EQ(draw(sampler, logits, {.bad_words = {{0, 1}}}, {tokens, 1}).token, 1) << "another beginning";
  EXPECT_EQ(draw(sampler, logits, {.allowed_token_ids = {0, 3}}, {tokens, 1}).token, 3);
  const std::vector<int32_t> eos{1, 4000, -1}, stop{2};
  EXPECT_EQ(draw(sampler, logits, {.min_tokens = 2}, {tokens, 1, eos, stop}).token, 3);
  EXPECT_EQ(draw(sampler, logits, {.min_tokens = 1}, {tokens, 1, eos, stop}).token, 1) << "one new token is there";
}

TEST(Sampler, BanningEveryTokenIsAnError) {
  Sampler sampler(2);
  for (const float temperature : {0.0f, 1.0f}) {
    const Draw got = draw(sampler, {1, 2}, {.temperature = temperature, .allowed_token_ids = {1}, .bad_words = {{1}}}, {});
    EXPECT_NE(got.error.find("allowed_token_ids"), std::string::npos) << got.error;
  }
}

TEST(Sampler, TinyTemperaturesChooseTheMostLikelyToken) {
  Sampler sampler(3);
  EXPECT_EQ(draw(sampler, {1, 3, 2}, {.temperature = 1e-38f, .seed = 5}, {}).token, 1);
}

TEST(Sampler, ValuesAtTheEndsOfTheirRangesStillChooseAToken) {
  constexpr float kTiny = 1.4e-45f;
  const std::vector<int32_t> tokens{1, 2, 1, 2, 1, 2, 1, 2, 1};
  Sampler sampler(5);
  for (const float repetition : {kTiny, 1.0f, 100.0f}) {
    for (const float temperature : {0.0f, kTiny, 1.0f, 100.0f}) {
      for (const float mass : {kTiny, 0.5f, 1.0f}) {
        for (const DrySampling& dry : {DrySampling{}, DrySampling{.multiplier = 100, .base = 100, .allowed_length = 0}}) {
          Sampling s{.temperature = temperature, .top_p = mass, .repetition_penalty = repetition, .seed = 3, .typical_p = mass, .top_n_sigma = 1.0f - mass};
          s.dry = dry;
          const Draw got = draw(sampler, {-2, 3, 0, 1e-40f, -kInfinity}, s, {tokens, 1});
          EXPECT_TRUE(got.error.empty() && got.token >= 0 && got.token < 4) << repetition << " " << temperature << " " << mass << " " << got.error;
        }
      }
    }
  }
  EXPECT_EQ(draw(sampler, {-2, 3, 0, 1, -1}, {.repetition_penalty = kTiny}, {tokens, 1}).token, 1) << "a reward beyond any other";
}

TEST(Sampler, PresenceAndFrequencyPenaltiesCountTheAnswerOnly) {
  Sampler sampler(4);
  const std::vector<int32_t> tokens{0, 0, 1, 1, 2};  // prompt 0 0, answer 1 1 2
  const auto got = kept(sampler, {0, 0, 0, 0}, {.temperature = 1, .presence_penalty = 0.5f, .frequency_penalty = 0.25f}, {tokens, 2});
  const double once = std::exp(-0.75), twice = std::exp(-1.0), sum = 2 + once + twice;
  EXPECT_NEAR(got.at(0), 1 / sum, 1e-9);
  EXPECT_NEAR(got.at(1), twice / sum, 1e-7);
  EXPECT_NEAR(got.at(2), once / sum, 1e-7);
  EXPECT_NEAR(got.at(3), 1 / sum, 1e-9);
}

TEST(Sampler, GreedyTakesTheLowerIdOnTiesAndHonoursPenalties) {
  Sampler sampler(4);
  EXPECT_EQ(draw(sampler, {1, 3, 3, 2}, {}, {}).token, 1);
  const std::vector<int32_t> tokens{1, 1};
  EXPECT_EQ(draw(sampler, {1, 3, 2.5f, 2}, {.repetition_penalty = 2}, {tokens, 1}).token, 2);
}

TEST(Sampler, PenaltiesLeaveNoTraceForTheNextCall) {
  Sampler sampler(3);
  const std::vector<int32_t> tokens{0, 1, 1};
  const Sampling s{.repetition_penalty = 1.5f, .presence_penalty = 1, .frequency_penalty = 1};
  const std::vector<float> logits{3, 4, 1};
  const Draw first = draw(sampler, logits, s, {tokens, 0});
  EXPECT_EQ(draw(sampler, logits, s, {tokens, 0}).token, first.token);
  EXPECT_EQ(draw(sampler, logits, {}, {tokens, 0}).token, 1);
}

TEST(Sampler, DamagedLogitsGiveAnErrorInsteadOfAToken) {
  Sampler sampler(3);
  for (const float temperature : {0.0f, 1.0f}) {
    EXPECT_NE(draw(sampler, {1, kNan, 2}, {.temperature = temperature}, {}).error.find("NaN"), std::string::npos);
    EXPECT_NE(draw(sampler, {1, kInfinity, 2}, {.temperature = temperature}, {}).error.find("infinite"), std::string::npos);
    EXPECT_FALSE(draw(sampler, {-kInfinity, -kInfinity, -kInfinity}, {.temperature = temperature}, {}).error.empty());
  }
}

TEST(Sampler, DrawsFollowTheDistribution) {
  Sampler sampler(3);
  const std::vector<float> logits{std::log(0.5f), std::log(0.3f), std::log(0.2f)};
  std::array<int, 3> counts{};
  constexpr int kDraws = 20000;
  std::vector<int32_t> history;
  for (int i = 0; i < kDraws; ++i) {
    ++counts[static_cast<size_t>(draw(sampler, logits, {.temperature = 1, .seed = 7}, {history, 0}).token)];
    history.push_back(0);
  }
  const double expected[] = {0.5, 0.3, 0.2};
  for (size_t i = 0; i < 3; ++i)  // five standard deviations of a binomial count
    EXPECT_NEAR(counts[i], kDraws * expected[i], 5 * std::sqrt(kDraws * expected[i] * (1 - expected[i])));
}

TEST(Sampler, TheSameSeedAndPositionGiveTheSameToken) {
  Sampler a(50), b(50);
  std::vector<float> logits(50);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = std::sin(static_cast<float>(i));
  std::vector<int32_t> history(5, 1);
  const Sampling s{.temperature = 1.1f, .top_p = 0.9f, .top_k = 40, .seed = 3};
  draw(b, logits, {.temperature = 1, .seed = 99}, {});
  EXPECT_EQ(draw(a, logits, s, {history, 1}).token, draw(b, logits, s, {history, 1}).token);
}

TEST(Uniform, StaysInTheUnitIntervalAndDependsOnBothArguments) {
  double sum = 0;
  for (uint64_t i = 0; i < 10000; ++i) {
    const double u = uniform(5, i);
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    sum += u;
  }
  EXPECT_NEAR(sum / 10000, 0.5, 5 * std::sqrt(1.0 / 12 / 10000));
  EXPECT_NE(uniform(1, 2), uniform(2, 1));
  EXPECT_NE(uniform(0, 0), uniform(0, 1));
}

TEST(SamplingOptions, BadValuesAreRefusedByName) {
  const auto message = [](const Sampling& s) -> std::string {
    try {
      validate(s);
    } catch (const Error& e) {
      EXPECT_EQ(e.kind, Error::Kind::bad_input);
      return e.what();
    }
    return "";
  };
  EXPECT_EQ(message({}), "");
  EXPECT_NE(message({.temperature = -1}).find("temperature is -1"), std::string::npos);
  EXPECT_NE(message({.temperature = kNan}).find("temperature"), std::string::npos);
  EXPECT_NE(message({.top_p = 1.5f}).find("top_p"), std::string::npos);
  EXPECT_NE(message({.min_p = -0.1f}).find("min_p"), std::string::npos);
  EXPECT_NE(message({.top_k = -1}).find("top_k is -1"), std::string::npos);
  EXPECT_NE(message({.repetition_penalty = 0}).find("repetition_penalty"), std::string::npos);
  EXPECT_NE(message({.presence_penalty = 3}).find("presence_penalty"), std::string::npos);
  EXPECT_NE(message({.frequency_penalty = kInfinity}).find("frequency_penalty"), std::string::npos);
  EXPECT_NE(message({.typical_p = 0}).find("typical_p is 0, wanted more than 0"), std::string::npos);
  EXPECT_NE(message({.top_n_sigma = -1}).find("top_n_sigma"), std::string::npos);
  EXPECT_NE(message({.xtc_probability = 1.1f}).find("xtc_probability"), std::string::npos);
  EXPECT_NE(message({.xtc_threshold = kNan}).find("xtc_threshold"), std::string::npos);
  EXPECT_NE(message({.dry = {.multiplier = -1}}).find("dry: multiplier"), std::string::npos);
  EXPECT_NE(message({.dry = {.base = 0.5f}}).find("dry: base"), std::string::npos);
  EXPECT_NE(message({.dry = {.allowed_length = -1}}).find("dry: allowed_length is -1"), std::string::npos);
  EXPECT_NE(message({.dry = {.range = -1}}).find("dry: range"), std::string::npos);
  EXPECT_NE(message({.mirostat = 1}).find("mirostat is 1, wanted 0 (off) or 2"), std::string::npos);
  EXPECT_NE(message({.mirostat_tau = -1}).find("mirostat_tau"), std::string::npos);
  EXPECT_NE(message({.mirostat_eta = 2}).find("mirostat_eta"), std::string::npos);
  EXPECT_NE(message({.logit_bias = {{4, 101.0f}}}).find("logit_bias of id 4 is 101, wanted -100 to 100"), std::string::npos);
}

TEST(RequestFields, BadValuesAreRefusedByName) {
  const auto message = [](auto change) -> std::string {
    Request r;
    r.prompt = {1, 2};
    change(r);
    try {
      validate(r, 50);
    } catch (const Error& e) {
      EXPECT_EQ(e.kind, Error::Kind::bad_input);
      return e.what();
    }
    return "";
  };
  EXPECT_EQ(message([](Request&) {}), "");
  const auto contains = [&](auto change, const std::string& text) {
    const std::string got = message(change);
    EXPECT_NE(got.find(text), std::string::npos) << text << " | " << got;
  };
  contains([](Request& r) { r.sampling.logit_bias = {{50, 1.0f}}; }, "logit_bias: id 0 is 50, wanted 0 to 49");
  contains([](Request& r) { r.sampling.logit_bias.assign(1025, {1, 1.0f}); }, "logit_bias has 1025 entries, at most 1024");
  contains([](Request& r) { r.sampling.allowed_token_ids = {1, -1}; }, "allowed_token_ids: entry 1 is -1");
  contains([](Request& r) { r.sampling.allowed_token_ids.assign(51, 1); }, "allowed_token_ids has 51 entries");
  contains([](Request& r) { r.sampling.bad_words = {{1}, {}}; }, "bad_words: word 1 has no tokens");
  contains([](Request& r) { r.sampling.bad_words = {{1, 50}}; }, "bad_words: token of word 0: 1 is 50");
  contains([](Request& r) { r.sampling.bad_words = {std::vector<int32_t>(257, 1)}; }, "257 entries");
  contains([](Request& r) { r.sampling.dry.breakers = {99}; }, "dry: breaker 0 is 99");
  contains([](Request& r) { r.sampling.min_tokens = 21; }, "min_tokens is 21, wanted 0 to 20");
  contains([](Request& r) { r.sampling.min_tokens = -1; }, "min_tokens is -1");
  contains([](Request& r) { r.stop_token_ids = {50}; }, "stop_token_ids: entry 0 is 50");
  contains([](Request& r) { r.logprobs = 21; }, "logprobs is 21, wanted -1 to 20");
  contains([](Request& r) { r.prompt_logprobs = -2; }, "prompt_logprobs is -2");
  contains([](Request& r) { r.priority = 0; }, "priority is 0, wanted 1 to 5");
  contains([](Request& r) { r.priority = 6; }, "priority is 6");
  contains([](Request& r) { r.deadline_ms = kNan; }, "deadline_ms is nan");
  contains([](Request& r) { r.deadline_ms = 1e10; }, "deadline_ms is 10000000000, wanted 0 (none) to 1e9");
  contains([](Request& r) { r.max_new_tokens = -5; }, "max_new_tokens is -5, wanted 1 to 2147483647");
}

}  // namespace
}  // namespace conclave
