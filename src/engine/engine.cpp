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
#include "engine/rank.h"
#include "engine/routing_record.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"
#include "engine/step_cost.h"
#include "engine/team.h"

namespace conclave {
namespace {

using Clock = std::chrono::steady_clock;

double ms_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

[[noreturn]] void refuse(const std::string& message) { throw Error(Error::Kind::bad_input, message); }

SchedulerOptions scheduler_options(const ModelSpec& spec, const EngineOptions& o) {
  const bool one_form = !std::holds_alternative<MlaSpec>(spec.attention);
  return {.max_sequences = o.max_sequences, .max_step_tokens = o.max_step_tokens, .block_size = o.block_size,
          .num_blocks = cache_shape(o).num_blocks, .max_context = o.max_context, .share_prefixes = o.share_prefixes,
          .share_generated = one_form || o.share_generated};
}

/// Of the ranks in this process: all of them where they are threads.
MemoryPlan plan_process(const ModelSpec& spec, const TensorSource& source, const EngineOptions& o, const Communicator* world) {
  source.check_layout(o.layout);
  ThreadPool pool(threads_of_rank(o), false);
  const auto backend = make_backend(o, pool);
  MemoryPlan sum;
  for (int rank = world ? world->rank() : 0; rank < (world ? world->rank() + 1 : o.layout.world()); ++rank) {
    const MemoryPlan own = plan_rank_memory(spec, source, o, *backend, rank);
    sum.weights += own.weights, sum.kv_cache += own.kv_cache, sum.activations += own.activations, sum.workspace += own.workspace;
  }
  return sum;
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
  size_t group = 0;  ///< data group whose cache it uses
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
  MemoryPlan memory;
  std::unique_ptr<Team> team;
  std::vector<std::unique_ptr<Scheduler>> schedulers;  ///< one per data group
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
      : spec(std::move(s)), options(resolve(spec, o)),
        expert_load(options.expert_sampling > 0 && sees_routing() ? std::make_unique<ExpertLoad>(moe_layers(spec), options.expert_sampling) : nullptr),
        routing(moe_layers(spec), expert_load.get()) {}

  ThreadPool& pool() { return team->self().pool(); }
  std::span<const float> row(const Tensor& logits, int64_t i) const {
    return {logits.row<float>(i), static_cast<size_t>(spec.vocab_size)};
  }
  void check_ids(std::span<const int32_t> ids) const;
  void end_overdue(Clock::time_point now);
  Scheduler& scheduler_of(RequestId id) { return *schedulers[active.at(id).group]; }
  size_t least_loaded() const;
  std::vector<Outcome> draw_tokens(std::span<const StepPlan> plans, const Tensor& logits);
  using PromptScores = std::map<RequestId, std::vector<TokenLogprob>>;
  void score_prompts(const StepPlan& plan, size_t group, PromptScores& scores);
  void end_stage(std::string_view stage, const StepPlan& plan);
  /// This rank computes every layer and sees every row.
  bool sees_routing() const { return options.layout.pp == 1 && options.layout.dp == 1; }
  Tensor forward(std::span<const StepPlan> plans);
  void run(std::span<const StepPlan> plans, std::vector<Delta>& deltas);
  void commit(const StepPlan& plan, size_t group, std::span<Outcome> outcomes, PromptScores& scores, std::vector<Delta>& deltas);
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
std::vector<Outcome> Engine::State::draw_tokens(std::span<const StepPlan> plans, const Tensor& logits) {
  struct Row {
    const Sequence* sequence;
    Live* live;
  };
  std::vector<Row> rows;
  for (const StepPlan& plan : plans)
    for (const Chunk& chunk : plan.chunks)
      if (chunk.sample) rows.push_back({&scheduler_of(chunk.id).running(chunk.id), &active.at(chunk.id)});
  std::vector<Outcome> outcomes(rows.size());
  pool().parallel_for(static_cast<int64_t>(samplers.size()), [&](int64_t part, int) {
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
void Engine::State::score_prompts(const StepPlan& plan, size_t group, PromptScores& scores) {
  for (const Chunk& chunk : plan.chunks) {
    if (chunk.num_scored == 0) continue;
    const Sequence& sequence = schedulers[group]->running(chunk.id);
    const int first_position = chunk.context_len - chunk.token_count + chunk.first_scored - chunk.first_token;
    std::vector<TokenLogprob> found(static_cast<size_t>(chunk.num_scored));
    std::vector<std::string> errors(found.size());
    std::vector<int32_t> rows;
    for (int done = 0; done < chunk.num_scored; done += static_cast<int>(rows.size())) {
      rows.clear();
      for (int i = done; i < std::min(chunk.num_scored, done + team->max_logit_rows()); ++i) rows.push_back(chunk.first_scored + i);
      const Tensor logits = team->logits(rows, static_cast<int>(group));
      pool().parallel_for(static_cast<int64_t>(rows.size()), [&](int64_t i, int) {
        const auto at = static_cast<size_t>(done + i);
        errors[at] = argmax(row(logits, i)).error;
        const int32_t target = sequence.tokens[static_cast<size_t>(first_position) + at + 1];
        if (errors[at].empty()) found[at] = token_logprob(row(logits, i), target, sequence.request.prompt_logprobs);
      });
    }
    const auto bad = std::find_if(errors.begin(), errors.end(), [](const std::string& e) { return !e.empty(); });
    if (bad == errors.end()) scores.emplace(chunk.id, std::move(found));
    else schedulers[group]->cancel(chunk.id, FinishReason::error, *bad);
  }
}

/// The data group with the fewest requests, the first of equals.
size_t Engine::State::least_loaded() const {
  const auto load = [](const auto& s) { return s->num_running() + s->num_waiting(); };
  return static_cast<size_t>(std::min_element(schedulers.begin(), schedulers.end(), [&](const auto& a, const auto& b) { return load(a) < load(b); }) -
                             schedulers.begin());
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

Engine::Engine(ModelSpec spec, const TensorSource& source, const EngineOptions& options, const Progress& progress,
               std::shared_ptr<Communicator> world)
    : state_(std::make_unique<State>(std::move(spec), options)) {
  State& s = *state_;
  const auto start = Clock::now();
  s.memory = plan_process(s.spec, source, s.options, world.get());
  check_memory(s.memory, s.options.reserve_bytes);
  for (int group = 0; group < s.options.layout.dp; ++group)
    s.schedulers.push_back(std::make_unique<Scheduler>(scheduler_options(s.spec, s.options)));
  s.team = std::make_unique<Team>(s.spec, source, s.options, std::move(world), progress);
  s.samplers.assign(static_cast<size_t>(std::min(s.pool().size(), s.options.max_sequences)), Sampler(s.spec.vocab_size));
  s.load_ms = ms_between(start, Clock::now());
}

Engine::~Engine() = default;

void follow_engine(const ModelSpec& spec, const TensorSource& source, const EngineOptions& options, Communicator& world) {
  const EngineOptions resolved = resolve(spec, options);
  check_memory(plan_process(spec, source, resolved, &world), resolved.reserve_bytes);
  follow(spec, source, resolved, world);
}

MemoryPlan Engine::plan_memory(const ModelSpec& spec, const TensorSource& source, const EngineOptions& options) {
  return plan_process(spec, source, resolve(spec, options), nullptr);
}

const ModelSpec& Engine::spec() const { return state_->spec; }
const EngineOptions& Engine::options() const { return state_->options; }
const MemoryPlan& Engine::memory() const { return state_->memory; }
std::string_view Engine::isa() const { return state_->team->self().backend().isa(); }
int Engine::threads() const { return state_->pool().size() * state_->options.layout.world(); }
double Engine::load_ms() const { return state_->load_ms; }
size_t Engine::bytes_touched_per_token() const { return conclave::bytes_touched_per_token(state_->team->self().spec(), state_->team->self().weights()); }
ModelCost Engine::cost() const {
  return model_cost(state_->team->self().spec(), state_->team->self().weights(), *state_->options.kv_dtype);
}
const ExpertLoad* Engine::expert_load() const { return state_->expert_load.get(); }
bool Engine::idle() const {
  return std::all_of(state_->schedulers.begin(), state_->schedulers.end(), [](const auto& s) { return s->idle(); });
}
void Engine::observe(StepObserver observer) { state_->observer = std::move(observer); }
int64_t Engine::steps() const { return static_cast<int64_t>(state_->totals.steps); }

void Engine::check(const Request& request) const {
  const State& s = *state_;
  validate(request, s.spec.vocab_size);
  if (request.return_experts && !s.sees_routing())
    refuse(fmt::format("the experts of tokens are asked for, which {} stages and {} data groups do not bring together; run with --pp 1 and --dp 1",
                       s.options.layout.pp, s.options.layout.dp));
  s.schedulers.front()->check(request);
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
  p.group = s.least_loaded();
  s.schedulers[p.group]->add(id, std::move(request));
  if (p.wants_experts) ++s.want_experts;
  s.active.emplace(id, p);
}

void Engine::cancel(RequestId id) {
  for (const auto& scheduler : state_->schedulers) scheduler->cancel(id);
}
void Engine::pause(RequestId id, bool paused) {
  for (const auto& scheduler : state_->schedulers) scheduler->pause(id, paused);
}

std::optional<Engine::Time> Engine::next_deadline() const {
  std::optional<Time> next;
  for (const auto& [id, p] : state_->active)
    if (p.deadline && (!next || *p.deadline < *next)) next = p.deadline;
  return next;
}

EngineLoad Engine::load() const {
  EngineLoad load = state_->totals;
  for (const auto& scheduler : state_->schedulers) {
    load.running += scheduler->num_running(), load.waiting += scheduler->num_waiting();
    load.waiting_tokens += scheduler->waiting_tokens();
    load.total_blocks += cache_shape(state_->options).num_blocks, load.free_blocks += scheduler->free_blocks();
    load.preemptions += scheduler->preemptions();
  }
  return load;
}

void Engine::State::end_overdue(Clock::time_point now) {
  for (const auto& [id, p] : active)
    if (p.deadline && *p.deadline <= now) schedulers[p.group]->cancel(id, FinishReason::deadline);
}

void Engine::State::end_stage(std::string_view stage, const StepPlan& plan) {
  if (!observer.stage) return;
  const Clock::time_point end = Clock::now();
  observer.stage(stage, std::exchange(stage_begin, end), end, plan);
}

/// The model's part of a step, with those who listen to it.
Tensor Engine::State::forward(std::span<const StepPlan> plans) {
  const StepPlan& plan = plans.front();
  std::vector<size_t> asked;
  for (size_t i = 0; want_experts > 0 && i < plan.chunks.size(); ++i)
    if (plan.chunks[i].sample && active.at(plan.chunks[i].id).wants_experts) asked.push_back(i);
  Tap tap = sees_routing() ? routing.listen(plan, std::move(asked)) : Tap{};
  if (observer.tap) {
    tap = [own = std::move(tap), &others = observer.tap](std::string_view point, int layer, const Tensor& value) {
      if (own) own(point, layer, value);
      others(point, layer, value);
    };
  }
  const Tensor logits = team->run(plans, tap, static_cast<bool>(observer.tap));
  routing.finish(Clock::now());
  return logits;
}

void Engine::State::run(std::span<const StepPlan> plans, std::vector<Delta>& deltas) {
  const auto begin = Clock::now();
  const StepPlan& first = plans.front();
  end_stage("schedule", first);
  for (const StepPlan& plan : plans) note_start(plan, begin);
  const Tensor logits = forward(plans);
  const auto computed = Clock::now();
  totals.forward_ms += ms_between(begin, computed);
  end_stage("forward", first);
  if (observer.logits) observer.logits(first, logits);
  ++totals.steps;
  std::vector<Outcome> outcomes = draw_tokens(plans, logits);
  PromptScores scores;
  for (size_t group = 0; group < plans.size(); ++group) score_prompts(plans[group], group, scores);
  totals.sample_ms += ms_between(computed, Clock::now());
  end_stage("sample", first);
  std::span<Outcome> rest(outcomes);
  int generating = 0, rows = 0;
  for (size_t group = 0; group < plans.size(); ++group) {
    const std::vector<Chunk>& chunks = plans[group].chunks;
    const auto sampled = std::count_if(chunks.begin(), chunks.end(), [](const Chunk& c) { return c.sample; });
    commit(plans[group], group, rest.first(static_cast<size_t>(sampled)), scores, deltas);
    rest = rest.subspan(static_cast<size_t>(sampled));
    generating += static_cast<int>(
        std::count_if(chunks.begin(), chunks.end(), [](const Chunk& c) { return c.token_count == 1 && c.context_len > c.prompt_len; }));
    rows += static_cast<int>(plans[group].tokens.size());
  }
  cost.note(generating, rows - generating, ms_between(begin, Clock::now()));
  end_stage("commit", first);
}

void Engine::State::commit(const StepPlan& plan, size_t group, std::span<Outcome> outcomes, PromptScores& prompt_scores, std::vector<Delta>& deltas) {
  std::vector<Draw> draws;
  for (Outcome& o : outcomes) draws.push_back(std::move(o.draw));
  std::vector<Delta> committed = schedulers[group]->commit(plan, draws);
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
}

std::vector<Delta> Engine::step(double budget_ms) {
  State& s = *state_;
  const auto begin = s.stage_begin = Clock::now();
  const double computing = s.totals.forward_ms + s.totals.sample_ms;
  s.end_overdue(begin);
  std::vector<Delta> deltas;
  std::vector<StepPlan> plans;
  bool any = false;
  for (const auto& scheduler : s.schedulers) {
    for (Delta& ended : scheduler->take_ended()) deltas.push_back(std::move(ended));
    plans.push_back(scheduler->plan(budget_ms > 0 ? s.cost.rows_for(budget_ms, scheduler->num_generating()) : 0));
    any = any || !plans.back().chunks.empty();
  }
  if (any) s.run(plans, deltas);
  const auto end = Clock::now();
  s.note(deltas, end);
  s.totals.schedule_ms += ms_between(begin, end) - (s.totals.forward_ms + s.totals.sample_ms - computing);
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
  for (const auto& scheduler : s.schedulers) scheduler->forget_prefixes();  // their blocks are used below

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
      for (int row = first; row < std::min(count, first + s.team->max_logit_rows()); ++row) rows.push_back(row);
      const Tensor logits = first == 0 ? s.team->run(plan, rows, prompt_tap) : s.team->logits(rows);
      trace.logits.insert(trace.logits.end(), logits.as<float>(), logits.as<float>() + rows.size() * vocab);
    }
  }
  std::vector<float> last(trace.logits.end() - static_cast<std::ptrdiff_t>(vocab), trace.logits.end());
  for (int t = 0; t < max_new_tokens; ++t) {
    if (t > 0) {
      const StepPlan plan = lone_step({&trace.greedy_tokens.back(), 1}, length + t - 1, length, cache.block_size);
      std::memcpy(last.data(), s.team->run({&plan, 1}, {}, false).data, vocab * sizeof(float));
    }
    trace.greedy_logits.insert(trace.greedy_logits.end(), last.begin(), last.end());
    trace.greedy_tokens.push_back(greedy(last));
  }
  return trace;
}

}  // namespace conclave
