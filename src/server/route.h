#pragma once
// One endpoint: its path, who may use it, its fields and its handler. The router's table is a list of these, and /openapi.json is
// written from it.
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "server/api_error.h"
#include "server/fields.h"
#include "server/generation.h"
#include "server/http.h"
#include "server/served_model.h"

namespace conclave {

class App;

enum class Access : uint8_t {
  open,    ///< nobody is asked for a key
  client,  ///< any key, where there are keys
  admin,   ///< a key marked admin, where there are keys; never on a public listener without keys
};

struct Call;

struct Route {
  std::string method, path;  ///< "/v2/models/{model}/infer"
  Plane plane = Plane::business;
  Access access = Access::client;
  Dialect dialect = Dialect::openai;
  bool needs_model = true;  ///< 503 until one is loaded
  std::function<void(Call&)> handle;
  std::string summary;
  std::function<const FieldTable&()> fields = {};
  std::function<Params(const ServedModel&)> defaults = {};
};

/// One request being answered.
struct Call {
  App& app;
  const Route& route;
  HttpRequest request;
  std::shared_ptr<Exchange> exchange;
  std::shared_ptr<const ServedModel> model;  ///< null while loading, for routes that allow it
  std::vector<std::string> arguments = {};   ///< of the path's {} parts

  void answer(const nlohmann::ordered_json& body, Headers headers = {}) const;
  /// A whole answer with the request's id; counted and logged.
  void respond(HttpResponse response) const;
};

}  // namespace conclave
