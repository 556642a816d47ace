#include "cli/rank_job.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "comm/launch.h"
#include "core/error.h"
#include "model/split.h"

namespace conclave {
namespace {

using Json = nlohmann::json;

[[noreturn]] void refuse(const std::string& message) { throw Error(Error::Kind::bad_input, message); }

std::vector<int> stage_layers(const std::string& text) {
  std::vector<int> counts;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(',', at), text.size());
    int n = 0;
    const auto parsed = std::from_chars(text.data() + at, text.data() + end, n);
    if (parsed.ec != std::errc() || parsed.ptr != text.data() + end || n < 1)
      refuse(fmt::format("--pp-split is \"{}\", wanted the layers of each stage: \"14,14\"", text));
    counts.push_back(n);
    at = end + 1;
  }
  return counts;
}

/// Ranks of this host, as launchers say it; 0: unknown.
int ranks_per_host() {
  for (const char* variable : {"OMPI_COMM_WORLD_LOCAL_SIZE", "LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE"})
    if (const char* text = std::getenv(variable)) return std::max(0, std::atoi(text));
  return 0;
}

/// FNV-1a of names, types, shapes and some bytes of the tensors: enough to tell checkpoints apart without reading them whole.
std::string digest_of(const ModelFiles& model) {
  uint64_t hash = 0xcbf29ce484222325ull;
  const auto add = [&](const void* data, size_t n) {
    for (size_t i = 0; i < n; ++i) hash = (hash ^ static_cast<const uint8_t*>(data)[i]) * 0x100000001b3ull;
  };
  constexpr size_t kSamples = 256, kBytes = 64;
  if (model.checkpoint) {
    const auto& tensors = model.checkpoint->tensors();
    const size_t every = std::max<size_t>(1, tensors.size() / kSamples);
    size_t i = 0;
    for (const auto& [name, record] : tensors) {
      add(name.data(), name.size()), add(record.shape.data(), record.shape.size() * sizeof(int64_t)), add(&record.dtype, sizeof record.dtype);
      if (i++ % every == 0) add(record.data, std::min(kBytes, record.bytes));
    }
  } else {
    for_each_tensor(model.spec, [&](const TensorInfo& info) { add(info.name.data(), info.name.size()), add(info.shape.data(), info.shape.size() * 8); });
  }
  return fmt::format("{:016x}", hash);
}

template <class T>
Json optional_number(const std::optional<T>& value) { return value ? Json(static_cast<int>(*value)) : Json(); }
template <class T>
std::optional<T> number(const Json& json) { return json.is_null() ? std::nullopt : std::optional<T>(static_cast<T>(json.get<int>())); }

}  // namespace

LayoutRequest request_of(const ParallelOptions& o, bool whole_sums) {
  LayoutRequest r{.tp = o.tp, .dp = o.dp, .pp = o.pp, .sp = o.sp, .cp = o.cp, .moe_tp = o.moe_tp, .moe_ep = o.moe_ep, .microbatches = o.microbatch};
  r.stage_layers = stage_layers(o.pp_split);
  if (o.moe_dispatch != "auto") r.dispatch = o.moe_dispatch == "exchange" ? Dispatch::exchange : Dispatch::replicate;
  r.whole_sums = whole_sums;
  return r;
}

std::vector<std::byte> encode(const EngineOptions& o) {
  const ParallelLayout& l = o.layout;
  const Json json = {{"backend", o.backend}, {"isa", o.isa}, {"threads", o.threads}, {"pin", o.pin_threads}, {"precision", static_cast<int>(o.precision)},
                     {"arithmetic", optional_number(o.arithmetic)}, {"activations", optional_number(o.activations)},
                     {"kv_dtype", optional_number(o.kv_dtype)}, {"saturate", o.saturate_f16}, {"kv_mode", static_cast<int>(o.kv_mode)},
                     {"block_size", o.block_size}, {"sequences", o.max_sequences}, {"context", o.max_context}, {"cache", o.cache_tokens},
                     {"step", o.max_step_tokens}, {"reserve", o.reserve_bytes}, {"share", o.share_prefixes}, {"share_generated", o.share_generated},
                     {"tp", l.tp}, {"dp", l.dp}, {"pp", l.pp}, {"moe_tp", l.moe_tp}, {"moe_ep", l.moe_ep}, {"sp", l.sequence_parallel},
                     {"microbatches", l.microbatches}, {"dispatch", static_cast<int>(l.dispatch)}, {"stages", l.stage_layers},
                     {"whole_sums", l.whole_sums}};
  const std::string text = json.dump();
  const auto* bytes = reinterpret_cast<const std::byte*>(text.data());
  return {bytes, bytes + text.size()};
}

EngineOptions decode_engine_options(std::span<const std::byte> bytes) {
  try {
    const auto* text = reinterpret_cast<const char*>(bytes.data());
    const Json json = Json::parse(text, text + bytes.size());
    EngineOptions o;
    json.at("backend").get_to(o.backend), json.at("isa").get_to(o.isa), json.at("threads").get_to(o.threads), json.at("pin").get_to(o.pin_threads);
    o.precision = static_cast<Precision>(json.at("precision").get<int>()), o.kv_mode = static_cast<KvMode>(json.at("kv_mode").get<int>());
    o.arithmetic = number<DType>(json.at("arithmetic")), o.activations = number<Activations>(json.at("activations"));
    o.kv_dtype = number<DType>(json.at("kv_dtype"));
    json.at("saturate").get_to(o.saturate_f16), json.at("block_size").get_to(o.block_size), json.at("sequences").get_to(o.max_sequences);
    json.at("context").get_to(o.max_context), json.at("cache").get_to(o.cache_tokens), json.at("step").get_to(o.max_step_tokens);
    json.at("reserve").get_to(o.reserve_bytes), json.at("share").get_to(o.share_prefixes), json.at("share_generated").get_to(o.share_generated);
    ParallelLayout& l = o.layout;
    json.at("tp").get_to(l.tp), json.at("dp").get_to(l.dp), json.at("pp").get_to(l.pp), json.at("moe_tp").get_to(l.moe_tp);
    json.at("moe_ep").get_to(l.moe_ep), json.at("sp").get_to(l.sequence_parallel), json.at("microbatches").get_to(l.microbatches);
    l.dispatch = static_cast<Dispatch>(json.at("dispatch").get<int>());
    json.at("stages").get_to(l.stage_layers), json.at("whole_sums").get_to(l.whole_sums);
    return o;
  } catch (const Json::exception& e) {
    throw Error(Error::Kind::network, fmt::format("rank 0's options cannot be read ({}); do all ranks run the same build?", e.what()));
  }
}

RankJob::RankJob(const ParallelOptions& parallel, const ModelOptions& model) {
  if (parallel.ranks != "threads") world_ = make_from_environment();
  if (world_ && world_->size() == 1) world_.reset();
  if (!world_ && parallel.ranks != "auto" && parallel.ranks != "threads")
    refuse("--ranks asks for processes, but this process was started alone; start it with mpirun -n N, or with WORLD_SIZE, RANK and MASTER_ADDR set");
  LayoutRequest asked = request_of(parallel, model.deterministic == "world");
  const bool sizes_given = std::max({asked.tp, asked.dp, asked.pp, asked.moe_tp, asked.moe_ep}) > 0;
  if (!sizes_given && !model.random_weights && is_split(model.model)) {
    const ParallelLayout l = split_layout(model.model);
    asked.tp = l.tp, asked.dp = l.dp, asked.pp = l.pp, asked.moe_tp = l.moe_tp, asked.moe_ep = l.moe_ep, asked.stage_layers = l.stage_layers;
  }
  layout_ = resolve_layout(read_spec(model), asked, world_ ? world_->size() : 0, world_ ? ranks_per_host() : 0);
}

RankJob::~RankJob() {
  if (!world_ || world_->rank() != 0) return;
  try {
    std::vector<std::byte> nothing;
    world_->broadcast(nothing, 0);
  } catch (const std::exception&) {  // a rank is gone, and has said so
  }
}

void RankJob::check_identity(const ModelFiles& model) {
  if (checked_) return;
  const Identity identities[] = {{"checkpoint", digest_of(model), model.folder.string()}, {"build", CONCLAVE_VERSION " " __VERSION__, "conclave"}};
  check_same_on_all_ranks(*world_, identities);
  checked_ = true;
}

void RankJob::follow(const ModelFiles& model) {
  for (std::vector<std::byte> bytes;;) {
    world_->broadcast(bytes, 0);
    if (bytes.empty()) return;
    check_identity(model);
    follow_engine(model.spec, *model.source, decode_engine_options(bytes), *world_);
  }
}

std::unique_ptr<Engine> RankJob::make_engine(const ModelFiles& model, EngineOptions options, const Engine::Progress& progress) {
  options.layout = layout_;
  if (world_) {
    std::vector<std::byte> bytes = encode(options);
    world_->broadcast(bytes, 0);
    check_identity(model);
  }
  return std::make_unique<Engine>(model.spec, *model.source, options, progress, world_);
}

}  // namespace conclave
