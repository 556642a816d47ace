#include "server/tgi.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "server/app.h"
#include "server/openai.h"
#include "text/unicode.h"

namespace conclave {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kMostInt = 2147483647;

Json token_json(const Tokenizer& tokenizer, const Choice& s, size_t at, std::string text) {
  const int32_t id = s.tokens[at];
  return {{"id", id},
          {"text", std::move(text)},
          {"logprob", at < s.logprobs.size() ? finite(s.logprobs[at].logprob) : 0.0},
          {"special", tokenizer.is_special(id)}};
}

Json top_json(const Tokenizer& tokenizer, const Choice& s, size_t at, int most) {
  Json list = Json::array();
  if (at >= s.logprobs.size()) return list;
  for (size_t k = 0; k < std::min(static_cast<size_t>(most), s.logprobs[at].top.size()); ++k) {
    const auto& [id, logprob] = s.logprobs[at].top[k];
    list.push_back({{"id", id},
                    {"text", lossy_utf8(tokenizer.token_bytes(id))},
                    {"logprob", finite(logprob)},
                    {"special", tokenizer.is_special(id)}});
  }
  return list;
}

Json seed_json(const Params& p) { return p.sampling.temperature > 0 && p.do_sample ? Json(p.seed.value_or(0)) : Json(nullptr); }

std::string full_text(const Generation& generation, const Choice& s) {
  const Prompt& prompt = generation.prompts()[s.prompt];
  return (generation.params().full_text ? prompt.text.value_or("") : "") + s.text;
}

/// One sequence's details; `inner` adds its text, for best_of_sequences.
Json details_json(const Generation& generation, const Choice& s, bool inner) {
  const Tokenizer& tokenizer = *generation.model().tokenizer;
  const Params& p = generation.params();
  const auto& prompt = generation.prompts()[s.prompt].ids;
  Json details = Json::object();
  if (inner) details["generated_text"] = full_text(generation, s);
  details.update({{"finish_reason", tgi_finish(s)},
                  {"generated_tokens", s.tokens.size()},
                  {"prompt_tokens", prompt.size()},
                  {"seed", seed_json(p)}});
  details["prefill"] = Json::array();
  for (size_t i = 0; p.decoder_input_details && i < prompt.size(); ++i) {
    const bool known = i > 0 && i <= s.prompt_logprobs.size();
    details["prefill"].push_back({{"id", prompt[i]},
                                  {"text", lossy_utf8(tokenizer.token_bytes(prompt[i]))},
                                  {"logprob", known ? Json(finite(s.prompt_logprobs[i - 1].logprob)) : Json(nullptr)}});
  }
  details["tokens"] = Json::array();
  for (size_t i = 0; i < s.tokens.size(); ++i)
    details["tokens"].push_back(token_json(tokenizer, s, i, lossy_utf8(tokenizer.token_bytes(s.tokens[i]))));
  if (p.top_n_tokens > 0) {
    details["top_tokens"] = Json::array();
    for (size_t i = 0; i < s.tokens.size(); ++i) details["top_tokens"].push_back(top_json(tokenizer, s, i, p.top_n_tokens));
  }
  return details;
}

class TgiWriter final : public EventWriter {
 public:
  explicit TgiWriter(bool list) : EventWriter(Dialect::tgi), list_(list) {}

  void piece(Generation& generation, Choice& s, const Piece& piece) override {
    for (size_t i = 0; i < piece.token_count; ++i) {
      flush(generation);
      const size_t at = piece.first_token + i;
      const bool special = generation.model().tokenizer->is_special(s.tokens[at]);
      const std::string text = special                      ? token_text(*generation.model().tokenizer, s.tokens[at])
                               : i + 1 == piece.token_count ? std::string(piece.text)
                                                            : "";
      last_ = {{"index", at + 1}, {"token", token_json(*generation.model().tokenizer, s, at, text)}};
      if (generation.params().top_n_tokens > 0)
        last_["top_tokens"] = top_json(*generation.model().tokenizer, s, at, generation.params().top_n_tokens);
      last_["generated_text"] = nullptr;
      last_["details"] = nullptr;
    }
    if (piece.token_count == 0 && last_.is_object()) {  // text that was held back
      std::string& text = last_["token"]["text"].get_ref<std::string&>();
      text += piece.text;
    }
  }

  void ended(Generation& generation, Choice& s) override {
    if (!last_.is_object()) return;
    last_["generated_text"] = full_text(generation, s);
    last_["details"] = {{"finish_reason", tgi_finish(s)},
                        {"generated_tokens", s.tokens.size()},
                        {"seed", seed_json(generation.params())},
                        {"input_length", generation.prompts()[s.prompt].ids.size()}};
    flush(generation);
  }

  void finish(Generation& generation) override {
    if (generation.params().stream) return generation.exchange().finish();
    const auto best = chosen(generation);
    Json body = {{"generated_text", full_text(generation, *best.front())}};
    if (generation.params().details) {
      body["details"] = details_json(generation, *best.front(), false);
      Json others = Json::array();
      for (const Choice& s : generation.sequences())
        if (&s != best.front()) others.push_back(details_json(generation, s, true));
      if (!others.empty()) body["details"]["best_of_sequences"] = std::move(others);
      if (generation.prompts().front().dropped > 0)
        body["details"]["truncated_prompt_tokens"] = generation.prompts().front().dropped;
    }
    answer_generation(generation, list_ ? Json::array({std::move(body)}) : body);
  }

 private:
  void flush(Generation& generation) {
    if (last_.is_object()) generation.exchange().write(event(last_));
    last_ = nullptr;
  }
  bool list_;
  Json last_;  ///< event of the latest token, which may turn out to be the last
};

/// vLLM's plain form: {"text": [...]}, streams as JSON objects that end in a NUL byte.
class PlainWriter final : public AnswerWriter {
 public:
  void begin(Generation& generation) override {
    if (!generation.params().stream) return;
    HttpResponse head;
    head.headers = generation_headers(generation);
    generation.exchange().start_stream(std::move(head), "");
  }
  void piece(Generation& generation, Choice&, const Piece& piece) override {
    if (!piece.text.empty()) generation.exchange().write(dump({{"text", {piece.text}}}) + '\0');
  }
  void finish(Generation& generation) override {
    if (generation.params().stream) return generation.exchange().finish();
    Json texts = Json::array();
    for (const Choice* s : chosen(generation)) texts.push_back(generation.prompts()[s->prompt].text.value_or("") + s->text);
    answer_generation(generation, {{"text", std::move(texts)}});
  }
  void fail(Generation& generation, const ApiError& error) override {
    if (!generation.params().stream)
      return generation.exchange().respond(error_response(error, Dialect::tgi, generation.request_id()));
    generation.exchange().write(dump(error_json(error, Dialect::tgi, generation.request_id())) + '\0');
    generation.exchange().finish();
  }
};

const FieldTable& plain_fields() {
  static const FieldTable table{
      {required(text_field("prompt", member(&Params::text), size_t{4} << 20, "the text to continue")),
       integer_field("max_tokens", member(&Params::max_tokens), {1, kMostInt}, "most new tokens"),
       boolean_field("stream", member(&Params::stream), "send JSON objects that end in a NUL byte"),
       integer_field("n", member(&Params::n), {1, 64}, "answers"),
       integer_field("best_of", member(&Params::best_of), {1, 64}, "generate that many, give the n best"),
       text_field("model", member(&Params::model), 1024, "name of the served model"), stop_field("stop"),
       refused_field("use_beam_search", {false}, "beam search is not offered")},
      sampling_fields(),
      request_fields()};
  return table;
}

void start_tgi(Call& call, const Json& body, bool stream, bool list) {
  Job job = read_job(call, body);
  job.params.stream = stream;
  settle_tgi(job.params);
  auto prompts = text_prompt(*call.model, job.params.text);
  start_generation(call, std::move(job), std::move(prompts), std::make_unique<TgiWriter>(list), true);
}

void start_plain(Call& call, const Json& body) {
  Params defaults = openai_defaults(*call.model);
  defaults.default_max_tokens = 512;
  Job job = read_job(call, body, plain_fields(), std::move(defaults));
  if (job.params.stream && job.params.best_of.value_or(job.params.n) > 1)
    throw ApiError(ApiCode::not_supported, "several answers cannot be streamed; leave stream out", "n");
  if (job.params.best_of && *job.params.best_of < job.params.n)
    throw ApiError(ApiCode::invalid_value,
                   fmt::format("best_of is {}, wanted at least n, which is {}", *job.params.best_of, job.params.n), "best_of");
  auto prompts = text_prompt(*call.model, job.params.text);
  start_generation(call, std::move(job), std::move(prompts), std::make_unique<PlainWriter>(), true);
}

}  // namespace

std::vector<Field> tgi_parameters() {
  return {
      integer_field("max_new_tokens", member(&Params::max_tokens), {1, kMostInt}, "most new tokens"),
      boolean_field("do_sample", member(&Params::do_sample),
                    "draw from the distribution; also set by temperature, top_k, top_p and typical_p"),
      number_field("temperature", sampling_member(&Sampling::temperature), {0, 100, true, false}, "randomness"),
      integer_field("top_k", sampling_member(&Sampling::top_k), {0, kMostInt, true, false}, "keep the k most likely tokens"),
      number_field("top_p", sampling_member(&Sampling::top_p), {0, 1, true, true},
                   "keep the most likely tokens that together reach this probability"),
      number_field("typical_p", sampling_member(&Sampling::typical_p), {0, 1, true, true},
                   "keep locally typical tokens up to this probability"),
      number_field("repetition_penalty", sampling_member(&Sampling::repetition_penalty), {0, 100, true, false},
                   "above 1: tokens seen before become less likely"),
      number_field("frequency_penalty", sampling_member(&Sampling::frequency_penalty), {-2, 2},
                   "subtracted per earlier occurrence of a generated token"),
      seed_field(0),
      stop_field("stop"),
      integer_field("best_of", member(&Params::best_of), {1, 64}, "generate that many, give the best"),
      boolean_field("details", member(&Params::details), "add tokens and their log-probabilities"),
      boolean_field("decoder_input_details", member(&Params::decoder_input_details), "add log-probabilities of the prompt"),
      integer_field("top_n_tokens", member(&Params::top_n_tokens), {0, 20}, "alternatives per token"),
      boolean_field("return_full_text", member(&Params::full_text), "put the prompt before the text"),
      integer_field("truncate", member(&Params::truncate_prompt), {1, kMostInt},
                    "keep only that many of the prompt's last tokens"),
      integer_field("priority", member(&Params::priority), {1, 5}, "1 is served first, 5 last"),
      refused_field("watermark", {false}, "texts are not marked"),
      refused_field("adapter_id", {}, "adapters are not offered"),
      refused_field("grammar", {}, "structured output is not offered yet"),
  };
}

const FieldTable& tgi_fields() {
  static const FieldTable table{{required(text_field("inputs", member(&Params::text), size_t{4} << 20, "the text to continue")),
                                 object_field("parameters", FieldTable{tgi_parameters()}, "how to generate"),
                                 boolean_field("stream", member(&Params::stream), "of POST /: send events")}};
  return table;
}

Params tgi_defaults(const ServedModel&) {
  Params p;
  p.default_max_tokens = 20;
  p.do_sample = false;
  p.sampling.temperature = 1.0f;
  return p;
}

void settle_tgi(Params& p) {
  const Sampling& s = p.sampling;
  p.do_sample = p.do_sample || s.temperature != 1.0f || s.top_k > 0 || s.top_p < 1.0f || s.typical_p < 1.0f;
  if (p.stream && p.best_of.value_or(1) > 1)
    throw ApiError(ApiCode::invalid_value, "best_of is above 1, which cannot be streamed", "parameters.best_of");
  if (p.stream && p.decoder_input_details)
    throw ApiError(ApiCode::invalid_value, "decoder_input_details cannot be streamed", "parameters.decoder_input_details");
  if (p.details || p.stream || p.top_n_tokens > 0) p.logprobs = p.top_n_tokens;
  if (p.decoder_input_details) p.prompt_logprobs = 0;
}

std::string_view tgi_finish(const Choice& s) {
  if (s.finish == FinishReason::length) return "length";
  return s.stop_text.empty() && s.stop_id >= 0 ? "eos_token" : "stop_sequence";
}

std::vector<Prompt> text_prompt(const ServedModel& model, const std::string& text) {
  return {{.ids = model.tokenizer->encode(text, {.add_special_tokens = true, .parse_special = false}), .text = text}};
}

void tgi_root(Call& call) {
  const Json body = parse_body(call.request.body, call.app.limits());
  const auto stream = body.find("stream");
  start_tgi(call, body, stream != body.end() && stream->is_boolean() && stream->get<bool>(), true);
}

void tgi_generate(Call& call) {
  const Json body = parse_body(call.request.body, call.app.limits());
  if (body.contains("prompt") && !body.contains("inputs")) return start_plain(call, body);
  if (!body.contains("inputs"))
    throw ApiError(ApiCode::missing_field, "inputs is missing; send inputs (TGI) or prompt (vLLM)", "inputs");
  start_tgi(call, body, false, false);
}

void tgi_generate_stream(Call& call) { start_tgi(call, parse_body(call.request.body, call.app.limits()), true, false); }

void tgi_info(Call& call) {
  const ServedModel& m = *call.model;
  call.answer({{"model_id", m.id},
               {"model_sha", nullptr},
               {"model_dtype", m.dtype},
               {"model_device_type", "cpu"},
               {"model_pipeline_tag", "text-generation"},
               {"max_concurrent_requests", m.max_sequences},
               {"max_best_of", call.app.limits().sequences_per_request},
               {"max_stop_sequences", call.app.limits().stop_strings},
               {"max_input_length", m.context - 1},
               {"max_input_tokens", m.context - 1},
               {"max_total_tokens", m.context},
               {"max_batch_total_tokens", int64_t{m.context} * m.max_sequences},
               {"max_client_batch_size", 1},
               {"validation_workers", 1},
               {"router", "conclave"},
               {"version", call.app.options().version},
               {"sha", nullptr},
               {"docker_label", nullptr},
               {"models", Json::array({{{"model_id", m.id},
                                        {"model_dtype", m.dtype},
                                        {"model_device_type", "cpu"},
                                        {"model_pipeline_tag", "text-generation"},
                                        {"max_total_tokens", m.context}}})}});
}

}  // namespace conclave
