#pragma once
// One model family = one file in this folder that turns config.json into a ModelSpec, and one line in registry.cpp.
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

/// Fields that all families share: sizes, eps, dtype, eos/bos, quantization_config, tying. Called first by every family.
ModelSpec parse_common(const ConfigView& config);
/// Both generations of rope fields: rope_theta + rope_scaling{type|rope_type}, or rope_parameters. Refuses types other than
/// default and yarn by name.
RopeSpec parse_rope(const ConfigView& config, RopePairs pairs, int dim, float default_theta);

ModelSpec parse_deepseek_moe(const ConfigView& config);
ModelSpec parse_deepseek_v2(const ConfigView& config);
ModelSpec parse_deepseek_v3(const ConfigView& config);
ModelSpec parse_mixtral(const ConfigView& config);
ModelSpec parse_ernie45_moe(const ConfigView& config);

}  // namespace conclave
