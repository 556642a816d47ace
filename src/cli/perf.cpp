// conclave perf: the reference stack's performance test: fixed lengths and batches, its columns, and the largest batch within a time.
#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "backend/machine.h"
#include "bench/cases.h"
#include "cli/command.h"
#include "cli/engine_start.h"
#include "cli/json_lines.h"
#include "cli/model_files.h"
#include "cli/model_options.h"
#include "cli/rank_job.h"
#include "cli/reference_variables.h"
#include "core/error.h"
#include "core/thread_pool.h"
#include "io/partial_file.h"
#include "perf/report.h"
#include "perf/sweep.h"

namespace conclave {
namespace {
namespace fs = std::filesystem;

[[noreturn]] void refuse(const std::string& message) { throw Error(Error::Kind::bad_input, message); }

struct PerfOptions {
  std::string cases = "[[2048,2048],[1024,1024],[512,512],[256,256]]", batch = "1", dataset, batches = "1", max_batch, csv, json, name,
              output_dir = "outputs";
  bool pad = false;
  float limit_ms = 0;
  int repetitions = 1;
};

void declare_perf_options(OptionTable& table, PerfOptions& o) {
  table.group("Cases");
  table.add("cases", &o.cases, "pairs of prompt and answer lengths").placeholder("[[IN,OUT],...]");
  table.add("batch", &o.batch, "sequences at once: for every case, or with \"[[1,4],[16]]\" a list per case").placeholder("N,...");
  table
      .add("dataset", &o.dataset,
           "prompts from this JSONL file (\"question\" or \"prompt\" of every line) instead of random ids, cut to the case's prompt length")
      .placeholder("FILE");
  table.add("pad", &o.pad, "with --dataset: repeat a prompt until it has the case's prompt length");
  table.add("batches", &o.batches, "with --dataset: batches of the file to run, one after the other; \"all\" is the whole file")
      .placeholder("N");
  table.add("repetitions", &o.repetitions, "runs of every case; their average is shown").placeholder("N").range(1, 1000).also("r");
  table
      .add("max-batch", &o.max_batch,
           "find the largest batch between LO and HI whose time per token is within --limit-ms; \"[[1,50],[1,200]]\" is a range per case")
      .placeholder("LO,HI");
  table.add("limit-ms", &o.limit_ms, "longest time per token after the first, with --max-batch").placeholder("X").range(0, 1e9);
  table.group("Output");
  table.add("csv", &o.csv, "write all rows to this file instead of one file per batch size under --output-dir").placeholder("FILE");
  table.add("json", &o.json, "write every step's time as JSON; under --output-dir that is done anyway").placeholder("FILE");
  table.add("output-dir", &o.output_dir, "folder of the tree results/CPU/performance_test/...").placeholder("DIR");
  table.add("name", &o.name, "the model's name in the first column and in folders; default: the family's").placeholder("NAME");
}

/// Names that the reference stack's harness has for the families.
std::string harness_name(const std::string& family) {
  static const std::map<std::string, std::string> kNames = {{"deepseek_v2", "deepseekv2"}, {"deepseek_v3", "deepseekv3"}, {"ernie4_5_moe", "ernie"}};
  const auto found = kNames.find(family);
  return found == kNames.end() ? family : found->second;
}

std::string harness_dtype(const ModelSpec& spec, const std::string& asked) {
  const std::string dtype = asked == "auto" ? std::string(name_of(spec.dtype)) : asked;
  static const std::map<std::string, std::string> kNames = {{"F16", "fp16"}, {"f16", "fp16"}, {"BF16", "bf16"}, {"F32", "fp32"}, {"f32", "fp32"}};
  const auto found = kNames.find(dtype);
  const std::string name = found == kNames.end() ? dtype : found->second;
  switch (spec.quant.scheme) {
    case WeightScheme::floating: return name;
    case WeightScheme::fp8_block: return name + "_fp8";
    case WeightScheme::int8_channel: return name + (spec.quant.activations == Activations::floating ? "_w8a16" : "_w8a8_dynamic");
    default: return fmt::format("{}_w{}a16", name, spec.quant.bits);
  }
}

/// Token ids of the data set's prompts.
Prompts read_dataset(const std::string& file, const Tokenizer& tokenizer) {
  Prompts prompts;
  for_each_json_line(file, [&](const nlohmann::ordered_json& value, const std::string& where) {
    require_object(value, where);
    const char* key = value.contains("question") ? "question" : "prompt";
    if (!value.contains(key) || !value[key].is_string()) refuse(fmt::format("{}: no text \"question\" or \"prompt\"", where));
    prompts.push_back(tokenizer.encode(value[key].get<std::string>(), {}));
    if (prompts.back().empty()) refuse(fmt::format("{}: \"{}\" has no tokens", where, key));
  });
  if (prompts.empty()) refuse(fmt::format("--dataset {}: no prompts in it; wanted one JSON object per line", file));
  return prompts;
}

size_t parse_batches(const std::string& text) {
  if (text == "all") return std::numeric_limits<size_t>::max();
  return static_cast<size_t>(parse_numbers(text, "--batches", 1, 1 << 24).front());
}

class PerfCommand : public Command {
 public:
  void declare(OptionTable& table) override {
    table.positionals("MODEL", positionals_, 1);
    declare_perf_options(table, perf_);
    declare_model_options(table, options_);
    declare_parallel_options(table, parallel_);
    table.example("conclave perf MODEL --cases \"[[2048,2048],[256,256]]\" --batch 1,4,16");
    table.example("conclave perf MODEL --cases \"[[512,64]]\" --batch 4 --dataset questions.jsonl --pad --csv result.csv");
    table.example("conclave perf MODEL --cases \"[[256,256]]\" --max-batch 1,64 --limit-ms 50");
    table.example("conclave perf mixtral-8x7b --random-weights --layers 2 --cases \"[[256,32]]\" --batch 1,4");
  }

  void complete(OptionTable& table) override {
    take_model(table, options_, positionals_);
    if (!positionals_.empty()) refuse(fmt::format("unexpected argument \"{}\"", positionals_[0]));
    if (perf_.pad && perf_.dataset.empty()) refuse("--pad needs --dataset");
    if (table.given("batches") && perf_.dataset.empty()) refuse("--batches needs --dataset");
    if (perf_.max_batch.empty() != !table.given("limit-ms")) refuse("--max-batch LO,HI and --limit-ms X need each other");
    if (!perf_.max_batch.empty() && table.given("batch")) refuse("--max-batch chooses batch sizes itself; leave out --batch");
    if (options_.model.empty()) return;
    table.model_default("max-position-embeddings", fmt::format("{}", read_spec(options_).max_len), "config.json");
  }

  int execute(const OptionTable&, Console& console) override {
    explain_reference_variables(console.log);
    RankJob job(parallel_, options_);
    if (job.follows()) return job.follow(open_model(options_, console.log)), 0;
    tp_ = job.layout().tp;
    const std::vector<PerfCase> lengths = parse_cases(perf_.cases);
    most_batches_ = parse_batches(perf_.batches);
    if (!perf_.csv.empty()) require_writable(perf_.csv, "--csv");
    if (!perf_.json.empty()) require_writable(perf_.json, "--json");
    const Interrupts interrupts;
    const ModelFiles model = open_model(options_, console.log);
    if (options_.max_position_embeddings > model.spec.max_len)
      refuse(fmt::format("--max-position-embeddings is {}, more than the {} of the model's config.json", options_.max_position_embeddings,
                         model.spec.max_len));
    const auto tokenizer = open_tokenizer(model);
    if (!perf_.dataset.empty()) {
      if (!tokenizer) refuse("--dataset needs a tokenizer, and this model has none");
      dataset_ = read_dataset(perf_.dataset, *tokenizer);
    }
    name_ = perf_.name.empty() ? harness_name(model.spec.family) : perf_.name;
    folder_ = fs::path(perf_.output_dir) / "results" / "CPU" / "performance_test" / (perf_.max_batch.empty() ? "performance" : "performance_maxbs") /
              harness_dtype(model.spec, options_.dtype) / fs::path(name_).filename();
    const Run run{model, tokenizer.get(), interrupts, job, console};
    return perf_.max_batch.empty() ? run_cases(with_batches(lengths, perf_.batch), run) : find_batches(lengths, run);
  }

 private:
  struct Run {
    const ModelFiles& model;
    const Tokenizer* tokenizer;
    const Interrupts& interrupts;
    RankJob& job;
    Console& console;
  };

  Sweep make_sweep(std::vector<PerfCase> cases, const Run& run) const {
    return Sweep({.start = [&run](const EngineOptions& options) { return start_engine(run.model, options, run.job, run.console.log, run.interrupts); },
                  .options = engine_options(options_),
                  .longest = options_.max_position_embeddings,
                  .tokenizer = run.tokenizer,
                  .interrupted = [&run] { return run.interrupts.raised(); }},
                 std::move(cases));
  }

  std::vector<PromptRuns> prompts_for(const PerfCase& what, const Run& run) const {
    if (dataset_.empty()) return {random_prompts(what, run.model.spec.vocab_size, perf_.repetitions)};
    std::vector<PromptRuns> all = dataset_prompts(what, dataset_, most_batches_, perf_.pad);
    for (PromptRuns& prompts : all) {
      const std::vector<Prompts> once = prompts.runs;
      for (int i = 1; i < perf_.repetitions; ++i) prompts.runs.insert(prompts.runs.end(), once.begin(), once.end());
    }
    return all;
  }

  int run_cases(const std::vector<PerfCase>& cases, const Run& run) const {
    Sweep sweep = make_sweep(cases, run);
    PerfReport report{name_, {}};
    for (const PerfCase& what : cases) {
      for (const PromptRuns& prompts : prompts_for(what, run)) {
        report.results.push_back(sweep.run(prompts));
        say(report.results.back(), run.console);
        if (!perf_.csv.empty()) write_file(perf_.csv, perf_csv(report));  // what is measured is kept, whatever comes
      }
    }
    if (perf_.csv.empty()) write_tree(report, run);
    return finish(report, run);
  }

  /// One pair of files per batch size, as the reference stack's harness writes them.
  void write_tree(const PerfReport& report, const Run& run) const {
    std::map<int, PerfReport> by_batch;
    for (const PerfResult& result : report.results) {
      PerfReport& part = by_batch[result.what.batch];
      part.model = report.model;
      part.results.push_back(result);
    }
    for (const auto& [batch, part] : by_batch) write_pair(fmt::format("performance_{}_batch{}_tp{}", layout(), batch, tp()), part, run);
  }

  int find_batches(const std::vector<PerfCase>& lengths, const Run& run) const {
    const std::vector<BatchRange> ranges = parse_ranges(perf_.max_batch, lengths.size());
    std::vector<PerfCase> largest = lengths;
    for (size_t i = 0; i < lengths.size(); ++i) largest[i].batch = ranges[i].high;
    Sweep sweep = make_sweep(largest, run);
    PerfReport rounds{name_, {}}, best{name_, {}};
    for (size_t i = 0; i < lengths.size(); ++i) {
      const BatchSearch search = search_batch(lengths[i], ranges[i], static_cast<double>(perf_.limit_ms), [&](const PerfCase& what) {
        const PerfResult result = sweep.run(prompts_for(what, run).front());
        say(result, run.console);
        return result;
      });
      rounds.results.insert(rounds.results.end(), search.rounds.begin(), search.rounds.end());
      PerfResult none{.what = lengths[i],
                      .error = fmt::format("no batch of {} to {} within {} ms per token", ranges[i].low, ranges[i].high, perf_.limit_ms),
                      .prefill_s = {}, .decode_s = {}, .first_token_s = {}};
      none.what.batch = ranges[i].low;
      best.results.push_back(search.best.value_or(none));
      run.console.out.line(fmt::format("[{},{}]: {}", lengths[i].input, lengths[i].output, search.best ? search.best->what.batch : 0));
    }
    if (perf_.csv.empty()) {
      write_text(folder_ / fmt::format("performance_maxbs_{}_tp{}_round_result.csv", layout(), tp()), perf_csv(rounds), run);
      write_text(folder_ / fmt::format("performance_maxbs_{}_tp{}_final_result.csv", layout(), tp()), perf_csv(best), run);
    } else {
      write_file(perf_.csv, perf_csv(best));
    }
    return finish(best, run);
  }

  void say(const PerfResult& r, const Console& console) const {
    const std::string what = fmt::format("batch {}, {} + {} tokens: ", r.what.batch, r.what.input, r.what.output);
    if (!r.error.empty()) return console.log.error(what + r.error);
    console.log.info(fmt::format("{}{:.3f} s, {:.3f} ms per prompt, {:.3f} ms per token, {:.2f} tokens/s, {:.2f} over all", what, r.e2e_s,
                                 r.prefill_average_ms(), r.decode_ms(), r.decode_rate(), r.e2e_rate()));
  }

  void write_text(const fs::path& file, const std::string& text, const Run& run) const {
    std::error_code ignored;
    fs::create_directories(file.parent_path(), ignored);  // write_file says what is wrong
    write_file(file, text);
    run.console.log.info("written to " + file.string());
  }
  void write_pair(const std::string& name, const PerfReport& report, const Run& run) const {
    write_text(folder_ / (name + "_result.csv"), perf_csv(report), run);
    write_text(folder_ / (name + "_formatted_result.csv"), perf_table(report), run);
    write_text(folder_ / (name + "_result.json"), json_text(report, run), run);
  }

  std::string json_text(const PerfReport& report, const Run& run) const {
    nlohmann::ordered_json json = perf_json(report);
    json["version"] = CONCLAVE_VERSION;
    json["compiler"] = __VERSION__;
    json["processor"] = processor_name();
    json["architecture"] = run.model.spec.architecture;
    json["random_weights"] = run.model.random;
    json["threads"] = options_.threads > 0 ? options_.threads : available_processors();
    json["dtype"] = harness_dtype(run.model.spec, options_.dtype);
    json["precision"] = options_.precision;
    return json.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  }

  int finish(const PerfReport& report, const Run& run) const {
    run.console.out.write(perf_table(report));
    if (!perf_.json.empty()) write_file(perf_.json, json_text(report, run));
    const auto failed = std::count_if(report.results.begin(), report.results.end(), [](const PerfResult& r) { return !r.error.empty(); });
    if (failed == 0) return 0;
    run.console.log.error(fmt::format("{} of {} cases failed", failed, report.results.size()));
    return 1;
  }

  int tp() const { return tp_; }
  std::string layout() const { return options_.kv == "contiguous" ? "fa" : "pa"; }

  std::vector<std::string> positionals_;
  PerfOptions perf_;
  ModelOptions options_;
  ParallelOptions parallel_;
  int tp_ = 1;
  Prompts dataset_;
  size_t most_batches_ = 1;
  std::string name_;
  fs::path folder_;
};

}  // namespace

std::unique_ptr<Command> make_perf() { return std::make_unique<PerfCommand>(); }

}  // namespace conclave
