#pragma once
// Drives the engine over a list of requests and turns ids into text as they come: stop strings, step times,
// interruption.
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "cli/signals.h"
#include "engine/engine.h"
#include "text/tokenizer.h"

namespace conclave {

struct Answer {
  std::vector<int32_t> prompt_ids, output_ids;
  std::string text;           ///< without stop strings; empty without a tokenizer
  std::string finish_reason;  ///< "stop", "length", "cancelled", "error"
  std::string error;
  RequestStats stats;
  bool done = false;
};

/// Seconds of every step. A step counts as prefill until every request has its first token, where prompts come first; else when it gives some
/// request its first token, or none a token.
struct StepTimes {
  std::vector<double> prefill, decode;
};

class Generator {
 public:
  /// `tokenizer` may be null: texts are then empty. References must outlive the generator.
  Generator(Engine& engine, const Tokenizer* tokenizer, std::vector<std::string> stop, const Interrupts& interrupts);

  /// Requests that have a first token wait for the others' prompts, as in the reference stack, so that no measured step mixes the two.
  /// Without effect when there are more requests than run at once.
  bool prompts_first = false;
  std::function<void(size_t index, std::string_view piece)> on_text;  ///< new text of a request
  std::function<void(size_t index, const Answer& answer)> on_answer;  ///< finished requests, in index order

  /// Runs all requests to their end in one continuous batch. After an interruption the unfinished ones are "cancelled".
  std::vector<Answer> run(std::vector<Request> requests);
  const StepTimes& step_times() const { return times_; }

 private:
  struct Live;
  void take(Live& live, const Delta& delta);
  void finish(Live& live, const Delta& delta);
  void emit(Live& live, const std::string& piece);

  Engine& engine_;
  const Tokenizer* tokenizer_;
  std::vector<std::string> stop_;
  const Interrupts& interrupts_;
  StepTimes times_;
};

}  // namespace conclave
