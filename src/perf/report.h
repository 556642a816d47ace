#pragma once
// The figures of `conclave perf` in the reference stack's columns (its CSV and its table with "|"), and as JSON with every step's time.
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "perf/measure.h"

namespace conclave {

/// What the results belong to.
struct PerfReport {
  std::string model;  ///< the first column
  std::vector<PerfResult> results;
};

/// A failed case's row holds its error in the place of the figures; the last row also has the averages over the cases that succeeded.
std::string perf_csv(const PerfReport& report);
/// The same cells padded and divided by "|"; its tenth column is headed "E2E Throughput(Tokens/s)".
std::string perf_table(const PerfReport& report);
/// {"model", "cases": [{"batch", "input", "output", ..., "prefill_step_ms", "decode_step_ms", "first_token_ms"}], ...}; the caller adds the machine.
nlohmann::ordered_json perf_json(const PerfReport& report);

/// The value below which `share` (0 to 1) of the values lie, between neighbours in proportion; 0 for none.
double quantile(std::vector<double> values, double share);

}  // namespace conclave
