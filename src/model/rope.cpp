#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace conclave {
namespace {

/// Share of the stretched frequency at index i: 0 below `low`, 1 above `high`.
struct Ramp {
  double low, high;
  double operator()(double i) const { return std::clamp((i - low) / (high - low), 0.0, 1.0); }
};

/// The indices whose wavelengths make beta_fast and beta_slow turns over the original context.
Ramp yarn_ramp(const YarnSpec& yarn, double dim, double theta) {
  const auto index_of = [&](double turns) {
    return dim * std::log(yarn.original_max_len / (turns * 2 * std::numbers::pi)) / (2 * std::log(theta));
  };
  const double low = std::max(std::floor(index_of(yarn.beta_fast)), 0.0);
  const double high = std::min(std::ceil(index_of(yarn.beta_slow)), dim - 1);
  return {low, low == high ? high + 0.001 : high};
}

}  // namespace

std::vector<float> inverse_frequencies(const RopeSpec& spec) {
  const double dim = spec.dim, theta = spec.theta;
  std::vector<float> frequencies;
  for (int i = 0; i < spec.dim / 2; ++i) {
    const double plain = std::pow(theta, -2.0 * i / dim);
    const double stretched = spec.yarn ? yarn_ramp(*spec.yarn, dim, theta)(i) : 0.0;
    const double factor = spec.yarn ? spec.yarn->factor : 1.0;
    frequencies.push_back(static_cast<float>(plain / factor * stretched + plain * (1 - stretched)));
  }
  return frequencies;
}

double yarn_mscale(double factor, double m) { return factor <= 1 ? 1.0 : 0.1 * m * std::log(factor) + 1.0; }

float rope_attention_factor(const RopeSpec& spec) {
  if (!spec.yarn) return 1;
  const YarnSpec& yarn = *spec.yarn;
  return static_cast<float>(yarn_mscale(yarn.factor, yarn.mscale) / yarn_mscale(yarn.factor, yarn.mscale_all_dim));
}

double mla_softmax_factor(const RopeSpec& spec) {
  if (!spec.yarn || spec.yarn->mscale_all_dim == 0) return 1;
  const double ms = yarn_mscale(spec.yarn->factor, spec.yarn->mscale_all_dim);
  return ms * ms;
}

void fill_rope_angles(std::span<const float> frequencies, float attention_factor, std::span<const int32_t> positions,
                      const RopeAngles& out) {
  const double factor = attention_factor;
  for (size_t t = 0; t < positions.size(); ++t) {
    float* cosine = out.cos.row<float>(static_cast<int64_t>(t));
    float* sine = out.sin.row<float>(static_cast<int64_t>(t));
    for (size_t i = 0; i < frequencies.size(); ++i) {
      const double angle = static_cast<float>(positions[t]) * frequencies[i];
      cosine[i] = static_cast<float>(std::cos(angle) * factor);
      sine[i] = static_cast<float>(std::sin(angle) * factor);
    }
  }
}

}  // namespace conclave
