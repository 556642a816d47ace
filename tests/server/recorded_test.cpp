// What huggingface_hub and lm-eval really sent (tests/clients/recorder.py wrote it down), replayed: same status, and an answer of the form
// that they read.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "server/client.h"
#include "server/harness.h"

namespace conclave::testing {
namespace {

using Json = nlohmann::ordered_json;

std::vector<Json> recorded() {
  std::vector<Json> lines;
  std::ifstream file(std::string(CONCLAVE_TEST_DATA) + "/clients/recorded.jsonl");
  for (std::string line; std::getline(file, line);) lines.push_back(Json::parse(line));
  return lines;
}

void check_scores(const Json& sent, const Json& answer) {
  ASSERT_EQ(answer["choices"].size(), sent["prompt"].size());
  for (size_t i = 0; i < sent["prompt"].size(); ++i) {
    const Json& scores = answer["choices"][i]["logprobs"];
    ASSERT_EQ(scores["token_logprobs"].size(), sent["prompt"][i].size() + 1) << "the prompt and one new token";
    EXPECT_TRUE(scores["token_logprobs"][0].is_null());
    for (size_t k = 1; k < scores["token_logprobs"].size(); ++k) EXPECT_FALSE(scores["top_logprobs"][k].empty());
  }
}

TEST(Recorded, RequestsOfOtherClientsAreAnsweredAsTheyWere) {
  TestServer s;
  s.engine->script = [](const Request& r) {
    return ScriptedEngine::Answer{std::vector<int32_t>(static_cast<size_t>(r.max_new_tokens) + 1, 100)};
  };
  const std::vector<Json> requests = recorded();
  EXPECT_GT(requests.size(), 15u);
  s.model->context = 512;
  s.model->aliases = {"mixtral-gqa", "deepseek_v2-lite-yarn"};  // where lm-eval's were recorded
  for (const Json& r : requests) {
    ClientHeaders headers;
    for (const auto& [name, value] : r["headers"].items()) headers.emplace_back(name, value.get<std::string>());
    Client client(s.port());
    client.send(request_text(r["method"], r["path"], r["body"], headers));
    const Reply reply = client.read_reply();
    const std::string what = r["path"].get<std::string>() + " " + r["body"].get<std::string>().substr(0, 200);
    EXPECT_EQ(reply.status, r["status"].get<int>()) << what << "\n" << reply.body;
    EXPECT_EQ(reply.headers.at("content-type"), r["content_type"].get<std::string>()) << what;
    if (r["path"] == "/v1/completions" && reply.status == 200) check_scores(Json::parse(r["body"].get<std::string>()), reply.json());
  }
}

}  // namespace
}  // namespace conclave::testing
