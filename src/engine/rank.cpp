#include "engine/rank.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.h"

namespace conclave {
namespace {

constexpr int kMaxBlockSize = 576;

[[noreturn]] void refuse(const std::string& message) { throw Error(Error::Kind::bad_input, message); }

bool is_floating(DType dtype) { return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16; }

StepLimits limits_of(const ModelSpec& spec, const EngineOptions& o) {
  return step_limits(spec, o.max_step_tokens, o.max_sequences, o.max_context);
}

LoadOptions load_options(const EngineOptions& o, const RankPlan& plan, const Engine::Progress& progress) {
  const bool fast = o.precision == Precision::fast;
  return {.arithmetic = o.arithmetic, .bf16_activations = fast, .activations = o.activations,
          .int4_activations = fast ? Activations::int8_token : Activations::floating, .rank = &plan, .progress = progress};
}

}  // namespace

int threads_of_rank(const EngineOptions& o) {
  const int ranks = o.layout.world();
  return o.threads > 0 || ranks == 1 ? o.threads : std::max(1, available_processors() / ranks);
}

void check_range(std::string_view name, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) refuse(fmt::format("{} is {}, wanted {} to {}", name, value, low, high));
}

EngineOptions resolve(const ModelSpec& spec, EngineOptions o) {
  constexpr int kMost = 1 << 30;
  check_range("max_sequences", o.max_sequences, 1, 1 << 20);
  check_range("max_step_tokens", o.max_step_tokens, 1, 1 << 20);
  check_range("cache_tokens", o.cache_tokens, 0, int64_t{1} << 40);
  check_range("expert_sampling", o.expert_sampling, 0, 1 << 20);
  if (o.max_context == 0) o.max_context = spec.max_len;
  check_range("max_context", o.max_context, 2, std::min(spec.max_len, kMost));
  if (o.kv_mode == KvMode::contiguous) o.block_size = o.max_context;
  else check_range("block_size", o.block_size, 1, kMaxBlockSize);
  if (o.arithmetic && !is_floating(*o.arithmetic)) refuse(fmt::format("dtype is {}, wanted F32, F16 or BF16", name_of(*o.arithmetic)));
  if (!o.kv_dtype) {
    const DType model = o.arithmetic.value_or(spec.dtype);
    o.kv_dtype = o.precision == Precision::exact || !is_floating(model) ? DType::f32 : model;
  }
  if (o.kv_dtype != DType::i8 && !is_floating(*o.kv_dtype))
    refuse(fmt::format("kv_dtype is {}, wanted F32, F16, BF16 or I8", name_of(*o.kv_dtype)));
  if (o.layout.stage_layers.empty()) o.layout.stage_layers = {spec.num_layers()};
  return o;
}

CacheShape cache_shape(const EngineOptions& o) {
  const int64_t per_sequence = (int64_t{o.max_context} + o.block_size - 1) / o.block_size;
  const int64_t asked = std::max<int64_t>(1, o.cache_tokens / o.block_size);
  const int64_t blocks = o.cache_tokens > 0 ? asked : o.max_sequences * per_sequence;
  check_range("cache blocks", blocks, 1, 1 << 30);
  return {*o.kv_dtype, static_cast<int>(blocks), o.block_size, o.saturate_f16};
}

std::unique_ptr<Backend> make_backend(const EngineOptions& o, ThreadPool& pool) {
  if (o.backend == "reference") return make_reference();
  if (o.backend == "cpu") return make_cpu(pool, o.isa);
  refuse(fmt::format("backend \"{}\" is unknown, wanted cpu or reference", o.backend));
}

MemoryPlan plan_rank_memory(const ModelSpec& spec, const TensorSource& source, const EngineOptions& o, const Backend& backend, int rank) {
  const RankPlan place = plan_rank(spec, o.layout, rank);
  const ModelSpec local = local_spec(spec, place);
  const StepLimits limits = limits_of(local, o);
  return {.weights = weight_bytes(spec, source.of_rank(rank), backend, load_options(o, place, {})),
          .kv_cache = cache_bytes(local, cache_shape(o)),
          .activations = Decoder::activation_bytes(local, limits, o.layout.world() > 1 ? &place : nullptr),
          .workspace = backend.workspace_bytes(limits)};
}

Rank::Rank(const ModelSpec& spec, const TensorSource& source, const EngineOptions& o, Communicator* world, const Engine::Progress& progress)
    : plan_(plan_rank(spec, o.layout, world ? world->rank() : 0)), spec_(local_spec(spec, plan_)),
      pool_(threads_of_rank(o), o.pin_threads && !world), backend_(make_backend(o, pool_)) {
  if (world) {
    world->phase("loading");
    ranks_ = std::make_unique<Ranks>(*world, plan_);
  }
  weights_ = load_weights(spec, source.of_rank(plan_.rank), *backend_, pool_, load_options(o, plan_, progress));
  const StepLimits limits = limits_of(spec_, o);
  backend_->reserve(limits);
  runner_ = std::make_unique<Runner>(spec_, weights_, *backend_, limits, cache_shape(o), ranks_.get());
  if (!world) return;
  world->barrier();
  world->phase("step");
}

}  // namespace conclave
