#include "server/generation.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "core/error.h"

namespace conclave {
namespace {

using Clock = std::chrono::steady_clock;

std::vector<std::vector<int32_t>> ids_of_words(const Tokenizer& tokenizer, const std::vector<std::string>& words) {
  std::vector<std::vector<int32_t>> lists;
  for (const std::string& word : words) {  // a word has other ids inside a text than at its beginning
    for (const std::string& form : {word, " " + word}) {
      auto ids = tokenizer.encode(form, {.add_special_tokens = false, .parse_special = false});
      if (!ids.empty() && std::find(lists.begin(), lists.end(), ids) == lists.end()) lists.push_back(std::move(ids));
    }
  }
  return lists;
}

}  // namespace

bool ServedModel::answers_to(const std::string& name) const {
  constexpr std::string_view kNoModel[] = {"tgi", "dummy"};  // what huggingface_hub sends when its user named none
  return name == id || std::find(aliases.begin(), aliases.end(), name) != aliases.end() ||
         std::find(std::begin(kNoModel), std::end(kNoModel), name) != std::end(kNoModel);
}

size_t experts_per_token(const ServedModel& model) {
  size_t count = 0;
  for (const MoeLayer& layer : model.moe_layers) count += static_cast<size_t>(layer.top_k);
  return count;
}

double Choice::mean_logprob() const {
  double sum = 0;
  for (const TokenLogprob& token : logprobs) sum += static_cast<double>(token.logprob);
  return logprobs.empty() ? 0 : sum / static_cast<double>(logprobs.size());
}

int room_for(const Params& params, size_t prompt_tokens, int context) {
  const auto prompt = static_cast<int64_t>(prompt_tokens);
  const int64_t wanted = params.max_tokens ? std::max(*params.max_tokens, 1) : 1;
  if (prompt + wanted > context) {
    throw ApiError(
        ApiCode::context_length_exceeded,
        fmt::format(
            "the context is {} tokens, but {} were asked for ({} in the prompt, {} to generate); shorten the prompt or lower "
            "max_tokens, or set truncate_prompt_tokens",
            context, prompt + wanted, prompt, wanted),
        "max_tokens");
  }
  if (params.max_tokens) return static_cast<int>(wanted);
  const int64_t left = context - prompt;
  return static_cast<int>(params.default_max_tokens > 0 ? std::min<int64_t>(left, params.default_max_tokens) : left);
}

Generation::Generation(Setup setup, std::unique_ptr<AnswerWriter> writer)
    : setup_(std::move(setup)), writer_(std::move(writer)), began_(Clock::now()) {
  const Params& p = setup_.params;
  const int copies = std::max(p.n, p.best_of.value_or(p.n));
  for (size_t prompt = 0; prompt < setup_.prompts.size(); ++prompt) {
    for (int copy = 0; copy < copies; ++copy) {
      Choice& s = sequences_.emplace_back();
      s.index = static_cast<int>(prompt) * copies + copy;
      s.prompt = prompt;
    }
  }
  last_token_.assign(sequences_.size(), began_);
}

Request Generation::request_for(const Choice& sequence) const {
  const Params& p = setup_.params;
  const ServedModel& model = *setup_.model;
  Request r;
  r.prompt = setup_.prompts[sequence.prompt].ids;
  r.sampling = p.sampling;
  if (!p.do_sample) r.sampling.temperature = 0;
  const int copies = std::max(p.n, p.best_of.value_or(p.n));
  r.sampling.seed = p.seed.value_or(0) + static_cast<uint64_t>(sequence.index % copies);
  r.sampling.bad_words = ids_of_words(*model.tokenizer, p.bad_words);
  for (const auto& ids : ids_of_words(*model.tokenizer, p.dry_breakers)) r.sampling.dry.breakers.push_back(ids.back());
  r.max_new_tokens = room_for(p, r.prompt.size(), model.context);
  if (!p.ignore_eos) r.eos_ids = model.eos_ids;
  r.stop_token_ids = p.stop_token_ids;
  r.logprobs = p.logprobs.value_or(-1);
  if (p.best_of.value_or(p.n) > p.n) r.logprobs = std::max(r.logprobs, 0);
  r.prompt_logprobs = p.prompt_logprobs.value_or(-1);
  r.return_experts = p.return_routed_experts;
  r.priority = p.priority;
  r.deadline_ms = p.deadline_ms;
  r.cache_salt = setup_.salt;
  return r;
}

void Generation::start() {
  const Params& p = setup_.params;
  for (Choice& s : sequences_) {
    s.decoder.emplace(*setup_.model->tokenizer, p.sampling.min_tokens > 0 ? std::vector<std::string>{} : p.stop,
                      p.skip_special_tokens);
    if (setup_.continues_prompt) {  // so that a space or a character that the prompt's end began is kept
      constexpr size_t kTail = 8;
      const auto& ids = setup_.prompts[s.prompt].ids;
      StreamDecoder lead(*setup_.model->tokenizer, {}, p.skip_special_tokens);
      for (size_t i = ids.size() - std::min(ids.size(), kTail); i < ids.size(); ++i) lead.push(ids[i]);
      lead.set_stop_strings(p.sampling.min_tokens > 0 ? std::vector<std::string>{} : p.stop);
      s.decoder.emplace(std::move(lead));
    }
  }
  self_ = shared_from_this();
  open_ = sequences_.size();
  try {
    for (Choice& s : sequences_) submit(s);
  } catch (...) {
    over_ = true;
    cancel_all();
    self_.reset();
    throw;
  }
  setup_.exchange->on_closed = [weak = weak_from_this()] {
    if (const auto self = weak.lock(); self && !self->over_) {
      self->cancel_all();
      self->end("disconnected");
    }
  };
  setup_.exchange->on_sent = [weak = weak_from_this()] {
    if (const auto self = weak.lock()) self->watch_pace();
  };
  writer_->begin(*this);
}

void Generation::submit(Choice& s) {
  const auto at = static_cast<size_t>(&s - sequences_.data());
  try {
    s.id = setup_.model->engine->submit(
        request_for(s), [weak = weak_from_this(), exchange = setup_.exchange, at](Delta&& delta, const RequestStats* stats) {
          auto kept = std::make_shared<Delta>(std::move(delta));
          exchange->post([weak, at, kept, figures = stats ? std::optional(*stats) : std::nullopt] {
            if (const auto self = weak.lock()) self->take(at, std::move(*kept), figures);
          });
        });
    s.submitted = true;
  } catch (const Overloaded& e) {
    ApiError error(setup_.model->engine->status().state == ServiceStatus::State::draining ? ApiCode::draining
                                                                                          : ApiCode::server_is_overloaded,
                   e.what());
    error.retry_after_ms = e.retry_after_ms;
    throw error;
  } catch (const Error& e) {
    throw ApiError(e.kind == Error::Kind::bad_input ? ApiCode::invalid_value : ApiCode::engine_failed, e.what());
  }
}

void Generation::take(size_t at, Delta&& delta, const std::optional<RequestStats>& stats) {
  Choice& s = sequences_[at];
  if (over_ || s.done) return;
  if (delta.finish == FinishReason::error) return abandon(ApiError(ApiCode::numeric_error, delta.error));
  if (delta.finish == FinishReason::deadline)
    return abandon(ApiError(ApiCode::deadline_exceeded, fmt::format("the deadline of {} ms passed after {} new tokens",
                                                                    params().deadline_ms, s.tokens.size())));
  if (delta.finish == FinishReason::cancelled && !s.stopping)
    return abandon(ApiError(ApiCode::draining, "the server is being stopped; send the request again later"));
  std::move(delta.prompt_logprobs.begin(), delta.prompt_logprobs.end(), std::back_inserter(s.prompt_logprobs));
  if (!s.stopping) take_tokens(s, delta);
  if (delta.finish != FinishReason::none) conclude(s, delta, stats);
  if (!over_) watch_pace();
}

void Generation::take_tokens(Choice& s, const Delta& delta) {
  if (!s.tokens.empty() && !s.decoder->stopped())  // what computed the token before this delta's; before the first is the prompt
    s.experts.insert(s.experts.end(), delta.experts.begin(), delta.experts.end());
  std::string text;
  const size_t limit = params().max_tokens ? static_cast<size_t>(*params().max_tokens) : std::numeric_limits<size_t>::max();
  for (size_t i = 0; i < delta.tokens.size() && s.tokens.size() < limit && !s.decoder->stopped(); ++i) {
    const auto now = Clock::now();
    auto& last = last_token_[static_cast<size_t>(&s - sequences_.data())];
    if (on_token) on_token(std::chrono::duration<double, std::milli>(now - last).count(), s.tokens.empty());
    last = now;
    s.tokens.push_back(delta.tokens[i]);
    if (i < delta.logprobs.size()) s.logprobs.push_back(delta.logprobs[i]);
    const bool hidden = delta.stop_id == delta.tokens[i] && i + 1 == delta.tokens.size() && !params().include_stop;
    if (!hidden) text += s.decoder->push(delta.tokens[i]);
    if (static_cast<int>(s.tokens.size()) == params().sampling.min_tokens) s.decoder->set_stop_strings(params().stop);
  }
  const bool eos =
      delta.finish == FinishReason::stop && delta.stop_id >= 0 && (delta.tokens.empty() || delta.tokens.back() != delta.stop_id);
  if (eos && !s.decoder->stopped() && s.tokens.size() < limit) {
    s.tokens.push_back(delta.stop_id);
    if (delta.logprobs.size() > delta.tokens.size()) s.logprobs.push_back(delta.logprobs.back());
  }
  if (s.decoder->stopped()) {
    s.stop_text = s.decoder->stop_string();
    if (params().include_stop) text += s.stop_text;
    if (delta.finish == FinishReason::none) {
      s.stopping = true;
      setup_.model->engine->cancel(s.id);
    }
  }
  if (!text.empty()) tell(s, text);
}

void Generation::tell(Choice& s, std::string_view text) {
  s.text += text;
  const Piece piece{text, s.told_tokens, s.tokens.size() - s.told_tokens};
  s.told_tokens = s.tokens.size();
  if (params().stream) writer_->piece(*this, s, piece);
}

void Generation::conclude(Choice& s, const Delta& delta, const std::optional<RequestStats>& stats) {
  s.done = true;
  s.finish = s.decoder->stopped() || s.stopping ? FinishReason::stop : delta.finish;
  s.stop_id = s.decoder->stopped() ? -1 : delta.stop_id;
  if (stats) s.stats = *stats;
  const bool untold = s.told_tokens < s.tokens.size();
  const std::string rest = s.decoder->finish();
  if (!rest.empty() || untold) tell(s, rest);
  if (params().stream) writer_->ended(*this, s);
  if (--open_ > 0) return;
  const std::string finish(s.finish_name());
  writer_->finish(*this);
  end(finish);
}

void Generation::stop() {
  for (Choice& s : sequences_) s.stopping = s.stopping || (s.submitted && !s.done);
  cancel_all();
}

void Generation::abandon(const ApiError& error) {
  if (over_) return;
  cancel_all();
  writer_->fail(*this, error);
  end(entry_of(error.code).name);
}

void Generation::cancel_all() {
  for (Choice& s : sequences_)
    if (s.submitted && !s.done) setup_.model->engine->cancel(s.id);
}

void Generation::watch_pace() {
  if (over_ || !params().stream) return;
  const size_t unsent = setup_.exchange->unsent_bytes();
  const bool pause = unsent > setup_.limits.pause_bytes, resume = unsent < setup_.limits.pause_bytes / 4;
  for (Choice& s : sequences_) {
    if (!s.submitted || s.done || (s.paused ? !resume : !pause)) continue;
    s.paused = !s.paused;
    if (s.paused) setup_.model->engine->pause(s.id);
    else setup_.model->engine->resume(s.id);
  }
}

void Generation::end(std::string_view finish) {
  if (over_) return;
  over_ = true;
  setup_.exchange->on_closed = setup_.exchange->on_sent = nullptr;
  if (on_end) {
    GenerationFigures f = figures();
    f.finish = finish;
    on_end(f);
  }
  self_.reset();
}

GenerationFigures Generation::figures() const {
  GenerationFigures f;
  for (const Prompt& prompt : setup_.prompts) f.prompt_tokens += prompt.ids.size();
  for (const Choice& s : sequences_) {
    f.completion_tokens += s.tokens.size();
    f.queue_ms = std::max(f.queue_ms, s.stats.queue_ms);
    f.prefill_ms = std::max(f.prefill_ms, s.stats.prefill_ms);
    f.decode_ms = std::max(f.decode_ms, s.stats.decode_ms);
  }
  for (size_t i = 0; i < setup_.prompts.size(); ++i) {  // a prompt's first copy: what was there before this request
    for (const Choice& s : sequences_) {
      if (s.prompt != i) continue;
      f.cached_tokens += static_cast<size_t>(std::max(0, s.stats.cached_tokens));
      break;
    }
  }
  return f;
}

std::vector<const Choice*> chosen(Generation& generation) {
  const Params& p = generation.params();
  std::vector<const Choice*> all;
  for (size_t prompt = 0; prompt < generation.prompts().size(); ++prompt) {
    std::vector<const Choice*> mine;
    for (const Choice& s : generation.sequences())
      if (s.prompt == prompt) mine.push_back(&s);
    if (static_cast<int>(mine.size()) > p.n) {
      std::stable_sort(mine.begin(), mine.end(),
                       [](const Choice* a, const Choice* b) { return a->mean_logprob() > b->mean_logprob(); });
      mine.resize(static_cast<size_t>(p.n));
    }
    all.insert(all.end(), mine.begin(), mine.end());
  }
  return all;
}

}  // namespace conclave
