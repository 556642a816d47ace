#pragma once
// Tokens travel to the ranks that hold their experts, and the experts' weighted sums back. Each rank sends the rows of its own share of the
// data group, so that no token is computed twice; a row goes once to each rank of an expert group that it chose from. Sums are added in rank
// order. A rank without rows takes part with none.
#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "model/ranks.h"

namespace conclave {

class ExpertDispatch {
 public:
  /// Buffers for steps of at most `max_rows` rows in each data group are allocated here.
  ExpertDispatch(const Ranks& ranks, Backend& backend, int hidden_size, int top_k, int max_rows);
  /// Bytes that the constructor allocates.
  static size_t bytes(const ParallelLayout& layout, int hidden_size, int top_k, int max_rows);

  /// out [T, D]: routed experts' outputs for this rank's own rows of x, zeros elsewhere. `routing` names experts of the model; `held` are
  /// this rank's, whose weights are `experts`. `inner_max` as in Backend::ffn. Collective over the stage.
  struct Call {
    Tensor out, x;
    Routing routing;
    int num_experts = 0;
    IndexRange held;
    std::span<const SwiGluWeights> experts;
    const InnerMax* inner_max = nullptr;
  };
  void run(const Call& call);

 private:
  /// A travelling row: D values, top_k expert ids, top_k weights.
  int64_t record() const { return hidden_ + 2 * top_k_; }
  void pack(const Call& call);
  void compute(const Call& call);
  void combine(const Call& call);

  const Ranks& ranks_;
  Backend& backend_;
  int64_t hidden_, top_k_, max_rows_;
  std::vector<float> sent_, received_, results_;
  std::vector<int32_t> row_of_sent_;  ///< row of x behind each sent record
  std::vector<int64_t> sends_, receives_;      ///< records to and from each rank of the stage
  std::vector<int64_t> send_bytes_, receive_bytes_;
};

}  // namespace conclave
