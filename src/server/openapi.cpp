// /openapi.json from the routes and their field tables, and a page that shows it.
#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <map>

#include "server/app.h"
#include "server/openai.h"
#include "server/utility.h"

namespace conclave {
namespace {

using Json = nlohmann::ordered_json;

std::string openapi_path(std::string path) {
  const size_t dots = path.find("...}");
  return dots == std::string::npos ? path : path.erase(dots, 3);
}

/// `model`: the served one's name, "" while it is loaded.
Json parameters_of(const std::string& path, const std::string& model) {
  Json list = Json::array();
  for (size_t at = path.find('{'); at != std::string::npos; at = path.find('{', at + 1)) {
    const std::string name = path.substr(at + 1, path.find('}', at) - at - 1);
    Json schema = {{"type", "string"}, {"minLength", 1}};
    if (!model.empty() && (name == "model" || name == "id")) schema["enum"] = {model};
    list.push_back({{"name", name}, {"in", "path"}, {"required", true}, {"schema", std::move(schema)}});
  }
  return list;
}

Json responses_of(const Route& route, const Json& error_schema) {
  Json responses = {{"200", {{"description", "success"}}}};
  std::map<int, std::string> by_status;
  const bool tgi = route.dialect == Dialect::tgi || route.dialect == Dialect::reference;
  for (const ApiErrorEntry& e : api_errors()) {
    std::string& text = by_status[tgi ? e.tgi_status : e.status];
    text += (text.empty() ? "" : "; ") + fmt::format("{}: {}", e.name, e.meaning);
  }
  for (const auto& [status, text] : by_status)
    responses[std::to_string(status)] = {{"description", text}, {"content", {{"application/json", {{"schema", error_schema}}}}}};
  return responses;
}

Json operation(const Route& route, const Params& defaults, const std::string& model, const Json& error_schema) {
  Json op = {{"summary", route.summary}, {"parameters", parameters_of(openapi_path(route.path), model)}};
  if (route.fields)
    op["requestBody"] = {{"required", true}, {"content", {{"application/json", {{"schema", route.fields().schema(defaults)}}}}}};
  op["responses"] = responses_of(route, error_schema);
  if (route.access == Access::open) op["security"] = Json::array();
  return op;
}

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '<') out += "&lt;";
    else if (c == '&') out += "&amp;";
    else if (c == '"') out += "&quot;";
    else out += c;
  }
  return out;
}

}  // namespace

Json openapi(const App& app) {
  const auto model = app.model();
  static const ServedModel nameless;
  Json paths = Json::object();
  const Json error_schema = {{"type", "object"}, {"required", {"error"}}, {"properties", {{"error", Json::object()}}}};
  for (const Route& route : app.routes()) {
    const Params defaults = route.defaults ? route.defaults(model ? *model : nameless) : Params{};
    std::string method = route.method;
    for (char& c : method) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    paths[openapi_path(route.path)][method] = operation(route, defaults, model ? model->id : "", error_schema);
  }
  return {{"openapi", "3.0.3"},
          {"info",
           {{"title", "Conclave"},
            {"version", app.options().version},
            {"description", "Inference of mixture-of-experts language models."}}},
          {"components", {{"securitySchemes", {{"key", {{"type", "http"}, {"scheme", "bearer"}}}}}}},
          {"security", Json::array({{{"key", Json::array()}}})},
          {"paths", std::move(paths)}};
}

void show_openapi(Call& call) { call.answer(openapi(call.app)); }

void show_openapi_page(Call& call) {
  std::string html =
      "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">"
      "<title>Conclave interface</title><link rel=\"stylesheet\" href=\"/page.css\"></head><body "
      "class=\"docs\"><main><h1>Conclave interface</h1>"
      "<p>Also as <a href=\"/openapi.json\">openapi.json</a>.</p>";
  const Json description = openapi(call.app);
  for (const auto& [path, methods] : description["paths"].items()) {
    for (const auto& [method, op] : methods.items()) {
      html += fmt::format("<h2><code>{} {}</code></h2><p>{}</p>", escaped(method), escaped(path),
                          escaped(op["summary"].get<std::string>()));
      if (!op.contains("requestBody")) continue;
      html +=
          "<table><thead><tr><th scope=\"col\">field</th><th scope=\"col\">type</th><th scope=\"col\">default</th><th "
          "scope=\"col\">meaning</th></tr></thead><tbody>";
      const Json& schema = op["requestBody"]["content"]["application/json"]["schema"];
      for (const auto& [name, field] : schema["properties"].items()) {
        html += fmt::format("<tr><td><code>{}</code></td><td>{}</td><td>{}</td><td>{}</td></tr>", escaped(name),
                            escaped(field.value("type", "any")), field.contains("default") ? escaped(dump(field["default"])) : "",
                            escaped(field["description"].get<std::string>()));
      }
      html += "</tbody></table>";
    }
  }
  HttpResponse response;
  response.content_type = "text/html; charset=utf-8";
  response.body = html + "</main></body></html>";
  response.headers = {{"Content-Security-Policy", "default-src 'none'; style-src 'self'"}};
  call.respond(std::move(response));
}

}  // namespace conclave
