#include <fmt/format.h>

#include <cmath>

#include "model/families/family.h"
#include "model/rope.h"

namespace conclave {
namespace {

constexpr MoeKeys kKeys{"n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "n_shared_experts"};

/// Multi-head latent attention. head_dim and num_key_value_heads of these files say nothing about it and are not read.
MlaSpec parse_mla(const ConfigView& config) {
  MlaSpec mla;
  mla.num_heads = bounded(config, "num_attention_heads", {1, kMaxHeads});
  mla.q_lora_rank = bounded(config, "q_lora_rank", {0, kMaxRank}, 0);
  mla.kv_lora_rank = bounded(config, "kv_lora_rank", {1, kMaxRank});
  mla.nope_dim = bounded(config, "qk_nope_head_dim", {1, kMaxHeadDim});
  mla.rope_dim = bounded(config, "qk_rope_head_dim", {2, kMaxHeadDim});
  if (mla.rope_dim % 2 != 0) config.refuse("qk_rope_head_dim", "an even number");
  mla.v_dim = bounded(config, "v_head_dim", {1, kMaxHeadDim});
  const RopePairs pairs = config.boolean("rope_interleave", true) ? RopePairs::adjacent : RopePairs::halves;
  mla.rope = parse_rope(config, pairs, mla.rope_dim, 10000);
  mla.softmax_scale =
      static_cast<float>(mla_softmax_factor(mla.rope) / std::sqrt(static_cast<double>(mla.nope_dim + mla.rope_dim)));
  return mla;
}

void parse_groups(const ConfigView& config, RouterSpec& router, int default_groups, int default_top) {
  router.num_groups = bounded(config, "n_group", {1, kMaxExperts}, default_groups);
  if (router.num_experts % router.num_groups != 0)
    config.refuse("n_group", fmt::format("a divisor of n_routed_experts ({})", router.num_experts));
  const int size = router.num_experts / router.num_groups;
  const bool needs_pairs = router.group_score == RouterSpec::GroupScore::top2_sum && router.num_groups > 1;
  if (needs_pairs && size < 2)
    config.refuse("n_group", "groups of at least two experts, because a group's score is the sum of its best two");
  router.top_groups = bounded(config, "topk_group", {1, router.num_groups}, default_top);
  if (router.top_k > router.top_groups * size)
    config.refuse("num_experts_per_tok", fmt::format("at most {}: topk_group ({}) groups of {} experts",
                                                     router.top_groups * size, router.top_groups, size));
}

/// Softmax router; norm_topk_prob renormalises *instead of* scaling. Source: MoEGate of DeepSeek-V2's
/// modeling_deepseek.py.
MoeSpec parse_v2_moe(const ConfigView& config) {
  MoeSpec moe = parse_moe(config, kKeys);
  RouterSpec& router = moe.router;
  if (config.text("scoring_func", "softmax") != "softmax") config.refuse("scoring_func", "softmax");
  const std::string method = config.text("topk_method", "greedy");
  if (method == "group_limited_greedy") parse_groups(config, router, 1, 1);
  else if (method != "greedy" && method != "gready")  // the first revisions spelt it so
    config.refuse("topk_method", "greedy or group_limited_greedy");
  router.renormalise = config.boolean("norm_topk_prob", false) && router.top_k > 1;
  router.norm_epsilon = 1e-20f;
  router.scale = router.renormalise ? 1.0f : config.number("routed_scaling_factor", 1);
  return moe;
}

/// Sigmoid router with a bias for the choice; renormalises *and* scales. Source: MoEGate of DeepSeek-V3's
/// modeling_deepseek.py.
MoeSpec parse_v3_moe(const ConfigView& config) {
  MoeSpec moe = parse_moe(config, kKeys);
  RouterSpec& router = moe.router;
  if (config.text("scoring_func", "sigmoid") != "sigmoid") config.refuse("scoring_func", "sigmoid");
  if (config.text("topk_method", "noaux_tc") != "noaux_tc") config.refuse("topk_method", "noaux_tc");
  router.score = RouterSpec::Score::sigmoid;
  router.selection_bias = true;
  router.group_score = RouterSpec::GroupScore::top2_sum;
  parse_groups(config, router, 8, 4);
  router.renormalise = config.boolean("norm_topk_prob", true) && router.top_k > 1;
  router.norm_epsilon = 1e-20f;
  router.scale = config.number("routed_scaling_factor", 2.5f);
  return moe;
}

}  // namespace

/// DeepSeek-V2, V2-Lite, Coder-V2.
ModelSpec parse_deepseek_v2(const ConfigView& config) {
  ModelSpec spec = parse_common(config);
  spec.attention = parse_mla(config);
  fill_deepseek_layers(config, spec, [&] { return parse_v2_moe(config); });
  return spec;
}

/// DeepSeek-V3, R1 and Kimi-K2. Layers from num_hidden_layers on are multi-token prediction and are skipped.
ModelSpec parse_deepseek_v3(const ConfigView& config) {
  ModelSpec spec = parse_common(config);
  spec.attention = parse_mla(config);
  fill_deepseek_layers(config, spec, [&] { return parse_v3_moe(config); });
  spec.ignored_patterns.push_back(fmt::format("model.layers.<{}>.*", spec.num_layers()));
  return spec;
}

}  // namespace conclave
