#include "cli/engine_start.h"

#include <fmt/format.h>

#include "cli/progress.h"
#include "cli/report.h"
#include "core/error.h"

namespace conclave {

std::unique_ptr<Engine> start_engine(const ModelFiles& model, const EngineOptions& options, RankJob& job, const Log& log,
                                     const Interrupts& interrupts) {
  if (options.arithmetic && *options.arithmetic != model.spec.dtype) {
    log.info(fmt::format("weights are held in {} instead of the file's {}", name_of(*options.arithmetic),
                         name_of(model.spec.dtype)));
  }
  std::unique_ptr<Engine> engine;
  {
    Progress progress("loading", log);
    engine = job.make_engine(model, options, [&](size_t done, size_t total) {
      if (interrupts.raised()) throw Error(Error::Kind::cancelled, "interrupted while loading");
      progress.update(done, total);
    });
  }
  log.info(model_line(*engine));
  if (model.random) log.warning("random weights: the output means nothing");
  return engine;
}

}  // namespace conclave
