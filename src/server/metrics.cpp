#include "server/metrics.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

namespace conclave {
namespace {

using Json = nlohmann::ordered_json;

const std::vector<double> kSeconds = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75,
                                      1,     2.5,    5,     7.5,  10,    20,   40,    80,  160,  640};
const std::vector<double> kTokens = {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000};

std::string escaped(std::string_view label) {
  std::string text;
  for (const char c : label) {
    if (c == '\\' || c == '"') text += '\\';
    if (c == '\n') text += "\\n";
    else text += c;
  }
  return text;
}

std::string number(double value) {
  return value == static_cast<double>(static_cast<int64_t>(value)) ? fmt::format("{}", static_cast<int64_t>(value))
                                                                   : fmt::format("{}", value);
}

/// Writes each family under every prefix.
class Exposition {
 public:
  Exposition(const std::string& model, std::vector<std::string> prefixes)
      : label_(fmt::format("model_name=\"{}\"", escaped(model))), prefixes_(std::move(prefixes)) {}

  void value(std::string_view name, std::string_view type, std::string_view help, double v) {
    values(name, type, help, {{"", v}});
  }
  /// `rows`: further labels, and the value.
  void values(std::string_view name, std::string_view type, std::string_view help,
              const std::vector<std::pair<std::string, double>>& rows) {
    for (const std::string& prefix : prefixes_) {
      head(prefix, name, type, help);
      for (const auto& [labels, v] : rows)
        text_ += fmt::format("{}{}{{{}{}{}}} {}\n", prefix, name, label_, labels.empty() ? "" : ",", labels, number(v));
    }
  }
  void histogram(std::string_view name, std::string_view help, const Histogram& h) {
    for (const std::string& prefix : prefixes_) {
      head(prefix, name, "histogram", help);
      for (size_t i = 0; i < h.bounds().size(); ++i)
        text_ += fmt::format("{}{}_bucket{{{},le=\"{}\"}} {}\n", prefix, name, label_, h.bounds()[i], h.below(i));
      text_ += fmt::format("{}{}_bucket{{{},le=\"+Inf\"}} {}\n{}{}_sum{{{}}} {}\n{}{}_count{{{}}} {}\n", prefix, name, label_,
                           h.count(), prefix, name, label_, number(h.sum()), prefix, name, label_, h.count());
    }
  }
  void plain(std::string_view name, std::string_view type, std::string_view help, double v) {
    head("", name, type, help);
    text_ += fmt::format("{} {}\n", name, number(v));
  }
  std::string take() { return std::move(text_); }

 private:
  void head(std::string_view prefix, std::string_view name, std::string_view type, std::string_view help) {
    text_ += fmt::format("# HELP {}{} {}\n# TYPE {}{} {}\n", prefix, name, help, prefix, name, type);
  }
  std::string label_, text_;
  std::vector<std::string> prefixes_;
};

/// Bytes of a field of /proc/self/status ("RssAnon", "VmSwap").
double status_bytes(std::string_view field) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with(field) && line.size() > field.size() && line[field.size()] == ':')
      return std::stod(line.substr(field.size() + 1)) * 1024;
  return 0;
}

void write_process(Exposition& out) {
  out.plain("process_resident_memory_bytes", "gauge", "Resident memory.", status_bytes("VmRSS"));
  out.plain("process_anonymous_memory_bytes", "gauge", "Resident anonymous memory, without mapped files.",
            status_bytes("RssAnon"));
  out.plain("process_swap_bytes", "gauge", "Swapped-out memory.", status_bytes("VmSwap"));
}

/// Under our prefix alone: nobody else has these names.
void write_experts(Exposition& out, const ExpertLoad& load) {
  const ExpertLoad::Counts counts = load.counts(std::chrono::steady_clock::now());
  const size_t num_layers = load.layers().size(), per_layer = std::max<size_t>(1, load.num_counts() / std::max<size_t>(1, num_layers));
  const size_t shown = std::clamp<size_t>(Metrics::kExpertSeries / per_layer, 1, std::max<size_t>(1, num_layers));
  std::vector<std::pair<std::string, double>> tokens, ratios;
  for (size_t i = 0; i < num_layers; ++i) {
    const MoeLayer& layer = load.layers()[i];
    if (const auto ratio = imbalance(load.of_layer(counts.recent, i))) ratios.emplace_back(fmt::format("layer=\"{}\"", layer.layer), *ratio);
    if (i > 0 && i * shown / num_layers == (i - 1) * shown / num_layers) continue;
    const auto chosen = load.of_layer(counts.total, i).first(std::min<size_t>(static_cast<size_t>(layer.num_experts), Metrics::kExpertSeries));
    for (size_t expert = 0; expert < chosen.size(); ++expert)
      tokens.emplace_back(fmt::format("layer=\"{}\",expert=\"{}\"", layer.layer, expert), static_cast<double>(chosen[expert]));
  }
  out.value("expert_sampled_steps_total", "counter", "Steps whose experts were counted.", static_cast<double>(counts.steps));
  out.values("expert_tokens_total", "counter", "Tokens that an expert computed in sampled steps.", tokens);
  if (!ratios.empty())
    out.values("expert_imbalance_ratio", "gauge", "Busiest expert over the mean of its layer, in sampled steps of the last minutes.", ratios);
}

double mean(const std::deque<double>& values) {
  return values.empty() ? 0 : std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}
void keep(std::deque<double>& values, double value) {
  constexpr size_t kWindow = 1000;
  values.push_back(value);
  if (values.size() > kWindow) values.pop_front();
}

}  // namespace

void Histogram::add(double value) {
  ++counts_[static_cast<size_t>(std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin())];
  sum_ += value;
  ++count_;
}

uint64_t Histogram::below(size_t i) const {
  return std::accumulate(counts_.begin(), counts_.begin() + static_cast<std::ptrdiff_t>(i) + 1, uint64_t{0});
}

Metrics::Metrics()
    : first_token_(kSeconds),
      between_tokens_(kSeconds),
      end_to_end_(kSeconds),
      queue_(kSeconds),
      prefill_(kSeconds),
      decode_(kSeconds),
      inference_(kSeconds),
      prompt_tokens_(kTokens),
      new_tokens_(kTokens) {}

void Metrics::note_answer(int status, std::string_view code) {
  const std::lock_guard lock(mutex_);
  ++received_;
  if (status >= 400) ++failed_[std::string(code)];
}

void Metrics::note_token(double ms, bool first) {
  const std::lock_guard lock(mutex_);
  (first ? first_token_ : between_tokens_).add(ms / 1000);
  keep(first ? last_first_ : last_between_, ms);
}

void Metrics::note_generation(const GenerationFigures& f, double ms) {
  const std::lock_guard lock(mutex_);
  ++received_;
  if (f.finish == "disconnected") ++disconnects_;
  else if (f.finish == "stop" || f.finish == "length") ++finished_[f.finish];
  else ++failed_[f.finish];
  end_to_end_.add(ms / 1000);
  queue_.add(f.queue_ms / 1000);
  prefill_.add(f.prefill_ms / 1000);
  decode_.add(f.decode_ms / 1000);
  inference_.add((f.prefill_ms + f.decode_ms) / 1000);
  prompt_tokens_.add(static_cast<double>(f.prompt_tokens));
  new_tokens_.add(static_cast<double>(f.completion_tokens));
}

std::string Metrics::prometheus(const MetricsScene& scene) const {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> prefixes{"conclave_", "vllm:"};
  if (scene.reference_names) prefixes.emplace_back();
  Exposition out(scene.model, prefixes);
  const ServiceStatus& e = scene.engine;
  const auto gauge = [&](std::string_view name, std::string_view help, double v) { out.value(name, "gauge", help, v); };
  const auto counter = [&](std::string_view name, std::string_view help, double v) { out.value(name, "counter", help, v); };
  gauge("num_requests_running", "Sequences being computed.", e.running);
  gauge("num_requests_waiting", "Sequences waiting.", e.waiting);
  gauge("kv_cache_usage_perc", "Share of cache blocks in use, 0 to 1.",
        e.total_blocks > 0 ? 1.0 - static_cast<double>(e.free_blocks) / e.total_blocks : 0);
  counter("prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache.", static_cast<double>(e.prefix_queries));
  counter("prefix_cache_hits_total", "Prompt tokens found there.", static_cast<double>(e.prefix_hits));
  counter("num_preemptions_total", "Sequences that gave their blocks to others.", static_cast<double>(e.preemptions));
  counter("prompt_tokens_total", "Prompt tokens computed or taken from the cache.", static_cast<double>(e.prompt_tokens));
  counter("generation_tokens_total", "New tokens.", static_cast<double>(e.generated_tokens));
  counter("engine_steps_total", "Steps of the engine.", static_cast<double>(e.steps));
  out.values("engine_seconds_total", "counter", "Time of the engine's thread by what it did.",
             {{"stage=\"schedule\"", e.schedule_ms / 1000},
              {"stage=\"forward\"", e.forward_ms / 1000},
              {"stage=\"sample\"", e.sample_ms / 1000},
              {"stage=\"deliver\"", e.deliver_ms / 1000}});
  counter("requests_received_total", "Requests answered or ended.", static_cast<double>(received_));
  counter("client_disconnects_total", "Clients that left before the end.", static_cast<double>(disconnects_));
  gauge("connections", "Open connections.", scene.connections);
  std::vector<std::pair<std::string, double>> rows;
  for (const char* reason : {"stop", "length"}) {
    const auto found = finished_.find(reason);
    rows.emplace_back(fmt::format("finished_reason=\"{}\"", reason),
                      found == finished_.end() ? 0 : static_cast<double>(found->second));
  }
  out.values("request_success_total", "counter", "Finished requests.", rows);
  rows.clear();
  for (const auto& [code, count] : failed_)
    rows.emplace_back(fmt::format("code=\"{}\"", escaped(code)), static_cast<double>(count));
  if (!rows.empty()) out.values("request_failure_total", "counter", "Refused and failed requests by error code.", rows);
  rows.clear();
  for (const char* state : {"starting", "ready", "draining", "failed"})
    rows.emplace_back(fmt::format("state=\"{}\"", state), scene.state == state);
  out.values("engine_state", "gauge", "1 for the present state.", rows);
  out.histogram("time_to_first_token_seconds", "From the request to its first token.", first_token_);
  out.histogram("inter_token_latency_seconds", "Between tokens of a sequence.", between_tokens_);
  out.histogram("time_per_output_token_seconds", "The older name of inter_token_latency_seconds.", between_tokens_);
  out.histogram("e2e_request_latency_seconds", "Whole requests.", end_to_end_);
  out.histogram("request_queue_time_seconds", "Waiting.", queue_);
  out.histogram("request_prefill_time_seconds", "Computing the prompt.", prefill_);
  out.histogram("request_decode_time_seconds", "Computing the answer.", decode_);
  out.histogram("request_inference_time_seconds", "Prompt and answer.", inference_);
  out.histogram("request_prompt_tokens", "Prompt tokens per request.", prompt_tokens_);
  out.histogram("request_generation_tokens", "New tokens per request.", new_tokens_);
  std::string text = out.take();
  if (scene.experts && !scene.experts->layers().empty()) {
    Exposition own(scene.model, {"conclave_"});
    write_experts(own, *scene.experts);
    text += own.take();
  }
  write_process(out);
  return text + out.take();
}

Json Metrics::window(const ServiceStatus& e) const {
  const std::lock_guard lock(mutex_);
  return {{"TTFT", mean(last_first_)},           {"TBT", mean(last_between_)},
          {"waitingInferRequestNum", e.waiting}, {"processingInferRequestNum", e.running},
          {"remainBlocks", e.free_blocks},       {"totalBlocks", e.total_blocks}};
}

}  // namespace conclave
