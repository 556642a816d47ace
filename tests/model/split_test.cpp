// Checkpoints cut for a fixed world: joined again they are the bytes that were published; loaded they give what the published folder gives.
#include "model/split.h"

#include <gtest/gtest.h>

#include <fstream>

#include "engine/engine.h"
#include "support/golden.h"
#include "support/temp_folder.h"

namespace conclave {
namespace {

using namespace testing_support;
using test::TempFolder;
using test::error_of;
namespace fs = std::filesystem;

EngineOptions options_of(const ParallelLayout& layout) {
  EngineOptions o;
  o.threads = 1;
  o.pin_threads = false;
  o.precision = Precision::exact;
  o.block_size = 16;
  o.max_context = o.max_step_tokens = 64;
  o.layout = layout;
  return o;
}

class Split : public testing::TestWithParam<std::string> {};

TEST_P(Split, JoinGivesTheOriginalBytesAndLoadingTheSameNumbers) {
  const Golden golden(GetParam());
  const OpenModel model(golden.folder);
  for (const LayoutRequest& asked : {LayoutRequest{.tp = 2}, LayoutRequest{.tp = 3}, LayoutRequest{.tp = 4, .moe_ep = 2}, LayoutRequest{.tp = 2, .pp = 2, .moe_ep = 2}}) {
    const TempFolder folder;
    const ParallelLayout layout = resolve_layout(model.spec, asked);
    const SplitReport report = split_folder(model.checkpoint, model.spec, {.in = golden.folder, .out = folder.path() / "split", .layout = layout});
    EXPECT_EQ(report.files, layout.world());
    const SplitReport again = split_folder(model.checkpoint, model.spec, {.in = golden.folder, .out = folder.path() / "split", .layout = layout});
    EXPECT_EQ(again.resumed, layout.world()) << "finished files are not written twice";

    join_folder(folder.path() / "split", folder.path() / "joined");
    const Checkpoint joined(folder.path() / "joined");
    EXPECT_EQ(joined.tensors().size(), model.checkpoint.tensors().size());
    for (const auto& [name, record] : model.checkpoint.tensors()) {
      const TensorRecord* other = joined.find(name);
      ASSERT_NE(other, nullptr) << name;
      EXPECT_EQ(other->dtype, record.dtype) << name;
      ASSERT_EQ(other->bytes, record.bytes) << name;
      EXPECT_TRUE(std::equal(record.data, record.data + record.bytes, other->data)) << name;
    }

    const auto source = split_source(folder.path() / "split", model.spec);
    const auto trace = [&](const TensorSource& from) { return Engine(model.spec, from, options_of(layout)).trace(golden.prompt("mid"), 4); };
    const auto want = trace(*model.source), got = trace(*source);
    EXPECT_EQ(got.logits, want.logits);
    EXPECT_EQ(got.greedy_tokens, want.greedy_tokens);
    const ParallelLayout other = resolve_layout(model.spec, {.tp = asked.tp == 2 ? 4 : 2});
    const std::string error = error_of([&] { Engine(model.spec, *source, options_of(other)); });
    EXPECT_NE(error.find("is split for --tp " + std::to_string(asked.tp)), std::string::npos) << error;
    EXPECT_NE(error.find("--join"), std::string::npos) << error;
  }
}

INSTANTIATE_TEST_SUITE_P(All, Split, testing::Values("mixtral-gqa", "mixtral-w8a8", "deepseek_v3-mtp", "deepseek_v2-groups", "ernie-tied"),
                         [](const auto& info) {
                           std::string text = info.param;
                           std::replace_if(text.begin(), text.end(), [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); }, '_');
                           return text;
                         });
INSTANTIATE_TEST_SUITE_P(Fp8, Split, testing::Values("deepseek_v3-fp8"), [](const auto&) { return "deepseek_v3_fp8"; });

/// Shapes as the DeepSeek-V3 sample's split_weight.py writes them: product of its table for 2 ranks.
TEST(SplitLayout, HoldsMergedGroupedAndTransposedTensors) {
  const Golden golden("deepseek_v3-bf16");
  const OpenModel model(golden.folder);
  const auto& mla = std::get<MlaSpec>(model.spec.attention);
  const TempFolder folder;
  split_folder(model.checkpoint, model.spec, {.in = golden.folder, .out = folder.path() / "s", .layout = resolve_layout(model.spec, {.tp = 2})});
  const SafetensorsFile file(folder.path() / "s/rank_1/model.safetensors");
  const auto shape = [&](const std::string& name) {
    const auto found = file.tensors().find(name);
    return found == file.tensors().end() ? std::vector<int64_t>{} : found->second.shape;
  };
  const int64_t hidden = model.spec.hidden_size, heads = mla.num_heads / 2;
  EXPECT_EQ(shape("model.layers.0.self_attn.w_k"), (std::vector<int64_t>{heads, mla.nope_dim, mla.kv_lora_rank}));
  EXPECT_EQ(shape("model.layers.0.self_attn.w_v"), (std::vector<int64_t>{heads, mla.kv_lora_rank, mla.v_dim}));
  const int last = model.spec.num_layers() - 1;
  const auto& moe = std::get<MoeSpec>(model.spec.layers.back());
  const std::string mlp = "model.layers." + std::to_string(last) + ".mlp.";
  EXPECT_EQ(shape(mlp + "experts.group_w1_w3"), (std::vector<int64_t>{moe.router.num_experts, moe.expert_inner, hidden}));
  EXPECT_EQ(shape(mlp + "experts.group_w2"), (std::vector<int64_t>{moe.router.num_experts, hidden, moe.expert_inner / 2}));
  EXPECT_EQ(shape(mlp + "shared_experts.merge_up_gate_proj.weight"), (std::vector<int64_t>{moe.shared_inner, hidden}));
  // w_v of the second rank's first head is the transposed value part of kv_b's head `heads`.
  const TensorRecord& whole = *model.checkpoint.find("model.layers.0.self_attn.kv_b_proj.weight");
  const TensorRecord& w_v = file.tensors().at("model.layers.0.self_attn.w_v");
  const auto element = [](const TensorRecord& t, int64_t i) { return reinterpret_cast<const uint16_t*>(t.data)[i]; };
  for (int64_t v = 0; v < mla.v_dim; ++v)
    for (int64_t c = 0; c < mla.kv_lora_rank; ++c)
      ASSERT_EQ(element(w_v, c * mla.v_dim + v), element(whole, (heads * (mla.nope_dim + mla.v_dim) + mla.nope_dim + v) * mla.kv_lora_rank + c));
}

TEST(SplitFiles, DamageAndForeignFoldersAreRefused) {
  const Golden golden("mixtral-gqa");
  const OpenModel model(golden.folder);
  const TempFolder folder;
  const fs::path split = folder.path() / "s";
  const ParallelLayout layout = resolve_layout(model.spec, {.tp = 2});
  split_folder(model.checkpoint, model.spec, {.in = golden.folder, .out = split, .layout = layout});
  EXPECT_NE(error_of([&] { split_folder(model.checkpoint, model.spec, {.in = golden.folder, .out = split, .layout = resolve_layout(model.spec, {.tp = 4})}); })
                .find("--tp 2"), std::string::npos);
  std::fstream file(split / "rank_1/model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(-1, std::ios::end);
  file.put('\x55');
  file.close();
  const std::string error = error_of([&] { join_folder(split, folder.path() / "j"); });
  EXPECT_NE(error.find("rank_1"), std::string::npos) << error;
  EXPECT_NE(error.find("checksum"), std::string::npos) << error;
  EXPECT_NE(error_of([&] { join_folder(split, split); }).find("same folder"), std::string::npos);
}

}  // namespace
}  // namespace conclave
