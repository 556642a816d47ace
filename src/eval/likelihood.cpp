#include "eval/likelihood.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace conclave {
namespace {

double log_sum(std::span<const float> row) {
  const double top = *std::max_element(row.begin(), row.end());
  double sum = 0;
  for (const float x : row) sum += std::exp(static_cast<double>(x) - top);
  return top + std::log(sum);
}

/// The smallest value that at least `share` of the sorted values do not exceed.
double quantile(const std::vector<double>& sorted, double share) {
  const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(sorted.size())));
  return sorted[std::clamp<size_t>(rank, 1, sorted.size()) - 1];
}

size_t top_of(std::span<const float> row) { return static_cast<size_t>(std::max_element(row.begin(), row.end()) - row.begin()); }

}  // namespace

std::vector<TextWindow> windows_of(std::span<const int32_t> ids, const WindowOptions& o) {
  const auto refuse = [](const std::string& message) { throw Error(Error::Kind::bad_input, message); };
  if (ids.size() < 2) refuse(fmt::format("the text has {} tokens, wanted at least 2", ids.size()));
  if (o.window < 2) refuse(fmt::format("--window is {}, wanted at least 2", o.window));
  if (o.stride == 0 || o.stride > o.window) refuse(fmt::format("--stride is {}, wanted 1 to the window's {}", o.stride, o.window));
  std::vector<TextWindow> windows;
  const size_t extra = o.begin_id >= 0 ? 1 : 0;
  for (size_t begin = 0, known = 0; known < ids.size(); begin += o.stride) {
    if (o.limit > 0 && windows.size() == o.limit) break;
    const size_t end = std::min(begin + o.window, ids.size());
    TextWindow window;
    if (extra > 0) window.ids.push_back(o.begin_id);
    window.ids.insert(window.ids.end(), ids.begin() + static_cast<std::ptrdiff_t>(begin), ids.begin() + static_cast<std::ptrdiff_t>(end));
    window.scored_from = std::max<size_t>(1, known - begin + extra);
    known = end;
    if (window.scored_from < window.ids.size()) windows.push_back(std::move(window));
  }
  return windows;
}

double Perplexity::value() const { return std::exp(nll); }
double Perplexity::error() const { return value() * nll_error; }

Perplexity measure_perplexity(std::vector<TextWindow> windows, Runner& runner, const std::function<void(size_t, size_t)>& progress) {
  std::vector<std::vector<double>> losses(windows.size());
  size_t given = 0, done = 0;
  runner.run(
      [&]() -> std::optional<Query> {
        if (given == windows.size()) return std::nullopt;
        TextWindow& window = windows[given++];
        return Query{.prompt = std::move(window.ids), .scored_from = window.scored_from};
      },
      [&](size_t index, Reply&& reply) {
        for (const float x : reply.logprobs) losses[index].push_back(-static_cast<double>(x));
        if (progress) progress(++done, windows.size());
      });
  std::vector<double> all;
  for (const auto& part : losses) all.insert(all.end(), part.begin(), part.end());
  const Estimate e = estimate(all);
  return {e.count, windows.size(), e.mean, e.error};
}

double row_divergence(std::span<const float> p, std::span<const float> q) {
  const double p_sum = log_sum(p), q_sum = log_sum(q);
  double kl = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    const double lp = static_cast<double>(p[i]) - p_sum, lq = static_cast<double>(q[i]) - q_sum;
    if (const double weight = std::exp(lp); weight > 0) kl += weight * (lp - lq);
  }
  return std::max(0.0, kl);
}

Divergence measure_divergence(const std::vector<TextWindow>& windows, Engine& first, Engine& second,
                              const std::function<void(size_t, size_t)>& progress) {
  if (first.spec().vocab_size != second.spec().vocab_size)
    throw Error(Error::Kind::bad_input, fmt::format("the models' vocabularies have {} and {} ids: their distributions cannot be compared",
                                                    first.spec().vocab_size, second.spec().vocab_size));
  const auto vocab = static_cast<size_t>(first.spec().vocab_size);
  std::vector<double> divergences, agreements, losses_first, losses_second;
  for (size_t w = 0; w < windows.size(); ++w) {
    const TextWindow& window = windows[w];
    const Engine::Trace a = first.trace(window.ids, 0), b = second.trace(window.ids, 0);
    for (size_t i = window.scored_from; i < window.ids.size(); ++i) {
      const std::span<const float> p(a.logits.data() + (i - 1) * vocab, vocab), q(b.logits.data() + (i - 1) * vocab, vocab);
      divergences.push_back(row_divergence(p, q));
      agreements.push_back(top_of(p) == top_of(q) ? 1.0 : 0.0);
      const auto id = static_cast<size_t>(window.ids[i]);
      losses_first.push_back(log_sum(p) - static_cast<double>(p[id]));
      losses_second.push_back(log_sum(q) - static_cast<double>(q[id]));
    }
    if (progress) progress(w + 1, windows.size());
  }
  Divergence out;
  out.tokens = divergences.size();
  out.windows = windows.size();
  out.kl = estimate(divergences);
  out.same_top = estimate(agreements);
  out.nll_first = estimate(losses_first).mean;
  out.nll_second = estimate(losses_second).mean;
  const auto above = [&](double limit) {
    return static_cast<size_t>(std::count_if(divergences.begin(), divergences.end(), [&](double x) { return x > limit; }));
  };
  out.above_1e4 = above(1e-4);
  out.above_1e3 = above(1e-3);
  std::sort(divergences.begin(), divergences.end());
  out.median = quantile(divergences, 0.5);
  out.p99 = quantile(divergences, 0.99);
  out.most = divergences.back();
  return out;
}

}  // namespace conclave
