#pragma once
// Listens to the routers of a step: keeps the experts of the rows that are sampled for requests that ask for them, and counts those of all
// rows in the steps that the load samples. Only reads; a step that nobody asks about has no listener at all.
#include <cstdint>
#include <vector>

#include "engine/expert_load.h"
#include "engine/step_plan.h"
#include "model/decoder.h"

namespace conclave {

class RoutingRecord {
 public:
  /// `load` may be null and must outlive the record.
  RoutingRecord(std::vector<MoeLayer> layers, ExpertLoad* load);

  /// For one step. `asked`: its chunks, by index and ascending, whose sampled rows' experts are kept. The tap, empty when there is nothing to
  /// do, refers to this record and the plan; in the last layer it takes all rows or only those that the runner keeps.
  Tap listen(const StepPlan& plan, std::vector<size_t> asked);
  /// After the step: hands the counts on.
  void finish(ExpertLoad::Time now);
  /// The experts [layers, k] of the chunk's sampled row, once; empty for chunks that were not asked for.
  std::vector<int32_t> take(size_t chunk);

 private:
  struct Row {
    size_t chunk;
    int64_t all, kept;  ///< its place among all rows, and among the kept ones
    std::vector<int32_t> experts = {};
  };
  void hear(int layer, const Tensor& experts, int64_t step_rows);

  std::vector<MoeLayer> layers_;
  ExpertLoad* load_;
  std::vector<uint32_t> counts_;
  std::vector<Row> rows_;
  bool counting_ = false;
  size_t next_layer_ = 0;
};

}  // namespace conclave
