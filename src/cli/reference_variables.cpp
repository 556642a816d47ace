#include "cli/reference_variables.h"

#include <fmt/format.h>

#include <cstdlib>

namespace conclave {
namespace {

struct Explanation {
  const char *variable, *reason;
};

constexpr Explanation kExplanations[] = {
    {"ASCEND_RT_VISIBLE_DEVICES",
     "devices are not chosen: this build runs one rank on the processors that the system allows"},
    {"PYTORCH_NPU_ALLOC_CONF", "there is no caching allocator: memory is planned at start"},
    {"ATB_WORKSPACE_MEM_ALLOC_ALG_TYPE", "the workspace is planned once and reused by construction"},
    {"ATB_WORKSPACE_MEM_ALLOC_GLOBAL", "the workspace is planned once and reused by construction"},
    {"ATB_CONTEXT_WORKSPACE_SIZE", "the workspace is planned once and reused by construction"},
    {"ATB_LAYER_INTERNAL_TENSOR_REUSE", "the workspace is planned once and reused by construction"},
    {"TASK_QUEUE_ENABLE", "there is no launch queue on processors"},
    {"ATB_OPERATION_EXECUTE_ASYNC", "there is no launch queue on processors"},
    {"ATB_LLM_HCCL_ENABLE", "one rank needs no collective library"},
    {"HCCL_BUFFSIZE", "one rank needs no collective library"},
    {"HCCL_OP_EXPANSION_MODE", "one rank needs no collective library"},
    {"ATB_LLM_LCOC_ENABLE", "one rank has no communication to overlap"},
    {"ATB_LLM_ENABLE_AUTO_TRANSPOSE", "weights are packed for the processor at load"},
    {"ATB_CONVERT_NCHW_TO_ND", "weights are packed for the processor at load"},
    {"DP_MOVE_UP_ENABLE", "one rank has no data-parallel batches"},
    {"DP_PARTITION_UP_ENABLE", "one rank has no data-parallel batches"},
    {"LCCL_DETERMINISTIC", "results are always deterministic here"},
    {"HCCL_DETERMINISTIC", "results are always deterministic here"},
    {"ATB_MATMUL_SHUFFLE_K_ENABLE", "results are always deterministic here"},
    {"INF_NAN_MODE_ENABLE", "arithmetic is 32-bit; only an f16 cache stores 16-bit floats, and NaN logits are errors"},
    {"INF_NAN_MODE_FORCE_DISABLE",
     "arithmetic is 32-bit; only an f16 cache stores 16-bit floats, and NaN logits are errors"},
    {"DEEPSEEK_MTP", "multi-token prediction is not run; its weights are skipped"},
    {"LONG_SEQ_ENABLE", "there is no separate path for long sequences"},
    {"ASCEND_HOME_PATH", "there is no vendor tool chain to find"},
    {"ATB_LLM_RAZOR_ATTENTION_ENABLE", "pruning the cache changes results and is not offered"},
    {"ATB_PROFILING_ENABLE", "this build has no profiler; --benchmark gives step times"},
    {"ATB_LLM_LOGITS_SAVE_ENABLE", "`conclave dump` writes logits"},
    {"MINDIE_ENABLE_EXPERT_HOTPOT_GATHER",
     "this build gathers no expert statistics; `conclave dump --taps` writes the experts of every token"},
    {"MINDIE_LOG_TO_STDOUT", "messages go to standard error, results to standard output"},
    {"MINDIE_LOG_TO_FILE", "--log-file FILE writes messages to a file"},
    {"MINDIE_LOG_PATH", "--log-file FILE writes messages to a file"},
    {"MODELTEST_PD_SPLIT_ENABLE", "there are no separate prefill and decode roles"},
};

}  // namespace

std::optional<std::string> reference_switch(const std::string& value, const Variables&) {
  return value == "0" ? "off" : "on";
}

std::optional<std::string> reference_log_level(const std::string& value, const Variables&) {
  const size_t at = value.find("llm:");
  std::string level;
  for (const char c : at == std::string::npos ? value : value.substr(at + 4, value.find(';', at) - at - 4)) {
    if (c != ' ') level += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  if (level == "warn") return "warning";
  if (level == "critical") return "error";
  if (level == "null") return "off";
  return level.find(':') == std::string::npos ? std::optional(level) : std::nullopt;  // other components only
}

std::optional<std::string> reference_path(const std::string& value, const Variables& all,
                                          const std::string& path_variable, const std::string& fallback) {
  if (value == "0") return std::nullopt;
  const auto path = all.find(path_variable);
  return path == all.end() || path->second.empty() ? fallback : path->second;
}

void explain_reference_variables(const Log& log) {
  for (const Explanation& e : kExplanations) {
    if (std::getenv(e.variable)) log.info(fmt::format("{} has no effect: {}", e.variable, e.reason));
  }
}

}  // namespace conclave
