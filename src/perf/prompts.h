#pragma once
// The prompts of a case: random ids, or a data set's, in batches.
#include <cstdint>
#include <vector>

#include "perf/cases.h"

namespace conclave {

using Prompts = std::vector<std::vector<int32_t>>;

/// What is run for one row of results: every run has what.batch prompts.
struct PromptRuns {
  PerfCase what;
  std::vector<Prompts> runs;
};

/// Uniform ids, different for every sequence and the same in every run.
PromptRuns random_prompts(const PerfCase& what, int vocab_size, int runs = 1);

/// The data set's prompts in their order, cut to what.input tokens, with `pad` repeated up to them: the first `most` batches, and where its
/// end is among them the prompts that are left over as a smaller batch of their own. A data set smaller than a batch is repeated to fill one.
std::vector<PromptRuns> dataset_prompts(const PerfCase& what, const Prompts& dataset, size_t most, bool pad);

}  // namespace conclave
