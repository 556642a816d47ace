#include "server/triton.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "server/app.h"
#include "server/tgi.h"

namespace conclave {
namespace {

using Json = nlohmann::ordered_json;

Json cost_json(Generation& generation, const Choice& s) {
  return {
      {"finish_reason", tgi_finish(s)},   {"generated_tokens", s.tokens.size()},         {"first_token_cost", s.stats.prefill_ms},
      {"decode_cost", s.stats.decode_ms}, {"batch_size", generation.sequences().size()}, {"queue_wait_time", s.stats.queue_ms}};
}

Json head_json(const Generation& generation) {
  Json head = Json::object();
  if (!generation.params().id.empty()) head["id"] = generation.params().id;
  head["model_name"] = generation.model().id;
  head["model_version"] = nullptr;
  return head;
}

class TritonWriter : public EventWriter {
 public:
  TritonWriter() : EventWriter(Dialect::triton) {}
  void piece(Generation& generation, Choice& s, const Piece& piece) override {
    Json chunk = head_json(generation);
    chunk["text_output"] = piece.text;
    chunk["details"] = {{"generated_tokens", s.tokens.size()}};
    generation.exchange().write(event(chunk));
  }
  void ended(Generation& generation, Choice& s) override {
    Json chunk = head_json(generation);
    chunk["text_output"] = "";
    chunk["details"] = cost_json(generation, s);
    generation.exchange().write(event(chunk));
  }
  void finish(Generation& generation) override {
    if (generation.params().stream) return generation.exchange().finish();
    const Choice& s = *chosen(generation).front();
    Json body = head_json(generation);
    body["text_output"] = s.text;
    body["details"] = cost_json(generation, s);
    answer_generation(generation, body);
  }
};

/// The answer's ids as a tensor.
class TensorWriter final : public TritonWriter {
 public:
  void finish(Generation& generation) override {
    const Choice& s = *chosen(generation).front();
    std::vector<int32_t> ids = s.tokens;
    if (tgi_finish(s) == "eos_token" && !ids.empty() && ids.back() == s.stop_id) ids.pop_back();
    Json body = head_json(generation);
    body["outputs"] = Json::array({{{"name", "output0"}, {"shape", {1, ids.size()}}, {"datatype", "UINT32"}, {"data", ids}}});
    body["parameters"] = cost_json(generation, s);
    answer_generation(generation, body);
  }
};

[[noreturn]] void refuse(const std::string& field, const std::string& message) {
  throw ApiError(ApiCode::invalid_value, field + " " + message, field);
}

/// The ids of the only input tensor, shape [n] or [1, n]; data flat or in one row.
Json tensor_ids(const Json& inputs) {
  if (inputs.size() != 1 || !inputs.front().is_object()) refuse("inputs", "is not one tensor {name, shape, datatype, data}");
  const Json& tensor = inputs.front();
  const auto datatype = tensor.find("datatype"), data = tensor.find("data"), shape = tensor.find("shape");
  if (datatype == tensor.end() || (*datatype != "UINT32" && *datatype != "INT32" && *datatype != "INT64"))
    refuse("inputs[0].datatype", "is not UINT32, INT32 or INT64");
  if (data == tensor.end() || !data->is_array() || data->empty()) refuse("inputs[0].data", "is not a list of token ids");
  const Json ids = data->size() == 1 && data->front().is_array() ? data->front() : *data;
  const bool fits = shape != tensor.end() && shape->is_array() && !shape->empty() && shape->size() <= 2 &&
                    shape->back() == ids.size() && (shape->size() == 1 || shape->front() == 1);
  if (!fits) refuse("inputs[0].shape", fmt::format("does not say [1, {}], the number of ids", ids.size()));
  for (const Json& id : ids)
    if (!id.is_number_integer()) refuse("inputs[0].data", "holds something other than token ids");
  return ids;
}

void start_text(Call& call, bool stream) {
  require_model(*call.model, call.arguments.front());
  Job job = read_job(call);
  job.params.stream = stream;
  settle_tgi(job.params);
  auto prompts = text_prompt(*call.model, job.params.text);
  start_generation(call, std::move(job), std::move(prompts), std::make_unique<TritonWriter>(), true);
}

}  // namespace

const FieldTable& triton_text_fields() {
  static const FieldTable table{
      {required(text_field("text_input", member(&Params::text), size_t{4} << 20, "the text to continue")),
       text_field("id", member(&Params::id), 128, "given back, and the name for stopInfer"),
       object_field("parameters", FieldTable{tgi_parameters(), {ignored_field("batch_size", "the server decides")}},
                    "how to generate")}};
  return table;
}

const FieldTable& triton_infer_fields() {
  static const FieldTable table{{required(json_field("inputs", FieldType::list, &Params::prompt,
                                                     "one tensor of token ids: {name, shape [1, n], datatype UINT32, data}")),
                                 text_field("id", member(&Params::id), 128, "given back, and the name for stopInfer"),
                                 ignored_field("outputs", "output0 is always given"),
                                 object_field("parameters", FieldTable{tgi_parameters()}, "how to generate")}};
  return table;
}

const FieldTable& stop_infer_fields() {
  static const FieldTable table{{required(text_field("id", member(&Params::id), 128, "the request to end"))}};
  return table;
}

void triton_server(Call& call) {
  call.answer({{"name", "conclave"}, {"version", call.app.options().version}, {"extensions", {"generate"}}});
}

void triton_model(Call& call) {
  require_model(*call.model, call.arguments.front());
  call.answer({{"name", call.model->id},
               {"versions", Json::array()},
               {"platform", "conclave"},
               {"inputs", Json::array({{{"name", "input0"}, {"datatype", "UINT32"}, {"shape", {-1}}}})},
               {"outputs", Json::array({{{"name", "output0"}, {"datatype", "UINT32"}, {"shape", {-1}}}})}});
}

void triton_config(Call& call) {
  require_model(*call.model, call.arguments.front());
  call.answer({{"model_name", call.model->id},
               {"max_seq_len", call.model->context},
               {"max_input_token_len", call.model->context - 1},
               {"max_batch_size", call.model->max_sequences},
               {"cache_block_size", call.model->engine->status().block_size},
               {"world_size", 1}});
}

void triton_model_ready(Call& call) {
  require_model(*call.model, call.arguments.front());
  call.answer({{"name", call.model->id}, {"ready", true}});
}

void triton_generate(Call& call) { start_text(call, false); }
void triton_generate_stream(Call& call) { start_text(call, true); }

void triton_infer(Call& call) {
  require_model(*call.model, call.arguments.front());
  Job job = read_job(call);
  settle_tgi(job.params);
  job.params.prompt = tensor_ids(job.params.prompt);
  auto prompts = read_prompts(call, job.params);
  start_generation(call, std::move(job), std::move(prompts), std::make_unique<TensorWriter>(), true);
}

void stop_infer(Call& call) {
  require_model(*call.model, call.arguments.front());
  const Job job = read_job(call);
  if (job.params.id.empty() || !call.app.stop_generation(job.params.id, call.request.key))
    throw ApiError(ApiCode::not_found, fmt::format("no request of the id {} runs", shown(Json(job.params.id))), "id");
  call.answer({{"id", job.params.id}, {"stopped", true}});
}

void slot_count(Call& call) {
  require_model(*call.model, call.arguments.front());
  const ServiceStatus s = call.model->engine->status();
  call.answer({{"total_slots", call.model->max_sequences},
               {"free_slots", std::max(0, call.model->max_sequences - s.running)},
               {"available_tokens_length", int64_t{s.free_blocks} * s.block_size}});
}

}  // namespace conclave
