#include "engine/logit_rules.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace conclave {
namespace {

constexpr float kBanned = -std::numeric_limits<float>::infinity();
/// Longer repetitions count as this long, as in the original DRY: the penalty is beyond any logit by then, and the search stays short.
constexpr size_t kLongestMatch = 50;

bool must_go_on(const Sampling& s, const TokenHistory& history) {
  return s.min_tokens > 0 && static_cast<int>(history.generated().size()) < s.min_tokens;
}

bool contains(std::span<const int32_t> ids, int32_t id) { return std::find(ids.begin(), ids.end(), id) != ids.end(); }

/// Length of the longest common ending of tokens[0..end] and all tokens, whose last ones are known to be equal; ends at a breaker.
size_t match_length(std::span<const int32_t> tokens, size_t end, std::span<const int32_t> breakers) {
  size_t length = 1;
  while (length < kLongestMatch && length <= end) {
    const int32_t previous = tokens[tokens.size() - 1 - length];
    if (tokens[end - length] != previous || contains(breakers, previous)) break;
    ++length;
  }
  return length;
}

/// A model folder may name an end-of-text id that its vocabulary does not reach.
void ban_ids(std::span<float> scores, std::span<const int32_t> ids) {
  for (const int32_t id : ids)
    if (id >= 0 && static_cast<size_t>(id) < scores.size()) scores[static_cast<size_t>(id)] = kBanned;
}

/// The last id of a word is banned where the ids before it end the text so far (transformers' NoBadWordsLogitsProcessor).
void ban_words(std::span<float> scores, const std::vector<std::vector<int32_t>>& words, std::span<const int32_t> tokens) {
  for (const std::vector<int32_t>& word : words) {
    const size_t before = word.size() - 1;
    if (before <= tokens.size() && std::equal(word.begin(), word.end() - 1, tokens.end() - static_cast<std::ptrdiff_t>(before)))
      scores[static_cast<size_t>(word.back())] = kBanned;
  }
}

/// Penalties near 0 or with huge powers overflow: beyond kLargest counts as kLargest, and infinity less infinity as banned. Samplers need
/// one finite score at least, and an order of all.
void bound(std::span<float> scores) {
  constexpr float kLargest = 1e30f;
  for (float& score : scores) score = std::isnan(score) ? kBanned : std::min(score, kLargest);
}

}  // namespace

bool LogitRules::active(const Sampling& s, const TokenHistory& history) {
  return s.repetition_penalty != 1.0f || s.presence_penalty != 0.0f || s.frequency_penalty != 0.0f || s.dry.multiplier != 0.0f ||
         !s.logit_bias.empty() || !s.bad_words.empty() || !s.allowed_token_ids.empty() || must_go_on(s, history);
}

void LogitRules::apply(std::span<float> scores, const Sampling& s, const TokenHistory& history) {
  for (const auto& [id, bias] : s.logit_bias) scores[static_cast<size_t>(id)] += bias;
  penalise(scores, s, history);
  if (s.dry.multiplier != 0.0f) penalise_repetition(scores, s.dry, history.tokens);
  if (s.repetition_penalty != 1.0f || s.dry.multiplier != 0.0f) bound(scores);
  ban_words(scores, s.bad_words, history.tokens);
  if (must_go_on(s, history)) {
    ban_ids(scores, history.eos_ids);
    ban_ids(scores, history.stop_token_ids);
  }
  if (!s.allowed_token_ids.empty()) allow_only(scores, s.allowed_token_ids);
}

/// The repetition penalty counts prompt and answer (as transformers does), the other two only the answer (as the OpenAI API defines them).
void LogitRules::penalise(std::span<float> scores, const Sampling& s, const TokenHistory& history) {
  if (s.repetition_penalty != 1.0f) {
    for (const int32_t id : history.tokens) {
      const auto i = static_cast<size_t>(id);
      if (counts_[i]++ == 0) scores[i] = scores[i] < 0 ? scores[i] * s.repetition_penalty : scores[i] / s.repetition_penalty;
    }
    for (const int32_t id : history.tokens) counts_[static_cast<size_t>(id)] = 0;
  }
  if (s.presence_penalty == 0.0f && s.frequency_penalty == 0.0f) return;
  for (const int32_t id : history.generated()) ++counts_[static_cast<size_t>(id)];
  for (const int32_t id : history.generated()) {
    const auto i = static_cast<size_t>(id);
    if (counts_[i] == 0) continue;
    scores[i] -= s.frequency_penalty * static_cast<float>(counts_[i]) + s.presence_penalty;
    counts_[i] = 0;
  }
}

/// "Don't repeat yourself" (p-e-w 2024, text-generation-webui #5677; llama.cpp's llama_sampler_init_dry): a token that would prolong an
/// earlier sequence which the text's end repeats over n >= allowed_length tokens loses multiplier * base^(n - allowed_length).
void LogitRules::penalise_repetition(std::span<float> scores, const DrySampling& dry, std::span<const int32_t> tokens) {
  if (dry.range > 0 && tokens.size() > static_cast<size_t>(dry.range)) tokens = tokens.last(static_cast<size_t>(dry.range));
  if (tokens.size() < 2 || contains(dry.breakers, tokens.back())) return;
  for (size_t i = 0; i + 1 < tokens.size(); ++i) {
    if (tokens[i] != tokens.back() || contains(dry.breakers, tokens[i + 1])) continue;
    int32_t& longest = counts_[static_cast<size_t>(tokens[i + 1])];
    longest = std::max(longest, static_cast<int32_t>(match_length(tokens, i, dry.breakers)));
  }
  for (size_t i = 0; i + 1 < tokens.size(); ++i) {
    int32_t& longest = counts_[static_cast<size_t>(tokens[i + 1])];
    if (longest > 0 && longest >= dry.allowed_length)
      scores[static_cast<size_t>(tokens[i + 1])] -= dry.multiplier * std::pow(dry.base, static_cast<float>(longest - dry.allowed_length));
    longest = 0;
  }
}

void LogitRules::allow_only(std::span<float> scores, std::span<const int32_t> ids) {
  for (const int32_t id : ids) counts_[static_cast<size_t>(id)] = 1;
  for (size_t i = 0; i < scores.size(); ++i)
    if (counts_[i] == 0) scores[i] = kBanned;
  for (const int32_t id : ids) counts_[static_cast<size_t>(id)] = 0;
}

}  // namespace conclave
