#include "cli/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>

#include "cli/token_ids.h"

namespace conclave {
namespace {

double per_second(double count, double ms) { return count > 0 && ms > 0 ? count * 1000.0 / ms : 0.0; }
double rounded(double value) { return std::round(value * 1000.0) / 1000.0; }
double sum(const std::vector<double>& values) { return std::accumulate(values.begin(), values.end(), 0.0); }

}  // namespace

AnswerFigures figures_of(const Answer& answer, const Engine& engine) {
  const RequestStats& s = answer.stats;
  const double decoded = std::max(0, s.new_tokens - 1);  // the first token comes out of the prefill
  const double decode_rate = per_second(decoded, s.decode_ms);
  return {.load_ms = engine.load_ms(),
          .prefill_ms = s.prefill_ms,
          .decode_ms = s.decode_ms,
          .prefill_tokens_per_s = per_second(s.prompt_tokens - s.cached_tokens, s.prefill_ms),
          .decode_tokens_per_s = decode_rate,
          .weight_gb_per_s = decode_rate * static_cast<double>(engine.bytes_touched_per_token()) / 1e9};
}

std::string answer_json(size_t index, const Answer& answer, const Engine& engine) {
  const AnswerFigures f = figures_of(answer, engine);
  return json_line({{"index", index},
                    {"prompt_ids", answer.prompt_ids},
                    {"output_ids", answer.output_ids},
                    {"text", answer.text},
                    {"finish_reason", answer.finish_reason},
                    {"timings",
                     {{"load_ms", rounded(f.load_ms)},
                      {"prefill_ms", rounded(f.prefill_ms)},
                      {"decode_ms", rounded(f.decode_ms)},
                      {"prefill_tokens_per_s", rounded(f.prefill_tokens_per_s)},
                      {"decode_tokens_per_s", rounded(f.decode_tokens_per_s)},
                      {"weight_gb_per_s", rounded(f.weight_gb_per_s)}}}});
}

std::string figures_line(const std::vector<Answer>& answers, const StepTimes& times, const Engine& engine) {
  double prompt = 0, made = 0, decoded = 0;
  for (const Answer& answer : answers) {
    prompt += answer.stats.prompt_tokens;
    made += answer.stats.new_tokens;
    decoded += std::max(0, answer.stats.new_tokens - 1);
  }
  // A step of several sequences reads at least the weights that one sequence reads.
  const double bytes = static_cast<double>(engine.bytes_touched_per_token() * times.decode.size());
  const double seconds = sum(times.decode);
  return fmt::format(
      "{:.0f} prompt tokens, {:.1f} tokens/s prefill; {:.0f} new tokens, {:.1f} tokens/s decode; {:.2f} GB/s of "
      "weights read",
      prompt, per_second(prompt, sum(times.prefill) * 1000), made, per_second(decoded, seconds * 1000),
      seconds > 0 ? bytes / seconds / 1e9 : 0.0);
}

std::string model_line(const Engine& engine) {
  const ModelSpec& spec = engine.spec();
  const MemoryPlan& memory = engine.memory();
  const ParameterCounts counts = count_parameters(spec);
  const auto millions = [](int64_t n) { return static_cast<double>(n) / 1e6; };
  const auto mib = [](size_t n) { return static_cast<double>(n) / (1 << 20); };
  return fmt::format(
      "{}: {} layers, {:.1f} M parameters ({:.1f} M active), {}; weights {:.1f} MiB, cache {:.1f} MiB, buffers {:.1f} "
      "MiB; "
      "{} {}, {} threads; loaded in {:.0f} ms",
      spec.architecture.empty() ? spec.family : spec.architecture, spec.num_layers(), millions(counts.total),
      millions(counts.active), name_of(spec.dtype), mib(memory.weights), mib(memory.kv_cache),
      mib(memory.activations + memory.workspace), engine.options().backend, engine.isa(), engine.threads(),
      engine.load_ms());
}

void TextReport::begin() {
  if (options_.requests != 1) return;
  out_.write("Answer[0]: ");
  out_.flush();
}

void TextReport::text(size_t, std::string_view piece) {
  if (options_.requests != 1) return;
  out_.model_text(piece);
  out_.flush();
}

void TextReport::answer(size_t index, const Answer& answer) {
  const bool streamed = options_.requests == 1;
  if (!streamed) out_.write(fmt::format("Answer[{}]: ", index));
  if (options_.ids_only)
    out_.write(join_ids(answer.output_ids));
  else if (!streamed)
    out_.model_text(answer.text);
  total_tokens_ += answer.output_ids.size();
  const size_t count = options_.cumulative ? total_tokens_ : answer.output_ids.size();
  out_.write(fmt::format("\nGenerate[{}] token num: ({}, {})\n", index, index, count));
  out_.flush();
}

}  // namespace conclave
