#include "model/ranks.h"

#include <fmt/format.h>

#include <cstring>
#include <vector>

#include "core/error.h"

namespace conclave {
namespace {

/// Elements of each tensor rank's own rows.
std::vector<int64_t> row_counts(const Ranks& ranks, const Tensor& rows, int64_t element_bytes) {
  std::vector<int64_t> counts;
  for (int r = 0; r < ranks.plan.layout.tp; ++r) counts.push_back(share(rows.dim[0], r, ranks.plan.layout.tp).size() * rows.dim[1] * element_bytes);
  return counts;
}

}  // namespace

Ranks::Ranks(Communicator& all, RankPlan rank_plan) : plan(std::move(rank_plan)), world(all) {
  const ParallelLayout& l = plan.layout;
  if (world.size() != l.world() || world.rank() != plan.rank)
    throw Error(Error::Kind::internal, fmt::format("rank {} of {} follows the plan of rank {} of {}", world.rank(), world.size(), plan.rank, l.world()));
  tensor = world.split(plan.stage * l.dp + plan.data, plan.rank);
  stage = world.split(plan.stage, plan.rank);
  expert_tensor = world.split(plan.stage * l.moe_ep + plan.expert_group, plan.rank);
}

std::span<float> flat(const Tensor& rows) {
  if (rows.dim[0] > 1 && rows.stride[0] != rows.dim[1]) throw Error(Error::Kind::internal, "rows that are exchanged must be consecutive");
  return {rows.as<float>(), static_cast<size_t>(rows.dim[0] * rows.dim[1])};
}

void add_up(Communicator& group, const Tensor& rows) {
  if (group.size() > 1 && rows.dim[0] > 0) group.all_reduce_sum(flat(rows));
}

void add_up_own(const Ranks& ranks, const Tensor& out, const Tensor& rows) {
  if (rows.dim[0] > 0) ranks.tensor->reduce_scatter_sum(flat(out), flat(rows), row_counts(ranks, rows, 1));
}

void gather_rows(const Ranks& ranks, const Tensor& rows, const Tensor& own) {
  if (rows.dim[0] > 0) ranks.tensor->all_gather(std::as_writable_bytes(flat(rows)), std::as_bytes(flat(own)), row_counts(ranks, rows, sizeof(float)));
}

void gather_columns(const Ranks& ranks, const Tensor& out, const Tensor& part, const Tensor& scratch) {
  const int64_t n = out.dim[0], vocab = out.dim[1];
  const int tp = ranks.plan.layout.tp;
  std::vector<int64_t> counts;
  for (int r = 0; r < tp; ++r) counts.push_back(n * share(vocab, r, tp).size() * static_cast<int64_t>(sizeof(float)));
  const std::span<float> all(scratch.as<float>(), static_cast<size_t>(n * vocab));
  ranks.tensor->all_gather(std::as_writable_bytes(all), std::as_bytes(flat(part)), counts);
  const float* from = all.data();
  for (int r = 0; r < tp; ++r) {
    const IndexRange columns = share(vocab, r, tp);
    for (int64_t row = 0; row < n; ++row, from += columns.size())
      std::memcpy(out.row<float>(row) + columns.begin, from, static_cast<size_t>(columns.size()) * sizeof(float));
  }
}

}  // namespace conclave
