#include "engine/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <map>
#include <utility>

#include "core/error.h"
#include "engine/logprobs.h"
#include "engine/routing_record.h"
#include "engine/runner.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"
#include "engine/step_cost.h"

namespace conclave {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int kMaxBlockSize = 576;

double ms_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

[[noreturn]] void refuse(const std::string& message) { throw Error(Error::Kind::bad_input, message); }

void check_range(std::string_view name, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) refuse(fmt::format("{} is {}, wanted {} to {}", name, value, low, high));
}

bool is_floating(DType dtype) { return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16; }

DType check_floating(std::string_view name, DType dtype) {
  if (!is_floating(dtype))
    refuse(fmt::format("{} is {}, wanted F32, F16 or BF16", name, name_of(dtype)));
  return dtype;
}

/// Options with every default filled in, or bad_input.
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
  if (o.arithmetic) check_floating("dtype", *o.arithmetic);
  if (!o.kv_dtype) {
    const DType model = o.arithmetic.value_or(spec.dtype);
    o.kv_dtype = o.precision == Precision::exact || !is_floating(model) ? DType::f32 : model;
  }
  if (o.kv_dtype != DType::i8 && !is_floating(*o.kv_dtype))
    refuse(fmt::format("kv_dtype is {}, wanted F32, F16, BF16 or I8", name_of(*o.kv_dtype)));
  return o;
}

CacheShape cache_shape(const EngineOptions& o) {
  const int64_t per_sequence = (int64_t{o.max_context} + o.block_size - 1) / o.block_size;
  const int64_t asked = std::max<int64_t>(1, o.cache_tokens / o.block_size);
  const int64_t blocks = o.cache_tokens > 0 ? asked : o.max_sequences * per_sequence;
  check_range("cache blocks", blocks, 1, 1 << 30);
  return {*o.kv_dtype, static_cast<int>(blocks), o.block_size, o.saturate_f16};
}

SchedulerOptions scheduler_options(const ModelSpec& spec, const EngineOptions& o) {
  const bool one_form = !std::holds_alternative<MlaSpec>(spec.attention);
  return {.max_sequences = o.max_sequences, .max_step_tokens = o.max_step_tokens, .block_size = o.block_size,
          .num_blocks = cache_shape(o).num_blocks, .max_context = o.max_context, .share_prefixes = o.share_prefixes,
          .share_generated = one_form || o.share_generated};
}

StepLimits limits_of(const ModelSpec& spec, const EngineOptions& o) {
  return step_limits(spec, o.max_step_tokens, o.max_sequences, o.max_context);
}

std::unique_ptr<Backend> make_backend(const EngineOptions& o, ThreadPool& pool) {
  if (o.backend == "reference") return make_reference();
  if (o.backend == "cpu") return make_cpu(pool, o.isa);
  refuse(fmt::format("backend \"{}\" is unknown, wanted cpu or reference", o.backend));
}

LoadOptions load_options(const EngineOptions& o, const Engine::Progress& progress) {
  const bool fast = o.precision == Precision::fast;
  return {.arithmetic = o.arithmetic, .bf16_activations = fast, .activations = o.activations,
          .int4_activations = fast ? Activations::int8_token : Activations::floating, .progress = progress};
}

MemoryPlan plan(const ModelSpec& spec, const TensorSource& source, const EngineOptions& o, const Backend& backend) {
  const StepLimits limits = limits_of(spec, o);
  return {.weights = weight_bytes(spec, source, backend, load_options(o, {})),
          .kv_cache = cache_bytes(spec, cache_shape(o)),
          .activations = Decoder::activation_bytes(spec, limits),
          .workspace = backend.workspace_bytes(limits)};
}

double gib(size_t bytes) { return static_cast<double>(bytes) / (1 << 30); }

void check_memory(const MemoryPlan& plan, size_t reserve) {
  const size_t available = available_memory();
  if (plan.total() + reserve <= available) return;
  throw Error(Error::Kind::out_of_memory,
              fmt::format("not enough memory: {:.2f} GiB needed (weights {:.2f}, cache {:.2f}, activations {:.2f}, workspace {:.2f}, "
                          "kept free {:.2f}), {:.2f} GiB available; use a shorter context, fewer sequences or a quantised checkpoint",
                          gib(plan.total() + reserve), gib(plan.weights), gib(plan.kv_cache), gib(plan.activations),
                          gib(plan.workspace), gib(reserve), gib(available)));
}

/// What the engine keeps of a request besides the scheduler's integers: the stages of its life and its sampler's memory.
struct Live {
  Clock::time_point submitted, started, first_token;
  std::optional<Clock::time_point> deadline;
  bool has_started = false, has_token = false, wants_experts = false;
  RequestStats stats;
  SamplerState sampling;
};

/// What one row of logits gave.
struct Outcome {
  Draw draw;
  std::vector<TokenLogprob> logprobs;
};

}  // namespace

struct Engine::State {
  ModelSpec spec;
  EngineOptions options;
  ThreadPool pool;
  std::unique_ptr<Backend> backend;
  MemoryPlan memory;
  Weights weights;
  std::unique_ptr<Runner> runner;
  std::unique_ptr<Scheduler> scheduler;
  StepCost cost;
  std::unique_ptr<ExpertLoad> expert_load;
  RoutingRecord routing;
  int want_experts = 0;  ///< of the active ones
  std::vector<Sampler> samplers;  ///< each is used by one thread at a time
  std::map<RequestId, Live> active;
  std::map<RequestId, RequestStats> finished;
  RequestId next_id = 1;
  EngineLoad totals;
  double load_ms = 0;
  StepObserver observer;
  Clock::time_point stage_begin;  ///< of the stage that the observer hears of next

  State(ModelSpec s, const EngineOptions& o)
      : spec(std::move(s)), options(resolve(spec, o)), pool(options.threads, options.pin_threads), backend(make_backend(options, pool)),
        expert_load(options.expert_sampling > 0 ? std::make_unique<ExpertLoad>(moe_layers(spec), options.expert_sampling) : nullptr),
        routing(moe_layers(spec), expert_load.get()),
        samplers(static_cast<size_t>(std::min(pool.size(), options.max_sequences)), Sampler(spec.vocab_size)) {}

  std::span<const float> row(const Tensor& logits, int64_t i) const {
    return {logits.row<float>(i), static_cast<size_t>(spec.vocab_size)};
  }
  void check_ids(std::span<const int32_t> ids) const;
  void end_overdue(Clock::time_point now);
  std::vector<Outcome> draw_tokens(const StepPlan& plan, const Tensor& logits);
  std::map<RequestId, std::vector<TokenLogprob>> score_prompts(const StepPlan& plan);
  void end_stage(std::string_view stage, const StepPlan& plan);
  Tensor forward(const StepPlan& plan);
  void run(const StepPlan& plan, std::vector<Delta>& deltas);
  void note_start(const StepPlan& plan, Clock::time_point now);
  void note(std::span<const Delta> deltas, Clock::time_point now);
};

void Engine::State::check_ids(std::span<const int32_t> ids) const {
  if (ids.empty()) refuse("the prompt is empty; give at least one token");
  for (size_t i = 0; i < ids.size(); ++i)
    if (ids[i] < 0 || ids[i] >= spec.vocab_size)
      refuse(fmt::format("prompt token {} is {}, wanted 0 to {} (the model's vocabulary)", i, ids[i], spec.vocab_size - 1));
}

/// One token per chunk with `sample`, rows shared out to the threads.
std::vector<Outcome> Engine::State::draw_tokens(const StepPlan& plan, const Tensor& logits) {
  struct Row {
    const Sequence* sequence;
    Live* live;
  };
  std::vector<Row> rows;
  for (const Chunk& chunk : plan.chunks)
    if (chunk.sample) rows.push_back({&scheduler->running(chunk.id), &active.at(chunk.id)});
  std::vector<Outcome> outcomes(rows.size());
  pool.parallel_for(static_cast<int64_t>(samplers.size()), [&](int64_t part, int) {
    for (size_t i = static_cast<size_t>(part); i < rows.size(); i += samplers.size()) {
      const Request& request = rows[i].sequence->request;
      const TokenHistory history{rows[i].sequence->tokens, rows[i].sequence->prompt_len, request.eos_ids, request.stop_token_ids};
      const auto scores = row(logits, static_cast<int64_t>(i));
      Outcome& o = outcomes[i];
      o.draw = samplers[static_cast<size_t>(part)].draw(scores, request.sampling, history, rows[i].live->sampling);
      if (request.logprobs >= 0 && o.draw.error.empty()) o.logprobs = {token_logprob(scores, o.draw.token, request.logprobs)};
    }
  });
  return outcomes;
}

/// Log-probabilities of prompt tokens from the rows before them, through the head in groups of bounded size. A damaged row ends its request.
std::map<RequestId, std::vector<TokenLogprob>> Engine::State::score_prompts(const StepPlan& plan) {
  std::map<RequestId, std::vector<TokenLogprob>> scores;
  for (const Chunk& chunk : plan.chunks) {
    if (chunk.num_scored == 0) continue;
    const Sequence& sequence = scheduler->running(chunk.id);
    const int first_position = chunk.context_len - chunk.token_count + chunk.first_scored - chunk.first_token;
    std::vector<TokenLogprob> found(static_cast<size_t>(chunk.num_scored));
    std::vector<std::string> errors(found.size());
    std::vector<int32_t> rows;
    for (int done = 0; done < chunk.num_scored; done += static_cast<int>(rows.size())) {
      rows.clear();
      for (int i = done; i < std::min(chunk.num_scored, done + runner->max_logit_rows()); ++i) rows.push_back(chunk.first_scored + i);
      const Tensor logits = runner->logits(rows);
      pool.parallel_for(static_cast<int64_t>(rows.size()), [&](int64_t i, int) {
        const auto at = static_cast<size_t>(done + i);
        errors[at] = argmax(row(logits, i)).error;
        const int32_t target = sequence.tokens[static_cast<size_t>(first_position) + at + 1];
        if (errors[at].empty()) found[at] = token_logprob(row(logits, i), target, sequence.request.prompt_logprobs);
      });
    }
    const auto bad = std::find_if(errors.begin(), errors.end(), [](const std::string& e) { return !e.empty(); });
    if (bad == errors.end()) scores.emplace(chunk.id, std::move(found));
    else scheduler->cancel(chunk.id, FinishReason::error, *bad);
  }
  return scores;
}

void Engine::State::note_start(const StepPlan& plan, Clock::time_point now) {
  for (const Chunk& chunk : plan.chunks) {
    Live& p = active.at(chunk.id);
    if (std::exchange(p.has_started, true)) continue;
    p.started = now;
    p.stats.queue_ms = ms_between(p.submitted, now);
    p.stats.cached_tokens = chunk.context_len - chunk.token_count;
    totals.prompt_tokens += static_cast<uint64_t>(chunk.prompt_len);
    totals.cached_tokens += static_cast<uint64_t>(p.stats.cached_tokens);
  }
}

void Engine::State::note(std::span<const Delta> deltas, Clock::time_point now) {
  for (const Delta& delta : deltas) {
    Live& p = active.at(delta.id);
    p.stats.new_tokens += static_cast<int>(delta.tokens.size());
    totals.generated_tokens += delta.tokens.size();
    const bool answered = !delta.tokens.empty() || delta.finish == FinishReason::stop;
    if (answered && !std::exchange(p.has_token, true)) {
      p.first_token = now;
      p.stats.prefill_ms = ms_between(p.started, now);
    }
    if (delta.finish == FinishReason::none) continue;
    if (p.has_token) p.stats.decode_ms = ms_between(p.first_token, now);
    if (p.wants_experts) --want_experts;
    finished.emplace(delta.id, p.stats);
    active.erase(delta.id);
  }
}

Engine::Engine(ModelSpec spec, const TensorSource& source, const EngineOptions& options, const Progress& progress)
    : state_(std::make_unique<State>(std::move(spec), options)) {
  State& s = *state_;
  const auto start = Clock::now();
  s.memory = plan(s.spec, source, s.options, *s.backend);
  check_memory(s.memory, s.options.reserve_bytes);
  s.scheduler = std::make_unique<Scheduler>(scheduler_options(s.spec, s.options));
  s.weights = load_weights(s.spec, source, *s.backend, s.pool, load_options(s.options, progress));
  const StepLimits limits = limits_of(s.spec, s.options);
  s.backend->reserve(limits);
  s.runner = std::make_unique<Runner>(s.spec, s.weights, *s.backend, limits, cache_shape(s.options));
  s.load_ms = ms_between(start, Clock::now());
}

Engine::~Engine() = default;

MemoryPlan Engine::plan_memory(const ModelSpec& spec, const TensorSource& source, const EngineOptions& options) {
  const EngineOptions resolved = resolve(spec, options);
  ThreadPool pool(resolved.threads, false);
  return plan(spec, source, resolved, *make_backend(resolved, pool));
}

const ModelSpec& Engine::spec() const { return state_->spec; }
const EngineOptions& Engine::options() const { return state_->options; }
const MemoryPlan& Engine::memory() const { return state_->memory; }
std::string_view Engine::isa() const { return state_->backend->isa(); }
int Engine::threads() const { return state_->pool.size(); }
double Engine::load_ms() const { return state_->load_ms; }
size_t Engine::bytes_touched_per_token() const { return conclave::bytes_touched_per_token(state_->spec, state_->weights); }
ModelCost Engine::cost() const { return model_cost(state_->spec, state_->weights, *state_->options.kv_dtype); }
const ExpertLoad* Engine::expert_load() const { return state_->expert_load.get(); }
bool Engine::idle() const { return state_->scheduler->idle(); }
void Engine::observe(StepObserver observer) { state_->observer = std::move(observer); }
int64_t Engine::steps() const { return static_cast<int64_t>(state_->totals.steps); }

void Engine::check(const Request& request) const {
  const State& s = *state_;
  validate(request, s.spec.vocab_size);
  s.scheduler->check(request);
}

RequestId Engine::submit(Request request) {
  const RequestId id = state_->next_id++;
  submit(id, std::move(request), Clock::now());
  return id;
}

void Engine::submit(RequestId id, Request request, Time submitted) {
  State& s = *state_;
  check(request);
  Live p;
  p.submitted = submitted;
  if (request.deadline_ms > 0)
    p.deadline = submitted + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double, std::milli>(request.deadline_ms));
  p.stats.prompt_tokens = static_cast<int>(request.prompt.size());
  p.wants_experts = request.return_experts;
  s.scheduler->add(id, std::move(request));
  if (p.wants_experts) ++s.want_experts;
  s.active.emplace(id, p);
}

void Engine::cancel(RequestId id) { state_->scheduler->cancel(id); }
void Engine::pause(RequestId id, bool paused) { state_->scheduler->pause(id, paused); }

std::optional<Engine::Time> Engine::next_deadline() const {
  std::optional<Time> next;
  for (const auto& [id, p] : state_->active)
    if (p.deadline && (!next || *p.deadline < *next)) next = p.deadline;
  return next;
}

EngineLoad Engine::load() const {
  EngineLoad load = state_->totals;
  const Scheduler& scheduler = *state_->scheduler;
  load.running = scheduler.num_running(), load.waiting = scheduler.num_waiting();
  load.waiting_tokens = scheduler.waiting_tokens();
  load.total_blocks = cache_shape(state_->options).num_blocks, load.free_blocks = scheduler.free_blocks();
  load.preemptions = scheduler.preemptions();
  return load;
}

void Engine::State::end_overdue(Clock::time_point now) {
  for (const auto& [id, p] : active)
    if (p.deadline && *p.deadline <= now) scheduler->cancel(id, FinishReason::deadline);
}

void Engine::State::end_stage(std::string_view stage, const StepPlan& plan) {
  if (!observer.stage) return;
  const Clock::time_point end = Clock::now();
  observer.stage(stage, std::exchange(stage_begin, end), end, plan);
}

/// The model's part of a step, with those who listen to it.
Tensor Engine::State::forward(const StepPlan& plan) {
  std::vector<size_t> asked;
  for (size_t i = 0; want_experts > 0 && i < plan.chunks.size(); ++i)
    if (plan.chunks[i].sample && active.at(plan.chunks[i].id).wants_experts) asked.push_back(i);
  Tap tap = routing.listen(plan, std::move(asked));
  if (observer.tap) {
    tap = [own = std::move(tap), &others = observer.tap](std::string_view point, int layer, const Tensor& value) {
      if (own) own(point, layer, value);
      others(point, layer, value);
    };
  }
  const Tensor logits = runner->run(plan, tap, static_cast<bool>(observer.tap));
  routing.finish(Clock::now());
  return logits;
}

void Engine::State::run(const StepPlan& plan, std::vector<Delta>& deltas) {
  const auto begin = Clock::now();
  end_stage("schedule", plan);
  note_start(plan, begin);
  const Tensor logits = forward(plan);
  end_stage("forward", plan);
  if (observer.logits) observer.logits(plan, logits);
  ++totals.steps;
  std::vector<Outcome> outcomes = draw_tokens(plan, logits);
  auto prompt_scores = score_prompts(plan);
  std::vector<Draw> draws;
  for (Outcome& o : outcomes) draws.push_back(std::move(o.draw));
  end_stage("sample", plan);
  std::vector<Delta> committed = scheduler->commit(plan, draws);
  size_t next_outcome = 0, next_delta = 0;
  for (const Chunk& chunk : plan.chunks) {
    const auto scores = prompt_scores.find(chunk.id);
    const bool advanced = next_delta < committed.size() && committed[next_delta].id == chunk.id;
    if (advanced) deltas.push_back(std::move(committed[next_delta++]));
    else if (scores != prompt_scores.end()) deltas.push_back({.id = chunk.id});
    if (advanced) {
      deltas.back().logprobs = std::move(outcomes[next_outcome].logprobs);
      deltas.back().experts = routing.take(static_cast<size_t>(&chunk - plan.chunks.data()));
    }
    if (chunk.sample) ++next_outcome;
    if (scores != prompt_scores.end()) deltas.back().prompt_logprobs = std::move(scores->second);
  }
  const auto generating = static_cast<int>(
      std::count_if(plan.chunks.begin(), plan.chunks.end(), [](const Chunk& c) { return c.token_count == 1 && c.context_len > c.prompt_len; }));
  cost.note(generating, static_cast<int>(plan.tokens.size()) - generating, ms_between(begin, Clock::now()));
  end_stage("commit", plan);
}

std::vector<Delta> Engine::step(double budget_ms) {
  State& s = *state_;
  s.stage_begin = Clock::now();
  s.end_overdue(s.stage_begin);
  std::vector<Delta> deltas = s.scheduler->take_ended();
  const StepPlan plan = s.scheduler->plan(budget_ms > 0 ? s.cost.rows_for(budget_ms, s.scheduler->num_generating()) : 0);
  if (!plan.chunks.empty()) s.run(plan, deltas);
  s.note(deltas, Clock::now());
  return deltas;
}

RequestStats Engine::stats(RequestId id) {
  const auto node = state_->finished.extract(id);
  if (node.empty()) refuse(fmt::format("request {} has not finished, or its figures were asked for before", id));
  return node.mapped();
}

namespace {

/// A plan that runs one sequence alone in the first blocks of the cache.
StepPlan lone_step(std::span<const int32_t> tokens, int computed, int prompt_len, int block_size) {
  const auto count = static_cast<int32_t>(tokens.size());
  StepPlan plan;
  plan.tokens.assign(tokens.begin(), tokens.end());
  for (int i = 0; i < count; ++i) plan.positions.push_back(computed + i);
  const int32_t blocks = (computed + count + block_size - 1) / block_size;
  for (int32_t block = 0; block < blocks; ++block) plan.blocks.push_back(block);
  plan.chunks.push_back({.id = 0, .first_token = 0, .token_count = count, .context_len = computed + count,
                         .prompt_len = prompt_len, .first_block = 0, .block_count = blocks, .sample = true});
  return plan;
}

int32_t greedy(std::span<const float> logits) {
  const Draw best = argmax(logits);
  if (!best.error.empty()) throw Error(Error::Kind::bad_model, best.error);
  return best.token;
}

}  // namespace

Engine::Trace Engine::trace(std::span<const int32_t> prompt, int max_new_tokens, const Tap& prompt_tap, int chunk) {
  State& s = *state_;
  const int length = static_cast<int>(std::min<size_t>(prompt.size(), std::numeric_limits<int>::max()));
  const auto vocab = static_cast<size_t>(s.spec.vocab_size);
  const CacheShape cache = cache_shape(s.options);
  const int64_t room = std::min<int64_t>(s.options.max_context, int64_t{cache.num_blocks} * cache.block_size);
  if (!idle()) refuse("a trace runs alone: wait until all requests have finished");
  s.check_ids(prompt);
  check_range("max_new_tokens", max_new_tokens, 0, std::numeric_limits<int>::max());
  if (int64_t{length} + max_new_tokens > room)
    refuse(fmt::format("{} prompt tokens and {} new ones exceed the context of {}", length, max_new_tokens, room));
  check_range("chunk", chunk, 0, s.options.max_step_tokens);
  s.scheduler->forget_prefixes();  // their blocks are used below

  Trace trace;
  trace.logits.reserve(prompt.size() * vocab);
  const int step = chunk > 0 ? chunk : s.options.max_step_tokens;
  std::vector<int32_t> rows;
  for (int done = 0; done < length; done += step) {
    const int count = std::min(step, length - done);
    const auto part = prompt.subspan(static_cast<size_t>(done), static_cast<size_t>(count));
    const StepPlan plan = lone_step(part, done, length, cache.block_size);
    for (int first = 0; first < count; first += static_cast<int>(rows.size())) {
      rows.clear();
      for (int row = first; row < std::min(count, first + s.runner->max_logit_rows()); ++row) rows.push_back(row);
      const Tensor logits = first == 0 ? s.runner->run(plan, rows, prompt_tap) : s.runner->logits(rows);
      trace.logits.insert(trace.logits.end(), logits.as<float>(), logits.as<float>() + rows.size() * vocab);
    }
  }
  std::vector<float> last(trace.logits.end() - static_cast<std::ptrdiff_t>(vocab), trace.logits.end());
  for (int t = 0; t < max_new_tokens; ++t) {
    if (t > 0) {
      const StepPlan plan = lone_step({&trace.greedy_tokens.back(), 1}, length + t - 1, length, cache.block_size);
      std::memcpy(last.data(), s.runner->run(plan).data, vocab * sizeof(float));
    }
    trace.greedy_logits.insert(trace.greedy_logits.end(), last.begin(), last.end());
    trace.greedy_tokens.push_back(greedy(last));
  }
  return trace;
}

}  // namespace conclave
