#pragma once
// What the engine is asked and what it answers: token ids in, token ids out. No text, no tensors.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace conclave {

using RequestId = uint64_t;

/// temperature 0 = greedy (argmax, the lower id on ties). Filters apply in the order penalties, temperature, top-k, top-p, min-p, as in
/// transformers' logits processors. top_k 0, top_p 1, min_p 0, penalties 1/0/0 are off.
struct Sampling {
  float temperature = 0.0f, top_p = 1.0f, min_p = 0.0f;
  int top_k = 0;
  float repetition_penalty = 1.0f, presence_penalty = 0.0f, frequency_penalty = 0.0f;
  uint64_t seed = 0;
};
/// Throws bad_input naming the field, its value and the allowed range.
void validate(const Sampling& sampling);

struct Request {
  std::vector<int32_t> prompt;
  Sampling sampling;
  int max_new_tokens = 20;
  std::vector<int32_t> eos_ids;  ///< empty when EOS is ignored
  /// Requests of one non-zero session continue its cache: the longest common token prefix is not computed again (chat). The cache of
  /// a session is kept until end_session().
  uint64_t session = 0;
};

enum class FinishReason : uint8_t { none, stop, length, cancelled, error };
std::string_view name_of(FinishReason reason);  ///< "stop", "length", "cancelled", "error", "" for none

/// Progress of one request in one step: at most one new token.
struct Delta {
  RequestId id = 0;
  std::vector<int32_t> tokens;  ///< EOS is not included
  FinishReason finish = FinishReason::none;
  std::string error;
};

/// Timings of a finished request, milliseconds.
struct RequestStats {
  int prompt_tokens = 0, cached_tokens = 0, new_tokens = 0;
  double queue_ms = 0, prefill_ms = 0, decode_ms = 0;
};

}  // namespace conclave
