#pragma once
// Counters and histograms of the server, written as Prometheus text under our names and vLLM's, which gateways read. Thread-safe.
#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "engine/service.h"
#include "server/generation.h"

namespace conclave {

/// Cumulative histogram with fixed upper bounds.
class Histogram {
 public:
  explicit Histogram(std::vector<double> bounds) : bounds_(std::move(bounds)), counts_(bounds_.size() + 1) {}
  void add(double value);
  const std::vector<double>& bounds() const { return bounds_; }
  /// Values up to bounds()[i]; the last one: all.
  uint64_t below(size_t i) const;
  double sum() const { return sum_; }
  uint64_t count() const { return count_; }

 private:
  std::vector<double> bounds_;
  std::vector<uint64_t> counts_;
  double sum_ = 0;
  uint64_t count_ = 0;
};

/// What the text says besides the counters.
struct MetricsScene {
  std::string model, state;
  ServiceStatus engine;
  const ExpertLoad* experts = nullptr;
  int connections = 0;
  bool reference_names = false;  ///< add the reference stack's names
};

class Metrics {
 public:
  /// Series of expert_tokens_total: where layers x experts are more, only evenly spaced layers that fit are written, the first included.
  static constexpr size_t kExpertSeries = 1024;
  Metrics();
  void note_answer(int status, std::string_view code);
  void note_token(double ms, bool first);
  void note_generation(const GenerationFigures& figures, double ms);
  std::string prometheus(const MetricsScene& scene) const;
  /// The reference stack's /metrics-json over the last 1000 values.
  nlohmann::ordered_json window(const ServiceStatus& engine) const;

 private:
  mutable std::mutex mutex_;
  Histogram first_token_, between_tokens_, end_to_end_, queue_, prefill_, decode_, inference_, prompt_tokens_, new_tokens_;
  std::map<std::string, uint64_t> finished_, failed_;
  uint64_t disconnects_ = 0, received_ = 0;
  std::deque<double> last_first_, last_between_;  ///< ms
};

}  // namespace conclave
