#pragma once
// One engine on its own thread, many clients. submit() and cancel() may be called from any thread and return at once; the engine thread
// takes what was queued between steps and hands every Delta to its request's sink. A request's deltas arrive in order, the last one carries
// its FinishReason, and nothing follows it. The engine thread never waits for a client.
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "core/error.h"
#include "engine/engine.h"
#include "engine/request.h"

namespace conclave {

struct ServiceOptions {
  int max_queued_requests = 256;        ///< waiting and running together
  int64_t max_queued_tokens = 1 << 20;  ///< prompt tokens of waiting requests
  double step_budget_ms = 0;            ///< aimed length of a step while streams run; 0: the engine's largest chunk
};

/// A full queue: an Error of its own type, so that a server answers 429 or 503 with the time to wait.
struct Overloaded : Error {
  Overloaded(const std::string& message, double retry_after) : Error(Kind::bad_input, message), retry_after_ms(retry_after) {}
  double retry_after_ms;
};

/// A snapshot for health checks and metrics.
struct ServiceStatus {
  enum class State : uint8_t { ready, draining, stopped, failed } state = State::ready;
  int running = 0, waiting = 0;
  int64_t queued_tokens = 0;
  int total_blocks = 0, free_blocks = 0, block_size = 0;
  uint64_t steps = 0;
  double last_step_age_ms = 0;          ///< since a step ended; small while idle (an idle engine is not stuck)
  uint64_t prompt_tokens = 0, generated_tokens = 0, cached_tokens = 0, preemptions = 0;
  uint64_t prefix_queries = 0, prefix_hits = 0;  ///< in tokens
  double schedule_ms = 0, forward_ms = 0, sample_ms = 0, deliver_ms = 0;  ///< of all steps: planning, the model, choosing, handing over
  std::string failure;                  ///< what stopped a failed engine
};

class Service {
 public:
  /// Called on the engine thread for each delta; must not block and must not throw (that fails the service); it may call cancel(),
  /// pause() and resume(). `stats` is set with the last delta. A request's first delta can arrive before submit() has returned its id.
  using Sink = std::function<void(Delta&& delta, const RequestStats* stats)>;

  Service(std::unique_ptr<Engine> engine, const ServiceOptions& options);
  /// Cancels what runs and joins the thread.
  ~Service();

  /// Throws what Engine::submit throws for an invalid request, Overloaded when the queue is full or the service drains, and an internal
  /// Error once the engine has failed.
  RequestId submit(Request request, Sink sink);
  /// Within one step the request's last delta arrives with FinishReason::cancelled. Unknown or finished ids are ignored.
  void cancel(RequestId id);
  /// A sink whose client reads too slowly pauses its request: no step works for it until resume().
  void pause(RequestId id);
  void resume(RequestId id);

  /// No new requests from now on; true once nothing is left, false after `timeout_ms`.
  bool drain(double timeout_ms);
  ServiceStatus status() const;
  const Engine& engine() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace conclave
