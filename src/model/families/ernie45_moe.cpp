#include "model/families/family.h"

namespace conclave {
namespace {

/// Expert width, routing and shared experts. A missing moe_num_shared_experts means none: the first 300B files leave it
/// out.
MoeSpec parse_ernie_moe(const ConfigView& config) {
  if (config.text("moe_gate", "topk") != "topk") config.refuse("moe_gate", "topk");
  MoeSpec moe = parse_moe(config, {"moe_num_experts", "moe_k", "moe_intermediate_size", "moe_num_shared_experts"});
  moe.router.selection_bias = true;
  moe.router.renormalise = true;
  moe.router.norm_floor = config.number("moe_norm_min", 1e-12f);
  if (!(moe.router.norm_floor >= 0)) config.refuse("moe_norm_min", "a number of at least 0");
  return moe;
}

}  // namespace

/// ERNIE-4.5 21B-A3B and 300B-A47B (the -PT files): grouped-query attention with adjacent rotary pairs, router and its
/// bias in F32. Source: transformers' modeling_ernie4_5_moe.py.
ModelSpec parse_ernie45_moe(const ConfigView& config) {
  ModelSpec spec = parse_common(config, {.norm_eps = 1e-5f, .tied_head = true});
  spec.attention = parse_gqa(config, RopePairs::adjacent, 500000);
  const int layers = spec.num_layers();
  const int first = bounded(config, "moe_layer_start_index", {0, kMaxLayers}, 1);
  const int end = bounded(config, "moe_layer_end_index", {-1, kMaxLayers}, -1), last = end == -1 ? layers - 1 : end;
  const int interval = bounded(config, "moe_layer_interval", {1, kMaxLayers}, 1);
  for (int l = 0; l < layers; ++l) {
    FfnSpec& layer = spec.layers[static_cast<size_t>(l)];
    if ((l + 1) % interval == 0 && l >= first && l <= last) layer = parse_ernie_moe(config);
    else layer = DenseSpec{bounded(config, "intermediate_size", {1, kMaxInner})};
  }
  spec.names.router_bias = "moe_statics.e_score_correction_bias";
  spec.names.experts_key = "moe_num_experts";
  spec.f32_router = spec.bias_as_row = true;
  spec.ignored_patterns.insert(spec.ignored_patterns.end(), {"model.mtp_*", "mtp_*"});
  return spec;
}

}  // namespace conclave
