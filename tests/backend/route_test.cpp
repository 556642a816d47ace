#include <gtest/gtest.h>

#include <set>

#include "backend/support.h"

namespace conclave {
namespace {

using Score = RouterSpec::Score;
using GroupScore = RouterSpec::GroupScore;

/// Every backend by name: the reference and the CPU.
class RouteTest : public testing::TestWithParam<std::string> {
 protected:
  RouteTest() : pool(2, false), backend(GetParam() == "reference" ? make_reference() : make_cpu(pool)) { backend->reserve(test::small_limits()); }
  struct Result {
    std::vector<int32_t> expert;
    std::vector<float> weight;
  };
  Result route(std::vector<float> logits, const RouterSpec& spec, std::vector<float> bias = {}) {
    const auto rows = static_cast<int64_t>(logits.size()) / spec.num_experts;
    Result r{std::vector<int32_t>(static_cast<size_t>(rows * spec.top_k), -1), std::vector<float>(static_cast<size_t>(rows * spec.top_k))};
    backend->route({view(r.expert.data(), {rows, spec.top_k}, DType::i32), view(r.weight.data(), {rows, spec.top_k})},
                   view(logits.data(), {rows, spec.num_experts}), bias.empty() ? Tensor{} : view(bias.data(), {spec.num_experts}), spec);
    return r;
  }
  ThreadPool pool;
  std::unique_ptr<Backend> backend;
};
INSTANTIATE_TEST_SUITE_P(Backends, RouteTest, testing::Values("reference", "cpu"), [](const auto& info) { return info.param; });

using Ids = std::vector<int32_t>;
const float kLn2 = std::log(2.0f), kLn4 = std::log(4.0f);

/// Logits ln 1, ln 2, ln 4, ln 1: probabilities 1/8, 2/8, 4/8, 1/8.
TEST_P(RouteTest, SoftmaxWithoutRenormalisationKeepsProbabilities) {
  const Result r = route({0, kLn2, kLn4, 0}, {.num_experts = 4, .top_k = 2});
  EXPECT_EQ(r.expert, (Ids{1, 2}));
  EXPECT_FLOAT_EQ(r.weight[0], 0.25f);
  EXPECT_FLOAT_EQ(r.weight[1], 0.5f);
}

TEST_P(RouteTest, RenormalisedAndScaledWeights) {
  const Result r = route({0, kLn2, kLn4, 0}, {.num_experts = 4, .top_k = 2, .renormalise = true, .scale = 2.5f});
  EXPECT_FLOAT_EQ(r.weight[0], 2.5f / 3);
  EXPECT_FLOAT_EQ(r.weight[1], 5.0f / 3);
}

TEST_P(RouteTest, TiesGoToTheLowerExpert) {
  EXPECT_EQ(route({1, 3, 3, 3, 2}, {.num_experts = 5, .top_k = 2}).expert, (Ids{1, 2}));
  EXPECT_EQ(route({0, 0, 0, 0, 0}, {.num_experts = 5, .top_k = 3}).expert, (Ids{0, 1, 2}));
}

/// ERNIE: the bias decides who is chosen, the weight stays the unbiased probability over max(sum, floor).
TEST_P(RouteTest, BiasChangesTheChoiceButNotTheWeight) {
  const RouterSpec spec{.num_experts = 4, .top_k = 2, .selection_bias = true, .renormalise = true, .norm_floor = 1e-12f};
  const Result r = route({0, kLn2, kLn4, 0}, spec, {0.9f, 0, 0, 0});
  EXPECT_EQ(r.expert, (Ids{0, 2}));
  EXPECT_FLOAT_EQ(r.weight[0], 0.2f);
  EXPECT_FLOAT_EQ(r.weight[1], 0.8f);
}

TEST_P(RouteTest, FloorBoundsTheSum) {
  const Result r = route({0, kLn2, kLn4, 0}, {.num_experts = 4, .top_k = 2, .renormalise = true, .norm_floor = 3.0f});
  EXPECT_FLOAT_EQ(r.weight[1], 0.5f / 3);
}

TEST_P(RouteTest, EpsilonIsAddedToTheSum) {
  const Result r = route({0, kLn2, kLn4, 0}, {.num_experts = 4, .top_k = 2, .renormalise = true, .norm_epsilon = 0.25f});
  EXPECT_FLOAT_EQ(r.weight[0], 0.25f);
  EXPECT_FLOAT_EQ(r.weight[1], 0.5f);
}

/// DeepSeek-V2: the best single probability ranks a group. Groups {5,0} {4,4} {1,1}: by max the first two are kept.
TEST_P(RouteTest, GroupsByMaximum) {
  const RouterSpec spec{.num_experts = 6, .top_k = 3, .num_groups = 3, .top_groups = 1, .group_score = GroupScore::max, .scale = 16};
  const Result r = route({0, 5, 4, 4.5f, 1, 1}, {.num_experts = 6, .top_k = 2, .num_groups = 3, .top_groups = 1, .group_score = GroupScore::max});
  EXPECT_EQ(r.expert, (Ids{0, 1}));
  EXPECT_EQ(route({0, 5, 4, 4.5f, 1, 1}, {.num_experts = 6, .top_k = 3, .num_groups = 3, .top_groups = 2}).expert, (Ids{1, 2, 3}));
  EXPECT_EQ(spec.scale, 16);
}

/// DeepSeek-V3: the two best biased scores rank a group, so {0.5, 0.5} beats {0.9, 0.05}.
TEST_P(RouteTest, GroupsByTheSumOfTheirTwoBest) {
  const auto logit = [](double p) { return static_cast<float>(std::log(p / (1 - p))); };
  const std::vector<float> logits{logit(0.9), logit(0.05), logit(0.01), logit(0.5), logit(0.5), logit(0.4)};
  const RouterSpec spec{.num_experts = 6, .top_k = 2, .score = Score::sigmoid, .num_groups = 2, .top_groups = 1, .group_score = GroupScore::top2_sum,
                        .renormalise = true, .norm_epsilon = 1e-20f, .scale = 2.5f};
  const Result r = route(logits, spec);
  EXPECT_EQ(r.expert, (Ids{3, 4}));
  EXPECT_FLOAT_EQ(r.weight[0], 1.25f);
}

/// With scores biased below zero, masking other groups by 0 would let them win: they must be -inf.
TEST_P(RouteTest, ExpertsOutsideTheBestGroupsAreNeverPreferred) {
  const RouterSpec spec{.num_experts = 4, .top_k = 2, .score = Score::sigmoid, .selection_bias = true, .num_groups = 2, .top_groups = 1, .group_score = GroupScore::top2_sum};
  EXPECT_EQ(route({0, 0, 1, 1}, spec, {-2, -2, -1.5f, -1.5f}).expert, (Ids{2, 3}));
}

TEST_P(RouteTest, NotANumberNeitherCrashesNorLeavesTheRange) {
  const float nan = std::nanf("");
  for (const auto score : {Score::softmax, Score::sigmoid})
    for (const int groups : {1, 4})
      for (const auto& logits : {std::vector<float>(8, nan), std::vector<float>{1, nan, 2, 3, nan, 4, 5, 6}, std::vector<float>(8, -INFINITY), std::vector<float>(8, INFINITY)}) {
        const Result r = route(logits, {.num_experts = 8, .top_k = 4, .score = score, .num_groups = groups, .top_groups = std::min(groups, 2),
                                        .group_score = GroupScore::top2_sum, .renormalise = true});
        EXPECT_EQ(std::set<int32_t>(r.expert.begin(), r.expert.end()).size(), 4u);
        for (const int32_t e : r.expert) EXPECT_TRUE(e >= 0 && e < 8);
      }
}

TEST(Route, CpuAgreesWithReferenceOnManyRows) {
  ThreadPool pool(2, false);
  const auto cpu = make_cpu(pool), reference = make_reference();
  cpu->reserve(test::small_limits());
  for (const RouterSpec& spec : {RouterSpec{.num_experts = 64, .top_k = 6},
                                 RouterSpec{.num_experts = 60, .top_k = 6, .num_groups = 6, .top_groups = 3, .scale = 16},
                                 RouterSpec{.num_experts = 64, .top_k = 8, .score = Score::sigmoid, .selection_bias = true, .num_groups = 8, .top_groups = 4,
                                            .group_score = GroupScore::top2_sum, .renormalise = true, .norm_epsilon = 1e-20f, .scale = 2.5f}}) {
    constexpr int64_t rows = 64;
    std::vector<float> logits = test::random_floats(rows * spec.num_experts, 3, -4, 4), bias = test::random_floats(spec.num_experts, 4, -0.5f, 0.5f);
    std::vector<int32_t> e1(static_cast<size_t>(rows * spec.top_k)), e2(e1.size());
    std::vector<float> w1(e1.size()), w2(e1.size());
    const Tensor l = view(logits.data(), {rows, spec.num_experts}), b = view(bias.data(), {spec.num_experts});
    cpu->route({view(e1.data(), {rows, spec.top_k}, DType::i32), view(w1.data(), {rows, spec.top_k})}, l, b, spec);
    reference->route({view(e2.data(), {rows, spec.top_k}, DType::i32), view(w2.data(), {rows, spec.top_k})}, l, b, spec);
    EXPECT_EQ(e1, e2);
    for (size_t i = 0; i < w1.size(); ++i) ASSERT_NEAR(w1[i], w2[i], test::sum_error(spec.num_experts) * spec.scale);
  }
}

}  // namespace
}  // namespace conclave
