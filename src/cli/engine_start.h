#pragma once
// Loads a model into an engine with progress, and says what was built.
#include <memory>

#include "cli/model_files.h"
#include "cli/rank_job.h"
#include "cli/signals.h"
#include "core/log.h"
#include "engine/engine.h"

namespace conclave {

/// Throws what Engine throws, and cancelled when interrupted while loading.
std::unique_ptr<Engine> start_engine(const ModelFiles& model, const EngineOptions& options, RankJob& job, const Log& log,
                                     const Interrupts& interrupts);

}  // namespace conclave
