#pragma once
// Runs many cases, each in an engine that is large enough: one engine for all where memory allows it, else one per case. A case that cannot
// be run becomes a result with its error, and the others go on.
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "perf/measure.h"

namespace conclave {

class Sweep {
 public:
  struct Environment {
    std::function<std::unique_ptr<Engine>(const EngineOptions&)> start;  ///< throws what Engine throws
    EngineOptions options;      ///< besides batch, context and cache
    int longest = 0;            ///< tokens that prompt and answer may have together
    const Tokenizer* tokenizer = nullptr;
    Interrupted interrupted;
  };
  /// `cases`: all that may come.
  Sweep(Environment environment, std::vector<PerfCase> cases);

  /// Warmed up before; errors other than cancelled end up in the result.
  PerfResult run(const PromptRuns& prompts);

 private:
  Engine& engine_for(const PerfCase& what);
  void make_engine(const std::vector<PerfCase>& cases);

  Environment environment_;
  std::vector<PerfCase> cases_;
  std::unique_ptr<Engine> engine_;
  bool alone_ = false;  ///< an engine for all cases could not be had
};

/// The largest batch of a range that runs without error and takes at most so long for a token after the first.
struct BatchSearch {
  std::vector<PerfResult> rounds;   ///< in the order in which they ran
  std::optional<PerfResult> best;   ///< nothing when even the smallest fails
};
/// By bisection: every round halves the range.
BatchSearch search_batch(const PerfCase& what, BatchRange range, double limit_ms, const std::function<PerfResult(const PerfCase&)>& run);

}  // namespace conclave
