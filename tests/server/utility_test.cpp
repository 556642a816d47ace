// Routes about the server itself.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "server/client.h"
#include "server/harness.h"

namespace conclave::testing {
namespace {

using Json = nlohmann::ordered_json;

TEST(Tokenize, SpeaksBothDialects) {
  TestServer s;
  const auto plain = s.ids("Tom has a ball");
  auto begun = plain;
  begun.insert(begun.begin(), 1);
  const Json vllm = post(s.port(), "/tokenize", {{"prompt", "Tom has a ball"}}).json();
  EXPECT_EQ(vllm["tokens"], begun);
  EXPECT_EQ(vllm["count"], begun.size());
  EXPECT_EQ(vllm["max_model_len"], 2048);
  EXPECT_EQ(post(s.port(), "/tokenize", {{"prompt", "Tom has a ball"}, {"add_special_tokens", false}}).json()["tokens"], plain);
  EXPECT_EQ(post(s.port(), "/tokenize", {{"content", "Tom has a ball"}}).json()["tokens"], plain)
      << "llama.cpp adds no begin token";
  EXPECT_EQ(post(s.port(), "/tokenize", {{"content", "Tom has a ball"}, {"add_special", true}}).json()["tokens"], begun);
  const Json pieces = post(s.port(), "/tokenize", {{"content", "Tom"}, {"with_pieces", true}}).json()["tokens"];
  EXPECT_EQ(pieces[0]["id"], s.ids("Tom")[0]);
  EXPECT_TRUE(pieces[0]["piece"].is_string());
  EXPECT_EQ(post(s.port(), "/tokenize", {{"prompt", "</s>"}, {"parse_special", false}}).json()["tokens"].size(), s.ids("</s>").size() + 1);
  EXPECT_EQ(post(s.port(), "/tokenize", {{"prompt", "</s>"}, {"add_special_tokens", false}}).json()["tokens"], Json::array({2}))
      << "as vLLM and llama.cpp";
  EXPECT_EQ(post(s.port(), "/tokenize", {{"prompt", "x"}, {"return_token_strs", true}}).json()["token_strs"].size(),
            s.ids("x").size() + 1);
}

TEST(Tokenize, DialoguesGiveTheTemplatesIds) {
  TestServer s;
  const Json messages = {{{"role", "user"}, {"content", "Hi"}}};
  post(s.port(), "/v1/chat/completions", {{"messages", messages}});
  EXPECT_EQ(post(s.port(), "/tokenize", {{"messages", messages}}).json()["tokens"], s.engine->requests()[0].prompt);
}

TEST(Tokenize, GoesThereAndBack) {
  TestServer s;
  for (const std::string& text : {std::string("Tom has a ball"), std::string("naïve 日本 🙂"), std::string("")}) {
    const Json ids = post(s.port(), "/tokenize", {{"prompt", text}, {"add_special_tokens", false}}).json()["tokens"];
    const Json back = post(s.port(), "/detokenize", {{"tokens", ids}}).json();
    EXPECT_EQ(back["prompt"], text);
    EXPECT_EQ(back["content"], text);
  }
  EXPECT_EQ(post(s.port(), "/tokenize", Json::object()).json()["error"]["code"], "missing_required_parameter");
  EXPECT_EQ(post(s.port(), "/tokenize", {{"prompt", 1}}).status, 400);
  EXPECT_EQ(post(s.port(), "/detokenize", {{"tokens", {-1}}}).status, 400);
  EXPECT_EQ(post(s.port(), "/detokenize", {{"tokens", "x"}}).status, 400);
  EXPECT_EQ(post(s.port(), "/detokenize", Json::object()).status, 400);
  EXPECT_EQ(post(s.port(), "/apply-template", Json::object()).status, 400);
}

TEST(TokenizerInfo, HasWhatHarnessesRead) {
  TestServer s;
  const Json info = request(s.port(), "GET", "/tokenizer_info").json();
  EXPECT_EQ(info["bos_token"], "<s>");
  EXPECT_EQ(info["eos_token"], "</s>");
  EXPECT_TRUE(info["pad_token"].is_null());
  EXPECT_NE(info["chat_template"].get<std::string>().find("[INST]"), std::string::npos);
}

TEST(Health, FollowsTheEngine) {
  TestServer s;
  EXPECT_EQ(request(s.port(), "GET", "/health").json()["status"], "ready");
  EXPECT_EQ(request(s.port(), "GET", "/health/live").status, 200);
  EXPECT_EQ(request(s.port(), "GET", "/health/ready").status, 200);
  EXPECT_EQ(request(s.port(), "GET", "/health/load").events().size(), 1u);
  s.server->app().start_draining();
  EXPECT_EQ(request(s.port(), "GET", "/health").status, 503);
  EXPECT_EQ(request(s.port(), "GET", "/health/live").status, 200);
}

TEST(Health, AnIdleEngineIsAskedForAToken) {
  ServerSetup setup;
  setup.options.limits.probe_idle_ms = 1;
  TestServer s(std::move(setup));
  EXPECT_TRUE(s.wait_until([&] { return !s.engine->requests().empty(); }));
  EXPECT_EQ(s.engine->requests()[0].max_new_tokens, 1);
  EXPECT_EQ(request(s.port(), "GET", "/health/ready").status, 200);
  s.engine->script = [](const Request&) { return ScriptedEngine::Answer{{}, FinishReason::error, "NaN"}; };
  EXPECT_TRUE(s.wait_until([&] { return request(s.port(), "GET", "/health/ready").status == 503; }));
  EXPECT_NE(request(s.port(), "GET", "/health/ready").json()["reason"].get<std::string>().find("probe"), std::string::npos);
  EXPECT_EQ(request(s.port(), "GET", "/health/live").status, 200);
  s.say("better");
  EXPECT_TRUE(s.wait_until([&] { return request(s.port(), "GET", "/health/ready").status == 200; }));
}

TEST(Health, ThreeAnswersWithoutANumberAreTooMany) {
  TestServer s;
  s.engine->script = [](const Request&) { return ScriptedEngine::Answer{{}, FinishReason::error, "NaN"}; };
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(request(s.port(), "GET", "/health/ready").status, 200);
    EXPECT_EQ(post(s.port(), "/v1/completions", {{"prompt", "x"}}).json()["error"]["code"], "numeric_error");
  }
  EXPECT_TRUE(s.wait_until([&] { return request(s.port(), "GET", "/health/ready").status == 503; }));
  s.say("fine");
  EXPECT_EQ(post(s.port(), "/v1/completions", {{"prompt", "x"}}).status, 200);
  EXPECT_TRUE(s.wait_until([&] { return request(s.port(), "GET", "/health/ready").status == 200; }));
}

TEST(ServerInfo, ShowsDefaultsAndLimits) {
  TestServer s;
  const Json info = request(s.port(), "GET", "/server_info").json();
  EXPECT_EQ(info["model"]["id"], "demo");
  EXPECT_EQ(info["default_sampling"]["temperature"], 1.0);
  EXPECT_EQ(info["limits"]["body_bytes"], 4 << 20);
  EXPECT_EQ(request(s.port(), "GET", "/version").json()["version"], "test");
}

TEST(MetricsRoute, CountsWhatHappened) {
  TestServer s;
  post(s.port(), "/v1/completions", {{"prompt", "x"}});
  post(s.port(), "/v1/completions", {{"prompt", 1}});
  const Reply r = request(s.port(), "GET", "/metrics");
  EXPECT_TRUE(r.headers.at("content-type").starts_with("text/plain; version=0.0.4"));
  EXPECT_NE(r.body.find("conclave_request_success_total{model_name=\"demo\",finished_reason=\"stop\"} 1"), std::string::npos)
      << r.body;
  EXPECT_NE(r.body.find("vllm:time_to_first_token_seconds_count{model_name=\"demo\"} 1"), std::string::npos);
  EXPECT_NE(r.body.find("code=\"invalid_type\"} 1"), std::string::npos);
}

TEST(OpenApi, DescribesEveryRouteAndField) {
  TestServer s;
  const Json api = request(s.port(), "GET", "/openapi.json").json();
  EXPECT_EQ(api["openapi"], "3.0.3");
  for (const Route& route : s.server->app().routes()) {
    std::string path = route.path, method = route.method;
    if (const size_t dots = path.find("...}"); dots != std::string::npos) path.erase(dots, 3);
    for (char& c : method) c = static_cast<char>(std::tolower(c));
    ASSERT_TRUE(api["paths"].contains(path) && api["paths"][path].contains(method)) << route.path;
    EXPECT_FALSE(api["paths"][path][method]["summary"].get<std::string>().empty());
    if (!route.fields) continue;
    const Json& properties = api["paths"][path][method]["requestBody"]["content"]["application/json"]["schema"]["properties"];
    for (const Field& field : route.fields().fields())
      EXPECT_FALSE(properties[field.name]["description"].get<std::string>().empty()) << field.name;
  }
  const Json& chat = api["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"];
  EXPECT_EQ(chat["required"], Json::array({"messages"}));
  EXPECT_EQ(chat["properties"]["temperature"]["default"], 1.0);
  EXPECT_EQ(chat["properties"]["n"]["maximum"], 64.0);
  const Reply page = request(s.port(), "GET", "/docs");
  EXPECT_NE(page.body.find("/v1/chat/completions"), std::string::npos);
  EXPECT_TRUE(page.headers.contains("content-security-policy"));
}

}  // namespace
}  // namespace conclave::testing
