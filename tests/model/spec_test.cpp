#include "model/spec.h"

#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "io/checkpoint.h"
#include "model/presets.h"

namespace conclave {
namespace {

ModelSpec preset(std::string_view name) { return parse_spec(preset_config(name), name); }

/// Published sizes in billions: total, active (advertised), read per token; cache bytes per token in bf16. Mixtral
/// 8x22B with the base model's 32000 rows of vocabulary.
struct Published { const char* preset; double total, total_step, active, touched; int64_t kv; };
const Published kPublished[] = {
    {"deepseek-moe-16b", 16.376, 0.001, 2.83, 2.62, 229376},
    {"deepseek-v2-lite", 15.706, 0.001, 2.66, 2.45, 31104},
    {"deepseek-v2", 235.74, 0.01, 21.38, 20.85, 69120},
    {"deepseek-v3", 671.03, 0.01, 37.55, 36.63, 70272},
    {"mixtral-8x7b", 46.70, 0.01, 12.88, 12.75, 131072},
    {"mixtral-8x22b", 140.62, 0.01, 39.15, 38.96, 229376},
    {"ernie-4.5-21b-a3b", 21.825, 0.001, 3.35, 3.35, 57344},
    {"ernie-4.5-300b-a47b", 299.48, 0.01, 47.93, 47.08, 221184},
};

TEST(Spec, ParameterTotalsAreThePublishedOnes) {
  for (const Published& p : kPublished) {
    const ModelSpec spec = preset(p.preset);
    const ParameterCounts counts = count_parameters(spec);
    EXPECT_NEAR(static_cast<double>(counts.total) / 1e9, p.total, p.total_step * 0.51) << p.preset;
    EXPECT_NEAR(static_cast<double>(counts.active) / 1e9, p.active, 0.0051) << p.preset;
    EXPECT_NEAR(static_cast<double>(counts.touched_per_token) / 1e9, p.touched, 0.0051) << p.preset;
    EXPECT_EQ(kv_bytes_per_token(spec, DType::bf16), p.kv) << p.preset;
    EXPECT_EQ(kv_bytes_per_token(spec, DType::f32), 2 * p.kv) << p.preset;
  }
}

TEST(Spec, TensorListAddsUpToTheTotal) {
  for (const char* name : {"deepseek-v2-lite", "mixtral-8x7b", "ernie-4.5-21b-a3b"}) {
    const ModelSpec spec = preset(name);
    int64_t total = 0;
    std::set<std::string> names;
    for_each_tensor(spec, [&](const TensorInfo& info) {
      int64_t n = 1;
      for (const int64_t d : info.shape) n *= d;
      total += n;
      EXPECT_TRUE(names.insert(info.name).second) << info.name;
    });
    EXPECT_EQ(total, count_parameters(spec).total) << name;
  }
}

TEST(Spec, TensorListIsTheContentOfEveryGoldenCheckpoint) {
  for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(CONCLAVE_TEST_DATA) / "golden")) {
    if (!entry.is_directory()) continue;
    const Checkpoint checkpoint(entry.path());
    const ModelSpec spec = parse_spec(checkpoint.config(), entry.path().string());
    std::set<std::string> listed;
    for_each_tensor(spec, [&](const TensorInfo& info) {
      listed.insert(info.name);
      const TensorRecord* record = checkpoint.find(info.name);
      ASSERT_NE(record, nullptr) << entry.path() << " " << info.name;
      EXPECT_EQ(record->shape, info.shape) << info.name;
      const bool quantised = record->dtype == DType::i8 || record->dtype == DType::f8e4m3;
      EXPECT_TRUE(!info.keep_f32 || record->dtype == DType::f32) << info.name;
      EXPECT_TRUE(!quantised || info.linear) << info.name;
    });
    for (const auto& [name, record] : checkpoint.tensors()) {
      const bool scale = name.ends_with("_scale") || name.ends_with("_scale_inv");
      EXPECT_TRUE(listed.contains(name) || scale || is_ignored(spec, name)) << entry.path() << " " << name;
    }
  }
}

TEST(Spec, ShapesOfDeepSeekV3AreThePublishedOnes) {
  std::map<std::string, std::vector<int64_t>> shapes;
  for_each_tensor(preset("deepseek-v3"), [&](const TensorInfo& info) { shapes[info.name] = info.shape; });
  using Shape = std::vector<int64_t>;
  const std::string attention = "model.layers.0.self_attn.", moe = "model.layers.3.mlp.";
  EXPECT_EQ(shapes.at("model.embed_tokens.weight"), (Shape{129280, 7168}));
  EXPECT_EQ(shapes.at(attention + "q_a_proj.weight"), (Shape{1536, 7168}));
  EXPECT_EQ(shapes.at(attention + "q_b_proj.weight"), (Shape{24576, 1536}));
  EXPECT_EQ(shapes.at(attention + "kv_a_proj_with_mqa.weight"), (Shape{576, 7168}));
  EXPECT_EQ(shapes.at(attention + "kv_a_layernorm.weight"), (Shape{512}));
  EXPECT_EQ(shapes.at(attention + "kv_b_proj.weight"), (Shape{32768, 512}));
  EXPECT_EQ(shapes.at(attention + "o_proj.weight"), (Shape{7168, 16384}));
  EXPECT_EQ(shapes.at("model.layers.2.mlp.down_proj.weight"), (Shape{7168, 18432}));
  EXPECT_EQ(shapes.at(moe + "gate.weight"), (Shape{256, 7168}));
  EXPECT_EQ(shapes.at(moe + "gate.e_score_correction_bias"), (Shape{256}));
  EXPECT_EQ(shapes.at(moe + "experts.255.down_proj.weight"), (Shape{7168, 2048}));
  EXPECT_EQ(shapes.at(moe + "shared_experts.up_proj.weight"), (Shape{2048, 7168}));
  EXPECT_FALSE(shapes.contains("model.layers.61.eh_proj.weight"));
}

TEST(Spec, IgnoresByPattern) {
  ModelSpec spec;
  spec.ignored_patterns = {"*.rotary_emb.inv_freq", "model.layers.<61>.*", "model.mtp_*"};
  EXPECT_TRUE(is_ignored(spec, "model.layers.3.self_attn.rotary_emb.inv_freq"));
  EXPECT_TRUE(is_ignored(spec, "model.layers.61.eh_proj.weight"));
  EXPECT_TRUE(is_ignored(spec, "model.layers.100.x"));
  EXPECT_TRUE(is_ignored(spec, "model.layers.99999999999999999999999.x"));
  EXPECT_TRUE(is_ignored(spec, "model.mtp_block.0.x"));
  EXPECT_FALSE(is_ignored(spec, "model.layers.60.eh_proj.weight"));
  EXPECT_FALSE(is_ignored(spec, "model.layers.6.x"));
  EXPECT_FALSE(is_ignored(spec, "model.layers..x"));
  EXPECT_FALSE(is_ignored(spec, "xmodel.layers.61.x"));
  EXPECT_FALSE(is_ignored(spec, "model.layers.61"));
  EXPECT_FALSE(is_ignored(spec, ""));
}

}  // namespace
}  // namespace conclave
