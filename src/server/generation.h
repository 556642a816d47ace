#pragma once
// One API request under way: submits its engine requests, turns their deltas into text on the exchange's strand, applies stop strings,
// pauses when the client reads too slowly, cancels when it goes away, and tells the dialect's writer what happened. Keeps itself alive
// until the end.
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "server/api_error.h"
#include "server/http.h"
#include "server/limits.h"
#include "server/params.h"
#include "server/served_model.h"
#include "text/stream_decoder.h"

namespace conclave {

/// One prompt of a request: ids, and its text where the client gave text.
struct Prompt {
  std::vector<int32_t> ids;
  std::optional<std::string> text;
  int dropped = 0;  ///< ids removed by truncate_prompt_tokens
};

/// One engine request of an API request.
struct Choice {
  int index = 0;  ///< choice number
  size_t prompt = 0;
  RequestId id = 0;
  bool submitted = false, done = false, paused = false, stopping = false;
  std::optional<StreamDecoder> decoder;
  std::string text;             ///< all of it so far
  std::vector<int32_t> tokens;  ///< all new ids, an EOS that ended it included
  std::vector<TokenLogprob> logprobs, prompt_logprobs;
  /// When asked for: the experts that computed each token, [rows, MoE layers, k]. The last token was not computed any more and has none.
  /// Streams hold only rows that no piece has told.
  std::vector<int32_t> experts;
  FinishReason finish = FinishReason::none;
  std::string stop_text;  ///< the stop string that ended it
  int32_t stop_id = -1;
  RequestStats stats;
  size_t told_tokens = 0;  ///< tokens that pieces have covered

  double mean_logprob() const;
  /// "stop" or "length".
  std::string_view finish_name() const { return finish == FinishReason::length ? "length" : "stop"; }
};

/// New text of a sequence, with the tokens behind it.
struct Piece {
  std::string_view text;
  size_t first_token = 0, token_count = 0;  ///< in Choice::tokens
};

class Generation;

/// Writes the answer in one dialect. Called on the exchange's strand.
class AnswerWriter {
 public:
  virtual ~AnswerWriter() = default;
  virtual void begin(Generation&) {}                           ///< all submitted; a stream opens here
  virtual void piece(Generation&, Choice&, const Piece&) {}  ///< streams only
  virtual void ended(Generation&, Choice&) {}                ///< streams only; after the last piece
  virtual void finish(Generation& generation) = 0;             ///< all sequences have ended
  virtual void fail(Generation& generation, const ApiError& error) = 0;
};

struct GenerationFigures {
  size_t prompt_tokens = 0, completion_tokens = 0, cached_tokens = 0;
  double queue_ms = 0, prefill_ms = 0, decode_ms = 0;
  std::string finish;
};

class Generation : public std::enable_shared_from_this<Generation> {
 public:
  struct Setup {
    std::shared_ptr<const ServedModel> model;
    std::shared_ptr<Exchange> exchange;
    const ServerLimits& limits;
    Params params;
    std::vector<Prompt> prompts;
    std::string request_id;
    std::vector<std::string> ignored_fields;
    uint64_t salt = 0;
    bool continues_prompt = false;  ///< the text goes on where the prompt ends (no chat turn between)
  };
  Generation(Setup setup, std::unique_ptr<AnswerWriter> writer);
  /// Throws ApiError when the request cannot be taken; nothing is left running then.
  void start();

  /// Ends it with what it has, as if every sequence had met a stop. On the exchange's strand.
  void stop();
  /// Ends it with this error. On the exchange's strand.
  void abandon(const ApiError& error);

  const Params& params() const { return setup_.params; }
  const ServedModel& model() const { return *setup_.model; }
  Exchange& exchange() { return *setup_.exchange; }
  const std::string& request_id() const { return setup_.request_id; }
  const std::vector<Prompt>& prompts() const { return setup_.prompts; }
  const std::vector<std::string>& ignored_fields() const { return setup_.ignored_fields; }
  std::vector<Choice>& sequences() { return sequences_; }
  GenerationFigures figures() const;

  /// Told once at the end, also of failures and clients gone ("cancelled").
  std::function<void(const GenerationFigures&)> on_end;
  /// Milliseconds since the start of each new token of a sequence, and whether it is its first.
  std::function<void(double ms, bool first)> on_token;

 private:
  void submit(Choice& sequence);
  Request request_for(const Choice& sequence) const;
  void take(size_t at, Delta&& delta, const std::optional<RequestStats>& stats);
  void take_tokens(Choice& sequence, const Delta& delta);
  void tell(Choice& sequence, std::string_view text);
  void conclude(Choice& sequence, const Delta& delta, const std::optional<RequestStats>& stats);
  void cancel_all();
  void watch_pace();
  void end(std::string_view finish);

  Setup setup_;
  std::unique_ptr<AnswerWriter> writer_;
  std::vector<Choice> sequences_;
  std::shared_ptr<Generation> self_;
  size_t open_ = 0;
  bool over_ = false;
  std::chrono::steady_clock::time_point began_;
  std::vector<std::chrono::steady_clock::time_point> last_token_;
};

/// Chooses the n best of best_of sequences per prompt (by mean log-probability) and numbers them; others are dropped.
std::vector<const Choice*> chosen(Generation& generation);

/// Largest number of new tokens for a prompt: as asked for, else the endpoint's default, else what is left of the context. Throws context_length_exceeded with both numbers.
int room_for(const Params& params, size_t prompt_tokens, int context);

}  // namespace conclave
