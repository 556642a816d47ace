#include "cli/model_options.h"

#include <fmt/format.h>

#include <algorithm>

#include "cli/reference_variables.h"
#include "core/error.h"

namespace conclave {
namespace {

std::optional<DType> dtype_named(const std::string& name) {
  if (name == "f32") return DType::f32;
  if (name == "bf16") return DType::bf16;
  if (name == "f16") return DType::f16;
  if (name == "int8") return DType::i8;
  return std::nullopt;
}

std::vector<std::string> with_auto(std::vector<std::string> names) {
  names.insert(names.begin(), "auto");
  return names;
}

void declare_file_options(OptionTable& table, ModelOptions& o) {
  table.group("Model");
  table.add("model", &o.model, "model folder; every positional argument is then something else").placeholder("DIR");
  table
      .add("random-weights", &o.random_weights,
           "random weights for the shape of config.json alone (or of a published shape named as MODEL): for "
           "layout, memory and speed; the output means nothing")
      .placeholder("SEED")
      .implicit("0");
  table.add("format", &o.format, "format of random weights; auto is the dtype of config.json")
      .choices(with_auto(random_format_names()));
  table.add("layers", &o.layers, "with random weights: only this many layers; 0 is all")
      .placeholder("N")
      .range(0, 10000);
  table.add("verify", &o.verify, "fast: structure of the files; full: also every value (NaN and infinity are refused)")
      .choices({"fast", "full"})
      .implicit("full");
  table.add("max-position-embeddings", &o.max_position_embeddings, "longest sequence; 0 is the model's own limit")
      .placeholder("N")
      .range(0, 1 << 30);
  table.add("trust-remote-code", &o.trust_remote_code, "accepted for compatibility; no remote code is ever run");
  table.add("strict-permissions", &o.strict_permissions, "refuse model files that everybody may change");
}

void declare_computation_options(OptionTable& table, ModelOptions& o) {
  table.group("Computation");
  table.add("backend", &o.backend, "cpu: optimised kernels; reference: the plainest correct code")
      .choices({"cpu", "reference"});
  table
      .add("isa", &o.isa,
           "force an instruction set of the cpu backend (scalar, avx2, avx512, ...); empty is the best one")
      .placeholder("NAME");
  table.add("threads", &o.threads, "worker threads; 0 is one per available processor")
      .placeholder("N")
      .range(0, 4096)
      .reference("CPU_BINDING_NUM");
  table.add("bind", &o.bind, "pin threads to processors")
      .choices({"on", "off"})
      .reference("BIND_CPU", reference_switch);
  table
      .add("precision", &o.precision,
           "exact: 32-bit arithmetic from the stored weights with a 32-bit cache; fast: the cache, and where it "
           "helps activations, in the model's dtype")
      .choices({"exact", "fast"});
  table.add("dtype", &o.dtype, "type that floating weights are held in; auto is the file's")
      .choices({"auto", "f32", "bf16", "f16"});
  table
      .add("activations", &o.activations,
           "bits of the activations that meet int8 and int4 weights; auto is what config.json says, and 8 for int4 with --precision fast")
      .choices({"auto", "8", "16"});
  table.add("kv", &o.kv, "cache layout").choices({"paged", "contiguous"});
  table.add("kv-dtype", &o.kv_dtype, "cache type; auto follows --precision, int8 has a scale per token and head")
      .choices({"auto", "f32", "bf16", "f16", "int8"});
  table
      .add("fp16-overflow", &o.fp16_overflow,
           "what an f16 cache stores for values beyond its range: infinity or the largest number; everything else is "
           "computed in 32 bits, and weights that f16 cannot hold are refused")
      .choices({"inf", "saturate"})
      .reference("INF_NAN_MODE_ENABLE",
                 [](const std::string& value, const Variables&) -> std::optional<std::string> {
                   return value == "0" ? "saturate" : "inf";
                 })
      .reference("INF_NAN_MODE_FORCE_DISABLE",
                 [](const std::string& value, const Variables&) -> std::optional<std::string> {
                   return reference_truth(value, true) ? std::optional<std::string>("saturate") : std::nullopt;
                 });
  table.add("block-size", &o.block_size, "positions per block of the paged cache").placeholder("N").range(1, 576);
  table.add("step-tokens", &o.step_tokens, "most prompt tokens computed in one step; results do not depend on it")
      .placeholder("N")
      .range(1, 1 << 20);
  table.add("reserve-memory", &o.reserve_memory, "GiB of memory to leave free")
      .placeholder("GIB")
      .range(0, 1 << 20)
      .reference("RESERVED_MEMORY_GB");
  table.add("memory-fraction", &o.memory_fraction, "share of the available memory that may be used")
      .placeholder("X")
      .range(0.01, 1)
      .reference("NPU_MEMORY_FRACTION");
  const auto set_by = [](bool meaning) {
    return [meaning](const std::string& value, const Variables&) { return reference_truth(value, meaning); };
  };
  table
      .add("deterministic", &o.deterministic,
           "true, always: results do not depend on threads, batch or chunks; world: nor on the number of ranks, at the cost that "
           "docs/parallel.md states")
      .choices({"true", "false", "world"})
      .implicit("true")
      .reference("LCCL_DETERMINISTIC", set_by(true))
      .reference("HCCL_DETERMINISTIC", set_by(true))
      .reference("ATB_MATMUL_SHUFFLE_K_ENABLE", set_by(false));
}

}  // namespace

void declare_model_options(OptionTable& table, ModelOptions& o, std::string precision) {
  o.precision = std::move(precision);
  declare_file_options(table, o);
  declare_computation_options(table, o);
}

void declare_parallel_options(OptionTable& table, ParallelOptions& o) {
  table.group("Ranks (docs/parallel.md; -1 follows from the others)");
  const auto add = [&](const char* name, int* field, const char* help) -> Option& {
    return table.add(name, field, help).placeholder("N").range(-1, 1 << 20);
  };
  add("tp", &o.tp, "tensor-parallel ranks: heads, widths and vocabulary are shared out; default: all ranks that were started")
      .reference("TP_WORLD_SIZE");
  add("dp", &o.dp, "data-parallel groups, each with its own sequences and cache; experts are shared by all");
  add("pp", &o.pp, "pipeline stages of neighbouring layers");
  add("sp", &o.sp, "sequence parallelism: equal to --tp, each rank keeps the residual stream of its share of the rows");
  add("cp", &o.cp, "context-parallel ranks: not offered");
  add("moe-tp", &o.moe_tp, "ranks that share the width of each expert");
  add("moe-ep", &o.moe_ep, "expert-parallel groups: each holds whole experts; moe-ep x moe-tp = dp x tp");
  add("microbatch", &o.microbatch, "parts of a step that are in the pipeline at once; default: the stages");
  table.add("pp-split", &o.pp_split, "layers of each stage; default: balanced by bytes").placeholder("N,...");
  table
      .add("moe-dispatch", &o.moe_dispatch,
           "replicate: every rank sees all tokens and one reduction adds the experts; exchange: tokens travel to their experts; auto: "
           "exchange with --dp, else replicate")
      .choices({"auto", "replicate", "exchange"});
  table
      .add("ranks", &o.ranks,
           "threads: of this process; processes: those that mpirun or WORLD_SIZE, RANK and MASTER_ADDR name; auto: processes where there are any")
      .choices({"auto", "threads", "processes", "mpi"});
}

void take_model(OptionTable& table, const ModelOptions& o, std::vector<std::string>& positionals) {
  if (!o.model.empty() || positionals.empty()) return;
  table.argument("model", positionals.front());
  positionals.erase(positionals.begin());
}

EngineOptions engine_options(const ModelOptions& o) {
  if (o.deterministic == "false") {
    throw Error(Error::Kind::bad_input, "--deterministic is false, but results are always deterministic; give true or world");
  }
  EngineOptions e;
  e.backend = o.backend;
  e.isa = o.isa;
  e.threads = o.threads;
  e.pin_threads = o.bind == "on";
  e.precision = o.precision == "exact" ? Precision::exact : Precision::fast;
  e.arithmetic = dtype_named(o.dtype);
  if (o.activations != "auto") e.activations = o.activations == "8" ? Activations::int8_token : Activations::floating;
  e.kv_dtype = dtype_named(o.kv_dtype);
  e.saturate_f16 = o.fp16_overflow == "saturate";
  e.kv_mode = o.kv == "contiguous" ? KvMode::contiguous : KvMode::paged;
  e.block_size = o.block_size;
  e.max_step_tokens = o.step_tokens;
  constexpr double kGiB = double{1 << 30};
  const double withheld = (1.0 - static_cast<double>(o.memory_fraction)) * static_cast<double>(available_memory());
  e.reserve_bytes = static_cast<size_t>(std::max(static_cast<double>(o.reserve_memory) * kGiB, withheld));
  return e;
}

}  // namespace conclave
