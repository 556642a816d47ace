// POST /v1/completions: continues texts or token ids, echoes and scores prompts.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "server/app.h"
#include "server/openai.h"
#include "text/unicode.h"

namespace conclave {
namespace {

using Json = nlohmann::ordered_json;

/// The four lists of OpenAI's logprobs over prompt (when echoed) and new tokens.
class LogprobLists {
 public:
  LogprobLists(const Generation& generation, const Choice& sequence)
      : tokenizer_(*generation.model().tokenizer),
        skip_special_(generation.params().skip_special_tokens),
        most_(generation.params().logprobs.value_or(0)) {
    const auto& ids = generation.prompts()[sequence.prompt].ids;
    if (!generation.params().echo) {
      skip(ids);
      return;
    }
    for (size_t i = 0; i < ids.size(); ++i) {
      const bool known = i > 0 && i <= sequence.prompt_logprobs.size();
      add(ids[i], known ? &sequence.prompt_logprobs[i - 1] : nullptr);
    }
  }
  void add(const Choice& s, const Piece& piece) {
    for (size_t i = piece.first_token; i < piece.first_token + piece.token_count; ++i)
      add(s.tokens[i], i < s.logprobs.size() ? &s.logprobs[i] : nullptr);
  }
  /// What was added since the last call.
  Json take() {
    Json lists = {{"tokens", std::move(tokens_)},
                  {"token_logprobs", std::move(logprobs_)},
                  {"top_logprobs", std::move(top_)},
                  {"text_offset", std::move(offsets_)}};
    tokens_ = logprobs_ = top_ = offsets_ = Json::array();
    return lists;
  }

 private:
  /// The text of new tokens begins at 0, and where the prompt's end decides about a space it must be seen.
  void skip(const std::vector<int32_t>& ids) {
    std::string unused;
    for (size_t i = ids.size() - std::min<size_t>(ids.size(), 8); i < ids.size(); ++i)
      tokenizer_.append_bytes(ids[i], skip_special_, at_start_, unused);
  }
  void add(int32_t id, const TokenLogprob* logprob) {
    tokens_.push_back(token_text(tokenizer_, id));
    offsets_.push_back(characters_);
    std::string bytes;
    tokenizer_.append_bytes(id, skip_special_, at_start_, bytes);
    for (const char c : bytes) characters_ += (static_cast<unsigned char>(c) & 0xc0) != 0x80;
    logprobs_.push_back(logprob ? Json(finite(logprob->logprob)) : Json(nullptr));
    if (!logprob) return top_.push_back(nullptr);
    Json best = Json::object();
    for (size_t k = 0; k < std::min(static_cast<size_t>(most_), logprob->top.size()); ++k)
      best.emplace(token_text(tokenizer_, logprob->top[k].first), finite(logprob->top[k].second));
    best.emplace(token_text(tokenizer_, id), finite(logprob->logprob));
    top_.push_back(std::move(best));
  }

  const Tokenizer& tokenizer_;
  bool skip_special_, at_start_ = true;
  int most_;
  size_t characters_ = 0;
  Json tokens_ = Json::array(), logprobs_ = Json::array(), top_ = Json::array(), offsets_ = Json::array();
};

std::string echo_text(const Generation& generation, const Choice& s) {
  const Prompt& prompt = generation.prompts()[s.prompt];
  if (prompt.text && prompt.dropped == 0) return *prompt.text;
  return generation.model().tokenizer->decode(prompt.ids, generation.params().skip_special_tokens);
}

class CompletionWriter final : public EventWriter {
 public:
  CompletionWriter() : EventWriter(Dialect::openai), stream_("cmpl-", "text_completion", "text_completion") {}

  void piece(Generation& generation, Choice& s, const Piece& piece) override {
    Json choice = opened(generation, s, piece.text);
    if (generation.params().logprobs) {
      LogprobLists& lists = lists_.try_emplace(s.index, generation, s).first->second;
      lists.add(s, piece);
      choice["logprobs"] = lists.take();
    }
    if (generation.params().return_token_ids) {
      const auto begin = s.tokens.begin() + static_cast<std::ptrdiff_t>(piece.first_token);
      choice["token_ids"] = std::vector<int32_t>(begin, begin + static_cast<std::ptrdiff_t>(piece.token_count));
    }
    add_experts(generation, s, choice);
    stream_.choice(generation, std::move(choice));
  }

  void ended(Generation& generation, Choice& s) override {
    Json choice = opened(generation, s, "");
    choice["finish_reason"] = s.finish_name();
    choice["stop_reason"] = stop_reason_json(s);
    add_experts(generation, s, choice);
    stream_.choice(generation, std::move(choice));
  }

  void finish(Generation& generation) override {
    if (generation.params().stream) return stream_.close(generation);
    const Params& p = generation.params();
    Json body = stream_.whole(generation);
    body["choices"] = Json::array();
    for (const Choice* s : chosen(generation)) body["choices"].push_back(whole_choice(generation, *s, body["choices"].size()));
    body["usage"] = usage_json(generation.figures());
    if (p.timings) body["timings"] = timings_json(generation.figures());
    answer_generation(generation, body);
  }

 private:
  /// A chunk's choice; the first one of a sequence carries the echo.
  Json opened(const Generation& generation, const Choice& s, std::string_view text) {
    const bool first = generation.params().echo && echoed_.insert(s.index).second;
    return {{"index", s.index},
            {"text", (first ? echo_text(generation, s) : "") + std::string(text)},
            {"logprobs", nullptr},
            {"finish_reason", nullptr}};
  }

  static Json whole_choice(const Generation& generation, const Choice& s, size_t index) {
    const Params& p = generation.params();
    const Prompt& prompt = generation.prompts()[s.prompt];
    Json choice = {{"index", index},
                   {"text", (p.echo ? echo_text(generation, s) : "") + s.text},
                   {"logprobs", nullptr},
                   {"finish_reason", s.finish_name()},
                   {"stop_reason", stop_reason_json(s)}};
    if (p.logprobs) {
      LogprobLists lists(generation, s);
      lists.add(s, {s.text, 0, s.tokens.size()});
      choice["logprobs"] = lists.take();
    }
    if (p.return_token_ids) choice["token_ids"] = s.tokens, choice["prompt_token_ids"] = prompt.ids;
    if (p.return_routed_experts) choice["routed_experts"] = routed_experts_json(generation.model(), s);
    if (p.prompt_logprobs && !(p.echo && p.logprobs == p.prompt_logprobs))
      choice["prompt_logprobs"] = prompt_logprobs_json(*generation.model().tokenizer, s);
    if (prompt.dropped > 0) choice["truncated_prompt_tokens"] = prompt.dropped;
    return choice;
  }

  OpenAiStream stream_;
  std::map<int, LogprobLists> lists_;
  std::set<int> echoed_;
};

}  // namespace

const FieldTable& completion_fields() {
  static const FieldTable table{
      {required(json_field("prompt", FieldType::any, &Params::prompt,
                           "a string, a list of strings, token ids, or a list of lists of token ids")),
       integer_field("max_tokens", member(&Params::max_tokens), {0, 2147483647}, "most new tokens; 0 with echo scores the prompt"),
       integer_field("best_of", member(&Params::best_of), {1, 64},
                     "generate that many, give the n with the highest mean log-probability"),
       integer_field("logprobs", member(&Params::logprobs), {0, 20}, "log-probabilities of tokens, with that many alternatives"),
       boolean_field("echo", member(&Params::echo), "give the prompt back before the answer"),
       boolean_field("add_special_tokens", member(&Params::add_special_tokens), "put the model's own begin token before text prompts"),
       refused_field("suffix", {""}, "the model does not fill in text between two others")},
      openai_shared_fields(),
      sampling_fields(),
      request_fields()};
  return table;
}

Params completion_defaults(const ServedModel& model) {
  Params p = openai_defaults(model);
  p.default_max_tokens = 16;
  return p;
}

void completions(Call& call) {
  Job job = read_job(call);
  Params& p = job.params;
  if (p.best_of && *p.best_of < p.n)
    throw ApiError(ApiCode::invalid_value, fmt::format("best_of is {}, wanted at least n, which is {}", *p.best_of, p.n),
                   "best_of");
  if (p.stream && p.best_of.value_or(p.n) > p.n)
    throw ApiError(ApiCode::not_supported, "best_of above n cannot be streamed; leave stream out", "best_of");
  if (p.stream && p.prompt_logprobs)
    throw ApiError(ApiCode::not_supported, "prompt_logprobs come only with a whole answer; leave stream out", "prompt_logprobs");
  if (p.echo && p.logprobs && !p.prompt_logprobs) p.prompt_logprobs = p.logprobs;
  std::vector<Prompt> prompts = read_prompts(call, p);
  start_generation(call, std::move(job), std::move(prompts), std::make_unique<CompletionWriter>(), true);
}

}  // namespace conclave
