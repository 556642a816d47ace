#pragma once
// How often each expert was chosen, layer by layer: totals since the start, and the last minutes in short spans. The engine's thread adds the
// counts of the steps it samples, any thread reads. All memory is allocated at construction; the lock is held only to add or copy counts.
#include <chrono>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "model/spec.h"

namespace conclave {

/// A layer with routed experts.
struct MoeLayer {
  int layer = 0, num_experts = 0, top_k = 0;
};
/// In order; dense layers are left out, MTP layers are never run.
std::vector<MoeLayer> moe_layers(const ModelSpec& spec);

/// Counts of all layers one after another, each with its layer's num_experts.
class ExpertLoad {
 public:
  using Time = std::chrono::steady_clock::time_point;
  static constexpr int kSpanSeconds = 2, kSpans = 90;  ///< the window is three minutes

  ExpertLoad(std::vector<MoeLayer> layers, int every_steps);

  /// One step of that many is sampled.
  int every_steps() const { return every_steps_; }
  const std::vector<MoeLayer>& layers() const { return layers_; }
  size_t num_counts() const { return total_.size(); }
  /// Where a layer's counts begin.
  size_t first(size_t layer) const { return first_[layer]; }
  std::span<const uint64_t> of_layer(std::span<const uint64_t> counts, size_t layer) const {
    return counts.subspan(first_[layer], static_cast<size_t>(layers_[layer].num_experts));
  }

  /// A sampled step: how many of its rows chose each expert.
  void add(std::span<const uint32_t> counts, Time now);

  struct Counts {
    uint64_t steps = 0;                   ///< sampled ones since the start
    std::vector<uint64_t> total, recent;  ///< since the start, and in the window
  };
  Counts counts(Time now) const;

  /// One layer in one span of kSpanSeconds.
  struct Span {
    double age_s = 0;  ///< from its begin to now
    std::vector<uint32_t> counts;
  };
  /// The window's spans that have samples, oldest first.
  std::vector<Span> history(size_t layer, Time now) const;

 private:
  struct Slot {
    int64_t span = -1;  ///< number of the span since construction; -1: empty
    std::vector<uint32_t> counts;
  };
  int64_t span_of(Time now) const;
  void expire(int64_t span) const;

  std::vector<MoeLayer> layers_;
  std::vector<size_t> first_;
  int every_steps_;
  Time began_;
  mutable std::mutex mutex_;  // guards what follows
  uint64_t steps_ = 0;
  std::vector<uint64_t> total_;
  mutable std::vector<uint64_t> recent_;
  mutable std::vector<Slot> slots_;  ///< span s is in slot s % kSpans
};

/// Largest count over the mean: 1 is perfect balance, the number of experts the opposite. Nothing without counts.
std::optional<double> imbalance(std::span<const uint64_t> counts);

}  // namespace conclave
