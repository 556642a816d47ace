#pragma once
// The ranks of one command: threads of this process, or processes that mpirun or a rendezvous has started. Rank 0 runs the command; the others
// follow: they hold their part of the model and write neither results nor files.
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/model_files.h"
#include "cli/model_options.h"
#include "comm/communicator.h"
#include "engine/engine.h"
#include "model/parallel_plan.h"

namespace conclave {

class RankJob {
 public:
  /// Joins the job that the environment names (--ranks auto, processes), and checks the layout. Throws bad_input naming the rule that is
  /// broken, before a weight is read.
  RankJob(const ParallelOptions& parallel, const ModelOptions& model);
  /// Rank 0 tells the others that the command has ended.
  ~RankJob();
  RankJob(const RankJob&) = delete;
  RankJob& operator=(const RankJob&) = delete;

  const ParallelLayout& layout() const { return layout_; }
  /// True in the processes that are not rank 0: they call follow() and end.
  bool follows() const { return world_ && world_->rank() != 0; }
  /// Serves rank 0's engines, one after the other, until its command ends.
  void follow(const ModelFiles& model);
  /// An engine over all ranks; `options` need no layout.
  std::unique_ptr<Engine> make_engine(const ModelFiles& model, EngineOptions options, const Engine::Progress& progress);

 private:
  void check_identity(const ModelFiles& model);

  std::shared_ptr<Communicator> world_;  ///< null: ranks are threads
  ParallelLayout layout_;
  bool checked_ = false;
};

/// The sizes that the options give. Throws bad_input for a malformed --pp-split.
LayoutRequest request_of(const ParallelOptions& options, bool whole_sums = false);

/// What other ranks need to build the engine that rank 0 builds.
std::vector<std::byte> encode(const EngineOptions& options);
EngineOptions decode_engine_options(std::span<const std::byte> bytes);

}  // namespace conclave
