#pragma once
// The loop around one model: queue -> scheduler -> runner -> sampler -> deltas. Synchronous: the caller drives step(). Owns weights, cache
// memory and every activation buffer, all planned and allocated before the first step.
#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "core/tensor.h"
#include "core/thread_pool.h"
#include "engine/expert_load.h"
#include "engine/request.h"
#include "engine/step_plan.h"
#include "model/cost.h"
#include "model/decoder.h"
#include "model/spec.h"
#include "model/tensor_source.h"
#include "model/weights.h"

namespace conclave {

enum class Precision : uint8_t {
  exact,  ///< f32 arithmetic from the stored weights, f32 cache
  fast,   ///< cache in the model's dtype; activations may be rounded to it
};
enum class KvMode : uint8_t { paged, contiguous };

struct EngineOptions {
  std::string backend = "cpu";  ///< "cpu" or "reference"
  std::string isa;              ///< empty: best of the machine, or CONCLAVE_ISA
  int threads = 0;              ///< 0: all available processors
  bool pin_threads = true;      ///< workers stay on their processors
  Precision precision = Precision::fast;
  std::optional<DType> arithmetic;  ///< --dtype; nothing = the file's
  std::optional<Activations> activations;  ///< --activations: of int8 and int4 weights; nothing = the file's, int8 for int4 in fast
  std::optional<DType> kv_dtype;    ///< --kv-dtype; nothing = f32 (exact) or the arithmetic type (fast)
  bool saturate_f16 = false;    ///< an f16 cache stores what overflows as +-65504 instead of infinity
  KvMode kv_mode = KvMode::paged;
  int block_size = 128;         ///< 1..576 positions
  int max_sequences = 1;        ///< running at once
  int max_context = 0;          ///< longest prompt + output of one sequence
  int64_t cache_tokens = 0;     ///< cache capacity in tokens; 0: max_sequences x max_context
  int max_step_tokens = 512;    ///< rows of one step (prefill chunk)
  size_t reserve_bytes = 0;     ///< memory to leave free
  bool share_prefixes = true;   ///< requests with equal beginnings compute them once
  /// MLA computes generated tokens in another form than a prompt's, whose lowest bits differ: the cache of an answer serves a later prompt
  /// only where this allows it. Without effect on other attention.
  bool share_generated = false;
  /// Of resolve_layout(): how many ranks share the model; `threads` are then per rank (0: the processors shared out). max_sequences,
  /// cache_tokens and max_step_tokens are of each data group.
  ParallelLayout layout = {};
  int expert_sampling = 0;      ///< the experts' load is counted in one step of that many; 0: never
};

/// What a configuration needs, in bytes, computed before anything is loaded.
struct MemoryPlan {
  size_t weights = 0, kv_cache = 0, activations = 0, workspace = 0;
  size_t total() const { return weights + kv_cache + activations + workspace; }
};

/// Figures of the moment and totals since the start.
struct EngineLoad {
  int running = 0, waiting = 0;
  int64_t waiting_tokens = 0;  ///< prompt tokens of waiting requests
  int total_blocks = 0, free_blocks = 0;
  uint64_t steps = 0, prompt_tokens = 0, generated_tokens = 0, cached_tokens = 0, preemptions = 0;
  double schedule_ms = 0, forward_ms = 0, sample_ms = 0;  ///< of all steps: planning and bookkeeping, the model, choosing tokens
};

/// What a caller may see of every step(); empty functions cost nothing. They run on the caller's thread, and what they are given lives
/// during the call only.
struct StepObserver {
  using Time = std::chrono::steady_clock::time_point;
  Tap tap = {};
  /// The stages "schedule", "forward", "sample", "commit", each when it has ended. With several data groups `plan` is the first one's.
  std::function<void(std::string_view stage, Time begin, Time end, const StepPlan& plan)> stage = {};
  /// logits [n, vocab] of the plan's chunks with `sample`, in their order, before sampling.
  std::function<void(const StepPlan& plan, const Tensor& logits)> logits = {};
};

class Engine {
 public:
  using Time = std::chrono::steady_clock::time_point;
  using Progress = std::function<void(size_t done, size_t total)>;
  /// Plans memory (throws out_of_memory naming needed and available bytes before reading weights), loads, allocates.
  /// Ranks are threads of this process unless `world` holds them, whose rank 0 this then is; the others run follow_engine().
  Engine(ModelSpec spec, const TensorSource& source, const EngineOptions& options, const Progress& progress = {},
         std::shared_ptr<Communicator> world = nullptr);
  ~Engine();

  static MemoryPlan plan_memory(const ModelSpec& spec, const TensorSource& source, const EngineOptions& options);

  const ModelSpec& spec() const;
  const EngineOptions& options() const;
  const MemoryPlan& memory() const;
  std::string_view isa() const;
  int threads() const;
  double load_ms() const;
  size_t bytes_touched_per_token() const;
  ModelCost cost() const;
  /// Null without EngineOptions::expert_sampling. May be read from any thread while the engine lives.
  const ExpertLoad* expert_load() const;

  /// Queues a request. Throws bad_input when the prompt is empty or longer than the model's or the engine's context (with both numbers),
  /// ids are out of range, or sampling values are invalid.
  RequestId submit(Request request);
  /// The same under an id that the caller chose, unique among all; deadlines count from `submitted`.
  void submit(RequestId id, Request request, Time submitted);
  /// Throws what submit() would throw; may be called from any thread.
  void check(const Request& request) const;
  void cancel(RequestId id);
  /// A paused request keeps its place and its cache, but no step works for it. Unknown ids are ignored.
  void pause(RequestId id, bool paused);
  /// Runs one step; returns what it produced. Nothing to do: empty. While requests generate, prompts are computed in chunks that keep a
  /// step near `budget_ms` (0: in chunks of max_step_tokens).
  std::vector<Delta> step(double budget_ms = 0);
  bool idle() const;
  /// The earliest deadline of a request that waits or runs.
  std::optional<Time> next_deadline() const;
  EngineLoad load() const;
  /// Of the steps from here on; a default-made observer ends the observation.
  void observe(StepObserver observer);
  /// Of a finished request (kept until asked once).
  RequestStats stats(RequestId id);
  int64_t steps() const;

  /// For `dump` and tests: one prompt through the model alone in chunks of `chunk` rows (0 = max_step_tokens), then greedy decoding.
  struct Trace {
    std::vector<float> logits;          ///< [T, V] of every prompt position
    std::vector<int32_t> greedy_tokens; ///< [N]
    std::vector<float> greedy_logits;   ///< [N, V]; row t is the row whose argmax is token t
  };
  Trace trace(std::span<const int32_t> prompt, int max_new_tokens, const Tap& prompt_tap = {}, int chunk = 0);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// A rank other than 0 in a process of its own: returns when rank 0's engine ends. Throws what Engine throws, and network when a rank is gone.
void follow_engine(const ModelSpec& spec, const TensorSource& source, const EngineOptions& options, Communicator& world);

/// Memory that this process may still take: the smaller of MemAvailable and the cgroup's remaining limit.
size_t available_memory();

}  // namespace conclave
