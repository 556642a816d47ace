#pragma once
// From one row of logits to one token. Filters follow transformers' logits processors in their order: repetition, presence and frequency
// penalties, temperature, top-k, top-p, min-p. Random numbers are a pure function of (seed, position), so that a request's text does not
// depend on what else runs. Scratch memory is reserved for the vocabulary once.
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/request.h"

namespace conclave {

/// A sequence's tokens so far: prompt, then generated.
struct TokenHistory {
  std::span<const int32_t> tokens;
  int prompt_len = 0;
};

/// The chosen token, or why none can be chosen.
struct Draw {
  int32_t token = -1;
  std::string error;
};

/// Index of the largest value, the lower one on ties; an error for NaN, +infinity, or when nothing is above -infinity.
Draw argmax(std::span<const float> logits);

/// Uniform in [0, 1).
double uniform(uint64_t seed, uint64_t position);

class Sampler {
 public:
  explicit Sampler(int vocab_size);

  /// Next token after `history`. Greedy when temperature is 0.
  Draw draw(std::span<const float> logits, const Sampling& sampling, const TokenHistory& history);

  struct Candidate {
    int32_t id = 0;
    float score = 0;
    double probability = 0;
  };
  /// Tokens that survive the filters with their probabilities (sum 1): what draw() picks from at temperature > 0. Valid until the
  /// next call.
  std::span<const Candidate> distribution(std::span<const float> logits, const Sampling& sampling, const TokenHistory& history);

 private:
  void penalise(std::span<const float> logits, const Sampling& sampling, const TokenHistory& history);
  void keep_top_k(int k);
  void keep_top_p(float top_p);
  void keep_min_p(float min_p);
  double normalise();

  std::vector<float> scores_, sorted_;
  std::vector<int32_t> counts_;
  std::vector<Candidate> candidates_;
};

}  // namespace conclave
