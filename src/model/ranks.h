#pragma once
// One rank among those that compute a model together: its plan, and the groups whose partial results it adds to. The world must outlive it.
#include <memory>
#include <span>

#include "comm/communicator.h"
#include "core/tensor.h"
#include "model/parallel_plan.h"

namespace conclave {

struct Ranks {
  /// Collective over `world`, whose rank this plan must be for.
  Ranks(Communicator& world, RankPlan plan);

  RankPlan plan;
  Communicator& world;
  std::unique_ptr<Communicator> tensor;         ///< parts of the same rows' sums: one data group of a stage
  std::unique_ptr<Communicator> stage;          ///< all that hold experts of the same layers
  std::unique_ptr<Communicator> expert_tensor;  ///< parts of the same experts' widths

  /// Ranks with the same place in the stages before and after, and in the last one.
  int previous() const { return plan.rank - plan.layout.stage_size(); }
  int next() const { return plan.rank + plan.layout.stage_size(); }
  /// First rank of this data group in a stage.
  int leader(int stage) const { return stage * plan.layout.stage_size() + plan.data * plan.layout.tp; }
  /// Rows of a step whose residual stream this rank keeps with sequence parallelism, or whose tokens it sends to experts.
  IndexRange own_rows(int64_t rows) const { return share(rows, plan.tensor, plan.layout.tp); }
};

/// The elements of consecutive rows.
std::span<float> flat(const Tensor& rows);
/// Sums of rows over the group, on every rank of it.
void add_up(Communicator& group, const Tensor& rows);
/// Each rank's own rows of the sums; `out` has own_rows().
void add_up_own(const Ranks& ranks, const Tensor& out, const Tensor& rows);
/// All rows from every tensor rank's own ones.
void gather_rows(const Ranks& ranks, const Tensor& rows, const Tensor& own);
/// out [n, V] from each tensor rank's columns `part` [n, own vocabulary]; `scratch` holds n x V floats.
void gather_columns(const Ranks& ranks, const Tensor& out, const Tensor& part, const Tensor& scratch);

}  // namespace conclave
