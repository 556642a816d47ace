#pragma once
// What is served: names, text side and figures of one model, and the engine that runs it. Immutable once published; shared by all
// requests.
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "server/engine_port.h"
#include "text/chat.h"
#include "text/tokenizer.h"

namespace conclave {

/// Values of generation_config.json that replace the dialects' own defaults.
struct SamplingDefaults {
  std::optional<float> temperature, top_p, min_p, repetition_penalty;
  std::optional<int> top_k;
};

struct ServedModel {
  std::string id;                    ///< name in requests and answers
  std::vector<std::string> aliases;  ///< further names that requests may use
  std::string family, dtype, isa;
  int vocab_size = 0, num_layers = 0;
  std::vector<MoeLayer> moe_layers;  ///< in order; the others are dense
  int context = 0;  ///< longest prompt + answer
  int max_sequences = 0;
  int64_t created = 0;  ///< Unix time of the start
  std::vector<int32_t> eos_ids;
  SamplingDefaults defaults;
  std::map<std::string, std::string> special_tokens;
  std::string chat_template_source;      ///< "" without one
  std::unique_ptr<Tokenizer> tokenizer;  ///< never null: a model without text is not served
  std::optional<ChatTemplate> chat;
  std::unique_ptr<EnginePort> engine;

  /// Its id, an alias, or a placeholder of clients that name no model.
  bool answers_to(const std::string& name) const;
};

/// Ids that one token's row of routed_experts holds.
size_t experts_per_token(const ServedModel& model);

}  // namespace conclave
