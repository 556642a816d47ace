#pragma once
// The figures of `conclave bench serve` and their forms: Markdown for people, CSV, JSON (whose fields are a contract).
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "bench/load.h"

namespace conclave {

/// Nearest-rank percentiles; all 0 without values.
struct Percentiles {
  double p50 = 0, p90 = 0, p99 = 0;
};
Percentiles percentiles(std::vector<double> values);

/// What an answer must keep to be a good one, milliseconds; 0: anything.
struct Objective {
  double ttft = 0, itl = 0, e2e = 0;  ///< itl: the mean of the answer's gaps
  bool any() const { return ttft > 0 || itl > 0 || e2e > 0; }
};

struct LoadRow {
  std::string load;  ///< "concurrency 16", "rate 2.5/s"
  size_t requests = 0;
  std::map<std::string, size_t> errors;  ///< cause -> failed requests
  double seconds = 0, requests_per_s = 0, output_tokens_per_s = 0;
  double prompt_tokens = 0, output_tokens = 0;  ///< means of the whole answers
  Percentiles ttft, itl, e2e;                   ///< milliseconds, of the whole answers
  Percentiles outside;                          ///< TTFT less the server's own queue and prefill, where it names them
  double goodput = 0;                           ///< answers within the objective per second
  size_t failed() const;
};
LoadRow summarize(const std::string& load, const LoadResult& result, const Objective& objective);

std::string load_markdown(const std::vector<LoadRow>& rows, const Objective& objective);
std::string load_csv(const std::vector<LoadRow>& rows);
nlohmann::ordered_json load_json(const std::vector<LoadRow>& rows, const Objective& objective);

}  // namespace conclave
