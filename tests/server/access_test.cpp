// Who may do what: every route of the table with no key, a wrong one, a client's and an administrator's; and where routes are served.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <nlohmann/json.hpp>

#include "core/error.h"
#include "server/client.h"
#include "server/harness.h"
#include "support/temp_folder.h"

namespace conclave::testing {
namespace {

using Json = nlohmann::ordered_json;

// sha256sum of "secret" and of "other"
constexpr const char* kSecret = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
constexpr const char* kOther = "d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa";

struct KeyFile {
  explicit KeyFile(const std::string& text) : path(folder.write("keys", text).string()) { chmod(path.c_str(), 0600); }
  test::TempFolder folder;
  std::string path;
};

ServerSetup with_keys(const KeyFile& file) {
  ServerSetup setup;
  setup.key_file = file.path;
  return setup;
}

std::string concrete(std::string path) {
  for (size_t at; (at = path.find('{')) != std::string::npos;) path.replace(at, path.find('}', at) - at + 1, "demo");
  return path;
}

TEST(Access, EveryRouteAsksForItsKey) {
  const KeyFile file(std::string("alice ") + kSecret + "\nroot " + kOther + " admin\n");
  TestServer s(with_keys(file));
  const std::vector<Route> routes = s.server->app().routes();
  for (const Route& route : routes) {
    if (route.path == "/stopService") continue;  // it would do what it is asked to
    const auto status = [&](const ClientHeaders& headers) {
      return request(s.port(), route.method, concrete(route.path), "{}", headers).status;
    };
    const ClientHeaders client{{"Authorization", "Bearer secret"}}, admin{{"Authorization", "Bearer other"}},
        wrong{{"Authorization", "Bearer Secret"}};
    for (const ClientHeaders& headers : {ClientHeaders{}, wrong, ClientHeaders{{"Authorization", "secret"}}})
      EXPECT_EQ(status(headers) == 401, route.access != Access::open) << route.path;
    EXPECT_NE(status(admin), 401) << route.path;
    EXPECT_NE(status(admin), 403) << route.path;
    if (route.access == Access::admin) {
      EXPECT_EQ(status(client), 403) << route.path;
    } else {
      EXPECT_NE(status(client), 403) << route.path;
    }
  }
}

TEST(Access, OnlyTheseRoutesAreOpen) {
  TestServer s;
  std::vector<std::string> open;
  for (const Route& route : s.server->app().routes())
    if (route.access == Access::open) open.push_back(route.path);
  for (const std::string& path : open)
    EXPECT_TRUE(path.starts_with("/health") || path.starts_with("/v2/health") || path == "/version" || path == "/openapi.json" ||
                path == "/docs" || path == "/" || path.starts_with("/page.") || path.ends_with(".js") || path == "/favicon.svg")
        << path;
}

TEST(Access, AKeyStopsItsOwnRequestsOnly) {
  const KeyFile file(std::string("alice ") + kSecret + "\nbob " + kOther + "\n");
  TestServer s(with_keys(file));
  s.engine->tick_us = 2000;
  s.engine->script = [ids = s.ids("la la")](const Request&) { return ScriptedEngine::Answer{std::vector<int32_t>(1000, ids.back())}; };
  const ClientHeaders alice{{"Authorization", "Bearer secret"}}, bob{{"Authorization", "Bearer other"}};
  Client c(s.port());
  c.send(request_text("POST", "/v2/models/demo/generate_stream", R"({"id":"me","text_input":"x","parameters":{"max_new_tokens":1000}})", alice));
  c.read_until("text_output");
  EXPECT_EQ(post(s.port(), "/v2/models/demo/stopInfer", {{"id", "me"}}, bob).status, 404);
  EXPECT_EQ(s.engine->running(), 1);
  EXPECT_EQ(post(s.port(), "/v2/models/demo/stopInfer", {{"id", "me"}}, alice).status, 200);
  EXPECT_TRUE(s.wait_until([&] { return s.engine->running() == 0; }));
}

TEST(Access, RatesAreKept) {
  const KeyFile file(std::string("alice ") + kSecret + " requests_per_minute=2 priority=3\n");
  TestServer s(with_keys(file));
  const ClientHeaders key{{"X-API-Key", "secret"}};
  EXPECT_EQ(post(s.port(), "/v1/completions", {{"prompt", "x"}, {"priority", 1}}, key).status, 200);
  EXPECT_EQ(s.engine->requests()[0].priority, 3) << "the key's ceiling";
  EXPECT_NE(s.engine->requests()[0].cache_salt, 0u) << "keys do not share cached prefixes";
  EXPECT_EQ(post(s.port(), "/v1/completions", {{"prompt", "x"}}, key).status, 200);
  const Reply r = post(s.port(), "/v1/completions", {{"prompt", "x"}}, key);
  EXPECT_EQ(r.status, 429);
  EXPECT_EQ(r.json()["error"]["code"], "slow_down");
  EXPECT_GT(std::stoi(r.headers.at("retry-after-ms")), 20000);
}

TEST(Access, OpenListenersNeedKeys) {
  ServerSetup setup;
  setup.addresses = {{"0.0.0.0", 0, Plane::all}};
  const auto start = [&](ServerSetup s) { TestServer server(std::move(s)); };
  EXPECT_NE(test::error_of([&] { start(setup); }).find("--key-file"), std::string::npos);
  setup.insecure = true;
  EXPECT_EQ(test::error_of([&] { start(setup); }), "no error");
  const KeyFile file(std::string("alice ") + kSecret);
  setup.insecure = false;
  setup.key_file = file.path;
  EXPECT_EQ(test::error_of([&] { start(setup); }), "no error");
}

TEST(Access, PlanesHaveTheirOwnPorts) {
  ServerSetup setup;
  setup.addresses = {{"127.0.0.1", 0, Plane::business}, {"127.0.0.1", 0, Plane::management}, {"127.0.0.1", 0, Plane::metrics}};
  TestServer s(std::move(setup));
  const auto& ports = s.server->ports();
  EXPECT_EQ(request(ports[0], "GET", "/v1/models").status, 200);
  EXPECT_EQ(request(ports[1], "GET", "/v1/models").status, 404);
  EXPECT_EQ(request(ports[2], "GET", "/v1/models").status, 404);
  EXPECT_EQ(request(ports[0], "GET", "/metrics").status, 404);
  EXPECT_EQ(request(ports[2], "GET", "/metrics").status, 200);
  for (const int port : ports) EXPECT_EQ(request(port, "GET", "/health/live").status, 200);
}

}  // namespace
}  // namespace conclave::testing
