#pragma once
// How answers are shown: for people (and scripts that look for "Answer[i]:"), or as JSON; and the closing line of
// figures.
#include <string>
#include <vector>

#include "cli/generate.h"
#include "cli/output.h"
#include "core/log.h"

namespace conclave {

/// Milliseconds and rates of one answer. Rates are 0 where nothing was measured.
struct AnswerFigures {
  double load_ms, prefill_ms, decode_ms, prefill_tokens_per_s, decode_tokens_per_s, weight_gb_per_s;
};
AnswerFigures figures_of(const Answer& answer, const Engine& engine);

/// {"index", "prompt_ids", "output_ids", "text", "finish_reason", "timings"} on one line.
std::string answer_json(size_t index, const Answer& answer, const Engine& engine);

/// "5 prompt tokens (812.3 tokens/s), 20 new tokens (93.1 tokens/s), 12.1 GB/s of weights read".
std::string figures_line(const std::vector<Answer>& answers, const StepTimes& times, const Engine& engine);

/// What was built: family, parameters, types, memory.
std::string model_line(const Engine& engine);

/// Prints answers as text while they are made. A single request streams; several are printed whole, in order.
class TextReport {
 public:
  /// `cumulative`: token counts in the reference stack's form. `ids_only`: there is no text, ids are printed in its
  /// place.
  struct Options {
    size_t requests = 1;
    bool cumulative = false, ids_only = false;
  };
  TextReport(Output& out, Options options) : out_(out), options_(options) {}
  void text(size_t index, std::string_view piece);
  void answer(size_t index, const Answer& answer);
  void begin();

 private:
  Output& out_;
  Options options_;
  size_t total_tokens_ = 0;
};

}  // namespace conclave
