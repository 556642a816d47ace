#include "engine/runner.h"

#include <array>

#include "backend/kv_cache.h"

namespace conclave {
namespace {

KvShape shape_of(const CacheShape& c) { return {c.dtype, c.num_blocks, c.block_size}; }

size_t layer_bytes(const ModelSpec& spec, const CacheShape& c) {
  return std::visit([&](const auto& attention) { return kv_layer_bytes(attention, shape_of(c)); }, spec.attention);
}

}  // namespace

size_t cache_bytes(const ModelSpec& spec, const CacheShape& c) {
  const std::array<int64_t, 2> factors{spec.num_layers(), static_cast<int64_t>(layer_bytes(spec, c))};
  return checked_product(factors, "cache");
}

Runner::Runner(const ModelSpec& spec, const Weights& weights, Backend& backend, const StepLimits& limits, const CacheShape& cache,
               const Ranks* ranks)
    : decoder_(spec, weights, backend, limits, ranks), block_size_(cache.block_size),
      microbatches_(ranks && ranks->plan.layout.pp > 1 ? ranks->plan.layout.microbatches : 1), cache_(cache_bytes(spec, cache)) {
  const size_t bytes = layer_bytes(spec, cache);
  for (size_t l = 0; l < spec.layers.size(); ++l)
    layers_.push_back(std::visit([&](const auto& attention) { return kv_layer(attention, shape_of(cache), cache_.data() + l * bytes); }, spec.attention));
  for (KvLayer& layer : layers_) layer.saturate = cache.saturate_f16;
  sequences_.reserve(static_cast<size_t>(limits.max_sequences));
  sampled_rows_.reserve(static_cast<size_t>(limits.max_sequences));
  kept_rows_.reserve(static_cast<size_t>(limits.max_sequences));
}

int32_t kept_rows(const Chunk& chunk) {
  if (chunk.num_scored > 0) return chunk.first_token + chunk.token_count - chunk.first_scored;
  return chunk.sample ? 1 : 0;
}

Tensor Runner::run(const StepPlan& plan, const Tap& tap, bool all_rows) {
  if (microbatches_ == 1) {
    const Tensor logits = run_part(plan, 0, tap, all_rows);
    return decoder_.deliver(logits.dim[0]);
  }
  int64_t logits = 0;
  for (const StepPlan& part : cut_plan(plan, microbatches_)) logits += run_part(part, static_cast<int>(logits), tap, all_rows).dim[0];
  return decoder_.deliver(logits);
}

Tensor Runner::run_part(const StepPlan& plan, int first_logit, const Tap& tap, bool all_rows) {
  sampled_rows_.clear();
  kept_rows_.clear();
  for (const Chunk& chunk : plan.chunks) {
    if (chunk.sample) sampled_rows_.push_back(chunk.first_token + chunk.token_count - 1);
    if (!all_rows) kept_rows_.push_back(kept_rows(chunk));
  }
  return forward(plan, {sampled_rows_, kept_rows_, first_logit, all_rows}, tap);
}

Tensor Runner::run(const StepPlan& plan, std::span<const int32_t> logit_rows, const Tap& tap, bool all_rows) {
  const Tensor logits = forward(plan, {logit_rows, {}, 0, all_rows}, tap);
  return decoder_.deliver(logits.dim[0]);
}

Tensor Runner::forward(const StepPlan& plan, const Rows& rows, const Tap& tap) {
  sequences_.clear();
  for (const Chunk& chunk : plan.chunks)
    sequences_.push_back({.first_row = chunk.first_token, .num_rows = chunk.token_count, .context_len = chunk.context_len,
                          .prompt_len = chunk.prompt_len, .block_table = plan.blocks.data() + chunk.first_block});
  const BatchView batch{sequences_, static_cast<int>(plan.tokens.size()), block_size_};
  return decoder_.forward({.ids = plan.tokens, .positions = plan.positions, .batch = batch, .logit_rows = rows.logits, .kept_rows = rows.kept,
                           .first_logit = rows.first_logit, .keep_all = rows.all_rows}, layers_, tap);
}

}  // namespace conclave
