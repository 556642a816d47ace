#include "model/rope.h"

#include <gtest/gtest.h>

#include <cmath>

namespace conclave {
namespace {

RopeSpec deepseek_yarn(float mscale) {
  return {.pairs = RopePairs::adjacent,
          .dim = 64,
          .theta = 10000,
          .yarn = YarnSpec{.factor = 40,
                           .mscale = mscale,
                           .mscale_all_dim = mscale,
                           .beta_fast = 32,
                           .beta_slow = 1,
                           .original_max_len = 4096}};
}

TEST(Rope, PlainFrequenciesAreThePowersOfTheta) {
  const auto f = inverse_frequencies({.pairs = RopePairs::halves, .dim = 8, .theta = 10000, .yarn = {}});
  ASSERT_EQ(f.size(), 4u);
  EXPECT_FLOAT_EQ(f[0], 1.0f);
  EXPECT_FLOAT_EQ(f[1], 0.1f);
  EXPECT_FLOAT_EQ(f[2], 0.01f);
  EXPECT_FLOAT_EQ(f[3], 0.001f);
}

// Values computed by an independent script from the formulas of DeepSeek's modeling code (theta 1e4, factor 40, 4096,
// 32/1).
TEST(Rope, YarnBlendsBetweenTheTwoIndicesOfDeepSeek) {
  const auto f = inverse_frequencies(deepseek_yarn(1.0f));
  ASSERT_EQ(f.size(), 32u);
  for (int i = 0; i <= 10; ++i)
    EXPECT_FLOAT_EQ(f[static_cast<size_t>(i)], static_cast<float>(std::pow(10000.0, -i / 32.0))) << i;
  EXPECT_FLOAT_EQ(f[11], 0.0390069266f);
  EXPECT_FLOAT_EQ(f[16], 0.0055f);
  EXPECT_FLOAT_EQ(f[22], 1.77827941e-4f);
  for (int i = 23; i < 32; ++i)
    EXPECT_FLOAT_EQ(f[static_cast<size_t>(i)], static_cast<float>(std::pow(10000.0, -i / 32.0) / 40)) << i;
}

TEST(Rope, EqualBetasGiveAdjacentIndices) {  // Kimi-K2: both betas 1, theta 50000: c(1) = 64 ln(4096 / 2 pi) / (2 ln
                                             // 50000) = 19.17
  RopeSpec spec = deepseek_yarn(1.0f);
  spec.theta = 50000;
  spec.yarn->factor = 32;
  spec.yarn->beta_fast = 1;
  const auto f = inverse_frequencies(spec);
  EXPECT_FLOAT_EQ(f[19], static_cast<float>(std::pow(50000.0, -19 / 32.0)));
  EXPECT_FLOAT_EQ(f[20], static_cast<float>(std::pow(50000.0, -20 / 32.0) / 32));
}

TEST(Rope, MagnitudesFollowDeepSeek) {
  EXPECT_NEAR(mla_softmax_factor(deepseek_yarn(0.707f)), 1.58962617, 2e-7);
  EXPECT_NEAR(mla_softmax_factor(deepseek_yarn(1.0f)), 1.87385421, 2e-7);
  EXPECT_EQ(rope_attention_factor(deepseek_yarn(0.707f)), 1.0f);  // mscale equals mscale_all_dim in every release
  RopeSpec plain = deepseek_yarn(1.0f);
  plain.yarn->mscale_all_dim = 0;  // then cosine and sine carry the magnitude: 0.1 ln 40 + 1
  EXPECT_FLOAT_EQ(rope_attention_factor(plain), 1.3688879f);
  EXPECT_EQ(mla_softmax_factor(plain), 1.0f);
  plain.yarn.reset();
  EXPECT_EQ(rope_attention_factor(plain), 1.0f);
  EXPECT_EQ(mla_softmax_factor(plain), 1.0f);
  EXPECT_EQ(yarn_mscale(0.5f, 1), 1.0f);
}

TEST(Rope, AnglesAreRoundedBeforeTheirCosine) {
  const std::vector<float> f{1.0f, 0.1f, 0.0390069266f};
  const std::vector<int32_t> positions{0, 7, 163839};
  float cosine[9], sine[9];
  fill_rope_angles(f, 2.0f, positions, {view(cosine, {3, 3}), view(sine, {3, 3})});
  for (size_t t = 0; t < 3; ++t)
    for (size_t i = 0; i < 3; ++i) {
      const float angle = static_cast<float>(positions[t]) * f[i];
      EXPECT_FLOAT_EQ(cosine[t * 3 + i], static_cast<float>(2 * std::cos(static_cast<double>(angle)))) << t << " " << i;
      EXPECT_FLOAT_EQ(sine[t * 3 + i], static_cast<float>(2 * std::sin(static_cast<double>(angle))));
    }
  EXPECT_EQ(cosine[0], 2.0f);
  EXPECT_NEAR(sine[3], 2 * 0.6569865987187891, 1e-6);  // sin 7
}

}  // namespace
}  // namespace conclave
