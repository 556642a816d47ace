#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/json.h"

namespace conclave {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::map<int32_t, double> kept(Sampler& sampler, const std::vector<float>& logits, const Sampling& s, const TokenHistory& history = {}) {
  std::map<int32_t, double> result;
  for (const auto& c : sampler.distribution(logits, s, history)) result[c.id] = c.probability;
  return result;
}

TEST(Sampler, FiltersLeaveWhatTransformersLeaves) {
  const auto cases = read_json_file(std::string(CONCLAVE_TEST_DATA) + "/engine/sampling.json");
  ASSERT_GE(cases.size(), 40u);
  for (const auto& c : cases) {
    const auto& given = c["sampling"];
    Sampling s{.temperature = given.value("temperature", 1.0f), .top_p = given.value("top_p", 1.0f), .min_p = given.value("min_p", 0.0f),
               .top_k = given.value("top_k", 0), .repetition_penalty = given.value("repetition_penalty", 1.0f)};
    const auto logits = c["logits"].get<std::vector<float>>();
    const auto tokens = c["tokens"].get<std::vector<int32_t>>();
    Sampler sampler(static_cast<int>(logits.size()));
    const auto got = kept(sampler, logits, s, {tokens, 4});
    const auto ids = c["kept"].get<std::vector<int32_t>>();
    const auto probabilities = c["probabilities"].get<std::vector<double>>();
    ASSERT_EQ(got.size(), ids.size()) << given.dump();
    for (size_t i = 0; i < ids.size(); ++i) {
      ASSERT_TRUE(got.contains(ids[i])) << given.dump() << " drops " << ids[i];
      EXPECT_NEAR(got.at(ids[i]), probabilities[i], 2e-6) << given.dump() << " id " << ids[i];
    }
  }
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
  EXPECT_EQ(sampler.draw(std::vector<float>{1, 3, 3, 2}, {}, {}).token, 1);
  const std::vector<int32_t> tokens{1, 1};
  EXPECT_EQ(sampler.draw(std::vector<float>{1, 3, 2.5f, 2}, {.repetition_penalty = 2}, {tokens, 1}).token, 2);
}

TEST(Sampler, PenaltiesLeaveNoTraceForTheNextCall) {
  Sampler sampler(3);
  const std::vector<int32_t> tokens{0, 1, 1};
  const Sampling s{.repetition_penalty = 1.5f, .presence_penalty = 1, .frequency_penalty = 1};
  const std::vector<float> logits{3, 4, 1};
  const Draw first = sampler.draw(logits, s, {tokens, 0});
  EXPECT_EQ(sampler.draw(logits, s, {tokens, 0}).token, first.token);
  EXPECT_EQ(sampler.draw(logits, {}, {tokens, 0}).token, 1);
}

TEST(Sampler, DamagedLogitsGiveAnErrorInsteadOfAToken) {
  Sampler sampler(3);
  for (const float temperature : {0.0f, 1.0f}) {
    EXPECT_NE(sampler.draw(std::vector<float>{1, kNan, 2}, {.temperature = temperature}, {}).error.find("NaN"), std::string::npos);
    EXPECT_NE(sampler.draw(std::vector<float>{1, kInfinity, 2}, {.temperature = temperature}, {}).error.find("infinite"), std::string::npos);
    EXPECT_FALSE(sampler.draw(std::vector<float>{-kInfinity, -kInfinity, -kInfinity}, {.temperature = temperature}, {}).error.empty());
  }
}

TEST(Sampler, DrawsFollowTheDistribution) {
  Sampler sampler(3);
  const std::vector<float> logits{std::log(0.5f), std::log(0.3f), std::log(0.2f)};
  std::array<int, 3> counts{};
  constexpr int kDraws = 20000;
  std::vector<int32_t> history;
  for (int i = 0; i < kDraws; ++i) {
    ++counts[static_cast<size_t>(sampler.draw(logits, {.temperature = 1, .seed = 7}, {history, 0}).token)];
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
  b.draw(logits, {.temperature = 1, .seed = 99}, {});
  EXPECT_EQ(a.draw(logits, s, {history, 1}).token, b.draw(logits, s, {history, 1}).token);
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
}

}  // namespace
}  // namespace conclave
