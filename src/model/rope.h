#pragma once
// Rotary position tables: plain frequencies and YaRN in DeepSeek's form (Peng et al. 2023; modeling_deepseek.py's
// DeepseekV2YarnRotaryEmbedding). YaRN is always on when the configuration names it, also for short prompts.
#include <cstdint>
#include <span>
#include <vector>

#include "backend/op_params.h"

namespace conclave {

/// [dim / 2] angles per position. With YaRN: blended between theta^(-2i/d) and that divided by the factor.
std::vector<float> inverse_frequencies(const RopeSpec& spec);

/// YaRN's magnitude 0.1 m ln(factor) + 1, or 1 for factors up to 1.
double yarn_mscale(double factor, double m);
/// Factor on cos and sin: ms(mscale) / ms(mscale_all_dim), 1 without YaRN.
float rope_attention_factor(const RopeSpec& spec);
/// Factor on MLA's softmax scale: ms(mscale_all_dim)^2, 1 without YaRN or with mscale_all_dim 0.
double mla_softmax_factor(const RopeSpec& spec);

/// Fills the first positions.size() rows of cos and sin [T, dim / 2] f32: the angle is rounded to f32 as the reference
/// implementations do, its cosine and sine are exact to the last bit.
void fill_rope_angles(std::span<const float> frequencies, float attention_factor, std::span<const int32_t> positions,
                      const RopeAngles& out);

}  // namespace conclave
