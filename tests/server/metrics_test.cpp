// Prometheus text: the format's own rules, and the sums behind it.
#include "server/metrics.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <sstream>

namespace conclave {
namespace {

MetricsScene scene() {
  MetricsScene s;
  s.model = "a\"b\\c\nd";
  s.state = "ready";
  s.engine.running = 3;
  s.engine.total_blocks = 8;
  s.engine.free_blocks = 6;
  return s;
}

TEST(Metrics, TextFollowsTheFormat) {
  Metrics metrics;
  metrics.note_token(30, true);
  metrics.note_answer(404, "not_found");
  const std::string text = metrics.prometheus(scene());
  const std::regex sample(R"re(([a-zA-Z_:][a-zA-Z0-9_:]*)(\{([a-z_]+="([^"\\\n]|\\.)*",?)*\})? -?[0-9][0-9.e+-]*)re");
  std::set<std::string> declared;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("# TYPE ")) {
      EXPECT_TRUE(declared.insert(line.substr(7, line.find(' ', 7) - 7)).second) << line;
    }
    if (line.starts_with("#")) continue;
    EXPECT_TRUE(std::regex_match(line, sample)) << line;
    std::string family = line.substr(0, line.find_first_of("{ "));
    for (const char* suffix : {"_bucket", "_sum", "_count"})
      if (family.ends_with(suffix) && declared.contains(family.substr(0, family.size() - std::string(suffix).size())))
        family.resize(family.size() - std::string(suffix).size());
    EXPECT_TRUE(declared.contains(family)) << line;
  }
  EXPECT_TRUE(text.ends_with("\n"));
  for (const char* name : {"vllm:num_requests_running", "vllm:time_to_first_token_seconds", "conclave_kv_cache_usage_perc",
                           "conclave_engine_state", "process_resident_memory_bytes"})
    EXPECT_TRUE(declared.contains(name)) << name;
}

TEST(Metrics, ShowsWhatWasNoted) {
  Metrics metrics;
  metrics.note_token(30, true);
  metrics.note_token(30, true);
  metrics.note_token(7000, true);
  metrics.note_answer(404, "not_found");
  GenerationFigures f;
  f.finish = "stop";
  f.prompt_tokens = 12;
  metrics.note_generation(f, 100);
  const std::string text = metrics.prometheus(scene());
  const std::string label = R"({model_name="a\"b\\c\nd")";
  for (const std::string& line : {"conclave_time_to_first_token_seconds_bucket" + label + ",le=\"0.025\"} 0\n",
                                  "conclave_time_to_first_token_seconds_bucket" + label + ",le=\"0.05\"} 2\n",
                                  "conclave_time_to_first_token_seconds_bucket" + label + ",le=\"7.5\"} 3\n",
                                  "conclave_time_to_first_token_seconds_bucket" + label + ",le=\"+Inf\"} 3\n",
                                  "vllm:time_to_first_token_seconds_count" + label + "} 3\n",
                                  "vllm:num_requests_running" + label + "} 3\n", "vllm:kv_cache_usage_perc" + label + "} 0.25\n",
                                  "conclave_request_success_total" + label + ",finished_reason=\"stop\"} 1\n",
                                  "conclave_request_success_total" + label + ",finished_reason=\"length\"} 0\n",
                                  "conclave_request_failure_total" + label + ",code=\"not_found\"} 1\n",
                                  "conclave_engine_state" + label + ",state=\"ready\"} 1\n",
                                  "conclave_request_prompt_tokens_bucket" + label + ",le=\"20\"} 1\n"})
    EXPECT_NE(text.find(line), std::string::npos) << line << "\n" << text.substr(0, 3000);
}

std::vector<std::string> series(const std::string& text, const std::string& family) {
  std::vector<std::string> found;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);)
    if (line.starts_with(family + "{")) found.push_back(line);
  return found;
}

TEST(Metrics, ShowsTheExpertsLoad) {
  ExpertLoad load({{.layer = 1, .num_experts = 2, .top_k = 1}, {.layer = 2, .num_experts = 2, .top_k = 1}}, 4);
  MetricsScene s = scene();
  s.model = "m";
  s.experts = &load;
  EXPECT_TRUE(series(Metrics().prometheus(s), "conclave_expert_imbalance_ratio").empty()) << "nothing was sampled yet";
  load.add(std::vector<uint32_t>{3, 1, 0, 0}, std::chrono::steady_clock::now());
  const std::string text = Metrics().prometheus(s);
  for (const char* line : {"conclave_expert_sampled_steps_total{model_name=\"m\"} 1\n",
                           "conclave_expert_tokens_total{model_name=\"m\",layer=\"1\",expert=\"0\"} 3\n",
                           "conclave_expert_tokens_total{model_name=\"m\",layer=\"2\",expert=\"1\"} 0\n",
                           "conclave_expert_imbalance_ratio{model_name=\"m\",layer=\"1\"} 1.5\n"})
    EXPECT_NE(text.find(line), std::string::npos) << line;
  EXPECT_EQ(series(text, "conclave_expert_imbalance_ratio").size(), 1u) << "layer 2 was not used";
  EXPECT_EQ(text.find("vllm:expert"), std::string::npos);
}

/// Whatever the model's shape, the experts add no more series than that.
TEST(Metrics, BoundsTheExpertsSeries) {
  struct Shape {
    int layers, experts;
    size_t shown_layers;
  };
  for (const Shape& shape : {Shape{58, 256, 4}, Shape{60, 160, 6}, Shape{28, 64, 16}, Shape{32, 8, 32}, Shape{16, 64, 16}, Shape{2, 4000, 1}}) {
    std::vector<MoeLayer> layers;
    for (int l = 0; l < shape.layers; ++l) layers.push_back({.layer = l + 3, .num_experts = shape.experts, .top_k = 2});
    ExpertLoad load(layers, 1);
    load.add(std::vector<uint32_t>(load.num_counts(), 1), std::chrono::steady_clock::now());
    MetricsScene s = scene();
    s.experts = &load;
    const std::string text = Metrics().prometheus(s);
    const auto tokens = series(text, "conclave_expert_tokens_total");
    std::set<std::string> shown;
    const std::regex layer("layer=\"([0-9]+)\"");
    for (const std::string& line : tokens) {
      std::smatch found;
      ASSERT_TRUE(std::regex_search(line, found, layer)) << line;
      shown.insert(found[1]);
    }
    EXPECT_LE(tokens.size(), Metrics::kExpertSeries);
    EXPECT_EQ(shown.size(), shape.shown_layers) << shape.layers << " x " << shape.experts;
    EXPECT_TRUE(shown.contains("3")) << "the first layer";
    EXPECT_EQ(series(text, "conclave_expert_imbalance_ratio").size(), static_cast<size_t>(shape.layers));
  }
}

TEST(Metrics, WindowKeepsTheLastThousand) {
  Metrics metrics;
  for (int i = 0; i < 1000; ++i) metrics.note_token(1000, false);
  for (int i = 0; i < 1000; ++i) metrics.note_token(2, false);
  EXPECT_DOUBLE_EQ(metrics.window({})["TBT"].get<double>(), 2.0);
}

}  // namespace
}  // namespace conclave
