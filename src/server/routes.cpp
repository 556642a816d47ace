// The table of all endpoints.
#include "server/app.h"
#include "server/openai.h"
#include "server/tgi.h"
#include "server/triton.h"
#include "server/utility.h"

namespace conclave {
namespace {

Route get(std::string path, Plane plane, Access access, std::function<void(Call&)> handle, std::string summary) {
  Route r{.method = "GET",
          .path = std::move(path),
          .plane = plane,
          .access = access,
          .handle = std::move(handle),
          .summary = std::move(summary)};
  r.needs_model = access == Access::client;
  return r;
}

Route post(std::string path, const FieldTable& (*fields)(), Params (*defaults)(const ServedModel&), void (*handle)(Call&),
           std::string summary) {
  return {.method = "POST",
          .path = std::move(path),
          .handle = handle,
          .summary = std::move(summary),
          .fields = fields,
          .defaults = defaults};
}

void add_openai(std::vector<Route>& routes) {
  routes.push_back(post("/v1/chat/completions", chat_fields, openai_defaults, chat_completions, "answer a dialogue"));
  routes.push_back(post("/v1/completions", completion_fields, completion_defaults, completions, "continue or score prompts"));
  routes.push_back(get("/v1/models", Plane::business, Access::client, list_models, "what is served"));
  routes.push_back(get("/v1/models/{id...}", Plane::business, Access::client, show_model, "one model"));
}

void add_utility(std::vector<Route>& routes) {
  constexpr Plane kBoth = Plane::all;
  routes.push_back(
      post("/tokenize", tokenize_fields, tokenizer_defaults, tokenize, "text to token ids (vLLM and llama.cpp names)"));
  routes.push_back(post("/detokenize", detokenize_fields, tokenizer_defaults, detokenize, "token ids to text"));
  routes.push_back(post("/apply-template", tokenize_fields, tokenizer_defaults, apply_template, "render a dialogue's prompt"));
  routes.push_back(get("/tokenizer_info", Plane::business, Access::client, tokenizer_info, "special tokens and chat template"));
  routes.push_back(get("/health", kBoth, Access::open, health_ready, "as /health/ready"));
  routes.push_back(get("/health/live", kBoth, Access::open, health_live, "the server answers"));
  routes.push_back(get("/health/ready", kBoth, Access::open, health_ready, "the model is loaded and steps run"));
  routes.push_back(get("/health/load", kBoth, Access::open, health_load, "progress of loading as events"));
  routes.push_back(get("/version", kBoth, Access::open, show_version, "version of the server"));
  routes.push_back(get("/server_info", Plane::business, Access::client, server_info, "model, engine, defaults and limits"));
  Route metrics = get("/metrics", Plane::metrics, Access::client, show_metrics, "figures as Prometheus text");
  metrics.needs_model = false;
  routes.push_back(std::move(metrics));
  routes.push_back(get("/expert_load", Plane::all, Access::client, expert_load, "how evenly each layer's experts are used"));
  routes.push_back(get("/expert_load/{layer}", Plane::all, Access::client, expert_load_of_layer,
                       "how often each expert of a layer was chosen, in all and in spans of the last minutes"));
  routes.push_back(get("/openapi.json", Plane::business, Access::open, show_openapi, "this description"));
  for (const char* path : {"/", "/page.css", "/page.js", "/experts.js", "/markdown.js", "/message.js", "/routing.js", "/store.js",
                           "/stream.js", "/words.js", "/favicon.svg"})
    routes.push_back(get(path, Plane::business, Access::open, show_page, "the chat page"));
  routes.push_back(get("/docs", Plane::business, Access::open, show_openapi_page, "this description as a page"));
}

Route in(Dialect dialect, Route route) {
  route.dialect = dialect;
  return route;
}

void add_tgi(std::vector<Route>& routes) {
  const auto add = [&](Route route) { routes.push_back(in(Dialect::tgi, std::move(route))); };
  add(post("/", tgi_fields, tgi_defaults, tgi_root, "continue a text (TGI); stream chooses events"));
  add(post("/generate", tgi_fields, tgi_defaults, tgi_generate, "continue a text (TGI with inputs, vLLM with prompt)"));
  add(post("/generate_stream", tgi_fields, tgi_defaults, tgi_generate_stream, "continue a text as events (TGI)"));
  add(get("/info", Plane::all, Access::client, tgi_info, "model and limits (TGI)"));
}

void add_triton(std::vector<Route>& routes) {
  const auto add = [&](Route route) { routes.push_back(in(Dialect::triton, std::move(route))); };
  const std::string model = "/v2/models/{model}";
  add(get("/v2", Plane::business, Access::client, triton_server, "name and version (Triton)"));
  add(get("/v2/health/live", Plane::all, Access::open, health_live, "the server answers"));
  add(get("/v2/health/ready", Plane::all, Access::open, health_ready, "the model is loaded and steps run"));
  add(get(model, Plane::business, Access::client, triton_model, "tensors of the model"));
  add(get(model + "/config", Plane::business, Access::client, triton_config, "figures of the model"));
  add(get(model + "/ready", Plane::all, Access::client, triton_model_ready, "the model is served"));
  add(get(model + "/getSlotCount", Plane::management, Access::client, slot_count, "free places"));
  add(post(model + "/generate", triton_text_fields, tgi_defaults, triton_generate, "continue a text (Triton)"));
  add(post(model + "/generate_stream", triton_text_fields, tgi_defaults, triton_generate_stream,
           "continue a text as events (Triton)"));
  add(post(model + "/infer", triton_infer_fields, tgi_defaults, triton_infer, "continue token ids (Triton)"));
  add(post(model + "/stopInfer", stop_infer_fields, tgi_defaults, stop_infer, "end a request by its id"));
}

void add_reference(std::vector<Route>& routes) {
  const auto add = [&](Route route) { routes.push_back(in(Dialect::reference, std::move(route))); };
  add(post("/infer", infer_fields, tgi_defaults, reference_infer, "continue a text"));
  add(post("/infer_token", infer_token_fields, tgi_defaults, reference_infer_token, "continue token ids"));
  add(post("/v1/tokenizer", reference_tokenizer_fields, tgi_defaults, reference_tokenizer, "count tokens"));
  for (const char* path : {"/v1/status", "/v2/status"})
    add(get(path, Plane::management, Access::client, reference_status, "state and free places"));
  add(get("/v1/config", Plane::management, Access::client, reference_config, "figures of the model"));
  add(get("/health/timed", Plane::management, Access::client, timed_health, "a token computed within 10 seconds"));
  add(get("/health/timed-{seconds}", Plane::management, Access::client, timed_health,
          "a token computed within that many seconds"));
  add(get("/metrics-json", Plane::management, Access::client, metrics_window, "means over the last 1000 tokens"));
  Route stop = get("/stopService", Plane::management, Access::admin, stop_service, "drain and stop; mode=Force: at once");
  stop.needs_model = false;
  add(std::move(stop));
}

void add_unsupported(std::vector<Route>& routes) {
  for (const char* path : {"/v1/embeddings", "/v1/rerank", "/rerank", "/v1/responses", "/v1/messages", "/v1/audio/transcriptions",
                           "/v1/images/generations", "/v1/moderations", "/v1/load_lora_adapter", "/v1/unload_lora_adapter",
                           "/v1/role/{role}", "/v2/role/{role}", "/dresult"}) {
    Route r{.method = "POST", .path = path, .handle = not_supported_here, .summary = "not offered: 404 endpoint_not_supported"};
    r.needs_model = false;
    routes.push_back(std::move(r));
  }
}

}  // namespace

std::vector<Route> make_routes(const ServerOptions&) {
  std::vector<Route> routes;
  add_openai(routes);
  add_utility(routes);
  add_tgi(routes);
  add_triton(routes);
  add_reference(routes);
  add_unsupported(routes);
  return routes;
}

}  // namespace conclave
