#include "server/utility.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "server/app.h"
#include "server/chat_prompt.h"
#include "server/openai.h"
#include "server/page.h"
#include "text/unicode.h"

namespace conclave {
namespace {

using Json = nlohmann::ordered_json;

HttpResponse status_response(int status, const Json& body) {
  HttpResponse response;
  response.status = status;
  response.body = dump(body);
  response.headers = {{"Cache-Control", "no-store"}};
  return response;
}

std::string_view name_of(ServerState state) {
  switch (state) {
    case ServerState::starting: return "starting";
    case ServerState::ready: return "ready";
    case ServerState::draining: return "draining";
    case ServerState::failed: break;
  }
  return "failed";
}

Json health_json(const App& app) {
  Json body = {{"status", name_of(app.state())}};
  if (app.state() == ServerState::starting) body["loading"] = progress_json(app.progress());
  return body;
}

/// TGI's tokens with their place in the text, in characters.
Json tgi_tokens(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  Json list = Json::array();
  bool at_start = true;
  size_t begin = 0;
  for (const int32_t id : ids) {
    std::string bytes;
    tokenizer.append_bytes(id, true, at_start, bytes);
    size_t end = begin;
    for (const char c : bytes) end += (static_cast<unsigned char>(c) & 0xc0) != 0x80;
    list.push_back({{"id", id}, {"text", lossy_utf8(tokenizer.token_bytes(id))}, {"start", begin}, {"stop", end}});
    begin = end;
  }
  return list;
}

}  // namespace

Json progress_json(const LoadProgress& p) {
  const double share = p.total > 0 ? static_cast<double>(p.done) / static_cast<double>(p.total) : 0;
  return {{"stage", p.stage},
          {"bytes_done", p.done},
          {"bytes_total", p.total},
          {"percent", 100 * share},
          {"elapsed_s", p.elapsed_s},
          {"eta_s", share > 0 ? Json(p.elapsed_s * (1 / share - 1)) : Json(nullptr)},
          {"rank", 0}};
}

const FieldTable& tokenize_fields() {
  static const FieldTable table{
      {text_field("prompt", member(&Params::text), size_t{4} << 20, "the text"),
       text_field("content", member(&Params::text), size_t{4} << 20, "llama.cpp's name of prompt"),
       text_field("inputs", member(&Params::text), size_t{4} << 20, "TGI's name of prompt; the answer is then TGI's list"),
       json_field("messages", FieldType::list, &Params::messages, "a dialogue instead of a text"),
       boolean_field("add_special_tokens", member(&Params::add_special_tokens), "put the model's begin token first"),
       boolean_field("add_special", member(&Params::add_special_tokens), "llama.cpp's name of add_special_tokens"),
       boolean_field("parse_special", member(&Params::parse_special), "read control tokens that are written in the text, which prompts of generating endpoints never do"),
       boolean_field("with_pieces", member(&Params::with_pieces), "give each token's text too (llama.cpp)"),
       boolean_field("return_token_strs", member(&Params::details), "give each token's text in token_strs (vLLM)"),
       boolean_field("add_generation_prompt", member(&Params::add_generation_prompt), "of a dialogue"),
       boolean_field("continue_final_message", member(&Params::continue_final_message), "of a dialogue"),
       json_field("chat_template_kwargs", FieldType::object, &Params::template_variables,
                  "plain values for the template's own switches"),
       text_field("model", member(&Params::model), 1024, "name of the served model")}};
  return table;
}

const FieldTable& detokenize_fields() {
  static const FieldTable table{
      {required(ids_field("tokens", member(&Params::tokens), "token ids")),
       boolean_field("skip_special_tokens", member(&Params::skip_special_tokens), "leave control tokens out"),
       text_field("model", member(&Params::model), 1024, "name of the served model")}};
  return table;
}

Params tokenizer_defaults(const ServedModel&) {
  Params p;
  p.skip_special_tokens = false;
  p.parse_special = true;  // as vLLM, llama.cpp and TGI do; prompts of generating endpoints never are
  return p;
}

void tokenize(Call& call) {
  const Json body = parse_body(call.request.body, call.app.limits());
  const Job job = read_job(call, body);
  const Params& p = job.params;
  const Tokenizer& tokenizer = *call.model->tokenizer;
  const bool chat = !p.messages.is_null(), llama = body.contains("content");
  if (!chat && !body.contains("prompt") && !body.contains("inputs") && !llama)
    throw ApiError(ApiCode::missing_field, "prompt is missing; send prompt, content, inputs or messages", "prompt");
  const std::vector<int32_t> ids =
      chat ? chat_prompt(*call.model, p, call.app.limits())
           : tokenizer.encode(
                 p.text, {.add_special_tokens = llama && !body.contains("add_special") && !body.contains("add_special_tokens")
                                                    ? false
                                                    : p.add_special_tokens,
                          .parse_special = p.parse_special});
  if (body.contains("inputs")) return call.answer(tgi_tokens(tokenizer, ids));
  Json answer = {{"count", ids.size()}, {"max_model_len", call.model->context}, {"tokens", ids}};
  if (p.with_pieces) {
    answer["tokens"] = Json::array();
    for (const int32_t id : ids) {
      const std::string bytes = tokenizer.token_bytes(id);
      Json piece = bytes;
      if (!is_valid_utf8(bytes))
        piece = std::vector<int>(reinterpret_cast<const unsigned char*>(bytes.data()),
                                 reinterpret_cast<const unsigned char*>(bytes.data()) + bytes.size());
      answer["tokens"].push_back({{"id", id}, {"piece", std::move(piece)}});
    }
  }
  if (p.details) {
    answer["token_strs"] = Json::array();
    for (const int32_t id : ids) answer["token_strs"].push_back(token_text(tokenizer, id));
  }
  call.answer(answer);
}

void detokenize(Call& call) {
  const Job job = read_job(call);
  const std::string text = call.model->tokenizer->decode(job.params.tokens, job.params.skip_special_tokens);
  call.answer({{"prompt", text}, {"content", text}});
}

void tokenizer_info(Call& call) {
  const ServedModel& model = *call.model;
  const auto token = [&](const char* name) {
    const auto found = model.special_tokens.find(name);
    return found == model.special_tokens.end() ? Json(nullptr) : Json(found->second);
  };
  Json special = Json::object();
  for (const auto& [name, text] : model.special_tokens) special[name] = text;
  const auto id = [](std::optional<int32_t> value) { return value ? Json(*value) : Json(nullptr); };
  call.answer({{"model", model.id},
               {"vocab_size", model.vocab_size},
               {"model_max_length", model.context},
               {"bos_token", token("bos_token")},
               {"bos_token_id", id(model.tokenizer->bos_id())},
               {"eos_token", token("eos_token")},
               {"eos_token_id", id(model.tokenizer->eos_id())},
               {"eos_token_ids", model.eos_ids},
               {"pad_token", token("pad_token")},
               {"unk_token", token("unk_token")},
               {"special_tokens", std::move(special)},
               {"chat_template", model.chat_template_source.empty() ? Json(nullptr) : Json(model.chat_template_source)}});
}

void apply_template(Call& call) {
  const Job job = read_job(call);
  if (job.params.messages.is_null()) throw ApiError(ApiCode::missing_field, "messages is missing; it is required", "messages");
  const auto spans = render_chat(*call.model, job.params, call.app.limits());
  call.answer({{"prompt", concatenate(spans)}, {"tokens", call.model->tokenizer->encode(spans)}});
}

std::string why_not_ready(const App& app) {
  switch (app.state()) {
    case ServerState::starting: return "the model is being loaded";
    case ServerState::draining: return "the server is being stopped";
    case ServerState::failed: return "the engine has failed";
    case ServerState::ready: break;
  }
  return app.watch().trouble(*app.model());
}

void health_live(Call& call) { call.respond(status_response(200, {{"status", "live"}})); }

void health_ready(Call& call) {
  const std::string reason = why_not_ready(call.app);
  Json body = health_json(call.app);
  if (!reason.empty()) body["reason"] = reason;
  HttpResponse response = status_response(reason.empty() ? 200 : 503, body);
  if (!reason.empty()) response.headers.emplace_back("Retry-After", "1");
  call.respond(std::move(response));
}

void health_load(Call& call) {
  HttpResponse head = event_stream();
  head.headers.emplace_back("X-Request-Id", call.request.id);
  call.exchange->start_stream(std::move(head), "");
  call.app.log_line(call.request, 200, 0, nullptr);
  call.exchange->write(event(progress_json(call.app.progress())));
  if (call.app.state() != ServerState::starting) return call.exchange->finish();
  call.app.watch_load(call.exchange);
}

void show_version(Call& call) { call.answer({{"version", call.app.options().version}}); }

void server_info(Call& call) {
  const ServedModel& m = *call.model;
  const Params p = openai_defaults(m);
  const ServiceStatus s = m.engine->status();
  Json moe = Json::array();
  for (const MoeLayer& layer : m.moe_layers)
    moe.push_back({{"layer", layer.layer}, {"num_experts", layer.num_experts}, {"top_k", layer.top_k}});
  call.answer({{"version", call.app.options().version},
               {"model",
                {{"id", m.id},
                 {"aliases", m.aliases},
                 {"family", m.family},
                 {"dtype", m.dtype},
                 {"vocab_size", m.vocab_size},
                 {"num_layers", m.num_layers},
                 {"moe_layers", std::move(moe)},
                 {"max_model_len", m.context},
                 {"isa", m.isa}}},
               {"engine",
                {{"max_sequences", m.max_sequences},
                 {"running", s.running},
                 {"waiting", s.waiting},
                 {"total_blocks", s.total_blocks},
                 {"free_blocks", s.free_blocks},
                 {"block_size", s.block_size},
                 {"steps", s.steps}}},
               {"default_sampling",
                {{"temperature", p.sampling.temperature},
                 {"top_p", p.sampling.top_p},
                 {"top_k", p.sampling.top_k},
                 {"min_p", p.sampling.min_p},
                 {"repetition_penalty", p.sampling.repetition_penalty}}},
               {"limits", limits_json(call.app.limits())}});
}

Json limits_json(const ServerLimits& l) {
  return {{"header_bytes", l.header_bytes},
          {"body_bytes", l.body_bytes},
          {"json_depth", l.json_depth},
          {"json_keys", l.json_keys},
          {"messages", l.messages},
          {"stop_strings", l.stop_strings},
          {"stop_bytes", l.stop_bytes},
          {"logit_bias", l.logit_bias},
          {"bad_words", l.bad_words},
          {"sequences_per_request", l.sequences_per_request},
          {"logprobs", l.logprobs},
          {"routed_experts", l.routed_experts},
          {"connections", l.connections},
          {"connections_per_address", l.connections_per_address},
          {"header_ms", l.header_ms},
          {"idle_ms", l.idle_ms},
          {"write_stall_ms", l.write_stall_ms},
          {"body_bytes_per_second", l.body_bytes_per_second},
          {"pause_bytes", l.pause_bytes},
          {"drain_ms", l.drain_ms},
          {"probe_idle_ms", l.probe_idle_ms}};
}

void show_metrics(Call& call) {
  MetricsScene scene;
  scene.state = name_of(call.app.state());
  scene.reference_names = call.app.options().reference_profile;
  scene.connections = call.app.connections ? call.app.connections() : 0;
  if (call.model) {
    scene.model = call.model->id, scene.engine = call.model->engine->status();
    scene.experts = call.model->engine->expert_load();
  }
  HttpResponse response;
  response.content_type = "text/plain; version=0.0.4; charset=utf-8";
  response.body = call.app.metrics().prometheus(scene);
  call.respond(std::move(response));
}

void show_page(Call& call) {
  const PageFile& file = *page_file(call.route.path);
  HttpResponse response;
  response.content_type = file.content_type;
  response.body = file.text;
  response.headers = {{"Content-Security-Policy",
                       "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri "
                       "'none'; form-action 'none'; "
                       "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"},
                      {"Referrer-Policy", "no-referrer"},
                      {"Cache-Control", "no-cache"}};
  call.respond(std::move(response));
}

void not_supported_here(Call&) {
  throw ApiError(ApiCode::endpoint_not_supported,
                 "this endpoint is known, but no served model can answer it; /openapi.json lists what is offered");
}

}  // namespace conclave
