#pragma once
// Whether the engine really computes: remembers when a step was last seen to end, asks an idle engine for one token now and then, and
// counts answers without a number. Thread-safe; what is under way keeps it alive.
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "server/served_model.h"

namespace conclave {

/// Computes one token; `done` is told, perhaps on the engine's thread and perhaps at once, whether it came within the time.
void probe_engine(const ServedModel& model, double deadline_ms, std::function<void(bool good)> done);

class EngineWatch : public std::enable_shared_from_this<EngineWatch> {
 public:
  using Clock = std::chrono::steady_clock;
  explicit EngineWatch(double idle_ms) : idle_ms_(idle_ms) {}
  /// To be called a few times a second: after `idle_ms` without a step it sends a probe.
  void look(const ServedModel& model);
  /// A request ended: three in a row without a number to choose from are trouble, until a probe or a request succeeds.
  void note_end(bool numeric_error);
  /// "" while steps end; else why the engine cannot be relied on.
  std::string trouble(const ServedModel& model) const;

 private:
  void probed(bool good);
  const double idle_ms_;
  mutable std::mutex mutex_;  ///< guards what follows
  uint64_t steps_ = 0;
  Clock::time_point last_step_ = Clock::now(), probe_began_;
  bool probing_ = false, failed_ = false;
  int numeric_errors_ = 0;
};

}  // namespace conclave
