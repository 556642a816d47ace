// The whole path: sockets, templates, a real engine over the demo model. Its answers must be those of the engine alone.
#include <gtest/gtest.h>

#include <atomic>
#include <nlohmann/json.hpp>
#include <thread>

#include "server/client.h"
#include "server/harness.h"
#include "support/golden.h"

namespace conclave::testing {
namespace {

using Json = nlohmann::ordered_json;

struct DemoServer {
  DemoServer() {
    const testing_support::OpenModel files(std::filesystem::path(CONCLAVE_MODELS) / "demo-mixtral");
    EngineOptions options;
    options.threads = 2;
    options.pin_threads = false;
    options.precision = Precision::exact;
    options.max_sequences = 8;
    options.max_context = 512;
    options.block_size = 16;
    options.expert_sampling = 1;
    auto engine = std::make_unique<Engine>(files.spec, *files.source, options);
    model = demo_model();
    model->context = 512;
    model->moe_layers = moe_layers(files.spec);
    model->engine = std::make_unique<ServicePort>(std::move(engine), ServiceOptions{.max_queued_requests = 100'000});
    ServerSetup setup;
    setup.addresses = {{"127.0.0.1", 0, Plane::all}};
    server = std::make_unique<Server>(std::move(setup), log);
    server->app().publish(model);
  }
  ~DemoServer() { server->ask_stop(true); }
  int port() const { return server->ports().front(); }
  Log log{"off"};
  std::shared_ptr<ServedModel> model;
  std::unique_ptr<Server> server;
};

const Json kQuestion = {
    {"messages",
     {{{"role", "user"},
       {"content",
        "Tom has the red ball. Anna is in the kitchen. Ben has the blue book. Lucy has four of the black coins. Who has the red ball?"}}}},
    {"temperature", 0},
    {"max_tokens", 24}};

TEST(Demo, AnswersTheQuestion) {
  DemoServer s;
  const Reply r = post(s.port(), "/v1/chat/completions", kQuestion);
  ASSERT_EQ(r.status, 200) << r.body;
  EXPECT_NE(r.json()["choices"][0]["message"]["content"].get<std::string>().find("Tom"), std::string::npos) << r.body;
  EXPECT_EQ(r.json()["choices"][0]["finish_reason"], "stop");
}

TEST(Demo, StreamedWholeAloneAndTogetherAreTheSame) {
  DemoServer s;
  const std::string alone = post(s.port(), "/v1/chat/completions", kQuestion).json()["choices"][0]["message"]["content"];
  std::vector<std::string> texts(6);
  std::vector<std::thread> clients;
  for (size_t i = 0; i < texts.size(); ++i) {
    clients.emplace_back([&, i] {
      Json body = kQuestion;
      body["stream"] = i % 2 == 0;
      const Reply r = post(s.port(), "/v1/chat/completions", body);
      if (i % 2) {
        texts[i] = r.json()["choices"][0]["message"]["content"];
        return;
      }
      auto events = r.events();
      events.pop_back();
      for (const std::string& e : events) {
        const Json delta = Json::parse(e)["choices"][0]["delta"];
        if (delta.contains("content")) texts[i] += delta["content"].get<std::string>();
      }
    });
  }
  for (std::thread& client : clients) client.join();
  for (const std::string& text : texts) EXPECT_EQ(text, alone);
}

TEST(Demo, ASeedGivesTheSameText) {
  DemoServer s;
  const Json body = {{"prompt", "Tom has"}, {"temperature", 1.2}, {"seed", 7}, {"max_tokens", 20}, {"n", 3}};
  const Json first = post(s.port(), "/v1/completions", body).json()["choices"],
             second = post(s.port(), "/v1/completions", body).json()["choices"];
  for (int i = 0; i < 3; ++i) EXPECT_EQ(first[i]["text"], second[i]["text"]);
}

TEST(Demo, BadNeighboursChangeNoBit) {
  DemoServer s;
  const auto answer = [&] {
    return post(s.port(), "/v1/completions",
                {{"prompt", "Tom has the red ball. Who has"}, {"max_tokens", 40}, {"temperature", 0.8}, {"seed", 5}, {"logprobs", 3}, {"ignore_eos", true}})
        .json()["choices"];
  };
  const Json alone = answer();
  std::atomic<bool> over{false};
  std::vector<std::thread> crowd;
  for (int neighbour = 0; neighbour < 4; ++neighbour) {
    crowd.emplace_back([&, neighbour] {
      const std::string stream = request_text(
          "POST", "/v1/completions", Json{{"prompt", "Anna is in the kitchen"}, {"max_tokens", 60}, {"stream", true}, {"ignore_eos", true}}.dump());
      for (size_t round = static_cast<size_t>(neighbour); !over; ++round) {
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
        Client c(s.port());
        if (neighbour == 0) {
          c.send(request_text("POST", "/v1/completions", round % 2 ? "{\"prompt\": 1e400}" : "{\"prompt\": \"\xff\"}"));
          EXPECT_EQ(c.read_reply().status, 400);
          continue;
        }
        c.send(stream.substr(0, neighbour == 1 ? round * 7 % stream.size() : stream.size()));  // leaves while sending,
        if (neighbour == 3) c.read_until("\"text\"");                                            // while queued, while reading
        if (round % 2) c.reset();
      }
    });
  }
  for (int i = 0; i < 12; ++i) EXPECT_EQ(answer(), alone);
  over = true;
  for (std::thread& one : crowd) one.join();
  for (int i = 0; i < 1000 && s.model->engine->status().running > 0; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  const ServiceStatus status = s.model->engine->status();
  EXPECT_EQ(status.free_blocks, status.total_blocks);
}

TEST(Demo, ScoresAddUp) {
  DemoServer s;
  const Json body = {{"prompt", "Tom has the red ball."}, {"echo", true}, {"logprobs", 3}, {"max_tokens", 1}, {"temperature", 0}};
  const Json l = post(s.port(), "/v1/completions", body).json()["choices"][0]["logprobs"];
  ASSERT_GT(l["token_logprobs"].size(), 4u);
  for (size_t i = 1; i < l["token_logprobs"].size(); ++i) {
    EXPECT_LE(l["token_logprobs"][i], 0.0);
    EXPECT_GE(l["top_logprobs"][i].size(), 3u);
    for (const auto& [token, value] : l["top_logprobs"][i].items()) EXPECT_LE(value, 0.0);
  }
}

/// Chunks of a stream, put together.
Json routed_in_stream(const Reply& r, size_t* tokens) {
  Json rows = Json::array();
  auto events = r.events();
  EXPECT_EQ(events.back(), "[DONE]");
  events.pop_back();
  for (const std::string& e : events) {
    const Json choice = Json::parse(e)["choices"].at(0);
    if (choice.contains("token_ids")) *tokens += choice["token_ids"].size();
    if (!choice.contains("routed_experts")) continue;
    EXPECT_LE(rows.size() + choice["routed_experts"].size(), *tokens) << "a row came before its token";
    for (const Json& row : choice["routed_experts"]) rows.push_back(row);
  }
  return rows;
}

TEST(Demo, TellsWhichExpertsComputedEachToken) {
  DemoServer s;
  Json body = kQuestion;
  const Reply plain = post(s.port(), "/v1/chat/completions", body);
  EXPECT_FALSE(plain.json()["choices"][0].contains("routed_experts")) << "only who asks is told";
  body["return_routed_experts"] = true;
  body["return_token_ids"] = true;
  const Json choice = post(s.port(), "/v1/chat/completions", body).json()["choices"][0];
  EXPECT_EQ(choice["message"], plain.json()["choices"][0]["message"]);
  const Json& rows = choice["routed_experts"];
  ASSERT_EQ(rows.size(), choice["token_ids"].size() - 1) << "the EOS token was not computed";
  for (const Json& row : rows) {
    ASSERT_EQ(row.size(), 4u) << "layers";
    for (const Json& experts : row) {
      ASSERT_EQ(experts.size(), 2u);
      EXPECT_LT(experts[0], experts[1]);
      EXPECT_GE(experts[0], 0);
      EXPECT_LT(experts[1], 8);
    }
  }
  body["stream"] = true;
  size_t tokens = 0;
  EXPECT_EQ(routed_in_stream(post(s.port(), "/v1/chat/completions", body), &tokens), rows);
  EXPECT_EQ(tokens, choice["token_ids"].size());

  Json completion = {{"prompt", "Tom has the"}, {"temperature", 0}, {"max_tokens", 6}, {"n", 2}, {"ignore_eos", true}};
  completion["return_routed_experts"] = true;
  const Json both = post(s.port(), "/v1/completions", completion).json()["choices"];
  ASSERT_EQ(both[0]["routed_experts"].size(), 5u) << "the last token was not computed";
  EXPECT_EQ(both[0]["routed_experts"], both[1]["routed_experts"]);
  Json longer = completion;  // with the first new token as part of the prompt, the others keep their rows
  longer["prompt"] = s.model->tokenizer->encode("Tom has the", {});
  longer["n"] = 1, longer["max_tokens"] = 1, longer["return_token_ids"] = true;
  longer["prompt"].push_back(post(s.port(), "/v1/completions", longer).json()["choices"][0]["token_ids"][0]);
  longer["max_tokens"] = 5;
  const Json rest = post(s.port(), "/v1/completions", longer).json()["choices"][0]["routed_experts"];
  EXPECT_EQ(rest, Json(std::vector<Json>(both[0]["routed_experts"].begin() + 1, both[0]["routed_experts"].end())));
  completion["stream"] = true, completion["n"] = 1, completion["return_token_ids"] = true;
  tokens = 0;
  EXPECT_EQ(routed_in_stream(post(s.port(), "/v1/completions", completion), &tokens), both[0]["routed_experts"]);
}

TEST(Demo, BoundsWholeAnswersWithExperts) {
  DemoServer s;
  const Json body = {{"prompt", "Tom"}, {"max_tokens", 400}, {"n", 64}, {"return_routed_experts", true}, {"stop", {" "}}};
  EXPECT_EQ(post(s.port(), "/v1/completions", body).status, 200) << "64 x 400 x 8 ids are few";
  ServerSetup setup;
  setup.options.limits.routed_experts = 100;
  setup.addresses = {{"127.0.0.1", 0, Plane::all}};
  Server tight(std::move(setup), s.log);
  tight.app().publish(s.model);
  Json small = {{"prompt", "Tom"}, {"max_tokens", 12}, {"temperature", 0}, {"return_routed_experts", true}};
  EXPECT_EQ(post(tight.ports().front(), "/v1/completions", small).status, 200);
  small["max_tokens"] = 13;
  const Reply refused = post(tight.ports().front(), "/v1/completions", small);
  EXPECT_EQ(refused.status, 400);
  EXPECT_EQ(refused.json()["error"]["param"], "return_routed_experts") << refused.body;
  EXPECT_NE(refused.body.find("104"), std::string::npos) << refused.body;
  small["stream"] = true;
  EXPECT_EQ(post(tight.ports().front(), "/v1/completions", small).status, 200) << "streams are not held";
  tight.ask_stop(true);
}

TEST(Demo, ShowsTheExpertsLoad) {
  DemoServer s;
  const Json before = request(s.port(), "GET", "/expert_load").json();
  EXPECT_EQ(before["sampled_steps"], 0);
  EXPECT_EQ(before["every_steps"], 1);
  ASSERT_EQ(before["layers"].size(), 4u);
  EXPECT_TRUE(before["layers"][0]["imbalance"].is_null());
  const Json answer = post(s.port(), "/v1/completions", {{"prompt", "Tom has the red ball."}, {"max_tokens", 1}, {"temperature", 0}}).json();
  const auto prompt = answer["usage"]["prompt_tokens"].get<uint64_t>();
  const Json layer = request(s.port(), "GET", "/expert_load/1").json();
  EXPECT_EQ(layer["num_experts"], 8);
  uint64_t sum = 0, history = 0, most = 0;
  for (const Json& n : layer["total"]) sum += n.get<uint64_t>(), most = std::max(most, n.get<uint64_t>());
  for (const Json& span : layer["history"])
    for (const Json& n : span["tokens"]) history += n.get<uint64_t>();
  EXPECT_EQ(sum, 2 * prompt) << "each token chooses two";
  EXPECT_EQ(history, sum);
  EXPECT_DOUBLE_EQ(layer["imbalance"].get<double>(), static_cast<double>(most) * 8 / static_cast<double>(sum));
  for (const char* path : {"/expert_load/9", "/expert_load/-1", "/expert_load/x", "/expert_load/1x", "/expert_load/99999999999"}) {
    const Reply r = request(s.port(), "GET", path);
    EXPECT_EQ(r.status, 400) << path;
    EXPECT_EQ(r.json()["error"]["code"], "invalid_value") << path;
  }
  EXPECT_NE(request(s.port(), "GET", "/metrics").body.find("conclave_expert_imbalance_ratio"), std::string::npos);
  const Json info = request(s.port(), "GET", "/server_info").json()["model"]["moe_layers"];
  EXPECT_EQ(info[3], (Json{{"layer", 3}, {"num_experts", 8}, {"top_k", 2}}));
  const TestServer uncounted;
  EXPECT_EQ(request(uncounted.port(), "GET", "/expert_load").json()["error"]["code"], "endpoint_not_supported");
}

TEST(Demo, EngineRefusalsAreTheClients) {
  DemoServer s;
  EXPECT_EQ(post(s.port(), "/v1/completions", {{"prompt", std::vector<int>(600, 5)}}).json()["error"]["code"],
            "context_length_exceeded");
  EXPECT_EQ(request(s.port(), "GET", "/health/ready").status, 200);
}

}  // namespace
}  // namespace conclave::testing
