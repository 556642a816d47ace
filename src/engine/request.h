#pragma once
// What the engine is asked and what it answers: token ids in, token ids out. No text, no tensors.
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace conclave {

using RequestId = uint64_t;

/// Penalises continuing a repetition (DRY, p-e-w 2024): multiplier * base^(match - allowed_length). multiplier 0 is off.
struct DrySampling {
  float multiplier = 0.0f, base = 1.75f;
  int allowed_length = 2;
  int range = 0;                          ///< tokens looked back; 0: the whole sequence
  std::vector<int32_t> breakers = {};     ///< ids at which a match ends
};

/// temperature 0 = greedy (argmax, the lower id on ties) after the rules, without the filters. Rules: logit_bias, repetition, presence and
/// frequency penalty, DRY, bad words, min_tokens, allowed ids. Filters: top-n-sigma, top-k, temperature, top-p, min-p, typical-p, XTC,
/// mirostat. Order and arithmetic are those of transformers' logits processors, and llama.cpp's samplers for what only it has.
/// top_k 0, top_p 1, typical_p 1, min_p 0, top_n_sigma 0, xtc_probability 0, mirostat 0, penalties 1/0/0 are off.
struct Sampling {
  float temperature = 0.0f, top_p = 1.0f, min_p = 0.0f;
  int top_k = 0;
  float repetition_penalty = 1.0f, presence_penalty = 0.0f, frequency_penalty = 0.0f;
  uint64_t seed = 0;
  float typical_p = 1.0f, top_n_sigma = 0.0f;
  float xtc_probability = 0.0f, xtc_threshold = 0.1f;
  DrySampling dry = {};
  int mirostat = 0;                       ///< 0 or 2
  float mirostat_tau = 5.0f, mirostat_eta = 0.1f;
  std::vector<std::pair<int32_t, float>> logit_bias = {};  ///< added to the logits of these ids
  std::vector<int32_t> allowed_token_ids = {};             ///< empty: all
  std::vector<std::vector<int32_t>> bad_words = {};        ///< sequences that are never completed
  int min_tokens = 0;                                 ///< no EOS or stop id before that many new tokens
};

struct Request {
  std::vector<int32_t> prompt;
  Sampling sampling;
  int max_new_tokens = 20;
  std::vector<int32_t> eos_ids = {};         ///< end the answer and are not part of it; empty when EOS is ignored
  std::vector<int32_t> stop_token_ids = {};  ///< end the answer as its last token
  int logprobs = -1;                    ///< -1: none; k: log-probability of each new token and of the k most likely ones (at most 20)
  int prompt_logprobs = -1;             ///< the same for the prompt's tokens; the first has none
  bool return_experts = false;          ///< Delta::experts of each new token
  int priority = 3;                     ///< 1 (first) to 5
  double deadline_ms = 0;               ///< time after submit() at which a request that waits or runs is ended; 0: none
  uint64_t cache_salt = 0;              ///< prefixes are shared only between requests of the same salt
};

/// Throw bad_input naming the field, its value and the allowed range.
void validate(const Sampling& sampling);
/// The whole request for a model of `vocab_size` ids, lengths against the context excepted.
void validate(const Request& request, int vocab_size);

enum class FinishReason : uint8_t { none, stop, length, cancelled, deadline, error };
std::string_view name_of(FinishReason reason);  ///< "stop", "length", "cancelled", "deadline", "error", "" for none

/// Log-probability of a token under the model's own distribution (before sampling options), with its rank (1 = most likely) and the most
/// likely ids, best first.
struct TokenLogprob {
  int32_t id = -1;
  float logprob = 0.0f;
  int rank = 0;
  std::vector<std::pair<int32_t, float>> top;
};

/// Progress of one request in one step: at most one new token.
struct Delta {
  RequestId id = 0;
  std::vector<int32_t> tokens = {};                ///< an EOS id is not included, a stop id is
  std::vector<TokenLogprob> logprobs = {};         ///< of `tokens` when asked for, plus that of an EOS id when it ended the answer
  std::vector<TokenLogprob> prompt_logprobs = {};  ///< of prompt tokens 1.. in order, spread over the prefill's deltas
  /// When asked for: what the routers chose in the pass that gave the new token or the EOS id, which is the pass over the token before
  /// it: [MoE layers, k], in each layer ascending.
  std::vector<int32_t> experts = {};
  FinishReason finish = FinishReason::none;
  int32_t stop_id = -1;                       ///< the EOS or stop id that ended it
  std::string error = {};
};

/// Timings of a finished request, milliseconds.
struct RequestStats {
  int prompt_tokens = 0, cached_tokens = 0, new_tokens = 0;
  double queue_ms = 0, prefill_ms = 0, decode_ms = 0;
};

}  // namespace conclave
