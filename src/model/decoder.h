#pragma once
// The forward pass of every family, read top to bottom: embed, then per layer attention and feed-forward over one residual stream in
// f32, final norm, head. Owns the step's activation buffers; knows tensors, not requests. Among several ranks it computes one rank's part:
// partial sums of attention and feed-forward meet where they are added to the residual stream, and nowhere else do layers ask for a rank.
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "model/expert_dispatch.h"
#include "model/ranks.h"
#include "model/spec.h"
#include "model/weights.h"

namespace conclave {

/// Named activations for tests and `dump`: point is "attn" or "ffn" (residual after the addition, [T, D]), "router_logits" [T, E],
/// "experts" [T, k] i32, "weights" [T, k], "final_norm" [T, D] (layer -1). Of the rows that the layer computes: see DecoderStep::kept_rows.
using Tap = std::function<void(std::string_view point, int layer, const Tensor& value)>;

/// One step's rows. `batch` says which sequence each belongs to.
struct DecoderStep {
  std::span<const int32_t> ids, positions;  ///< [T]
  BatchView batch;
  std::span<const int32_t> logit_rows;      ///< rows whose logits forward() returns, at most max_logit_rows()
  /// Trailing rows of each sequence whose logits may be asked for: of the others the last layer computes only what goes to the cache.
  /// Empty: all rows.
  std::span<const int32_t> kept_rows = {};
  int first_logit = 0;                      ///< row of the logits where those of this part of a step begin
  bool keep_all = false;                    ///< every row in the last layer too; what a tap on rank 0 implies must be said to all ranks
};

class Decoder {
 public:
  /// Activation buffers for steps within `limits` are allocated here. References must outlive the decoder. Among several ranks `spec` is the
  /// rank's local_spec(), and every call is collective.
  Decoder(const ModelSpec& spec, const Weights& weights, Backend& backend, const StepLimits& limits, const Ranks* ranks = nullptr);
  /// Bytes that the constructor allocates.
  static size_t activation_bytes(const ModelSpec& spec, const StepLimits& limits, const RankPlan* plan = nullptr);

  /// `kv` has one entry per layer. Returns logits [logit_rows.size(), vocab], valid until the next call; among several ranks those of the last
  /// stage have them.
  Tensor forward(const DecoderStep& step, std::span<const KvLayer> kv, const Tap& tap = {});

  /// Logits of other kept rows of the last step, for callers that want more of them than one call returns.
  Tensor logits(std::span<const int32_t> rows);
  int max_logit_rows() const;

  /// Several stages: brings the first n rows of logits, which forward() left on the last stage, to the first rank of each data group. Called
  /// once after the last part of a step.
  Tensor deliver(int64_t n);

 private:
  struct Activations;
  enum class Part : uint8_t { query, cache, both };
  /// Attention in three parts: projections of the normed rows; rotated keys and values to the cache; the queries' answers to delta.
  void project(const GqaWeights& w, const GqaSpec& spec, Part part);
  void project(const MlaWeights& w, const MlaSpec& spec, Part part);
  void store(const GqaSpec& spec, const KvLayer& kv, const BatchView& batch);
  void store(const MlaSpec& spec, const KvLayer& kv, const BatchView& batch);
  void answer(const GqaWeights& w, const GqaSpec& spec, const KvLayer& kv, const BatchView& batch);
  void answer(const MlaWeights& w, const MlaSpec& spec, const KvLayer& kv, const BatchView& batch);
  void attend(int layer, const KvLayer& kv, const DecoderStep& step, bool keep_all);
  BatchView keep_rows(const DecoderStep& step);
  void begin(const DecoderStep& step);
  void add_norm(const Tensor& gain);
  void norm_first(const Tensor& gain);
  void output(const Tensor& mixed, const Weight& o);
  void hand_over();
  Tensor compute_logits(std::span<const int32_t> rows, int first);
  void feed(int layer, const SwiGluWeights& w, const DenseSpec& spec, const Tap& tap);
  void feed(int layer, const MoeWeights& w, const MoeSpec& spec, const Tap& tap);

  const ModelSpec& spec_;
  const Weights& weights_;
  Backend& backend_;
  const Ranks* ranks_;
  std::shared_ptr<Activations> a_;
  std::unique_ptr<ExpertDispatch> dispatch_;
};

/// Step limits that a model and an engine configuration imply.
StepLimits step_limits(const ModelSpec& spec, int max_rows, int max_sequences, int max_context);

}  // namespace conclave
