#include <fmt/format.h>

#include "model/families/family.h"

namespace conclave {

/// Mixtral 8x7B and 8x22B: grouped-query attention, every layer sparse, top-2 renormalised. w1 is gate, w3 up, w2 down.
/// Source: transformers' modeling_mixtral.py.
ModelSpec parse_mixtral(const ConfigView& config) {
  ModelSpec spec = parse_common(config, {.norm_eps = 1e-5f});
  if (config.has("sliding_window") && config.integer("sliding_window") < spec.max_len)
    config.refuse(
        "sliding_window",
        fmt::format("null or at least max_position_embeddings ({}): sliding windows are not supported, and the "
                    "Mixtral models were trained with full attention",
                    spec.max_len));
  spec.attention = parse_gqa(config, RopePairs::halves, 1e6f);
  MoeSpec moe = parse_moe(config, {"num_local_experts", "num_experts_per_tok", "intermediate_size", ""});
  moe.router.renormalise = true;
  spec.layers.assign(spec.layers.size(), moe);
  spec.names.ffn = "block_sparse_moe.";
  spec.names.expert_gate = "w1.weight";
  spec.names.expert_up = "w3.weight";
  spec.names.expert_down = "w2.weight";
  spec.names.experts_key = "num_local_experts";
  spec.names.expert_inner_key = "intermediate_size";
  return spec;
}

}  // namespace conclave
