#pragma once
// Routes about the server itself: tokenizer, template rendering, health, versions, figures, the description of the interface.
#include "server/route.h"

namespace conclave {

const FieldTable& tokenize_fields();
const FieldTable& detokenize_fields();
Params tokenizer_defaults(const ServedModel& model);
void tokenize(Call& call);
void detokenize(Call& call);
void tokenizer_info(Call& call);
void apply_template(Call& call);
void health_live(Call& call);
void health_ready(Call& call);
void health_load(Call& call);
void show_version(Call& call);
void server_info(Call& call);
void show_metrics(Call& call);
void expert_load(Call& call);
void expert_load_of_layer(Call& call);
void show_openapi(Call& call);
void show_openapi_page(Call& call);
void show_page(Call& call);
void not_supported_here(Call& call);

/// The limits by name, for /server_info.
nlohmann::ordered_json limits_json(const ServerLimits& limits);
/// Nothing when a step ran lately or none is needed; else why the server is not ready.
std::string why_not_ready(const App& app);

/// The interface description (OpenAPI 3.0), from the routes and their field tables.
nlohmann::ordered_json openapi(const App& app);

}  // namespace conclave
