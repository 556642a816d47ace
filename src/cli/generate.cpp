#include "cli/generate.h"

#include <chrono>
#include <map>
#include <algorithm>
#include <optional>

#include "text/stream_decoder.h"

namespace conclave {

struct Generator::Live {
  size_t index = 0;
  Answer answer;
  std::optional<StreamDecoder> decoder;
};

Generator::Generator(Engine& engine, const Tokenizer* tokenizer, std::vector<std::string> stop,
                     const Interrupts& interrupts)
    : engine_(engine), tokenizer_(tokenizer), stop_(std::move(stop)), interrupts_(interrupts) {}

void Generator::emit(Live& live, const std::string& piece) {
  if (piece.empty()) return;
  live.answer.text += piece;
  if (on_text) on_text(live.index, piece);
}

void Generator::take(Live& live, const Delta& delta) {
  for (const int32_t id : delta.tokens) {
    if (live.decoder && live.decoder->stopped()) return;
    live.answer.output_ids.push_back(id);
    if (live.decoder) emit(live, live.decoder->push(id));
  }
  if (live.decoder && live.decoder->stopped() && delta.finish == FinishReason::none) engine_.cancel(delta.id);
}

void Generator::finish(Live& live, const Delta& delta) {
  const bool stopped = live.decoder && live.decoder->stopped();
  if (live.decoder) emit(live, live.decoder->finish());
  live.answer.finish_reason = stopped ? "stop" : std::string(name_of(delta.finish));
  live.answer.error = delta.error;
  live.answer.stats = engine_.stats(delta.id);
  live.answer.done = true;
}

std::vector<Answer> Generator::run(std::vector<Request> requests) {
  using Clock = std::chrono::steady_clock;
  times_ = {};
  std::map<RequestId, size_t> index_of;
  std::vector<Live> lives(requests.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    lives[i].index = i;
    lives[i].answer.prompt_ids = requests[i].prompt;
    if (tokenizer_) lives[i].decoder.emplace(*tokenizer_, stop_);
    index_of[engine_.submit(std::move(requests[i]))] = i;
  }
  const bool hold = prompts_first && lives.size() <= static_cast<size_t>(engine_.options().max_sequences);
  bool cancelled = false;
  size_t reported = 0, started = 0;
  while (!engine_.idle() || reported < lives.size()) {
    if (interrupts_.raised() && !cancelled) {
      for (const auto& [id, index] : index_of) {
        if (!lives[index].answer.done) engine_.cancel(id);
      }
      cancelled = true;
    }
    const auto start = Clock::now();
    const std::vector<Delta> deltas = engine_.step();
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    bool prefill = deltas.empty() || (hold && started < lives.size());
    for (const Delta& delta : deltas) {
      Live& live = lives[index_of.at(delta.id)];
      const bool first = live.answer.output_ids.empty() && (!delta.tokens.empty() || delta.finish != FinishReason::none);
      prefill = prefill || live.answer.output_ids.empty();
      started += first;
      if (hold && first) engine_.pause(delta.id, true);
      take(live, delta);
      if (delta.finish != FinishReason::none) finish(live, delta);
    }
    if (hold && started == lives.size()) {
      for (const auto& [id, index] : index_of) engine_.pause(id, false);
    }
    const auto only_ends = [](const Delta& d) { return d.tokens.empty() && d.finish == FinishReason::cancelled; };
    const bool computed = deltas.empty() || !std::all_of(deltas.begin(), deltas.end(), only_ends);
    if (computed) (prefill ? times_.prefill : times_.decode).push_back(seconds);
    for (; reported < lives.size() && lives[reported].answer.done; ++reported) {
      if (on_answer) on_answer(reported, lives[reported].answer);
    }
  }
  std::vector<Answer> answers;
  for (Live& live : lives) answers.push_back(std::move(live.answer));
  return answers;
}

}  // namespace conclave
