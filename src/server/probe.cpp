#include "server/probe.h"

#include <fmt/format.h>

namespace conclave {
namespace {

constexpr double kStuckMs = 60'000;  // longer than any step
constexpr double kProbeMs = 10'000;
constexpr int kNumericErrors = 3;

double ms_since(EngineWatch::Clock::time_point time) {
  return std::chrono::duration<double, std::milli>(EngineWatch::Clock::now() - time).count();
}

}  // namespace

void probe_engine(const ServedModel& model, double deadline_ms, std::function<void(bool)> done) {
  Request probe;
  probe.prompt = {model.tokenizer->bos_id().value_or(0)};
  probe.max_new_tokens = 1;
  probe.priority = 1;
  probe.deadline_ms = deadline_ms;
  try {
    model.engine->submit(std::move(probe), [done](Delta&& delta, const RequestStats* stats) {
      if (stats) done(delta.finish == FinishReason::length || delta.finish == FinishReason::stop);
    });
  } catch (const std::exception&) {  // a full queue, or an engine that has failed
    done(false);
  }
}

void EngineWatch::look(const ServedModel& model) {
  const ServiceStatus status = model.engine->status();
  {
    const std::lock_guard lock(mutex_);
    if (status.steps != steps_) last_step_ = Clock::now();
    steps_ = status.steps;
    const bool busy = status.running + status.waiting > 0;
    if (probing_ || busy || ms_since(last_step_) < idle_ms_) return;
    probing_ = true;
    probe_began_ = Clock::now();
  }
  probe_engine(model, kProbeMs, [self = shared_from_this()](bool good) { self->probed(good); });
}

void EngineWatch::probed(bool good) {
  const std::lock_guard lock(mutex_);
  probing_ = false;
  failed_ = !good;
  last_step_ = Clock::now();  // a failed probe is repeated after the same time
  if (good) numeric_errors_ = 0;
}

void EngineWatch::note_end(bool numeric_error) {
  const std::lock_guard lock(mutex_);
  numeric_errors_ = numeric_error ? numeric_errors_ + 1 : 0;
  if (!numeric_error) failed_ = false;
}

std::string EngineWatch::trouble(const ServedModel& model) const {
  const ServiceStatus status = model.engine->status();
  if (status.running > 0 && status.last_step_age_ms > kStuckMs)
    return fmt::format("the last step ended {:.0f} s ago", status.last_step_age_ms / 1000);
  const std::lock_guard lock(mutex_);
  if (probing_ && ms_since(probe_began_) > kProbeMs) return "the idle engine does not answer a probe";
  if (failed_) return "the last probe gave no token";
  if (numeric_errors_ >= kNumericErrors) return fmt::format("the last {} answers had no number to choose a token from", numeric_errors_);
  return "";
}

}  // namespace conclave
