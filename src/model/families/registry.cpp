#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "model/families/family.h"

namespace conclave {
namespace {

constexpr std::array kFamilies{
    Family{"deepseek", "DeepseekForCausalLM", parse_deepseek_moe},
    Family{"deepseek_v2", "DeepseekV2ForCausalLM", parse_deepseek_v2},
    Family{"deepseek_v3", "DeepseekV3ForCausalLM", parse_deepseek_v3},
    Family{"kimi_k2", "DeepseekV3ForCausalLM", parse_deepseek_v3},
    Family{"mixtral", "MixtralForCausalLM", parse_mixtral},
    Family{"ernie4_5_moe", "Ernie4_5_MoeForCausalLM", parse_ernie45_moe},
};

[[noreturn]] void unknown(std::string_view where, std::string_view key, std::string_view value) {
  std::string supported;
  for (const Family& family : kFamilies)
    supported += fmt::format("{}{} ({})", supported.empty() ? "" : ", ", family.model_type, family.architecture);
  throw Error(Error::Kind::unsupported, fmt::format("{}: {} \"{}\" is not supported; supported are {}", where, key,
                                                    value.substr(0, 120), supported));
}

/// architectures[0], or nothing.
std::string architecture_of(const ConfigView& config) {
  const auto list = config.json().find("architectures");
  if (list == config.json().end() || list->is_null()) return "";
  if (!list->is_array() || list->empty() || !list->front().is_string())
    config.refuse("architectures", "a list with one class name");
  return list->front().get<std::string>();
}

}  // namespace

std::span<const Family> families() { return kFamilies; }

ModelSpec parse_spec(const nlohmann::ordered_json& config, std::string_view where) {
  const ConfigView view(config, std::string(where));
  const std::string type = view.text("model_type", ""), architecture = architecture_of(view);
  if (type.empty() && architecture.empty()) view.refuse("model_type", "the name of a model family");
  const auto of_class = [&](const Family& family) { return family.architecture == architecture; };
  const auto of_type = [&](const Family& family) { return family.model_type == type; };
  const auto family = std::find_if(kFamilies.begin(), kFamilies.end(),
                                   [&](const Family& f) { return type.empty() ? of_class(f) : of_type(f); });
  if (family == kFamilies.end())
    unknown(where, type.empty() ? "architecture" : "model_type", type.empty() ? architecture : type);
  if (!architecture.empty()) {
    if (std::none_of(kFamilies.begin(), kFamilies.end(), of_class)) unknown(where, "architecture", architecture);
    if (!of_class(*family))
      view.refuse("architectures", fmt::format("{} for model_type {}", family->architecture, type));
  }
  ModelSpec spec = family->parse(view);
  spec.family = family->model_type;
  spec.architecture = architecture.empty() ? std::string(family->architecture) : architecture;
  return spec;
}

}  // namespace conclave
