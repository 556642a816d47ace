// What handlers of several dialects share: fields to Params, prompts to ids, the start of a generation and the headers of its answer.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "server/app.h"

namespace conclave {
namespace {

using Json = nlohmann::ordered_json;

std::string joined(const std::vector<std::string>& names) {
  constexpr size_t kMost = 32;
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kMost); ++i) text += (i ? ", " : "") + names[i];
  return names.size() > kMost ? text + ", ..." : text;
}

/// Ids of one list; `field` names it in errors.
std::vector<int32_t> ids_of(const Json& list, const ServedModel& model, const std::string& field) {
  std::vector<int32_t> ids;
  ids.reserve(list.size());
  for (const Json& id : list) {
    if (!id.is_number_integer())
      throw ApiError(ApiCode::invalid_type, fmt::format("{} holds {}, wanted token ids", field, shown(id)), field);
    if (id < 0 || id >= model.vocab_size)
      throw ApiError(ApiCode::invalid_value,
                     fmt::format("{} holds {}, wanted token ids from 0 to {}", field, shown(id), model.vocab_size - 1), field);
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

void truncate(Prompt& prompt, const Params& params, int context) {
  if (!params.truncate_prompt) return;
  const int room = context - std::max(1, params.max_tokens.value_or(1));
  const int keep = *params.truncate_prompt < 0 ? std::max(1, room) : std::max(1, *params.truncate_prompt);
  const int extra = static_cast<int>(prompt.ids.size()) - keep;
  if (extra <= 0) return;
  prompt.ids.erase(prompt.ids.begin(), prompt.ids.begin() + extra);
  prompt.dropped = extra;
}

/// The cache is shared between requests of one key that name the same salt.
uint64_t salt_of(const Call& call, const Params& params) {
  return call.request.key == 0 && params.cache_salt.empty()
             ? 0
             : std::hash<std::string>{}(fmt::format("{}/{}", call.request.key, params.cache_salt)) | 1;
}

/// Takes from the key what the request may use: its prompts, and the answers where their length was asked for.
double reserve_tokens(const Call& call, const Params& p, const std::vector<Prompt>& prompts) {
  const uint64_t key = call.request.key;
  const double copies = std::max(p.n, p.best_of.value_or(p.n));
  double tokens = 0;
  for (const Prompt& prompt : prompts) tokens += static_cast<double>(prompt.ids.size()) + copies * p.max_tokens.value_or(p.default_max_tokens);
  const double wait = call.app.keys().reserve(key, tokens);
  if (wait == 0) return tokens;
  const KeyLimits limits = call.app.keys().limits(key);
  if (wait < 0)
    throw ApiError(ApiCode::key_limit, fmt::format("the request may use {} tokens, the key's limit is {} a day; lower max_tokens or n", tokens,
                                                   limits.tokens_per_day), "max_tokens");
  ApiError error(ApiCode::slow_down, limits.requests_at_once > 0
                                         ? fmt::format("the key allows {} requests at once and {} tokens a day; wait",
                                                       limits.requests_at_once, limits.tokens_per_day)
                                         : fmt::format("the key's {} tokens a day are used up; wait", limits.tokens_per_day));
  error.retry_after_ms = wait;
  throw error;
}

/// What the log says of a generation's end.
int status_of(const std::string& finish) {
  constexpr int kClientClosed = 499;  // nginx's number for a client that left
  if (finish == "stop" || finish == "length") return 200;
  if (finish == "disconnected") return kClientClosed;
  for (const ApiErrorEntry& entry : api_errors())
    if (entry.name == finish) return entry.status;
  return 500;
}

}  // namespace

void require_model(const ServedModel& model, const std::string& name) {
  if (!model.answers_to(name))
    throw ApiError(ApiCode::model_not_found, fmt::format("the model {} is not served here; {} is", shown(Json(name)), model.id),
                   "model");
}

Job read_job(Call& call) { return read_job(call, parse_body(call.request.body, call.app.limits())); }

Job read_job(Call& call, const Json& body) { return read_job(call, body, call.route.fields(), call.route.defaults(*call.model)); }

Job read_job(Call& call, const Json& body, const FieldTable& fields, Params defaults) {
  Job job{std::move(defaults), {}};
  job.ignored_fields = fields.read(body, job.params, call.app.limits());
  if (call.app.options().strict_fields && !job.ignored_fields.empty())
    throw ApiError(ApiCode::unknown_field, fmt::format("fields without effect: {}; leave them out", joined(job.ignored_fields)),
                   job.ignored_fields.front());
  Params& p = job.params;
  if (!p.model.empty()) require_model(*call.model, p.model);
  if (!p.seed) p.seed = random_seed();
  if (const int best = call.app.keys().limits(call.request.key).best_priority; p.priority < best) p.priority = best;
  for (const std::vector<int32_t>* ids : {&p.stop_token_ids, &p.sampling.allowed_token_ids}) {
    for (const int32_t id : *ids)
      if (id >= call.model->vocab_size)
        throw ApiError(ApiCode::invalid_value,
                       fmt::format("token id {} is given, wanted 0 to {}", id, call.model->vocab_size - 1),
                       ids == &p.stop_token_ids ? "stop_token_ids" : "allowed_token_ids");
  }
  return job;
}

std::vector<Prompt> read_prompts(const Call& call, const Params& params) {
  const ServedModel& model = *call.model;
  const Json& given = params.prompt;
  const EncodeOptions encode{.add_special_tokens = params.add_special_tokens, .parse_special = false};
  const auto from_text = [&](const std::string& text) {
    return Prompt{.ids = model.tokenizer->encode(text, encode), .text = text};
  };
  const auto wrong = [](const Json& value) {
    throw ApiError(
        ApiCode::invalid_type,
        fmt::format("prompt is {}, wanted a string, a list of strings, token ids, or a list of lists of token ids", shown(value)),
        "prompt");
  };
  std::vector<Prompt> prompts;
  if (given.is_string()) {
    prompts.push_back(from_text(given.get<std::string>()));
  } else if (given.is_array() && !given.empty() && given.front().is_number()) {
    prompts.push_back({.ids = ids_of(given, model, "prompt"), .text = {}});
  } else if (given.is_array() && !given.empty()) {
    if (given.size() > static_cast<size_t>(call.app.limits().sequences_per_request))
      throw ApiError(
          ApiCode::too_many_sequences,
          fmt::format("prompt has {} entries, wanted at most {}", given.size(), call.app.limits().sequences_per_request),
          "prompt");
    for (const Json& one : given) {
      if (one.is_string()) prompts.push_back(from_text(one.get<std::string>()));
      else if (one.is_array())
        prompts.push_back({.ids = ids_of(one, model, fmt::format("prompt[{}]", prompts.size())), .text = {}});
      else wrong(one);
    }
  } else {
    wrong(given);
  }
  return prompts;
}

/// Whole answers are held in memory until their end, streams are not.
void check_routed_experts(const Call& call, const Params& p, const std::vector<Prompt>& prompts) {
  if (!p.return_routed_experts || p.stream) return;
  int64_t tokens = 0;
  for (const Prompt& prompt : prompts)
    tokens += int64_t{std::max(p.n, p.best_of.value_or(p.n))} * room_for(p, prompt.ids.size(), call.model->context);
  const auto ids = tokens * static_cast<int64_t>(experts_per_token(*call.model));
  if (ids > call.app.limits().routed_experts)
    throw ApiError(ApiCode::invalid_value,
                   fmt::format("return_routed_experts would give up to {} ids for {} tokens, wanted at most {} in a whole answer; lower "
                               "max_tokens, or set stream",
                               ids, tokens, call.app.limits().routed_experts),
                   "return_routed_experts");
}

void start_generation(Call& call, Job job, std::vector<Prompt> prompts, std::unique_ptr<AnswerWriter> writer,
                      bool continues_prompt) {
  job.params.key = call.request.key;
  const Params& p = job.params;
  const int64_t copies = std::max(p.n, p.best_of.value_or(p.n)), all = copies * static_cast<int64_t>(prompts.size());
  if (all > call.app.limits().sequences_per_request) {
    throw ApiError(ApiCode::too_many_sequences,
                   fmt::format("{} prompts times {} answers are {} sequences, wanted at most {} per request", prompts.size(),
                               copies, all, call.app.limits().sequences_per_request),
                   p.best_of.value_or(p.n) > p.n ? "best_of" : "n");
  }
  for (size_t i = 0; i < prompts.size(); ++i) {
    truncate(prompts[i], p, call.model->context);
    if (prompts[i].ids.empty())
      throw ApiError(ApiCode::invalid_value, fmt::format("prompt {} has no tokens; give at least one", i), "prompt");
    room_for(p, prompts[i].ids.size(), call.model->context);
  }
  check_routed_experts(call, p, prompts);
  App& app = call.app;
  const double reserved = reserve_tokens(call, p, prompts);
  const auto began = App::Clock::now();
  const uint64_t salt = salt_of(call, p);
  auto generation = std::make_shared<Generation>(
      Generation::Setup{call.model, call.exchange, app.limits(), std::move(job.params), std::move(prompts), call.request.id,
                        std::move(job.ignored_fields), salt, continues_prompt},
      std::move(writer));
  call.request.body.clear();
  generation->on_token = [&app](double ms, bool first) { app.metrics().note_token(ms, first); };
  generation->on_end = [&app, began, reserved, request = call.request, self = generation.get()](const GenerationFigures& f) {
    const double ms = std::chrono::duration<double, std::milli>(App::Clock::now() - began).count();
    app.forget(self);
    app.metrics().note_generation(f, ms);
    app.watch().note_end(f.finish == entry_of(ApiCode::numeric_error).name);
    app.keys().settle(request.key, reserved, static_cast<double>(f.prompt_tokens + f.completion_tokens));
    app.log_line(request, status_of(f.finish), ms, &f);
  };
  app.track(generation);
  try {
    generation->start();
  } catch (...) {
    app.forget(generation.get());
    app.keys().settle(call.request.key, reserved, 0);
    throw;
  }
}

Headers generation_headers(const Generation& generation) {
  Headers headers{{"X-Request-Id", generation.request_id()}};
  if (!generation.ignored_fields().empty())
    headers.emplace_back("x-conclave-ignored-fields", joined(generation.ignored_fields()));
  return headers;
}

void answer_generation(Generation& generation, const Json& body) {
  HttpResponse response;
  response.body = dump(body);
  response.headers = generation_headers(generation);
  generation.exchange().respond(std::move(response));
}

HttpResponse event_stream() {
  HttpResponse response;
  response.content_type = "text/event-stream; charset=utf-8";
  response.headers = {{"Cache-Control", "no-cache"}};
  return response;
}

void EventWriter::begin(Generation& generation) {
  if (!generation.params().stream) return;
  HttpResponse head = event_stream();
  for (auto& header : generation_headers(generation)) head.headers.push_back(std::move(header));
  generation.exchange().start_stream(std::move(head), ": keep-alive\n\n");
}

void EventWriter::fail(Generation& generation, const ApiError& error) {
  if (!generation.params().stream)
    return generation.exchange().respond(error_response(error, dialect_, generation.request_id()));
  generation.exchange().write(event(error_json(error, dialect_, generation.request_id())));
  generation.exchange().finish();
}

std::string event(const Json& json) { return "data: " + dump(json) + "\n\n"; }

void Call::answer(const Json& body, Headers headers) const {
  HttpResponse response;
  response.body = dump(body);
  response.headers = std::move(headers);
  respond(std::move(response));
}

void Call::respond(HttpResponse response) const {
  response.headers.emplace_back("X-Request-Id", request.id);
  app.metrics().note_answer(response.status, response.status < 400 ? "" : "not_ready");
  app.log_line(request, response.status, 0, nullptr);
  exchange->respond(std::move(response));
}

}  // namespace conclave
