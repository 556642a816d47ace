#include "perf/measure.h"

#include <chrono>
#include <map>
#include <numeric>

#include "core/error.h"

namespace conclave {
namespace {

using Clock = std::chrono::steady_clock;

double sum(const std::vector<double>& values) { return std::accumulate(values.begin(), values.end(), 0.0); }
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

int64_t cache_tokens(const PerfCase& what, int block) {
  const int64_t context = int64_t{what.input} + what.output;
  return what.batch * ((context + block - 1) / block) * block;
}

/// One case under way.
class Run {
 public:
  Run(Engine& engine, PerfResult& result) : engine_(engine), result_(result) {}

  void submit(const Prompts& prompts) {
    for (const auto& prompt : prompts) {
      const size_t index = ids_.size();
      index_of_[engine_.submit({.prompt = prompt, .sampling = {}, .max_new_tokens = result_.what.output})] = index;
      ids_.emplace_back();
    }
    result_.first_token_s.resize(prompts.size());
    start_ = Clock::now();
  }

  void work(const Interrupted& interrupted) {
    while (!engine_.idle()) {
      if (interrupted()) cancel();
      const bool prefill = started_ < ids_.size();
      const auto begin = Clock::now();
      const std::vector<Delta> deltas = engine_.step();
      (prefill ? result_.prefill_s : result_.decode_s).push_back(seconds_since(begin));
      for (const Delta& delta : deltas) take(delta);
    }
  }

  const std::vector<std::vector<int32_t>>& ids() const { return ids_; }
  double seconds() const { return seconds_since(start_); }

 private:
  void take(const Delta& delta) {
    const size_t index = index_of_.at(delta.id);
    if (!delta.tokens.empty() && ids_[index].empty()) start(delta.id, index);
    ids_[index].insert(ids_[index].end(), delta.tokens.begin(), delta.tokens.end());
    if (delta.finish == FinishReason::error) throw Error(Error::Kind::bad_model, delta.error);
    if (delta.finish != FinishReason::none) engine_.stats(delta.id);
  }

  /// A sequence with its first token waits until every other one has its own: no step mixes prompts and generation.
  void start(RequestId id, size_t index) {
    result_.first_token_s[index] = seconds();
    if (++started_ < ids_.size()) return engine_.pause(id, true);
    for (const auto& [other, ignored] : index_of_) engine_.pause(other, false);
  }

  [[noreturn]] void cancel() {
    for (const auto& [id, index] : index_of_) engine_.cancel(id);
    engine_.step();
    throw Error(Error::Kind::cancelled, "interrupted");
  }

  Engine& engine_;
  PerfResult& result_;
  std::map<RequestId, size_t> index_of_;
  std::vector<std::vector<int32_t>> ids_;
  size_t started_ = 0;
  Clock::time_point start_;
};

}  // namespace

double PerfResult::prefill_ms() const { return sum(prefill_s) * 1000 / runs; }
double PerfResult::prefill_average_ms() const { return prefill_ms() / what.batch; }
double PerfResult::decode_ms() const { return what.output > 1 ? sum(decode_s) * 1000 / runs / (what.output - 1) : 0; }
double PerfResult::decode_rate() const { return decode_ms() > 0 ? what.batch / decode_ms() * 1000 : 0; }
double PerfResult::e2e_rate() const { return e2e_s > 0 ? static_cast<double>(what.batch) * what.output / e2e_s : 0; }

void merge(PerfResult& result, const PerfResult& other) {
  const auto append = [](std::vector<double>& to, const std::vector<double>& from) { to.insert(to.end(), from.begin(), from.end()); };
  append(result.prefill_s, other.prefill_s);
  append(result.decode_s, other.decode_s);
  append(result.first_token_s, other.first_token_s);
  const int runs = result.runs + other.runs;
  result.e2e_s = (result.e2e_s * result.runs + other.e2e_s * other.runs) / runs;
  result.mean_input = (result.mean_input * result.runs + other.mean_input * other.runs) / runs;
  result.runs = runs;
}

PerfResult measure_case(Engine& engine, const PerfCase& what, const Prompts& prompts, const Tokenizer* tokenizer,
                        const Interrupted& interrupted) {
  PerfResult result{.what = what, .prefill_s = {}, .decode_s = {}, .first_token_s = {}};
  size_t tokens = 0;
  for (const auto& prompt : prompts) tokens += prompt.size();
  result.mean_input = static_cast<int>(tokens / prompts.size());
  Run run(engine, result);
  run.submit(prompts);
  run.work(interrupted);
  if (tokenizer)
    for (const auto& ids : run.ids()) tokenizer->decode(ids, true);
  result.e2e_s = run.seconds();
  return result;
}

EngineOptions options_for_cases(EngineOptions options, const std::vector<PerfCase>& cases) {
  options.share_prefixes = false;  // equal prompts are there to be measured
  options.max_sequences = 1, options.max_context = 2, options.cache_tokens = 0;
  int64_t tokens = 0;
  for (const PerfCase& what : cases) {
    options.max_sequences = std::max(options.max_sequences, what.batch);
    options.max_context = std::max(options.max_context, what.input + what.output);
    tokens = std::max(tokens, cache_tokens(what, options.block_size));
  }
  if (options.kv_mode == KvMode::paged) options.cache_tokens = tokens;
  return options;
}

bool fits(const EngineOptions& options, const PerfCase& what) {
  return what.batch <= options.max_sequences && what.input + what.output <= options.max_context &&
         (options.kv_mode == KvMode::contiguous || cache_tokens(what, options.block_size) <= options.cache_tokens);
}

}  // namespace conclave
