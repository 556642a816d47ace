#pragma once
// One rank of the ranks that compute a model together: its threads, backend, weights, cache and runner. With a single rank it is the whole
// model. Carries out what rank 0 says; decides nothing.
#include <functional>
#include <memory>

#include "comm/communicator.h"
#include "core/thread_pool.h"
#include "engine/engine.h"
#include "engine/runner.h"

namespace conclave {

/// Options with every default filled in. Throws bad_input for values out of range.
EngineOptions resolve(const ModelSpec& spec, EngineOptions options);
/// The cache of resolved options.
CacheShape cache_shape(const EngineOptions& options);
/// Throws bad_input naming the value and the range.
void check_range(std::string_view name, int64_t value, int64_t low, int64_t high);
/// Threads of each rank; 0: all processors.
int threads_of_rank(const EngineOptions& options);
std::unique_ptr<Backend> make_backend(const EngineOptions& options, ThreadPool& pool);
/// What a rank needs; `options` are resolved.
MemoryPlan plan_rank_memory(const ModelSpec& spec, const TensorSource& source, const EngineOptions& options, const Backend& backend, int rank);

class Rank {
 public:
  /// Loads this rank's part and allocates everything; collective over `world` (null: one rank). References must outlive the rank; `spec` is
  /// the whole model's.
  Rank(const ModelSpec& spec, const TensorSource& source, const EngineOptions& options, Communicator* world, const Engine::Progress& progress);

  Runner& runner() { return *runner_; }
  ThreadPool& pool() { return pool_; }
  const Backend& backend() const { return *backend_; }
  const Weights& weights() const { return weights_; }
  const RankPlan& plan() const { return plan_; }
  const ModelSpec& spec() const { return spec_; }

 private:
  RankPlan plan_;
  ModelSpec spec_;  ///< local
  ThreadPool pool_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Ranks> ranks_;
  Weights weights_;
  std::unique_ptr<Runner> runner_;
};

}  // namespace conclave
