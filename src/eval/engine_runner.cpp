#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "core/error.h"
#include "engine/logprobs.h"
#include "eval/runner.h"
#include "text/stream_decoder.h"

namespace conclave {
namespace {

class EngineRunner final : public Runner {
 public:
  EngineRunner(Engine& engine, const Tokenizer& tokenizer, RunnerOptions options)
      : engine_(engine), tokenizer_(tokenizer), options_(std::move(options)) {
    engine_.observe({.logits = [this](const StepPlan& plan, const Tensor& logits) { read_candidates(plan, logits); }});
  }
  ~EngineRunner() override { engine_.observe({}); }

  size_t max_context() const override { return static_cast<size_t>(engine_.options().max_context); }

  void run(const Next& next, const Done& done) override {
    bool more = true;
    size_t count = 0;
    while (more || !live_.empty()) {
      if (options_.interrupted()) stop();
      while (more && live_.size() < static_cast<size_t>(options_.batch_size)) {
        std::optional<Query> query = next();
        if (query) submit(count++, std::move(*query));
        else more = false;
      }
      for (Delta& delta : engine_.step()) take(std::move(delta), done);
    }
  }

 private:
  struct Live {
    size_t index = 0;
    Query query;
    Reply reply;
    std::optional<StreamDecoder> decoder;
  };

  void submit(size_t index, Query query) {
    Request request;
    request.prompt = query.prompt;
    request.max_new_tokens = std::max(1, query.max_new_tokens);
    request.sampling.temperature = query.temperature;
    request.sampling.seed = query.seed;
    if (query.max_new_tokens > 0) request.eos_ids = options_.eos_ids;
    if (query.scored_from > 0) request.prompt_logprobs = 0;
    Live live{index, std::move(query), {}, {}};
    if (live.query.max_new_tokens > 0) live.decoder.emplace(tokenizer_, live.query.stop);
    const RequestId id = engine_.submit(std::move(request));
    live_.emplace(id, std::move(live));
  }

  void read_candidates(const StepPlan& plan, const Tensor& logits) {
    int64_t row = 0;
    for (const Chunk& chunk : plan.chunks) {
      if (!chunk.sample) continue;
      const std::span<const float> values(logits.row<float>(row++), static_cast<size_t>(logits.dim[1]));
      const auto live = live_.find(chunk.id);
      if (live == live_.end() || live->second.query.candidates.empty() || chunk.context_len != chunk.prompt_len) continue;
      live->second.reply.logprobs.clear();
      for (const int32_t id : live->second.query.candidates)
        live->second.reply.logprobs.push_back(std::max(token_logprob(values, id, 0).logprob, kLeastLogprob));
    }
  }

  void take(Delta&& delta, const Done& done) {
    const auto found = live_.find(delta.id);
    if (found == live_.end()) return;
    Live& live = found->second;
    for (const TokenLogprob& token : delta.prompt_logprobs) {
      if (++scored_[delta.id] < live.query.scored_from) continue;
      live.reply.logprobs.push_back(std::max(token.logprob, kLeastLogprob));
      live.reply.greedy = live.reply.greedy && token.rank == 1;
    }
    for (const int32_t id : delta.tokens) {
      if (!live.decoder || live.decoder->stopped()) break;
      live.reply.tokens.push_back(id);
      live.reply.text += live.decoder->push(id);
    }
    if (live.decoder && live.decoder->stopped() && delta.finish == FinishReason::none) engine_.cancel(delta.id);
    if (delta.finish == FinishReason::none) return;
    if (delta.finish == FinishReason::error)
      throw Error(Error::Kind::internal, fmt::format("query {}: the engine failed: {}", live.index, delta.error));
    if (live.decoder) live.reply.text += live.decoder->finish();
    engine_.stats(delta.id);
    const size_t index = live.index;
    Reply reply = std::move(live.reply);
    live_.erase(found);
    scored_.erase(delta.id);
    done(index, std::move(reply));
  }

  [[noreturn]] void stop() {
    for (const auto& [id, live] : live_) engine_.cancel(id);
    live_.clear();
    while (!engine_.idle()) engine_.step();
    throw Error(Error::Kind::cancelled, "interrupted");
  }

  Engine& engine_;
  const Tokenizer& tokenizer_;
  RunnerOptions options_;
  std::map<RequestId, Live> live_;
  std::map<RequestId, size_t> scored_;  ///< prompt tokens whose log-probability has come
};

}  // namespace

std::unique_ptr<Runner> make_engine_runner(Engine& engine, const Tokenizer& tokenizer, RunnerOptions options) {
  return std::make_unique<EngineRunner>(engine, tokenizer, std::move(options));
}

}  // namespace conclave
