#pragma once
// Random-weight checkpoints in the published layout, for tests and benchmarks at real shapes. Memory stays at one
// tensor; shards appear under their final names only when complete, and config.json last, so that an unfinished folder
// is never taken for a model.
#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "model/tensor_source.h"

namespace conclave {

struct SynthOptions {
  std::string config;                  ///< preset name, model folder or config file
  std::filesystem::path out;           ///< folder that does not exist yet or is empty
  int layers = 0;                      ///< 0: as the configuration says
  std::optional<RandomFormat> format;  ///< nothing: as the configuration says
  uint64_t seed = 0;
  size_t shard_bytes = size_t{5} << 30;
  /// Called with (bytes done, bytes total) after each tensor; may throw to stop.
  std::function<void(size_t, size_t)> progress;
};
struct SynthReport {
  int files = 0, tensors = 0;
  size_t bytes = 0;  ///< tensor data
};

/// Throws bad_input: unknown preset, occupied folder, more layers than the configuration has; bad_model: a
/// configuration that does not parse; internal: the disk is too small or fails.
SynthReport synthesise(const SynthOptions& options);

/// Config of a preset name, folder or file.
nlohmann::ordered_json config_of(const std::string& preset_or_path);
/// Sets num_hidden_layers and pulls the dense/sparse boundaries in, so that at least one sparse layer stays.
/// Throws bad_input unless 1 <= layers <= the configuration's own.
void reduce_layers(nlohmann::ordered_json& config, int layers);
/// Makes the configuration say that its weights are stored in `format`, without multi-token-prediction layers.
void describe_format(nlohmann::ordered_json& config, RandomFormat format);
/// Format in which a configuration says its linear weights are stored.
RandomFormat format_of(const ModelSpec& spec);

}  // namespace conclave
