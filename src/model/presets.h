#pragma once
// config.json of the supported models at their published shapes, for synthetic checkpoints and planning without a
// download. Only what a forward pass reads is stated; values come from the models' published configuration files.
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string_view>

namespace conclave {

struct Preset {
  std::string_view name;
  std::string_view config;  ///< JSON text
};
std::span<const Preset> presets();

/// Parsed config of a preset; throws bad_input listing the presets for any other name.
nlohmann::ordered_json preset_config(std::string_view name);
bool is_preset(std::string_view name);

}  // namespace conclave
