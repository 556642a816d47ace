// conclave dump: logits, greedy tokens and inner activations of one prompt as a safetensors file.
#include <fmt/format.h>

#include <cstring>
#include <map>
#include <optional>

#include "cli/command.h"
#include "cli/engine_start.h"
#include "cli/model_files.h"
#include "cli/model_options.h"
#include "cli/reference_variables.h"
#include "cli/token_ids.h"
#include "core/error.h"
#include "io/safetensors.h"

namespace conclave {
namespace {

using Entry = SafetensorsWriter::Entry;

/// Rows of one activation, gathered over the chunks of a prompt.
struct Gathered {
  DType dtype;
  std::vector<int64_t> shape;
  std::vector<std::byte> bytes;
};

class Taps {
 public:
  void add(std::string_view point, int layer, const Tensor& value) {
    Gathered& g = tensors_[layer < 0 ? std::string(point) : fmt::format("layer.{}.{}", layer, point)];
    const size_t row_bytes = static_cast<size_t>(value.dim[1]) * size_of(value.dtype);
    if (g.shape.empty()) g = {value.dtype, {0, value.dim[1]}, {}};
    g.shape[0] += value.dim[0];
    for (int64_t row = 0; row < value.dim[0]; ++row) {
      const std::byte* data =
          static_cast<const std::byte*>(value.data) + static_cast<size_t>(row * value.stride[0]) * size_of(value.dtype);
      g.bytes.insert(g.bytes.end(), data, data + row_bytes);
    }
  }
  const std::map<std::string, Gathered>& tensors() const { return tensors_; }

 private:
  std::map<std::string, Gathered> tensors_;
};

template <class T>
Gathered gathered(DType dtype, std::vector<int64_t> shape, const std::vector<T>& values) {
  Gathered g{dtype, std::move(shape), std::vector<std::byte>(values.size() * sizeof(T))};
  if (!values.empty()) std::memcpy(g.bytes.data(), values.data(), g.bytes.size());
  return g;
}

class DumpCommand : public Command {
 public:
  void declare(OptionTable& table) override {
    table.positionals("MODEL", positionals_, 1);
    table.group("Dump");
    table.add("prompt-ids", &prompt_ids_, "the prompt as token ids").placeholder("\"1,2,3\"");
    table.add("max-new-tokens", &max_new_tokens_, "greedy tokens to generate")
        .placeholder("N")
        .range(0, 1 << 30)
        .also("max-output-length");
    table.add("out", &out_, "file to write").placeholder("FILE.safetensors");
    table.add("taps", &taps_, "also final_norm and per layer attn, ffn, router_logits, experts, weights");
    declare_model_options(table, options_, "exact");
    declare_parallel_options(table, parallel_);
    table.example(
        "conclave dump models/demo-mixtral --prompt-ids \"1,2,3\" --max-new-tokens 4 --out dump.safetensors --taps");
  }

  void complete(OptionTable& table) override {
    take_model(table, options_, positionals_);
    if (!positionals_.empty())
      throw Error(Error::Kind::bad_input, fmt::format("unexpected argument \"{}\"", positionals_[0]));
    if (table.print_config_asked() && options_.model.empty()) return;
    table.model_default("max-position-embeddings", fmt::format("{}", read_spec(options_).max_len), "config.json");
  }

  int execute(const OptionTable&, Console& console) override {
    const auto lists = parse_id_lists(prompt_ids_, "--prompt-ids");
    if (lists.size() != 1)
      throw Error(Error::Kind::bad_input,
                  fmt::format("--prompt-ids holds {} prompts, wanted one: \"1,2,3\"", lists.size()));
    if (out_.empty()) throw Error(Error::Kind::bad_input, "no --out FILE given");
    explain_reference_variables(console.log);
    RankJob job(parallel_, options_);
    if (job.follows()) return job.follow(open_model(options_, console.log)), 0;
    if (taps_ && job.layout().pp > 1)
      throw Error(Error::Kind::bad_input, fmt::format("--taps sees the layers of one stage, but --pp is {}; leave one of them out", job.layout().pp));
    require_writable(out_, "--out");
    auto interrupts = std::make_optional<Interrupts>();
    const ModelFiles model = open_model(options_, console.log);
    check_length(lists[0].size(), model.spec);
    EngineOptions options = engine_options(options_);
    options.max_context = std::max<int>(2, static_cast<int>(lists[0].size()) + max_new_tokens_);
    const auto engine = start_engine(model, options, job, console.log, *interrupts);
    interrupts.reset();  // from here on Ctrl-C ends the process: there is nothing to keep
    Taps taps;
    const Tap tap = [&](std::string_view point, int layer, const Tensor& value) { taps.add(point, layer, value); };
    const Engine::Trace trace = engine->trace(lists[0], max_new_tokens_, taps_ ? tap : Tap{});
    write(taps, trace, model.spec.vocab_size, static_cast<int64_t>(lists[0].size()));
    return 0;
  }

 private:
  void check_length(size_t prompt, const ModelSpec& spec) const {
    if (prompt + static_cast<size_t>(max_new_tokens_) <= static_cast<size_t>(options_.max_position_embeddings)) return;
    throw Error(
        Error::Kind::bad_input,
        fmt::format("{} prompt tokens and {} new ones exceed the longest sequence of {} tokens (config.json: {})",
                    prompt, max_new_tokens_, options_.max_position_embeddings, spec.max_len));
  }

  void write(const Taps& taps, const Engine::Trace& trace, int64_t vocab, int64_t prompt) const {
    std::map<std::string, Gathered> all = taps.tensors();
    const auto count = static_cast<int64_t>(trace.greedy_tokens.size());
    all["logits"] = gathered(DType::f32, {prompt, vocab}, trace.logits);
    all["greedy.tokens"] =
        gathered(DType::i64, {count}, std::vector<int64_t>(trace.greedy_tokens.begin(), trace.greedy_tokens.end()));
    all["greedy.logits"] = gathered(DType::f32, {count, vocab}, trace.greedy_logits);
    std::vector<Entry> entries;
    for (const auto& [name, g] : all) entries.push_back({name, g.dtype, g.shape});
    SafetensorsWriter writer(out_, std::move(entries));
    for (const auto& [name, g] : all) writer.write(g.bytes);
    writer.finish();
  }

  std::vector<std::string> positionals_;
  ModelOptions options_;
  ParallelOptions parallel_;
  std::string prompt_ids_, out_;
  int max_new_tokens_ = 20;
  bool taps_ = false;
};

}  // namespace

std::unique_ptr<Command> make_dump() { return std::make_unique<DumpCommand>(); }

}  // namespace conclave
