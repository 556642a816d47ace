#include "engine/service.h"

#include <fmt/format.h>

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/error.h"

namespace conclave {
namespace {

using Clock = std::chrono::steady_clock;

double ms_since(Clock::time_point time) { return std::chrono::duration<double, std::milli>(Clock::now() - time).count(); }

/// A moving average of the time between ends of requests: how long until a full queue has a free place.
class DrainRate {
 public:
  void note_end() {
    ms_per_request_ += kWeight * (ms_since(last_) - ms_per_request_);
    last_ = Clock::now();
  }
  double retry_after_ms() const { return std::clamp(ms_per_request_, kShortest, kLongest); }

 private:
  static constexpr double kWeight = 0.2, kShortest = 50, kLongest = 60000;
  double ms_per_request_ = 1000;
  Clock::time_point last_ = Clock::now();
};

}  // namespace

struct Service::State {
  struct Submission {
    Request request;
    Sink sink;
    Clock::time_point time;
  };
  struct Command {
    enum class Kind : uint8_t { submit, cancel, pause, resume } kind;
    RequestId id;
    std::unique_ptr<Submission> submission = {};
  };

  std::unique_ptr<Engine> engine;
  const ServiceOptions options;

  mutable std::mutex mutex;  ///< guards what follows, up to the engine thread's own
  std::condition_variable wake, emptied;
  std::vector<Command> inbox;
  int64_t inbox_tokens = 0;
  int open = 0;  ///< requests whose last delta has not been delivered
  RequestId next_id = 1;
  bool stopping = false, resting = false;
  ServiceStatus status;
  Clock::time_point last_step = Clock::now();
  DrainRate drain_rate;

  std::vector<Command> commands;  ///< the engine thread's own
  std::unordered_map<RequestId, Sink> sinks;
  bool stalled = false;  ///< the last step had nothing that may run
  double deliver_ms = 0;  ///< taking commands and handing deltas over

  std::thread thread;

  State(std::unique_ptr<Engine> e, const ServiceOptions& o) : engine(std::move(e)), options(o) {
    const EngineLoad load = engine->load();
    status.total_blocks = load.total_blocks, status.free_blocks = load.free_blocks;
    status.block_size = engine->options().block_size;
  }

  void require_room(int64_t tokens) const;
  void send(Command command);
  bool take_commands();
  void obey(Command& command);
  void run();
  void deliver(std::vector<Delta> deltas);
  void end(RequestId id, const Sink& sink, Delta&& delta, const RequestStats& stats);
  void publish();
  void fail(const std::string& reason);
  void stop();
};

/// Throws Overloaded when one request more is too much. Needs the lock.
void Service::State::require_room(int64_t tokens) const {
  const double wait = drain_rate.retry_after_ms();
  if (status.state == ServiceStatus::State::failed)
    throw Error(Error::Kind::internal, fmt::format("the engine has failed: {}; restart the service", status.failure));
  if (stopping || status.state != ServiceStatus::State::ready) throw Overloaded("the service takes no new requests: it is being stopped", wait);
  if (open >= options.max_queued_requests)
    throw Overloaded(fmt::format("{} requests wait or run, and {} are the most; try again later", open, options.max_queued_requests), wait);
  const int64_t queued = status.queued_tokens + inbox_tokens;
  if (queued > 0 && queued + tokens > options.max_queued_tokens)
    throw Overloaded(fmt::format("{} prompt tokens wait, and {} more would exceed the most of {}; try again later", queued, tokens,
                                 options.max_queued_tokens), wait);
}

void Service::State::send(Command command) {
  {
    const std::lock_guard lock(mutex);
    if (status.state == ServiceStatus::State::failed) return;
    inbox.push_back(std::move(command));
  }
  wake.notify_one();
}

/// Sleeps while nothing can be done, then takes what clients sent. False when the service is being stopped.
bool Service::State::take_commands() {
  std::unique_lock lock(mutex);
  if (engine->idle() || stalled) {
    const auto ready = [&] { return stopping || !inbox.empty(); };
    const auto deadline = engine->next_deadline();
    resting = true;
    if (deadline) wake.wait_until(lock, *deadline, ready);
    else wake.wait(lock, ready);
    resting = false;
    last_step = Clock::now();
  }
  if (stopping) return false;
  commands.clear();
  std::swap(commands, inbox);
  status.queued_tokens += std::exchange(inbox_tokens, 0);
  return true;
}

void Service::State::obey(Command& command) {
  switch (command.kind) {
    case Command::Kind::submit:
      sinks.emplace(command.id, std::move(command.submission->sink));
      return engine->submit(command.id, std::move(command.submission->request), command.submission->time);
    case Command::Kind::cancel: return engine->cancel(command.id);
    case Command::Kind::pause: return engine->pause(command.id, true);
    case Command::Kind::resume: return engine->pause(command.id, false);
  }
}

void Service::State::run() {
  try {
    while (take_commands()) {
      const auto begin = Clock::now();
      for (Command& command : commands) obey(command);
      deliver_ms += ms_since(begin);
      const uint64_t steps = engine->load().steps;
      std::vector<Delta> deltas = engine->step(options.step_budget_ms);
      stalled = deltas.empty() && engine->load().steps == steps;
      publish();
      const auto end = Clock::now();
      deliver(std::move(deltas));
      deliver_ms += ms_since(end);
    }
    stop();
  } catch (const std::exception& e) {
    fail(e.what());
  }
}

void Service::State::deliver(std::vector<Delta> deltas) {
  for (Delta& delta : deltas) {
    const auto found = sinks.find(delta.id);
    if (found == sinks.end()) continue;
    if (delta.finish == FinishReason::none) {
      found->second(std::move(delta), nullptr);
      continue;
    }
    const RequestId id = delta.id;
    const Sink sink = std::move(found->second);
    sinks.erase(found);
    end(id, sink, std::move(delta), engine->stats(id));
  }
}

void Service::State::end(RequestId id, const Sink& sink, Delta&& delta, const RequestStats& stats) {
  delta.id = id;
  sink(std::move(delta), &stats);
  const std::lock_guard lock(mutex);
  drain_rate.note_end();
  if (--open == 0) emptied.notify_all();
}

void Service::State::publish() {
  const EngineLoad load = engine->load();
  const std::lock_guard lock(mutex);
  status.running = load.running, status.waiting = load.waiting;
  status.queued_tokens = load.waiting_tokens;
  status.free_blocks = load.free_blocks;
  status.steps = load.steps;
  status.prompt_tokens = status.prefix_queries = load.prompt_tokens;
  status.cached_tokens = status.prefix_hits = load.cached_tokens;
  status.generated_tokens = load.generated_tokens;
  status.preemptions = load.preemptions;
  status.schedule_ms = load.schedule_ms, status.forward_ms = load.forward_ms, status.sample_ms = load.sample_ms;
  status.deliver_ms = deliver_ms;
  last_step = Clock::now();
}

/// Every request, also those that the engine has not seen, ends with the reason.
void Service::State::fail(const std::string& reason) {
  {
    const std::lock_guard lock(mutex);
    status.state = ServiceStatus::State::failed;
    status.failure = reason;
    status.running = status.waiting = 0;
    status.queued_tokens = inbox_tokens = 0;
    resting = true;
    for (Command& command : std::exchange(inbox, {})) commands.push_back(std::move(command));
  }
  for (Command& command : commands)
    if (command.submission && command.submission->sink) sinks.emplace(command.id, std::move(command.submission->sink));
  for (const auto& [id, sink] : std::exchange(sinks, {})) {
    Delta delta{.id = id, .finish = FinishReason::error, .error = "the engine has failed: " + reason};
    const RequestStats stats;
    try {
      sink(std::move(delta), &stats);
    } catch (const std::exception&) {
      continue;  // the service has failed already; the others must still hear of it
    }
  }
  const std::lock_guard lock(mutex);
  open = 0;
  emptied.notify_all();
}

/// Cancels everything that is left.
void Service::State::stop() {
  {
    const std::lock_guard lock(mutex);
    commands = std::exchange(inbox, {});
  }
  for (Command& command : commands) obey(command);
  for (const auto& [id, sink] : sinks) engine->cancel(id);
  deliver(engine->step());
  publish();
  const std::lock_guard lock(mutex);
  status.state = ServiceStatus::State::stopped;
}

Service::Service(std::unique_ptr<Engine> engine, const ServiceOptions& options)
    : state_(std::make_unique<State>(std::move(engine), options)) {
  state_->thread = std::thread([state = state_.get()] { state->run(); });
  pthread_setname_np(state_->thread.native_handle(), "engine");
}

Service::~Service() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stopping = true;
  }
  state_->wake.notify_one();
  state_->thread.join();
}

RequestId Service::submit(Request request, Sink sink) {
  State& s = *state_;
  s.engine->check(request);
  const auto tokens = static_cast<int64_t>(request.prompt.size());
  auto submission = std::make_unique<State::Submission>(State::Submission{std::move(request), std::move(sink), Clock::now()});
  RequestId id = 0;
  {
    const std::lock_guard lock(s.mutex);
    s.require_room(tokens);
    id = s.next_id++;
    ++s.open;
    s.inbox_tokens += tokens;
    s.inbox.push_back({State::Command::Kind::submit, id, std::move(submission)});
  }
  s.wake.notify_one();
  return id;
}

void Service::cancel(RequestId id) { state_->send({State::Command::Kind::cancel, id}); }
void Service::pause(RequestId id) { state_->send({State::Command::Kind::pause, id}); }
void Service::resume(RequestId id) { state_->send({State::Command::Kind::resume, id}); }

bool Service::drain(double timeout_ms) {
  State& s = *state_;
  std::unique_lock lock(s.mutex);
  if (s.status.state == ServiceStatus::State::ready) s.status.state = ServiceStatus::State::draining;
  return s.emptied.wait_for(lock, std::chrono::duration<double, std::milli>(timeout_ms), [&] { return s.open == 0; });
}

ServiceStatus Service::status() const {
  const State& s = *state_;
  const std::lock_guard lock(s.mutex);
  ServiceStatus status = s.status;
  for (const State::Command& command : s.inbox) status.waiting += command.kind == State::Command::Kind::submit;
  status.queued_tokens += s.inbox_tokens;
  status.last_step_age_ms = s.resting ? 0 : ms_since(s.last_step);
  return status;
}

const Engine& Service::engine() const { return *state_->engine; }

}  // namespace conclave
