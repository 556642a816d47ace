#pragma once
// From the MODEL argument to what commands need: spec, tensors, tokenizer, chat template, generation defaults. MODEL is
// a folder, or with random weights a folder or file with config.json alone, or the name of a published shape.
#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cli/model_options.h"
#include "core/log.h"
#include "io/checkpoint.h"
#include "model/spec.h"
#include "model/tensor_source.h"
#include "text/chat.h"
#include "text/tokenizer.h"

namespace conclave {

/// config.json of a folder or file, or of a published shape. Throws bad_input when `model` is empty, bad_model.
nlohmann::ordered_json read_shape(const std::string& model);
/// What messages call the configuration of `model`.
std::string config_name(const std::string& model);
/// The model's description alone; reads config.json only. Throws bad_input without MODEL, bad_model, unsupported.
ModelSpec read_spec(const ModelOptions& options);

struct ModelFiles {
  std::filesystem::path folder;  ///< where tokenizer files lie; empty for a published shape
  ModelSpec spec;
  std::unique_ptr<Checkpoint> checkpoint;  ///< null with random weights and for a split folder
  std::unique_ptr<TensorSource> source;
  bool random = false;
};
/// Opens and checks the checkpoint (all of its values with --verify=full).
ModelFiles open_model(const ModelOptions& options, const Log& log);

/// Null where there are no tokenizer files and none are needed: for random weights, or where token ids suffice.
std::unique_ptr<Tokenizer> open_tokenizer(const ModelFiles& model, bool ids_suffice = false);

/// The folder's template, else with `fallback` the family's documented default (said on the log), else nothing.
std::optional<ChatTemplate> open_template(const ModelFiles& model, bool fallback, const Log& log);

/// generation_config.json; what is missing there is empty.
struct GenerationDefaults {
  std::vector<int32_t> eos_ids;
  bool do_sample = false;
  std::optional<float> temperature, top_p, min_p, repetition_penalty;
  std::optional<int> top_k;
};
GenerationDefaults read_generation_config(const std::filesystem::path& folder);

/// Ids that end an answer: of generation_config.json, else config.json, else the tokenizer.
std::vector<int32_t> eos_ids_of(const ModelFiles& model, const Tokenizer* tokenizer);

}  // namespace conclave
