#include "engine/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "core/error.h"

namespace conclave {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection whose output bits all depend on all input bits.
uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

bool has_penalties(const Sampling& s) {
  return s.repetition_penalty != 1.0f || s.presence_penalty != 0.0f || s.frequency_penalty != 0.0f;
}

}  // namespace

Draw argmax(std::span<const float> logits) {
  int32_t best = -1;
  float top = -kInfinity;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i])) return {-1, fmt::format("logit {} is NaN: the weights or activations are damaged", i)};
    if (logits[i] > top) top = logits[i], best = static_cast<int32_t>(i);
  }
  if (best < 0) return {-1, "no logit is above -infinity"};
  if (top == kInfinity) return {-1, fmt::format("logit {} is infinite: the weights or activations are damaged", best)};
  return {best, {}};
}

double uniform(uint64_t seed, uint64_t position) {
  constexpr uint64_t kGolden = 0x9e3779b97f4a7c15ull;
  return static_cast<double>(mix(mix(seed + kGolden) + (position + 1) * kGolden) >> 11) * 0x1p-53;
}

Sampler::Sampler(int vocab_size) : counts_(static_cast<size_t>(vocab_size)) {
  scores_.reserve(counts_.size());
  sorted_.reserve(counts_.size());
  candidates_.reserve(counts_.size());
}

/// scores_ = logits after penalties. The repetition penalty counts prompt and answer (as transformers does), the other two only
/// the answer (as the OpenAI API defines them).
void Sampler::penalise(std::span<const float> logits, const Sampling& s, const TokenHistory& history) {
  if (logits.size() != counts_.size())
    throw Error(Error::Kind::internal, fmt::format("{} logits for a vocabulary of {}", logits.size(), counts_.size()));
  scores_.assign(logits.begin(), logits.end());
  if (s.repetition_penalty != 1.0f)
    for (const int32_t id : history.tokens) {
      const auto i = static_cast<size_t>(id);
      if (counts_[i]++ == 0)
        scores_[i] = scores_[i] < 0 ? scores_[i] * s.repetition_penalty : scores_[i] / s.repetition_penalty;
    }
  for (const int32_t id : history.tokens) counts_[static_cast<size_t>(id)] = 0;
  if (s.presence_penalty == 0.0f && s.frequency_penalty == 0.0f) return;
  const auto answer = history.tokens.subspan(static_cast<size_t>(history.prompt_len));
  for (const int32_t id : answer) ++counts_[static_cast<size_t>(id)];
  for (const int32_t id : answer) {
    const auto i = static_cast<size_t>(id);
    if (counts_[i] == 0) continue;
    scores_[i] -= s.frequency_penalty * static_cast<float>(counts_[i]) + s.presence_penalty;
    counts_[i] = 0;
  }
}

/// Ties with the k-th score stay, as in transformers.
void Sampler::keep_top_k(int k) {
  const auto kept = static_cast<size_t>(k);
  if (k == 0 || kept >= candidates_.size()) return;
  sorted_.clear();
  for (const Candidate& c : candidates_) sorted_.push_back(c.score);
  std::nth_element(sorted_.begin(), sorted_.begin() + (k - 1), sorted_.end(), std::greater<>());
  const float threshold = sorted_[kept - 1];
  std::erase_if(candidates_, [&](const Candidate& c) { return c.score < threshold; });
}

/// Sets probabilities; returns the largest.
double Sampler::normalise() {
  float top = -kInfinity;
  for (const Candidate& c : candidates_) top = std::max(top, c.score);
  double sum = 0;
  for (Candidate& c : candidates_) sum += c.probability = std::exp(static_cast<double>(c.score) - top);
  for (Candidate& c : candidates_) c.probability /= sum;
  return 1.0 / sum;
}

/// Keeps a token while the more probable ones together stay below top_p; at least one. Takes them off a heap: few are needed.
void Sampler::keep_top_p(float top_p) {
  if (top_p >= 1.0f) return;
  normalise();
  const auto less_probable = [](const Candidate& a, const Candidate& b) {
    return a.score != b.score ? a.score < b.score : a.id > b.id;
  };
  std::make_heap(candidates_.begin(), candidates_.end(), less_probable);
  double mass = 0;
  auto end = candidates_.end();
  while (end != candidates_.begin() && (end == candidates_.end() || mass < top_p)) {
    std::pop_heap(candidates_.begin(), end, less_probable);
    mass += (--end)->probability;
  }
  candidates_.erase(candidates_.begin(), end);
  std::reverse(candidates_.begin(), candidates_.end());
}

void Sampler::keep_min_p(float min_p) {
  if (min_p <= 0.0f) return;
  const double least = normalise() * min_p;
  std::erase_if(candidates_, [&](const Candidate& c) { return c.probability < least; });
}

std::span<const Sampler::Candidate> Sampler::distribution(std::span<const float> logits, const Sampling& s,
                                                          const TokenHistory& history) {
  penalise(logits, s, history);
  candidates_.clear();
  for (size_t i = 0; i < scores_.size(); ++i)
    if (scores_[i] > -kInfinity) candidates_.push_back({static_cast<int32_t>(i), scores_[i] / s.temperature, 0.0});
  keep_top_k(s.top_k);
  keep_top_p(s.top_p);
  keep_min_p(s.min_p);
  normalise();
  return candidates_;
}

Draw Sampler::draw(std::span<const float> logits, const Sampling& sampling, const TokenHistory& history) {
  Draw best = argmax(logits);
  if (!best.error.empty()) return best;
  if (sampling.temperature == 0.0f) {
    if (!has_penalties(sampling)) return best;
    penalise(logits, sampling, history);
    return argmax(scores_);
  }
  const auto candidates = distribution(logits, sampling, history);
  double left = uniform(sampling.seed, history.tokens.size());
  for (const Candidate& c : candidates)
    if ((left -= c.probability) < 0) return {c.id, {}};
  return {candidates.back().id, {}};
}

}  // namespace conclave
