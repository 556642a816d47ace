#pragma once
// How likely a text is to a model, and how far two models are apart on it: perplexity and Kullback-Leibler divergence over windows of a text.
// Windows start every `stride` tokens and are `window` long; of each, the tokens that no earlier window held are scored.
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "eval/evaluate.h"
#include "eval/runner.h"

namespace conclave {

struct WindowOptions {
  size_t window = 512, stride = 512;
  size_t limit = 0;               ///< most windows; 0: all
  int32_t begin_id = -1;          ///< put before every window (and not scored); below 0: none
};

struct TextWindow {
  std::vector<int32_t> ids;
  size_t scored_from = 1;  ///< first id whose probability counts
};
/// The windows of a text. Throws bad_input when the text has fewer than two tokens, or for a stride of 0 or above the window.
std::vector<TextWindow> windows_of(std::span<const int32_t> ids, const WindowOptions& options);

struct Perplexity {
  size_t tokens = 0, windows = 0;
  double nll = 0, nll_error = 0;  ///< mean negative log-probability per token and its standard error
  double value() const;           ///< exp(nll)
  double error() const;           ///< of the perplexity: value * nll_error
};
Perplexity measure_perplexity(std::vector<TextWindow> windows, Runner& runner, const std::function<void(size_t, size_t)>& progress = {});

struct Divergence {
  size_t tokens = 0, windows = 0;
  Estimate kl;                       ///< KL(first || second) per token, nats
  double median = 0, p99 = 0, most = 0;
  Estimate same_top;                 ///< share of positions where both models find the same token most likely
  size_t above_1e4 = 0, above_1e3 = 0;  ///< positions with a divergence above 1e-4 and above 1e-3
  double nll_first = 0, nll_second = 0;
};
/// Every row of logits of both models, window by window. The models must have the same vocabulary (bad_input otherwise).
Divergence measure_divergence(const std::vector<TextWindow>& windows, Engine& first, Engine& second,
                              const std::function<void(size_t, size_t)>& progress = {});

/// KL(p || q) of two rows of logits, in double.
double row_divergence(std::span<const float> p, std::span<const float> q);

}  // namespace conclave
