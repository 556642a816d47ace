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
    auto engine = std::make_unique<Engine>(files.spec, *files.source, options);
    model = demo_model();
    model->context = 512;
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

TEST(Demo, EngineRefusalsAreTheClients) {
  DemoServer s;
  EXPECT_EQ(post(s.port(), "/v1/completions", {{"prompt", std::vector<int>(600, 5)}}).json()["error"]["code"],
            "context_length_exceeded");
  EXPECT_EQ(request(s.port(), "GET", "/health/ready").status, 200);
}

}  // namespace
}  // namespace conclave::testing
