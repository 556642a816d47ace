// POST /v1/chat/completions.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "server/app.h"
#include "server/chat_prompt.h"
#include "server/openai.h"

namespace conclave {
namespace {

using Json = nlohmann::ordered_json;

Json bytes_json(const std::string& bytes) {
  Json list = Json::array();
  for (const char c : bytes) list.push_back(static_cast<unsigned char>(c));
  return list;
}

Json logprobs_json(const Generation& generation, const Choice& s, const Piece& piece) {
  if (!generation.params().chat_logprobs) return nullptr;
  const Tokenizer& tokenizer = *generation.model().tokenizer;
  const auto entry = [&](int32_t id, float logprob) {
    return Json{
        {"token", token_text(tokenizer, id)}, {"logprob", finite(logprob)}, {"bytes", bytes_json(tokenizer.token_bytes(id))}};
  };
  Json content = Json::array();
  for (size_t i = piece.first_token; i < std::min(piece.first_token + piece.token_count, s.logprobs.size()); ++i) {
    const TokenLogprob& token = s.logprobs[i];
    Json one = entry(token.id, token.logprob);
    one["top_logprobs"] = Json::array();
    const auto most = static_cast<size_t>(generation.params().top_logprobs);
    for (size_t k = 0; k < std::min(most, token.top.size()); ++k)
      one["top_logprobs"].push_back(entry(token.top[k].first, token.top[k].second));
    content.push_back(std::move(one));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

Json ids_of(const Choice& s, const Piece& piece) {
  const auto begin = s.tokens.begin() + static_cast<std::ptrdiff_t>(piece.first_token);
  return std::vector<int32_t>(begin, begin + static_cast<std::ptrdiff_t>(piece.token_count));
}

class ChatWriter final : public EventWriter {
 public:
  ChatWriter() : EventWriter(Dialect::openai), stream_("chatcmpl-", "chat.completion", "chat.completion.chunk") {}

  void begin(Generation& generation) override {
    EventWriter::begin(generation);
    if (!generation.params().stream) return;
    for (const Choice& s : generation.sequences())
      stream_.choice(generation, delta(s.index, {{"role", "assistant"}, {"content", ""}}));
  }

  void piece(Generation& generation, Choice& s, const Piece& piece) override {
    Json choice = delta(s.index, {{"content", piece.text}});
    choice["logprobs"] = logprobs_json(generation, s, piece);
    if (generation.params().return_token_ids) choice["token_ids"] = ids_of(s, piece);
    add_experts(generation, s, choice);
    stream_.choice(generation, std::move(choice));
  }

  void ended(Generation& generation, Choice& s) override {
    Json choice = delta(s.index, Json::object());
    choice["finish_reason"] = s.finish_name();
    choice["stop_reason"] = stop_reason_json(s);
    add_experts(generation, s, choice);
    stream_.choice(generation, std::move(choice));
  }

  void finish(Generation& generation) override {
    if (generation.params().stream) return stream_.close(generation);
    const Params& p = generation.params();
    Json body = stream_.whole(generation);
    body["choices"] = Json::array();
    for (const Choice* s : chosen(generation)) {
      Json choice = {{"index", body["choices"].size()},
                     {"message", {{"role", "assistant"}, {"content", s->text}, {"refusal", nullptr}}},
                     {"logprobs", logprobs_json(generation, *s, {s->text, 0, s->tokens.size()})},
                     {"finish_reason", s->finish_name()},
                     {"stop_reason", stop_reason_json(*s)}};
      if (p.return_token_ids) choice["token_ids"] = s->tokens;
      if (p.return_routed_experts) choice["routed_experts"] = routed_experts_json(generation.model(), *s);
      body["choices"].push_back(std::move(choice));
    }
    body["usage"] = usage_json(generation.figures());
    if (p.prompt_logprobs)
      body["prompt_logprobs"] = prompt_logprobs_json(*generation.model().tokenizer, generation.sequences().front());
    if (p.return_token_ids) body["prompt_token_ids"] = generation.prompts().front().ids;
    if (generation.prompts().front().dropped > 0) body["truncated_prompt_tokens"] = generation.prompts().front().dropped;
    if (p.timings) body["timings"] = timings_json(generation.figures());
    answer_generation(generation, body);
  }

 private:
  static Json delta(int index, Json content) {
    return {{"index", index}, {"delta", std::move(content)}, {"logprobs", nullptr}, {"finish_reason", nullptr}};
  }
  OpenAiStream stream_;
};

}  // namespace

const FieldTable& chat_fields() {
  static const FieldTable table{
      {required(json_field("messages", FieldType::list, &Params::messages, "the dialogue: a list of {role, content}")),
       integer_field("max_tokens", member(&Params::max_tokens), {1, 2147483647},
                     "most new tokens; left out: what is left of the context"),
       integer_field("max_completion_tokens", member(&Params::max_tokens), {1, 2147483647}, "the newer name of max_tokens"),
       boolean_field("logprobs", member(&Params::chat_logprobs), "add log-probabilities of the answer's tokens"),
       integer_field("top_logprobs", member(&Params::top_logprobs), {0, 20}, "alternatives per token; needs logprobs"),
       boolean_field("add_generation_prompt", member(&Params::add_generation_prompt),
                     "end the prompt with the template's opening of an answer"),
       boolean_field("continue_final_message", member(&Params::continue_final_message),
                     "go on with the last message instead of answering it"),
       json_field("chat_template_kwargs", FieldType::object, &Params::template_variables,
                  "plain values for the template's own switches"),
       refused_field("tools", {Json::array()}, "tools are not offered yet"),
       refused_field("tool_choice", {"none", "auto"}, "tools are not offered yet"),
       refused_field("functions", {Json::array()}, "tools are not offered yet"),
       refused_field("function_call", {"none", "auto"}, "tools are not offered yet"),
       refused_field("chat_template", {}, "templates of clients are not run; the model's own is used"),
       refused_field("documents", {Json::array()}, "documents are not offered"),
       refused_field("modalities", {Json::array({"text"})}, "only text is offered"),
       refused_field("audio", {}, "only text is offered"),
       refused_field("web_search_options", {}, "the server reaches nothing outside"),
       ignored_field("parallel_tool_calls", "tools are not offered yet")},
      openai_shared_fields(),
      sampling_fields(),
      request_fields()};
  return table;
}

void chat_completions(Call& call) {
  Job job = read_job(call);
  Params& p = job.params;
  if (p.top_logprobs > 0 && !p.chat_logprobs)
    throw ApiError(ApiCode::invalid_value, fmt::format("top_logprobs is {}, but logprobs is not true; set it", p.top_logprobs),
                   "top_logprobs");
  if (p.chat_logprobs) p.logprobs = p.top_logprobs;
  if (p.stream && p.prompt_logprobs)
    throw ApiError(ApiCode::not_supported, "prompt_logprobs come only with a whole answer; leave stream out", "prompt_logprobs");
  Prompt prompt{.ids = chat_prompt(*call.model, p, call.app.limits()), .text = {}};
  start_generation(call, std::move(job), {std::move(prompt)}, std::make_unique<ChatWriter>(), false);
}

}  // namespace conclave
