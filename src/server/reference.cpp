// The reference stack's own routes: /infer, /infer_token, /v1/tokenizer, timed health, stopping, status.
#include <fmt/format.h>

#include <charconv>
#include <nlohmann/json.hpp>

#include "server/app.h"
#include "server/probe.h"
#include "server/tgi.h"
#include "server/triton.h"
#include "server/utility.h"

namespace conclave {
namespace {

using Json = nlohmann::ordered_json;

class InferWriter final : public EventWriter {
 public:
  InferWriter() : EventWriter(Dialect::reference) {}
  void piece(Generation& generation, Choice& s, const Piece& piece) override {
    const Json id = piece.token_count > 0 ? Json(s.tokens[piece.first_token + piece.token_count - 1]) : Json(nullptr);
    generation.exchange().write(
        event({{"prefill_time", nullptr}, {"decode_time", nullptr}, {"token", {{"id", id}, {"text", piece.text}}}}));
  }
  void ended(Generation& generation, Choice& s) override {
    Json last = {
        {"prefill_time", s.stats.prefill_ms}, {"decode_time", s.stats.decode_ms}, {"token", nullptr}, {"generated_text", s.text}};
    if (generation.params().details) last["details"] = details(generation, s);
    generation.exchange().write(event(last));
  }
  void finish(Generation& generation) override {
    if (generation.params().stream) return generation.exchange().finish();
    const Choice& s = *chosen(generation).front();
    Json body = {{"generated_text", s.text}};
    if (generation.params().details) body["details"] = details(generation, s);
    answer_generation(generation, body);
  }

 private:
  static Json details(const Generation& generation, const Choice& s) {
    return {{"finish_reason", tgi_finish(s)},
            {"generated_tokens", s.tokens.size()},
            {"generated_token_ids", s.tokens},
            {"seed", generation.params().do_sample ? Json(generation.params().seed.value_or(0)) : Json(nullptr)}};
  }
};

std::vector<Field> infer_parameters() {
  std::vector<Field> fields = tgi_parameters();
  fields.push_back(integer_field(
      "timeout", [](Params & p) -> auto& { return p.deadline_ms; }, {0, 65535},
      "seconds after which the request ends; 0: never"));
  fields.back().set = [](Params& p, const Json& v, const ServerLimits&) { p.deadline_ms = v.get<double>() * 1000; };
  return fields;
}

void start(Call& call, Job job, std::vector<Prompt> prompts) {
  settle_tgi(job.params);
  start_generation(call, std::move(job), std::move(prompts), std::make_unique<InferWriter>(), true);
}

}  // namespace

const FieldTable& infer_fields() {
  static const FieldTable table{{required(text_field("inputs", member(&Params::text), size_t{4} << 20, "the text to continue")),
                                 boolean_field("stream", member(&Params::stream), "send events"),
                                 object_field("parameters", FieldTable{infer_parameters()}, "how to generate")}};
  return table;
}

const FieldTable& infer_token_fields() {
  static const FieldTable table{{required(ids_field("input_id", member(&Params::tokens), "token ids to continue")),
                                 boolean_field("stream", member(&Params::stream), "send events"),
                                 object_field("parameters", FieldTable{infer_parameters()}, "how to generate")}};
  return table;
}

const FieldTable& reference_tokenizer_fields() {
  static const FieldTable table{{required(text_field("inputs", member(&Params::text), size_t{4} << 20, "the text")),
                                 boolean_field("do_decode", member(&Params::details), "give each token's text")}};
  return table;
}

void reference_infer(Call& call) {
  Job job = read_job(call);
  auto prompts = text_prompt(*call.model, job.params.text);
  start(call, std::move(job), std::move(prompts));
}

void reference_infer_token(Call& call) {
  Job job = read_job(call);
  if (job.params.tokens.empty())
    throw ApiError(ApiCode::invalid_value, "input_id is an empty list, wanted at least one token id", "input_id");
  job.params.prompt = job.params.tokens;
  auto prompts = read_prompts(call, job.params);
  start(call, std::move(job), std::move(prompts));
}

void reference_tokenizer(Call& call) {
  const Job job = read_job(call);
  const auto ids = text_prompt(*call.model, job.params.text).front().ids;
  Json tokens = Json::array();
  for (const int32_t id : ids) tokens.push_back(call.model->tokenizer->token_bytes(id));
  Json body = {{"token_number", ids.size()}};
  if (job.params.details) body["tokens"] = std::move(tokens);
  body["token_ids"] = ids;
  call.answer(body);
}

void reference_status(Call& call) {
  const ServiceStatus s = call.model->engine->status();
  call.answer({{"service", {{"state", why_not_ready(call.app).empty() ? "ready" : "not ready"}}},
               {"resource",
                {{"availSlotsNum", std::max(0, call.model->max_sequences - s.running)},
                 {"availBlockNum", s.free_blocks},
                 {"waitingRequestNum", s.waiting},
                 {"runningRequestNum", s.running}}}});
}

void reference_config(Call& call) {
  call.answer({{"modelName", call.model->id},
               {"maxSeqLen", call.model->context},
               {"maxInputTokenLen", call.model->context - 1},
               {"maxBatchSize", call.model->max_sequences},
               {"cacheBlockSize", call.model->engine->status().block_size}});
}

void timed_health(Call& call) {
  constexpr double kDefault = 10, kMost = 600;
  double seconds = kDefault;
  if (!call.arguments.empty()) {
    const std::string& text = call.arguments.front();
    const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
    if (error != std::errc() || rest != text.data() + text.size() || !(seconds > 0 && seconds <= kMost))
      throw ApiError(ApiCode::invalid_value,
                     fmt::format("the path asks for {} seconds, wanted more than 0 and at most {}", shown(Json(text)), kMost));
  }
  const Call later{call.app, call.route, call.request, call.exchange, nullptr};  // the engine must not own itself through its sinks
  probe_engine(*call.model, seconds * 1000, [later](bool good) {
    later.exchange->post([later, good] {
      HttpResponse response;
      response.status = good ? 200 : 503;
      response.body = dump({{"status", good ? "healthy" : "no token within the time"}});
      later.respond(std::move(response));
    });
  });
}

void stop_service(Call& call) {
  const bool now = query_value(call.request.query, "mode") == "Force";
  call.answer({{"status", now ? "stopping now" : "draining"}});
  if (call.app.on_stop_asked) call.app.on_stop_asked(now);
}

void metrics_window(Call& call) { call.answer(call.app.metrics().window(call.model->engine->status())); }

}  // namespace conclave
