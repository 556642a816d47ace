#include "cli/model_files.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "core/config_view.h"
#include "core/error.h"
#include "core/json.h"
#include "model/split.h"
#include "model/presets.h"
#include "model/synth.h"

namespace conclave {
namespace fs = std::filesystem;
namespace {

using Json = nlohmann::ordered_json;

/// Files that anybody on the machine may change could be swapped under a running program.
void check_permissions(const fs::path& folder, bool strict, const Log& log) {
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {
    const fs::perms mode = entry.status(error).permissions();
    if (!entry.is_regular_file(error) || (mode & fs::perms::others_write) == fs::perms::none) continue;
    const std::string message =
        fmt::format("{} may be changed by everybody; run chmod o-w on it", entry.path().string());
    if (strict) throw Error(Error::Kind::bad_model, message);
    log.warning(message);
  }
}

bool has_tokenizer_files(const fs::path& folder) {
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (name == "tokenizer.json" || name.starts_with("tokenizer.model")) return true;
  }
  return false;
}

}  // namespace

Json read_shape(const std::string& model) {
  if (model.empty())
    throw Error(Error::Kind::bad_input, "no model given; name a model folder as the first argument or with --model");
  if (fs::exists(model)) return read_config(model);
  if (is_preset(model)) return preset_config(model);
  std::vector<std::string_view> names;
  for (const Preset& preset : presets()) names.push_back(preset.name);
  throw Error(Error::Kind::bad_model,
              fmt::format("{} is neither a folder nor a published shape ({})", model, fmt::join(names, ", ")));
}

std::string config_name(const std::string& model) {
  const bool folder = fs::is_directory(model);
  return folder ? (fs::path(model) / "config.json").string() : model;
}

ModelSpec read_spec(const ModelOptions& options) {
  const std::string& model = options.model;
  if (options.random_weights) {
    Json config = read_shape(model);
    if (options.layers > 0) reduce_layers(config, options.layers);
    if (options.format != "auto") describe_format(config, parse_random_format(options.format));
    return parse_spec(config, config_name(model));
  }
  if (options.layers > 0)
    throw Error(Error::Kind::bad_input, "--layers needs --random-weights: a stored model runs whole");
  if (options.format != "auto")
    throw Error(Error::Kind::bad_input, fmt::format("--format {} needs --random-weights: a stored model has its own; conclave quantize makes another",
                                                    options.format));
  if (is_preset(model) && !fs::exists(model)) {
    throw Error(
        Error::Kind::bad_model,
        fmt::format("{} is a published shape, not a folder; add --random-weights to run it without files", model));
  }
  if (model.empty()) read_shape(model);
  return parse_spec(read_config(model), config_name(model));
}

ModelFiles open_model(const ModelOptions& options, const Log& log) {
  ModelFiles model;
  if (options.trust_remote_code) log.info("--trust-remote-code has no effect: no remote code is ever run");
  if (options.random_weights) {
    model.spec = read_spec(options);
    model.random = true;
    model.source = random_source(model.spec, format_of(model.spec), *options.random_weights);
    if (fs::exists(options.model))
      model.folder = fs::is_directory(options.model) ? fs::path(options.model) : fs::path(options.model).parent_path();
    return model;
  }
  model.spec = read_spec(options);
  model.folder = options.model;
  if (is_split(model.folder)) {
    check_permissions(model.folder, options.strict_permissions, log);
    model.source = split_source(model.folder, model.spec);
    return model;
  }
  model.checkpoint = std::make_unique<Checkpoint>(model.folder);
  check_permissions(model.folder, options.strict_permissions, log);
  if (options.verify == "full") model.checkpoint->verify(Verify::full);
  model.source = checkpoint_source(*model.checkpoint, model.spec);
  return model;
}

std::unique_ptr<Tokenizer> open_tokenizer(const ModelFiles& model, bool ids_suffice) {
  if ((model.random || ids_suffice) && !has_tokenizer_files(model.folder)) return nullptr;
  return Tokenizer::load(model.folder);
}

std::optional<ChatTemplate> open_template(const ModelFiles& model, bool fallback, const Log& log) {
  auto found = ChatTemplate::from_folder(model.folder);
  if (!found && fallback) found = ChatTemplate::family_default(model.spec.family, model.folder);
  if (found) log.info(found->origin());
  return found;
}

GenerationDefaults read_generation_config(const fs::path& folder) {
  GenerationDefaults defaults;
  const fs::path file = folder / "generation_config.json";
  if (folder.empty() || !fs::exists(file)) return defaults;
  const Json json = read_json_file(file);
  const ConfigView view(json, file.string());
  if (const auto eos = json.find("eos_token_id"); eos != json.end() && !eos->is_null()) {
    const Json list = eos->is_array() ? *eos : Json::array({*eos});
    for (const Json& id : list) {
      const bool fits = id.is_number_integer() && id >= 0 && id <= std::numeric_limits<int32_t>::max();
      if (!fits) view.refuse("eos_token_id", "a token id or a list of them");
      defaults.eos_ids.push_back(id.get<int32_t>());
    }
  }
  const auto number = [&](const char* key) { return view.has(key) ? std::optional(view.number(key)) : std::nullopt; };
  defaults.do_sample = view.boolean("do_sample", false);
  defaults.temperature = number("temperature");
  defaults.top_p = number("top_p");
  defaults.min_p = number("min_p");
  defaults.repetition_penalty = number("repetition_penalty");
  if (view.has("top_k")) defaults.top_k = view.integer("top_k");
  return defaults;
}

std::vector<int32_t> eos_ids_of(const ModelFiles& model, const Tokenizer* tokenizer) {
  std::vector<int32_t> ids = read_generation_config(model.folder).eos_ids;
  if (ids.empty()) ids = model.spec.eos_ids;
  if (ids.empty() && tokenizer && tokenizer->eos_id()) ids.push_back(*tokenizer->eos_id());
  return ids;
}

}  // namespace conclave
