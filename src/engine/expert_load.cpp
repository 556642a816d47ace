#include "engine/expert_load.h"

#include <algorithm>
#include <numeric>

namespace conclave {

std::vector<MoeLayer> moe_layers(const ModelSpec& spec) {
  std::vector<MoeLayer> layers;
  for (int layer = 0; layer < spec.num_layers(); ++layer)
    if (const auto* moe = std::get_if<MoeSpec>(&spec.layers[static_cast<size_t>(layer)]))
      layers.push_back({layer, moe->router.num_experts, moe->router.top_k});
  return layers;
}

ExpertLoad::ExpertLoad(std::vector<MoeLayer> layers, int every_steps)
    : layers_(std::move(layers)), every_steps_(every_steps), began_(std::chrono::steady_clock::now()) {
  size_t count = 0;
  for (const MoeLayer& layer : layers_) {
    first_.push_back(count);
    count += static_cast<size_t>(layer.num_experts);
  }
  total_.assign(count, 0), recent_.assign(count, 0);
  slots_.assign(kSpans, {-1, std::vector<uint32_t>(count)});
}

int64_t ExpertLoad::span_of(Time now) const {
  return std::chrono::duration_cast<std::chrono::seconds>(now - began_).count() / kSpanSeconds;
}

/// Empties the slots that have left the window which ends with `span`.
void ExpertLoad::expire(int64_t span) const {
  for (Slot& slot : slots_) {
    if (slot.span < 0 || slot.span > span - kSpans) continue;
    std::transform(recent_.begin(), recent_.end(), slot.counts.begin(), recent_.begin(), std::minus<>());
    std::fill(slot.counts.begin(), slot.counts.end(), 0);
    slot.span = -1;
  }
}

void ExpertLoad::add(std::span<const uint32_t> counts, Time now) {
  const int64_t span = span_of(now);
  const std::lock_guard lock(mutex_);
  expire(span);
  Slot& slot = slots_[static_cast<size_t>(span % kSpans)];
  slot.span = span;
  ++steps_;
  for (size_t i = 0; i < total_.size(); ++i) {
    total_[i] += counts[i];
    recent_[i] += counts[i];
    slot.counts[i] += counts[i];
  }
}

ExpertLoad::Counts ExpertLoad::counts(Time now) const {
  const std::lock_guard lock(mutex_);
  expire(span_of(now));
  return {steps_, total_, recent_};
}

std::vector<ExpertLoad::Span> ExpertLoad::history(size_t layer, Time now) const {
  const auto begin = static_cast<std::ptrdiff_t>(first_[layer]), end = begin + layers_[layer].num_experts;
  const double now_s = std::chrono::duration<double>(now - began_).count();
  std::vector<Span> spans;
  {
    const std::lock_guard lock(mutex_);
    expire(span_of(now));
    for (const Slot& slot : slots_)
      if (slot.span >= 0)
        spans.push_back({now_s - static_cast<double>(slot.span * kSpanSeconds), {slot.counts.begin() + begin, slot.counts.begin() + end}});
  }
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.age_s > b.age_s; });
  return spans;
}

std::optional<double> imbalance(std::span<const uint64_t> counts) {
  const uint64_t sum = std::accumulate(counts.begin(), counts.end(), uint64_t{0});
  if (sum == 0) return std::nullopt;
  return static_cast<double>(*std::max_element(counts.begin(), counts.end())) * static_cast<double>(counts.size()) / static_cast<double>(sum);
}

}  // namespace conclave
