#pragma once
// How many ranks share one model: from a layout (tensor, data, pipeline and expert sizes) to the layers, heads, widths, vocabulary rows and
// experts that each rank holds. Integers only; every rule is checked here, before a weight is read. Ranks are numbered stage by stage, in a
// stage data group by data group, in that tensor rank by tensor rank (tensor ranks are neighbours); the experts of a stage are cut over all of
// its ranks: expert groups of moe_tp neighbours each. Cuts are contiguous and balanced: sizes differ by at most one (one quantisation group
// where packed weights must not be cut inside a group).
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/spec.h"

namespace conclave {

/// Half open.
struct IndexRange {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
  bool contains(int64_t i) const { return i >= begin && i < end; }
  bool operator==(const IndexRange&) const = default;
};
/// The part-th of `parts` pieces of [0, count), cut at multiples of `unit` (the last unit may be short).
IndexRange share(int64_t count, int part, int parts, int64_t unit = 1);

/// How routed experts meet the tokens of other ranks: every rank sees all tokens and one reduction adds the experts' outputs, or each token
/// travels to its experts and back.
enum class Dispatch : uint8_t { replicate, exchange };

struct ParallelLayout {
  int tp = 1, dp = 1, pp = 1;
  int moe_tp = 1, moe_ep = 1;
  bool sequence_parallel = false;
  int microbatches = 1;           ///< of a step, when pp > 1
  Dispatch dispatch = Dispatch::replicate;
  std::vector<int> stage_layers;  ///< layers of each stage; empty: balanced by bytes
  bool whole_sums = false;        ///< no sum is cut between ranks: the bits of one rank (model/whole_sums.h)
  int stage_size() const { return tp * dp; }
  int world() const { return tp * dp * pp; }
};

/// Sizes as a user gives them; -1 follows from the others.
struct LayoutRequest {
  int tp = -1, dp = -1, pp = -1, sp = -1, cp = -1, moe_tp = -1, moe_ep = -1, microbatches = -1;
  std::vector<int> stage_layers = {};
  std::optional<Dispatch> dispatch = std::nullopt;
  bool whole_sums = false;        ///< --deterministic=world
};

/// `world` 0: as many ranks as the sizes say; else their product must be it. `ranks_per_host` 0: one host. Throws bad_input naming the numbers
/// of the rule that is broken.
ParallelLayout resolve_layout(const ModelSpec& spec, const LayoutRequest& asked, int world = 0, int ranks_per_host = 0);

/// Where a rank stands and what it holds.
struct RankPlan {
  int rank = 0, stage = 0, data = 0, tensor = 0, expert_group = 0, expert_tensor = 0;
  bool first_stage = true, last_stage = true;
  ParallelLayout layout;
  IndexRange layers;               ///< of the model
  IndexRange heads, vocab;         ///< query heads; rows of embedding and head
  std::vector<int> kv_heads;       ///< the model's key/value head that each of this rank's is; equal numbers of query heads read each
  int64_t width_unit = 1;          ///< widths are cut at multiples of it

  /// This rank's part of a feed-forward width that is cut over its tensor ranks, or over the ranks of its expert group.
  IndexRange width(int64_t inner) const { return share(inner, tensor, layout.tp, width_unit); }
  IndexRange expert_width(int64_t inner) const { return share(inner, expert_tensor, layout.moe_tp, width_unit); }
  /// Of the experts of a layer, those that are held.
  IndexRange held_experts(int num_experts) const { return share(num_experts, expert_group, layout.moe_ep); }
};

/// Experts that a rank holds of a MoE layer.
std::vector<int> experts_of(const RankPlan& plan, const MoeSpec& layer);

/// One rank's plan; `layout` comes from resolve_layout().
RankPlan plan_rank(const ModelSpec& spec, const ParallelLayout& layout, int rank);
/// The whole model on one rank.
RankPlan plan_alone(const ModelSpec& spec);
/// The model as one rank computes it: its layers, heads and widths. The vocabulary and the router keep their size.
ModelSpec local_spec(const ModelSpec& spec, const RankPlan& plan);

/// A rank's part of a tensor: rows in ranges of the stored matrix (several, with repetitions, where key/value heads serve two shares of query
/// heads), and columns. Empty lists and ranges stand for all; `held` is false when the rank has nothing of it.
struct TensorCut {
  bool held = true;
  std::vector<IndexRange> rows;
  IndexRange cols;
};
TensorCut cut_of(const ModelSpec& spec, const RankPlan& plan, const TensorInfo& info);

}  // namespace conclave
