// Layouts and cuts as plain integers: expected values are worked out by hand from the layout rules.
#include "model/parallel_plan.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "core/error.h"
#include "model/presets.h"

namespace conclave {
namespace {

ModelSpec preset_spec(const std::string& name) { return parse_spec(preset_config(name), name); }

std::string error_of(const auto& f) {
  try {
    f();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind, Error::Kind::bad_input);
    return e.what();
  }
  return "";
}

void expect_refused(const ModelSpec& spec, const LayoutRequest& asked, std::initializer_list<const char*> words, int world = 0, int per_host = 0) {
  const std::string error = error_of([&] { resolve_layout(spec, asked, world, per_host); });
  for (const char* word : words) EXPECT_NE(error.find(word), std::string::npos) << "wanted \"" << word << "\" in: " << error;
}

TEST(Share, SizesDifferByAtMostOneUnitAndCoverEverything) {
  for (const int64_t unit : {1, 2, 32})
    for (int64_t count = 1; count < 200; ++count)
      for (int parts = 1; parts <= 9; ++parts) {
        int64_t next = 0, least = 1 << 20, most = 0;
        for (int p = 0; p < parts; ++p) {
          const IndexRange r = share(count, p, parts, unit);
          ASSERT_EQ(r.begin, next);
          ASSERT_TRUE(r.begin % unit == 0 || r.begin == count);
          next = r.end;
          const int64_t units = (r.size() + unit - 1) / unit;
          least = std::min(least, units), most = std::max(most, units);
        }
        ASSERT_EQ(next, count);
        ASSERT_LE(most - least, 1);
      }
}

TEST(Layout, FollowsFromWhatIsGiven) {
  const ModelSpec spec = preset_spec("deepseek-moe-16b");
  const auto layout = [&](const LayoutRequest& asked, int world = 0) { return resolve_layout(spec, asked, world); };
  EXPECT_EQ(layout({}).world(), 1);
  EXPECT_EQ(layout({}, 8).tp, 8) << "tensor parallelism takes the ranks that are there";
  EXPECT_EQ(layout({.tp = 4}).moe_tp, 4);
  EXPECT_EQ(layout({.tp = 4, .moe_ep = 2}).moe_tp, 2);
  EXPECT_EQ(layout({.moe_ep = 4}).tp, 4) << "experts over ranks that share attention";
  EXPECT_EQ(layout({.tp = 2, .dp = 2, .moe_ep = 4}).moe_tp, 1);
  EXPECT_EQ(layout({.tp = 2, .dp = 2}).dispatch, Dispatch::exchange);
  EXPECT_EQ(layout({.tp = 2, .pp = 2}).world(), 4);
  EXPECT_EQ(layout({.pp = 3}).microbatches, 3);
}

TEST(Layout, BrokenRulesAreRefusedWithTheirNumbers) {
  const ModelSpec spec = preset_spec("deepseek-moe-16b");  // 28 layers, 16 heads, 64 experts
  expect_refused(spec, {.tp = 3}, {"--tp 3", "3 ranks", "8"}, 8);
  expect_refused(spec, {.tp = 17}, {"--tp 17", "16 query heads"});
  expect_refused(spec, {.pp = 29}, {"--pp 29", "28 layers"});
  expect_refused(spec, {.tp = 4, .moe_tp = 2, .moe_ep = 4}, {"--moe-ep 4", "--moe-tp 2", "= 4"});
  expect_refused(spec, {.tp = 4, .moe_ep = 3}, {"--moe-ep 3", "= 4"});
  expect_refused(spec, {.dp = 2, .pp = 2}, {"--pp 2", "--dp 2"});
  expect_refused(spec, {.cp = 2}, {"--cp is 2"});
  expect_refused(spec, {.tp = 4, .sp = 2}, {"--sp 2", "--tp 4"});
  expect_refused(spec, {.tp = 8, .pp = 2}, {"--tp 8", "4 ranks of a host"}, 16, 4);
  EXPECT_EQ(resolve_layout(spec, {.tp = 16}, 16, 4).tp, 16) << "over hosts when it spans the world";
  expect_refused(spec, {.tp = 0}, {"--tp is 0"});
  expect_refused(spec, {.pp = 2, .stage_layers = {20, 9}}, {"20,9", "28 layers"});
  expect_refused(spec, {.dp = 2, .dispatch = Dispatch::replicate}, {"--moe-dispatch replicate", "--dp is 2"});
  expect_refused(preset_spec("mixtral-8x7b"), {.moe_tp = 1, .moe_ep = 9}, {"--moe-ep 9", "8 experts"});
}

TEST(Experts, SixtyFourOverSixLoseNone) {
  const ModelSpec spec = preset_spec("deepseek-moe-16b");
  const ParallelLayout layout = resolve_layout(spec, {.moe_ep = 6});
  std::multiset<int> all;
  std::vector<size_t> sizes;
  for (int r = 0; r < 6; ++r) {
    const auto held = experts_of(plan_rank(spec, layout, r), std::get<MoeSpec>(spec.layers[1]));
    all.insert(held.begin(), held.end());
    sizes.push_back(held.size());
  }
  EXPECT_EQ(sizes, (std::vector<size_t>{10, 11, 11, 10, 11, 11}));
  EXPECT_EQ(all.size(), 64u);
  EXPECT_EQ(std::set<int>(all.begin(), all.end()).size(), 64u);
}

TEST(Heads, KeyValueHeadsAreReplicatedWhereRanksAreMore) {
  const ModelSpec spec = preset_spec("mixtral-8x7b");  // 32 query heads, 8 key/value heads
  const auto kv = [&](int tp, int rank) { return plan_rank(spec, resolve_layout(spec, {.tp = tp}), rank).kv_heads; };
  EXPECT_EQ(kv(2, 1), (std::vector<int>{4, 5, 6, 7}));
  EXPECT_EQ(kv(16, 0), (std::vector<int>{0}));
  EXPECT_EQ(kv(16, 1), (std::vector<int>{0}));
  EXPECT_EQ(kv(16, 15), (std::vector<int>{7}));
  // 32 heads over 3: [0, 10) reads key/value heads 0, 0, 1, 1, 2 for two query heads each.
  EXPECT_EQ(kv(3, 0), (std::vector<int>{0, 0, 1, 1, 2}));
  // [10, 21) begins and ends inside a group of four at odd distances: one entry per query head.
  EXPECT_EQ(kv(3, 1), (std::vector<int>{2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5}));
}

TEST(Stages, OfAnotherModelAreRefused) {
  const ModelSpec one = preset_spec("deepseek-v3"), other = preset_spec("mixtral-8x7b");
  const ParallelLayout layout = resolve_layout(one, {.pp = 4});
  EXPECT_THROW(plan_rank(other, layout, 0), Error);
}

TEST(Stages, AreBalancedByBytesAndCoverAllLayers) {
  const ModelSpec spec = preset_spec("deepseek-v3");  // three dense layers, then 58 of 256 experts
  const ParallelLayout layout = resolve_layout(spec, {.pp = 4});
  int64_t next = 0;
  for (int r = 0; r < 4; ++r) {
    const RankPlan plan = plan_rank(spec, layout, r);
    EXPECT_EQ(plan.layers.begin, next);
    next = plan.layers.end;
    EXPECT_EQ(plan.first_stage, r == 0);
    EXPECT_EQ(plan.last_stage, r == 3);
  }
  EXPECT_EQ(next, 61);
  for (int s = 1; s < 4; ++s) EXPECT_GT(layout.stage_layers[0], layout.stage_layers[static_cast<size_t>(s)]) << "its dense layers weigh little";
}

TEST(Cuts, CoverEveryTensorOncePerPartOfTheWorld) {
  for (const char* name : {"deepseek-moe-16b", "mixtral-8x7b", "deepseek-v2-lite"}) {
    const ModelSpec spec = preset_spec(name);
    for (const LayoutRequest& asked : {LayoutRequest{.tp = 4}, LayoutRequest{.tp = 3}, LayoutRequest{.tp = 4, .moe_ep = 2}, LayoutRequest{.tp = 2, .pp = 2},
                                       LayoutRequest{.tp = 2, .dp = 2, .moe_ep = 4}}) {
      const ParallelLayout layout = resolve_layout(spec, asked);
      std::vector<RankPlan> plans;
      for (int r = 0; r < layout.world(); ++r) plans.push_back(plan_rank(spec, layout, r));
      for_each_tensor(spec, [&](const TensorInfo& info) {
        std::vector<int> rows(static_cast<size_t>(info.shape[0]), 0);
        int64_t columns = 0;
        for (const RankPlan& plan : plans) {
          const TensorCut cut = cut_of(spec, plan, info);
          if (!cut.held) continue;
          columns += cut.cols.size();
          if (cut.rows.empty()) for (int& n : rows) ++n;
          for (const IndexRange& range : cut.rows)
            for (int64_t r = range.begin; r < range.end; ++r) ++rows[static_cast<size_t>(r)];
        }
        for (const int n : rows) ASSERT_GE(n, 1) << name << " " << info.name;
        if (info.shape.size() == 2) {
          ASSERT_EQ(columns % info.shape[1], 0) << name << " " << info.name;
        }
      });
    }
  }
}

TEST(Cuts, PackedGroupsStayWhole) {
  ModelSpec spec = preset_spec("mixtral-8x7b");  // width 14336 = 448 groups of 32 = 112 of 128
  spec.quant = {.scheme = WeightScheme::packed, .activations = Activations::floating, .bits = 4, .group = 128};
  const ParallelLayout layout = resolve_layout(spec, {.tp = 3});
  for (int r = 0; r < 3; ++r) {
    const RankPlan plan = plan_rank(spec, layout, r);
    EXPECT_EQ(plan.expert_width(14336).begin % 128, 0);
    EXPECT_EQ(plan.expert_width(14336).size(), r == 0 ? 37 * 128 : r == 1 ? 37 * 128 : 38 * 128);
  }
  spec.quant.group = 8192;
  expect_refused(spec, {.tp = 4}, {"o_proj", "4096", "--tp 4", "8192"});
}

}  // namespace
}  // namespace conclave
