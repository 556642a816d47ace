#pragma once
// One step of the engine as plain integers: the only thing the scheduler produces and the runner consumes, so that it can be broadcast
// to other ranks and compared byte by byte.
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/request.h"

namespace conclave {

/// Rows of one sequence in a step: its tokens at positions [context_len - token_count, context_len).
struct Chunk {
  RequestId id = 0;
  int32_t first_token = 0, token_count = 0;    ///< range in StepPlan::tokens
  int32_t context_len = 0, prompt_len = 0;
  int32_t first_block = 0, block_count = 0;    ///< range in StepPlan::blocks
  int32_t first_scored = 0, num_scored = 0;    ///< rows whose logits give the log-probability of the prompt token after them
  bool sample = false;                         ///< the last row's logits are sampled
  bool operator==(const Chunk&) const = default;
};

struct StepPlan {
  uint64_t step = 0;
  std::vector<int32_t> tokens, positions, blocks;
  std::vector<Chunk> chunks;
  bool operator==(const StepPlan&) const = default;
};

/// The plan in at most `parts` plans of nearly equal numbers of rows, to be carried out one after the other: what a row computes does not
/// depend on where its chunk is cut. A plan with scored rows stays whole.
std::vector<StepPlan> cut_plan(const StepPlan& plan, int parts);

/// Little-endian, the same bytes on every rank.
std::vector<std::byte> encode(const StepPlan& plan);
/// Throws network, naming field and value, for bytes that encode() cannot have written: wrong length or version, ranges outside the
/// lists, rows that two chunks claim, positions that contradict their chunk.
StepPlan decode_step_plan(std::span<const std::byte> bytes);

}  // namespace conclave
