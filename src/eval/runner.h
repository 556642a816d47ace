#pragma once
// What tasks ask a model and what it answers: token ids in, ids, text and log-probabilities out. Two implementations: an engine of this
// process, and a running server. Greedy or seeded, so the answers depend on neither the batch size nor which of the two is used.
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "client/http_client.h"
#include "engine/engine.h"
#include "text/tokenizer.h"

namespace conclave {

struct Query {
  std::vector<int32_t> prompt;
  int max_new_tokens = 0;                   ///< 0: nothing is generated
  std::vector<std::string> stop = {};       ///< end the text and are not part of it
  std::vector<int32_t> candidates = {};     ///< ids whose log-probabilities as the next token are asked for
  size_t scored_from = 0;                   ///< above 0: the log-probabilities of prompt[scored_from..] are asked for
  float temperature = 0;
  uint64_t seed = 0;
  /// Positions that the query needs.
  size_t length() const { return prompt.size() + static_cast<size_t>(max_new_tokens > 1 ? max_new_tokens : 1); }
};

struct Reply {
  std::vector<int32_t> tokens = {};     ///< generated ids up to the end or the stop string
  std::string text = {};
  std::vector<float> logprobs = {};     ///< of the candidates in their order, or of prompt[scored_from..]; at least kLeastLogprob
  bool greedy = true;                   ///< every scored token was the most likely one
};
inline constexpr float kLeastLogprob = -9999.0f;

class Runner {
 public:
  virtual ~Runner() = default;
  /// The next query, nothing at the end.
  using Next = std::function<std::optional<Query>()>;
  /// The reply to query `index` (counted in the order of Next), in the order in which they end.
  using Done = std::function<void(size_t index, Reply&& reply)>;
  /// Answers all queries; both functions are called by one thread at a time. Throws cancelled when `interrupted` says so, network, and
  /// internal for what the model could not answer.
  virtual void run(const Next& next, const Done& done) = 0;
  /// Longest prompt and answer together.
  virtual size_t max_context() const = 0;
};

struct RunnerOptions {
  int batch_size = 1;                  ///< queries in flight
  std::vector<int32_t> eos_ids = {};   ///< of the engine's requests
  std::function<bool()> interrupted = [] { return false; };
};
/// References must outlive the runner.
std::unique_ptr<Runner> make_engine_runner(Engine& engine, const Tokenizer& tokenizer, RunnerOptions options);
/// POST /v1/completions of an OpenAI-compatible server that takes token ids and knows `return_token_ids`, `allowed_token_ids` and
/// `prompt_logprobs`. Asks the server for its model's name and context; throws network, or bad_input when the server has no model.
std::unique_ptr<Runner> make_server_runner(const HttpUrl& url, const Tokenizer& tokenizer, RunnerOptions options);

}  // namespace conclave
