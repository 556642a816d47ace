#pragma once
// Runs one case on an engine and times its steps: first the prompts of all sequences, then steps in which every sequence gets one token, as
// the reference stack does; EOS is ignored. Whether the engine is large enough is the caller's affair.
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "perf/prompts.h"
#include "text/tokenizer.h"

namespace conclave {

/// Times of one run of a case, seconds unless named otherwise. `error` is empty when it succeeded; the rest is then filled in.
struct PerfResult {
  PerfCase what;
  std::string error = {};
  double e2e_s = 0;                          ///< wall-clock time from the first request to the last text
  std::vector<double> prefill_s, decode_s;   ///< of every step
  std::vector<double> first_token_s;         ///< per sequence, since the start
  int mean_input = 0;                        ///< tokens per prompt; what.input unless the prompts came from a data set
  int runs = 1;                              ///< that were added up by merge(): the figures below are averages over them

  double prefill_ms() const;
  double prefill_average_ms() const;  ///< per sequence
  double decode_ms() const;           ///< per token of a sequence after its first
  double decode_rate() const;         ///< tokens/s of the whole batch after the first tokens
  double e2e_rate() const;            ///< new tokens/s over the wall-clock time
};

/// Adds another run of the same case.
void merge(PerfResult& result, const PerfResult& other);

using Interrupted = std::function<bool()>;

/// `tokenizer` may be null; otherwise the e2e time includes turning the ids into text. Throws cancelled when interrupted, bad_model when a
/// step fails, and what Engine::submit throws.
PerfResult measure_case(Engine& engine, const PerfCase& what, const Prompts& prompts, const Tokenizer* tokenizer, const Interrupted& interrupted);

/// Options of an engine for all of `cases`: their largest batch, context and cache.
EngineOptions options_for_cases(EngineOptions options, const std::vector<PerfCase>& cases);
/// True when an engine with these options can run `what`.
bool fits(const EngineOptions& options, const PerfCase& what);

}  // namespace conclave
