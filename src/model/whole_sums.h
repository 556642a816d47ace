#pragma once
// --deterministic=world: no sum is cut between ranks, so that every layout has the bits of one rank. What enters a sum is gathered before it and
// outputs are shared out instead: o_proj by rows of its output, dense and shared feed-forwards and experts by tokens, whole experts staying on
// their ranks. An expert's output for a token returns by itself, and the token's rank adds them in ascending expert order, the shared one last,
// as one rank does. Costs: docs/parallel.md.
#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "model/ranks.h"

namespace conclave {

class WholeSums {
 public:
  /// Buffers for steps within `limits` are allocated here; `width` is that of all ranks' heads together.
  WholeSums(const Ranks& ranks, Backend& backend, const StepLimits& limits, int64_t width);
  static size_t bytes(const ParallelLayout& layout, const StepLimits& limits, int64_t width);

  /// delta [T, D] = o_proj of every rank's heads; `mixed` are this rank's, `o` its rows of the output.
  void output(Tensor delta, Tensor mixed, const Weight& o, int64_t heads);
  /// The dense feed-forward.
  void feed(Tensor delta, Tensor x, const SwiGluWeights& weights);
  struct Call {
    Tensor delta, x;
    Routing routing;            ///< of the model's experts
    int num_experts = 0;
    IndexRange held;            ///< this rank's
    std::span<const SwiGluWeights> experts;
    const SwiGluWeights* shared = nullptr;
  };
  /// Routed and shared experts. Collective over the stage.
  void feed(const Call& call);

 private:
  void exchange(const Call& call, const IndexRange& own);
  void compute(const Call& call, int64_t rows);
  void gather_columns(const Tensor& out, const Tensor& part, std::span<const IndexRange> columns);
  /// A travelling row: D values and an expert's id.
  int64_t record() const { return hidden_ + 1; }

  const Ranks& ranks_;
  Backend& backend_;
  int64_t hidden_, max_rows_;
  bool fused_;                          ///< the backend's sums round once per product
  std::vector<float> wide_, scratch_, part_, sent_, received_, results_, back_;
  std::vector<int64_t> sends_, receives_;
  struct Origin { int32_t row, choice; };
  std::vector<Origin> origins_;         ///< of each sent record
};

}  // namespace conclave
