#pragma once
// One model family = one file in this folder that turns config.json into a ModelSpec, and one line in registry.cpp.
#include <functional>
#include <span>
#include <string_view>

#include "core/config_view.h"
#include "model/spec.h"

namespace conclave {

struct Family {
  std::string_view model_type;    ///< config.json "model_type"
  std::string_view architecture;  ///< config.json "architectures"[0]
  ModelSpec (*parse)(const ConfigView& config);
};
std::span<const Family> families();

/// What a family's published models leave unsaid.
struct FamilyDefaults { float norm_eps = 1e-6f; bool tied_head = false; };

/// Fields that all families share: sizes, eps, dtype, eos/bos, quantization_config, tying. Called first by every
/// family. All layers are dense without a width until the family says otherwise. Refuses activations other than silu
/// and biased projections by name.
ModelSpec parse_common(const ConfigView& config, const FamilyDefaults& defaults = {});
/// quantization_config: absent, fp8 with 128 x 128 blocks, or compressed-tensors W8A8/W8A16 int-quantized; others are
/// refused by name.
QuantSpec parse_quantization(const ConfigView& config);
/// Both generations of rope fields: rope_theta + rope_scaling{type|rope_type}, or rope_parameters. Refuses types other
/// than default and yarn by name.
RopeSpec parse_rope(const ConfigView& config, RopePairs pairs, int dim, float default_theta);

/// An integer within bounds that keep all later size arithmetic exact; throws bad_model naming key, value and bounds.
struct Bounds { int least = 1, most = 0; };
int bounded(const ConfigView& config, std::string_view key, Bounds bounds);
int bounded(const ConfigView& config, std::string_view key, Bounds bounds, int fallback);
inline constexpr int kMaxLayers = 1024, kMaxExperts = 4096, kMaxHidden = 1 << 17, kMaxInner = 1 << 18, kMaxHeads = 4096,
                     kMaxHeadDim = 4096, kMaxRank = 1 << 16;

/// num_attention_heads, num_key_value_heads, head_dim and the plain softmax scale; rope over the whole head.
GqaSpec parse_gqa(const ConfigView& config, RopePairs pairs, float default_theta);
/// Keys of one MoE block, where families differ in names only. shared may be empty.
struct MoeKeys { std::string_view experts, top_k, expert_inner, shared; };
MoeSpec parse_moe(const ConfigView& config, const MoeKeys& keys);
/// Dense layers before first_k_dense_replace and off moe_layer_freq (or all, without n_routed_experts); `moe` parses
/// the others' block.
void fill_deepseek_layers(const ConfigView& config, ModelSpec& spec, const std::function<MoeSpec()>& moe);

ModelSpec parse_deepseek_moe(const ConfigView& config);
ModelSpec parse_deepseek_v2(const ConfigView& config);
ModelSpec parse_deepseek_v3(const ConfigView& config);
ModelSpec parse_mixtral(const ConfigView& config);
ModelSpec parse_ernie45_moe(const ConfigView& config);

}  // namespace conclave
