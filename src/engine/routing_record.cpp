#include "engine/routing_record.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.h"
#include "engine/runner.h"

namespace conclave {

RoutingRecord::RoutingRecord(std::vector<MoeLayer> layers, ExpertLoad* load)
    : layers_(std::move(layers)), load_(load), counts_(load ? load->num_counts() : 0) {}

Tap RoutingRecord::listen(const StepPlan& plan, std::vector<size_t> asked) {
  rows_.clear();
  next_layer_ = 0;
  counting_ = load_ && (plan.step - 1) % static_cast<uint64_t>(load_->every_steps()) == 0;
  if (!counting_ && asked.empty()) return {};
  std::fill(counts_.begin(), counts_.end(), 0);
  int64_t kept = 0;
  for (size_t i = 0, next = 0; i < plan.chunks.size() && next < asked.size(); ++i) {
    const Chunk& chunk = plan.chunks[i];
    kept += kept_rows(chunk);
    if (asked[next] != i) continue;
    rows_.push_back({i, int64_t{chunk.first_token} + chunk.token_count - 1, kept - 1});
    ++next;
  }
  return [this, step_rows = static_cast<int64_t>(plan.tokens.size())](std::string_view point, int layer, const Tensor& value) {
    if (point == "experts") hear(layer, value, step_rows);
  };
}

void RoutingRecord::hear(int layer, const Tensor& experts, int64_t step_rows) {
  const size_t at = next_layer_++;
  if (at >= layers_.size() || layers_[at].layer != layer || layers_[at].top_k != experts.dim[1])
    throw Error(Error::Kind::internal, fmt::format("layer {} told of {} experts per row, out of turn", layer, experts.dim[1]));
  const int64_t num_rows = experts.dim[0], k = experts.dim[1];
  for (Row& row : rows_) {
    const int32_t* chosen = experts.row<int32_t>(num_rows == step_rows ? row.all : row.kept);
    row.experts.insert(row.experts.end(), chosen, chosen + k);
  }
  if (!counting_) return;
  const std::span<uint32_t> counts(counts_.data() + load_->first(at), static_cast<size_t>(layers_[at].num_experts));
  for (int64_t r = 0; r < num_rows; ++r) {
    const int32_t* chosen = experts.row<int32_t>(r);
    for (int64_t i = 0; i < k; ++i)
      if (const auto expert = static_cast<size_t>(chosen[i]); expert < counts.size()) ++counts[expert];
  }
}

void RoutingRecord::finish(ExpertLoad::Time now) {
  if (counting_) load_->add(counts_, now);
  counting_ = false;
}

std::vector<int32_t> RoutingRecord::take(size_t chunk) {
  const auto found = std::find_if(rows_.begin(), rows_.end(), [&](const Row& row) { return row.chunk == chunk; });
  return found == rows_.end() ? std::vector<int32_t>{} : std::move(found->experts);
}

}  // namespace conclave
