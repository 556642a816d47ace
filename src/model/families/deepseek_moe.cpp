#include "model/families/family.h"

namespace conclave {

/// DeepSeek-MoE-16B (model_type deepseek): multi-head attention, softmax router whose weights are not renormalised
/// unless norm_topk_prob, shared experts as one SwiGLU. Source: modeling_deepseek.py of
/// deepseek-ai/deepseek-moe-16b-base.
ModelSpec parse_deepseek_moe(const ConfigView& config) {
  ModelSpec spec = parse_common(config);
  spec.attention = parse_gqa(config, RopePairs::halves, 10000);
  if (config.text("scoring_func", "softmax") != "softmax") config.refuse("scoring_func", "softmax");
  fill_deepseek_layers(config, spec, [&] {
    MoeSpec moe =
        parse_moe(config, {"n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "n_shared_experts"});
    moe.router.renormalise = config.boolean("norm_topk_prob", false) && moe.router.top_k > 1;
    moe.router.norm_epsilon = 1e-20f;
    return moe;
  });
  return spec;
}

}  // namespace conclave
