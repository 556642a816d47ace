#pragma once
// The OpenAI dialect: what its endpoints share. JSON of this dialect ends in the openai_*.cpp files.
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "server/fields.h"
#include "server/generation.h"
#include "server/route.h"

namespace conclave {

const FieldTable& chat_fields();
const FieldTable& completion_fields();
Params openai_defaults(const ServedModel& model);  ///< for chat
Params completion_defaults(const ServedModel& model);
void chat_completions(Call& call);
void completions(Call& call);
void list_models(Call& call);
void show_model(Call& call);

/// Text of a token as it appears inside a text; its raw bytes where that is no whole text.
std::string token_text(const Tokenizer& tokenizer, int32_t id);
/// A log-probability that JSON can hold.
double finite(float logprob);
nlohmann::ordered_json usage_json(const GenerationFigures& figures);
nlohmann::ordered_json timings_json(const GenerationFigures& figures);
/// vLLM's form: null, then {id: {logprob, rank, decoded_token}} for every further prompt token.
nlohmann::ordered_json prompt_logprobs_json(const Tokenizer& tokenizer, const Choice& sequence);
/// [rows][MoE layers][k] of the experts that a sequence holds.
nlohmann::ordered_json routed_experts_json(const ServedModel& model, const Choice& sequence);
/// The string or token id that ended the answer, or null.
nlohmann::ordered_json stop_reason_json(const Choice& sequence);
/// To a chunk, where it was asked for: the rows since the last one.
void add_experts(const Generation& generation, Choice& sequence, nlohmann::ordered_json& choice);
std::vector<Field> openai_shared_fields();

/// Frames of an OpenAI event stream, with the members that all of an answer's chunks share.
class OpenAiStream {
 public:
  OpenAiStream(std::string id_prefix, std::string object, std::string chunk_object);
  nlohmann::ordered_json whole(const Generation& generation) const;  ///< id, object, created, model
  /// One chunk with this choice; usage as stream_options ask.
  void choice(Generation& generation, nlohmann::ordered_json choice);
  void close(Generation& generation);

 private:
  nlohmann::ordered_json head(const Generation& generation, const std::string& object) const;
  std::string id_, object_, chunk_object_;
  int64_t created_;
};

}  // namespace conclave
