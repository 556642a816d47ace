// What no client should send, over real connections: every numeric field of every endpoint at its edges, bytes that are no HTTP, floods,
// and clients that leave in the middle. Each gets an answer of its endpoint's dialect, and the server goes on.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "server/client.h"
#include "server/harness.h"

namespace conclave::testing {
namespace {

using Json = nlohmann::ordered_json;

/// A body that the route accepts.
Json accepted_body(const std::string& path) {
  if (path == "/v1/chat/completions" || path == "/apply-template") return {{"messages", Json::array({{{"role", "user"}, {"content", "hi"}}})}};
  if (path == "/detokenize") return {{"tokens", {1, 2}}};
  if (path.ends_with("/infer") && path.starts_with("/v2"))
    return {{"inputs", Json::array({{{"name", "input0"}, {"shape", {1, 2}}, {"datatype", "UINT32"}, {"data", {5, 6}}}})}};
  if (path.starts_with("/v2") && path.ends_with("stopInfer")) return {{"id", "none"}};
  if (path.starts_with("/v2")) return {{"text_input", "hi"}};
  if (path == "/infer_token") return {{"input_id", {5, 6}}};
  if (path == "/" || path.starts_with("/generate") || path == "/infer" || path == "/v1/tokenizer") return {{"inputs", "hi"}};
  return {{"prompt", "hi"}};
}

/// The body's text with `name` (perhaps inside `object`) set to raw JSON text.
std::string with(Json body, const std::string& object, const std::string& name, const std::string& raw) {
  constexpr const char* kMark = "@here@";
  (object.empty() ? body : body[object])[name] = kMark;
  std::string text = body.dump();
  const std::string mark = '"' + std::string(kMark) + '"';
  return text.replace(text.find(mark), mark.size(), raw);
}

void expect_dialect(const Json& error, Dialect dialect, const std::string& what) {
  ASSERT_TRUE(error.is_object() && error.contains("error")) << what;
  if (dialect == Dialect::openai) EXPECT_TRUE(error["error"]["message"].is_string() && error["error"]["code"].is_string()) << what;
  else EXPECT_TRUE(error["error"].is_string() && error["code"].is_string()) << what;
}

class BadNumbers : public ::testing::Test {
 protected:
  /// One request on the kept connection; a new one where the server ended it.
  Reply send(const std::string& path, const std::string& body) {
    if (!client_) client_ = std::make_unique<Client>(s_.port());
    client_->send(request_text("POST", path, body));
    Reply reply = client_->read_reply();
    if (reply.headers["connection"] == "close") client_.reset();
    return reply;
  }
  void sweep(const Route& route, const std::vector<Field>& fields, const std::string& object) {
    constexpr const char* kEdges[] = {"-1", "0", "1", "1.5", "2147483648", "-9223372036854775809", "1e400", "-1e400", "NaN", "\"1\"", "null", "true", "[]", "{}"};
    const std::string& path = route.path;
    std::string target = path;
    if (const size_t brace = target.find("{model}"); brace != std::string::npos) target.replace(brace, 7, "demo");
    const bool tgi = route.dialect == Dialect::tgi || route.dialect == Dialect::reference;
    for (const Field& field : fields) {
      if (field.members) sweep(route, field.members->fields(), field.name);
      const bool number = field.type == FieldType::integer || field.type == FieldType::number;
      if (!number || field.effect != FieldEffect::used) continue;
      for (const char* edge : kEdges) {
        const std::string what = fmt::format("{} {}.{} = {}", path, object, field.name, edge);
        const Reply reply = send(target, with(accepted_body(route.path), object, field.name, edge));
        ++sent_;
        const std::string_view value = edge;
        const bool never = value.find_first_of("\"t[{N") != std::string_view::npos || value.find("e400") != std::string_view::npos;
        if (never && value != "null") {
          EXPECT_EQ(reply.status, tgi ? 422 : 400) << what << " " << reply.body;
        }
        EXPECT_TRUE(reply.status == 200 || reply.status == 404 || reply.status == (tgi ? 422 : 400)) << what << ": " << reply.status << reply.body;
        if (reply.status >= 400) expect_dialect(reply.json(), route.dialect, what);
      }
    }
  }
  TestServer s_;
  std::unique_ptr<Client> client_;
  int sent_ = 0;
};

TEST_F(BadNumbers, EveryNumericFieldAtItsEdgesOnEveryEndpoint) {
  s_.say("a b");
  for (const Route& route : s_.server->app().routes())
    if (route.method == "POST" && route.fields) sweep(route, route.fields().fields(), "");
  EXPECT_GT(sent_, 2000);
  EXPECT_TRUE(s_.wait_until([&] { return s_.engine->running() == 0; }));
  EXPECT_EQ(post(s_.port(), "/v1/completions", {{"prompt", "x"}}).status, 200);
}

struct BadBytes {
  const char* name;
  std::string bytes;
  int status;  ///< 0: the connection may also just end
};

std::string post_head(const std::string& more) { return "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n" + more + "\r\n"; }
std::string body_request(const std::string& body) { return request_text("POST", "/v1/completions", body); }

std::vector<BadBytes> bad_bytes() {
  std::string many, deep;
  for (int i = 0; i < 3000; ++i) many += "A" + std::to_string(i) + ": b\r\n";
  for (int i = 0; i < 100'000; ++i) deep += "[";
  const std::string chunked = "Transfer-Encoding: chunked\r\n";
  return {
      {"many headers", "GET / HTTP/1.1\r\nHost: localhost\r\n" + many + "\r\n", 431},
      {"a header without end", "GET / HTTP/1.1\r\nHost: localhost\r\nA: " + std::string(100'000, 'b'), 431},
      {"a folded header", "GET / HTTP/1.1\r\nHost: localhost\r\nA: b\r\n\tc\r\n\r\n", 0},
      {"a NUL in a header", std::string("GET / HTTP/1.1\r\nHost: localhost\r\nA: b\0c\r\n\r\n", 45), 400},
      {"two lengths", post_head("Content-Length: 2\r\nContent-Length: 3\r\n") + "{}", 400},
      {"a length and chunks", post_head("Content-Length: 2\r\n" + chunked) + "0\r\n\r\n", 400},
      {"a negative length", post_head("Content-Length: -1\r\n"), 400},
      {"a length beyond 64 bits", post_head("Content-Length: 99999999999999999999\r\n"), 400},
      {"a chunk size that is none", post_head(chunked) + "zz\r\n", 400},
      {"a chunk size beyond 64 bits", post_head(chunked) + "fffffffffffffffff\r\n", 400},
      {"a negative chunk", post_head(chunked) + "-1\r\n", 400},
      {"a chunk without its end", post_head(chunked) + "2\r\n{}XXXX", 400},
      {"a chunk header without end", post_head(chunked) + "2;" + std::string(100'000, 'x'), 400},
      {"an unknown coding", post_head("Transfer-Encoding: gzip, chunked\r\n") + "0\r\n\r\n", 400},
      {"TLS", std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11) + std::string(500, '\x7f'), 0},
      {"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400},
      {"invalid UTF-8 in the path", "GET /%ff HTTP/1.1\r\nHost: localhost\r\n\r\n", 400},
      {"invalid UTF-8 in the body", body_request("{\"prompt\": \"\xff\xfe\"}"), 400},
      {"half a surrogate", body_request(R"({"prompt": "\ud800"})"), 400},
      {"a key twice", body_request(R"({"prompt": "a", "prompt": "b"})"), 400},
      {"a key twice inside", body_request(R"({"prompt": "a", "logit_bias": {"1": 1, "1": 2}})"), 400},
      {"a deep body", body_request("{\"prompt\": " + deep), 400},
      {"many keys", body_request([] {
         std::string text = "{\"prompt\": \"a\"";
         for (int i = 0; i < 30'000; ++i) text += ",\"k" + std::to_string(i) + "\":0";
         return text + "}";
       }()), 400},
      {"no body", body_request(""), 400},
      {"half a body", body_request("{\"prompt\": "), 400},
      {"another model", body_request(R"({"prompt": "a", "model": "other"})"), 404},
      {"a long prompt", body_request(Json{{"prompt", std::vector<int>(5000, 7)}}.dump()), 400},
  };
}

TEST(BadBytes, GetAnAnswerAndTheServerGoesOn) {
  TestServer s;
  for (const BadBytes& bad : bad_bytes()) {
    Client c(s.port());
    try {
      c.send(bad.bytes);
      const Reply reply = c.read_reply();
      EXPECT_TRUE(bad.status == 0 ? reply.status >= 200 : reply.status == bad.status) << bad.name << ": " << reply.status << " " << reply.body;
      if (bad.status != 0) expect_dialect(reply.json(), Dialect::openai, bad.name);
    } catch (const std::runtime_error& e) {
      EXPECT_EQ(bad.status, 0) << bad.name << ": " << e.what();
    }
    EXPECT_EQ(request(s.port(), "GET", "/health/live").status, 200) << bad.name;
  }
  EXPECT_TRUE(s.wait_until([&] { return s.engine->running() == 0; }));
}

TEST(BadBytes, PromptsThatAreTooLongAreRefusedWithBothNumbers) {
  TestServer s;
  const std::vector<int> ids(5000, 7);
  for (const auto& [path, body] : std::vector<std::pair<std::string, Json>>{
           {"/v1/completions", {{"prompt", ids}}}, {"/infer_token", {{"input_id", ids}}}}) {
    const Reply reply = post(s.port(), path, body);
    EXPECT_TRUE(reply.status == 400 || reply.status == 422) << path;
    EXPECT_NE(reply.body.find("5000"), std::string::npos) << reply.body;
    EXPECT_NE(reply.body.find("2048"), std::string::npos) << reply.body;
  }
}

TEST(BadBytes, CutAnywhereNothingIsLeftBehind) {
  TestServer s;
  const std::string whole = request_text("POST", "/v1/completions", R"({"prompt": "x", "stream": true, "max_tokens": 50})");
  for (size_t cut = 0; cut <= whole.size(); cut += 3) {
    Client c(s.port());
    c.send(whole.substr(0, cut));
    if (cut % 2 == 0) c.reset();
  }
  EXPECT_TRUE(s.wait_until([&] { return s.engine->running() == 0 && s.server->app().generations() == 0; }));
  EXPECT_TRUE(s.wait_until([&] { return s.server->app().connections() == 0; }));
}

}  // namespace
}  // namespace conclave::testing
