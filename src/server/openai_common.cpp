#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>

#include "server/app.h"
#include "server/openai.h"
#include "text/unicode.h"

namespace conclave {

using Json = nlohmann::ordered_json;

std::string token_text(const Tokenizer& tokenizer, int32_t id) {
  const std::string bytes = tokenizer.token_bytes(id);
  if (is_valid_utf8(bytes)) return bytes;
  std::string text = "bytes:";
  for (const char c : bytes) text += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
  return text;
}

double finite(float logprob) { return std::max(static_cast<double>(logprob), -9999.0); }

Json usage_json(const GenerationFigures& f) {
  return {{"prompt_tokens", f.prompt_tokens},
          {"completion_tokens", f.completion_tokens},
          {"total_tokens", f.prompt_tokens + f.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", f.cached_tokens}}},
          {"completion_tokens_details", {{"reasoning_tokens", 0}}}};
}

Json timings_json(const GenerationFigures& f) {
  const double seconds = f.decode_ms / 1000;
  return {{"queue_ms", f.queue_ms},
          {"prefill_ms", f.prefill_ms},
          {"decode_ms", f.decode_ms},
          {"tokens_per_second", seconds > 0 ? static_cast<double>(f.completion_tokens) / seconds : 0.0}};
}

Json prompt_logprobs_json(const Tokenizer& tokenizer, const Choice& sequence) {
  Json list = Json::array({nullptr});
  for (const TokenLogprob& token : sequence.prompt_logprobs) {
    Json entry = Json::object();
    const auto add = [&](int32_t id, float logprob, int rank) {
      entry[std::to_string(id)] = {{"logprob", finite(logprob)}, {"rank", rank}, {"decoded_token", token_text(tokenizer, id)}};
    };
    add(token.id, token.logprob, token.rank);
    int rank = 0;
    for (const auto& [id, logprob] : token.top) {
      ++rank;
      if (id != token.id) add(id, logprob, rank);
    }
    list.push_back(std::move(entry));
  }
  return list;
}

Json routed_experts_json(const ServedModel& model, const Choice& sequence) {
  Json rows = Json::array();
  const size_t count = experts_per_token(model) > 0 ? sequence.experts.size() / experts_per_token(model) : 0;
  for (auto at = sequence.experts.begin(); rows.size() < count;) {
    Json row = Json::array();
    for (const MoeLayer& layer : model.moe_layers) {
      row.push_back(std::vector<int32_t>(at, at + layer.top_k));
      at += layer.top_k;
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

void add_experts(const Generation& generation, Choice& sequence, Json& choice) {
  if (!generation.params().return_routed_experts) return;
  choice["routed_experts"] = routed_experts_json(generation.model(), sequence);
  sequence.experts.clear();
}

Json stop_reason_json(const Choice& sequence) {
  if (!sequence.stop_text.empty()) return sequence.stop_text;
  const bool asked = sequence.finish == FinishReason::stop && sequence.stop_id >= 0;
  return asked ? Json(sequence.stop_id) : Json(nullptr);
}

Params openai_defaults(const ServedModel& model) {
  Params p;
  const SamplingDefaults& d = model.defaults;
  p.sampling.temperature = d.temperature.value_or(1.0f);
  p.sampling.top_p = d.top_p.value_or(1.0f);
  p.sampling.top_k = d.top_k.value_or(0);
  p.sampling.min_p = d.min_p.value_or(0.0f);
  p.sampling.repetition_penalty = d.repetition_penalty.value_or(1.0f);
  return p;
}

std::vector<Field> openai_shared_fields() {
  std::vector<Field> fields = {
      text_field("model", member(&Params::model), 1024, "name of the served model"),
      boolean_field("stream", member(&Params::stream), "send the answer as server-sent events"),
      object_field(
          "stream_options",
          FieldTable{{boolean_field("include_usage", member(&Params::include_usage), "a last chunk with usage and no choices"),
                      boolean_field("continuous_usage_stats", member(&Params::continuous_usage), "usage in every chunk"),
                      ignored_field("include_obfuscation", "padding against traffic analysis")}},
          "how to stream"),
      integer_field("n", member(&Params::n), {1, 64}, "answers per prompt"),
      boolean_field("return_routed_experts", member(&Params::return_routed_experts),
                    "add routed_experts to each choice: [token][layer with experts][k], the experts that computed each new token; the "
                    "last token was not computed any more and has none"),
      stop_field("stop"),
      integer_field("prompt_logprobs", member(&Params::prompt_logprobs), {0, 20},
                    "log-probabilities of the prompt's tokens, with that many alternatives"),
      refused_field("response_format", {Json{{"type", "text"}}},
                    "structured output is not offered yet; only {\"type\": \"text\"} is"),
      refused_field("use_beam_search", {false}, "beam search is not offered"),
      refused_field("length_penalty", {1, 1.0}, "it belongs to beam search, which is not offered"),
  };
  for (const char* name : {"grammar", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs",
                           "json_schema", "logits_processors"})
    fields.push_back(refused_field(name, {}, "structured output is not offered yet"));
  for (const char* name :
       {"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier", "store",
        "prediction", "verbosity", "reasoning_effort", "request_id", "spaces_between_special_tokens", "detokenize"})
    fields.push_back(ignored_field(name, "accepted for compatibility"));
  return fields;
}

OpenAiStream::OpenAiStream(std::string id_prefix, std::string object, std::string chunk_object)
    : id_(std::move(id_prefix) + random_hex(24)),
      object_(std::move(object)),
      chunk_object_(std::move(chunk_object)),
      created_(std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count()) {}

Json OpenAiStream::head(const Generation& generation, const std::string& object) const {
  return {{"id", id_}, {"object", object}, {"created", created_}, {"model", generation.model().id}};
}
Json OpenAiStream::whole(const Generation& generation) const { return head(generation, object_); }

void OpenAiStream::choice(Generation& generation, Json choice) {
  Json chunk = head(generation, chunk_object_);
  chunk["choices"] = Json::array({std::move(choice)});
  if (generation.params().continuous_usage) chunk["usage"] = usage_json(generation.figures());
  else if (generation.params().include_usage) chunk["usage"] = nullptr;
  generation.exchange().write(event(chunk));
}

void OpenAiStream::close(Generation& generation) {
  const GenerationFigures figures = generation.figures();
  if (generation.params().include_usage) {
    Json chunk = head(generation, chunk_object_);
    chunk["choices"] = Json::array();
    chunk["usage"] = usage_json(figures);
    if (generation.params().timings) chunk["timings"] = timings_json(figures);
    generation.exchange().write(event(chunk));
  }
  generation.exchange().write("data: [DONE]\n\n");
  generation.exchange().finish();
}

namespace {

Json model_json(const ServedModel& model, const std::string& name) {
  return {{"id", name},       {"object", "model"}, {"created", model.created},      {"owned_by", "conclave"},
          {"root", model.id}, {"parent", nullptr}, {"max_model_len", model.context}};
}

}  // namespace

void list_models(Call& call) {
  Json data = Json::array({model_json(*call.model, call.model->id)});
  for (const std::string& alias : call.model->aliases) data.push_back(model_json(*call.model, alias));
  call.answer({{"object", "list"}, {"data", std::move(data)}});
}

void show_model(Call& call) {
  require_model(*call.model, call.arguments.front());
  call.answer(model_json(*call.model, call.arguments.front()));
}

}  // namespace conclave
