#pragma once
// Options of every command that runs a model, and their translation into the engine's terms.
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/options.h"
#include "engine/engine.h"

namespace conclave {

struct ModelOptions {
  std::string model;  ///< folder, or the name of a published shape with random weights
  std::string backend = "cpu", isa, precision = "fast", dtype = "auto", activations = "auto", kv = "paged", kv_dtype = "auto", bind = "on",
              verify = "fast", fp16_overflow = "inf";
  int threads = 0, block_size = 128, layers = 0, max_position_embeddings = 0, step_tokens = 512;
  std::optional<uint64_t> random_weights;
  std::string format = "auto";
  float reserve_memory = 0, memory_fraction = 1;
  std::string deterministic = "true";
  bool trust_remote_code = false, strict_permissions = false;
};

/// `precision`: the command's default.
void declare_model_options(OptionTable& table, ModelOptions& options, std::string precision = "fast");

/// Numbers of ranks; -1 follows from the others.
struct ParallelOptions {
  int tp = -1, dp = -1, pp = -1, sp = -1, cp = -1, moe_tp = -1, moe_ep = -1, microbatch = -1;
  std::string ranks = "auto", pp_split, moe_dispatch = "auto";
};
void declare_parallel_options(OptionTable& table, ParallelOptions& options);

/// Takes MODEL from the positionals unless --model gave it; what is left are the command's other arguments.
void take_model(OptionTable& table, const ModelOptions& options, std::vector<std::string>& positionals);

/// Engine options; the caller adds its batch and context. Throws bad_input for combinations that are not offered.
EngineOptions engine_options(const ModelOptions& options);

}  // namespace conclave
