#include "perf/sweep.h"

#include <fmt/format.h>

#include <algorithm>
#include <new>

#include "core/error.h"

namespace conclave {
namespace {

/// Threads awake, weights and buffers in memory: the beginning of the case itself.
void warm_up(Engine& engine, const PerfCase& what, const Interrupted& interrupted) {
  PerfCase small = what;
  small.input = std::min(what.input, engine.options().max_step_tokens);
  small.output = std::min(what.output, 2);
  measure_case(engine, small, random_prompts(small, engine.spec().vocab_size).runs[0], nullptr, interrupted);
}

}  // namespace

Sweep::Sweep(Environment environment, std::vector<PerfCase> cases) : environment_(std::move(environment)), cases_(std::move(cases)) {
  std::erase_if(cases_, [&](const PerfCase& what) { return what.input + what.output > environment_.longest; });
}

void Sweep::make_engine(const std::vector<PerfCase>& cases) {
  engine_.reset();  // the memory of one must be free before the next is planned
  engine_ = environment_.start(options_for_cases(environment_.options, cases));
}

Engine& Sweep::engine_for(const PerfCase& what) {
  if (what.input + what.output > environment_.longest)
    throw Error(Error::Kind::bad_input, fmt::format("{} + {} tokens exceed the model's longest sequence of {}", what.input, what.output, environment_.longest));
  if (engine_ && fits(engine_->options(), what)) return *engine_;
  if (!alone_) {
    try {
      make_engine(cases_);
    } catch (const Error& e) {
      if (e.kind != Error::Kind::out_of_memory || cases_.size() < 2) throw;
      alone_ = true;
    }
  }
  if (alone_) make_engine({what});
  return *engine_;
}

PerfResult Sweep::run(const PromptRuns& prompts) {
  const PerfCase& what = prompts.what;
  const auto failed = [&](const std::string& why) {
    return PerfResult{.what = what, .error = why, .prefill_s = {}, .decode_s = {}, .first_token_s = {}};
  };
  bool working = false;
  try {
    Engine& engine = engine_for(what);
    working = true;
    warm_up(engine, what, environment_.interrupted);
    const auto measure = [&](const Prompts& run) { return measure_case(engine, what, run, environment_.tokenizer, environment_.interrupted); };
    PerfResult result = measure(prompts.runs[0]);
    for (size_t i = 1; i < prompts.runs.size(); ++i) merge(result, measure(prompts.runs[i]));
    return result;
  } catch (const Error& e) {
    if (e.kind == Error::Kind::cancelled) throw;
    if (working) engine_.reset();  // whatever it was doing, nothing of it may reach the next case
    return failed(e.what());
  } catch (const std::bad_alloc&) {
    engine_.reset();
    return failed("out of memory");
  }
}

BatchSearch search_batch(const PerfCase& what, BatchRange range, double limit_ms, const std::function<PerfResult(const PerfCase&)>& run) {
  BatchSearch search;
  while (range.low <= range.high) {
    PerfCase next = what;
    next.batch = range.low + (range.high - range.low) / 2;
    search.rounds.push_back(run(next));
    const PerfResult& result = search.rounds.back();
    if (result.error.empty() && result.decode_ms() <= limit_ms) {
      search.best = result;
      range.low = next.batch + 1;
    } else {
      range.high = next.batch - 1;
    }
  }
  return search;
}

}  // namespace conclave
