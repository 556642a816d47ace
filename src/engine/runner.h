#pragma once
// Carries out step plans on one rank: turns a plan's integers into a batch for the decoder, over a paged cache that it owns. Decides nothing.
#include <span>
#include <vector>

#include "backend/backend.h"
#include "core/tensor.h"
#include "engine/step_plan.h"
#include "model/decoder.h"
#include "model/spec.h"
#include "model/weights.h"

namespace conclave {

/// Shape of the paged cache: num_blocks blocks of block_size positions for every layer.
struct CacheShape {
  DType dtype = DType::f32;
  int num_blocks = 0, block_size = 0;
  bool saturate_f16 = false;
};
/// Bytes of the cache over all layers.
size_t cache_bytes(const ModelSpec& spec, const CacheShape& shape);

/// Rows at a chunk's end whose logits may be asked for; of its others the last layer computes only what goes to the cache.
int32_t kept_rows(const Chunk& chunk);

class Runner {
 public:
  /// Allocates cache and activations; references must outlive the runner. Among several ranks (`spec` is then the rank's local_spec()) every
  /// call is made by all of them with the same arguments, but for the tap, which only rank 0 has.
  Runner(const ModelSpec& spec, const Weights& weights, Backend& backend, const StepLimits& limits, const CacheShape& cache,
         const Ranks* ranks = nullptr);

  /// Logits [n, vocab] of the last rows of the chunks with `sample`, in the plan's order; valid until the next call.
  /// In the last layer a tap sees kept rows only, or with `all_rows` every row, which are then computed.
  Tensor run(const StepPlan& plan, const Tap& tap = {}, bool all_rows = false);
  /// The same for rows that the caller names (at most max_logit_rows()); a tap sees all rows.
  Tensor run(const StepPlan& plan, std::span<const int32_t> logit_rows, const Tap& tap, bool all_rows = false);
  /// Logits of further rows of the last step: scored ones and the sampled one, or any after a call with named rows.
  Tensor logits(std::span<const int32_t> rows) { return decoder_.logits(rows); }
  int max_logit_rows() const { return decoder_.max_logit_rows(); }

 private:
  struct Rows { std::span<const int32_t> logits, kept; int first_logit = 0; bool all_rows = false; };
  Tensor run_part(const StepPlan& plan, int first_logit, const Tap& tap, bool all_rows);
  Tensor forward(const StepPlan& plan, const Rows& rows, const Tap& tap);

  Decoder decoder_;
  int block_size_, microbatches_;
  Buffer cache_;
  std::vector<KvLayer> layers_;
  std::vector<SequenceRows> sequences_;
  std::vector<int32_t> sampled_rows_, kept_rows_;
};

}  // namespace conclave
