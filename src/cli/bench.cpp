// conclave bench: tokens per second of prompts and of generation, beside what the machine could do at most.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "bench/measure.h"
#include "bench/report.h"
#include "cli/command.h"
#include "cli/engine_start.h"
#include "cli/json_lines.h"
#include "cli/model_files.h"
#include "cli/model_options.h"
#include "cli/reference_variables.h"
#include "core/error.h"
#include "core/json.h"
#include "core/thread_pool.h"
#include "io/partial_file.h"

namespace conclave {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw Error(Error::Kind::bad_input, message); }

constexpr size_t kMaxReportBytes = size_t{4} << 20;

struct BenchOptions {
  CaseOptions cases;
  std::string random, threads, json, csv, compare, fail_if;
  int repetitions = 3;
  bool machine = false;
};

void declare_bench_options(OptionTable& table, BenchOptions& o) {
  table.group("Measurements (lists \"1,2\" and ranges \"1-4\", \"512-2048+512\", \"1-16*2\")");
  table.add("prompt-tokens", &o.cases.prompts, "lengths of prompts to compute; default 512,2048; 0 for none")
      .placeholder("N,...")
      .also("p");
  table.add("new-tokens", &o.cases.gens, "tokens to generate per sequence; default 64; 0 for none").placeholder("N,...").also("n");
  table
      .add("depth", &o.cases.depths,
           "tokens that each sequence already holds when generation begins; default 0, and 2048 for one sequence")
      .placeholder("N,...")
      .also("d");
  table.add("batch", &o.cases.batches, "sequences generated at once; default 1, and 2,4,8,16 at depth 0")
      .placeholder("N,...")
      .also("b");
  table.add("repetitions", &o.repetitions, "timed repetitions; mean and standard deviation are shown")
      .placeholder("N")
      .range(1, 1000)
      .also("r");
  table.add("random", &o.random, "measure this published shape with random weights; no files are needed")
      .placeholder("PRESET");
  table.add("machine", &o.machine, "only measure the machine: read bandwidth, arithmetic peaks per instruction set, barrier");
  table.group("Output");
  table.add("json", &o.json, "also write the figures as JSON").placeholder("FILE");
  table.add("csv", &o.csv, "also write the rows as CSV").placeholder("FILE");
  table.add("compare", &o.compare, "compare tokens/s with this JSON of an earlier run").placeholder("FILE.json");
  table
      .add("fail-if", &o.fail_if,
           "with --compare: exit code 7 when a row changed by less than this, e.g. -3% for 3 % slower")
      .placeholder("CHANGE");
}

class BenchCommand : public Command {
 public:
  void declare(OptionTable& table) override {
    table.positionals("MODEL", positionals_, 1);
    declare_bench_options(table, bench_);
    declare_model_options(table, options_);
    declare_parallel_options(table, parallel_);
    table.add("threads", &bench_.threads, "worker threads, each count measured apart; default: one per available processor")
        .placeholder("N,...")
        .reference("CPU_BINDING_NUM")
        .also("t");
    table.example("conclave bench --random deepseek-v2-lite --layers 6 --format w8a8");
    table.example("conclave bench MODEL -p 512 -n 32 -d 0,4096 -b 1-16*2 -r 5 --json now.json");
    table.example("conclave bench MODEL --compare old.json --fail-if -3%");
    table.example("conclave bench --machine");
  }

  void complete(OptionTable& table) override {
    if (!bench_.random.empty()) {
      if (!options_.model.empty() || !positionals_.empty()) refuse("--random and MODEL exclude each other");
      table.argument("model", bench_.random);
      if (!options_.random_weights) table.model_default("random-weights", "0", "--random");
    }
    take_model(table, options_, positionals_);
    if (!positionals_.empty()) refuse(fmt::format("unexpected argument \"{}\"", positionals_[0]));
    if (bench_.fail_if.empty() != bench_.compare.empty() && bench_.compare.empty())
      refuse("--fail-if needs --compare FILE.json");
    if (options_.model.empty()) return;
    table.model_default("max-position-embeddings", fmt::format("{}", read_spec(options_).max_len), "config.json");
  }

  int execute(const OptionTable&, Console& console) override {
    explain_reference_variables(console.log);
    if (!bench_.json.empty()) require_writable(bench_.json, "--json");
    if (!bench_.csv.empty()) require_writable(bench_.csv, "--csv");
    const double least = bench_.fail_if.empty() ? -1 : parse_change(bench_.fail_if, "--fail-if");
    std::vector<int> threads = bench_.threads.empty() ? std::vector{available_processors()}
                                                      : parse_numbers(bench_.threads, "--threads", 0, 4096);
    for (int& n : threads)
      if (n == 0) n = available_processors();
    const Interrupts interrupts;
    if (bench_.machine) return show_machine(threads, console);
    const nlohmann::ordered_json old =
        bench_.compare.empty()
            ? nlohmann::ordered_json()
            : parse_json(read_input(bench_.compare, "--compare", kMaxReportBytes), bench_.compare);
    RankJob job(parallel_, options_);
    if (job.follows()) return job.follow(open_model(options_, console.log)), 0;
    if (job.layout().pp > 1 || job.layout().dp > 1)
      refuse(fmt::format("bench counts what one group of ranks reads, but --pp is {} and --dp {}; use --tp and --moe-ep", job.layout().pp,
                         job.layout().dp));
    const BenchReport report = measure_model(threads, job, interrupts, console);
    write_files(report);
    return bench_.compare.empty() ? 0 : compare_with(old, report, least, console.out);
  }

 private:
  int show_machine(const std::vector<int>& threads, Console& console) const {
    BenchReport report{.cpu = processor_name(), .model = "", .machine = {}, .rows = {}};
    std::vector<MachineLimits> machines;
    const std::vector<std::string> isas = options_.isa.empty() ? available_isas() : std::vector{options_.isa};
    for (const int n : threads) {
      ThreadPool pool(n, options_.bind == "on");
      for (const std::string& isa : isas) machines.push_back(measure_machine(pool, isa));
      if (report.machine.threads < n) report.machine = machines[machines.size() - isas.size()];  // best ISA first
    }
    console.out.write(report.cpu + "\n\n" + machine_markdown(machines));
    write_files(report);
    return 0;
  }

  BenchReport measure_model(const std::vector<int>& threads, RankJob& job, const Interrupts& interrupts, Console& console) {
    const std::vector<BenchCase> cases = bench_cases(bench_.cases);
    const ModelFiles model = open_model(options_, console.log);
    const EngineOptions base = options_for(engine_options(options_), cases);
    check_lengths(base.max_context, model.spec);
    BenchReport report{.cpu = processor_name(), .model = options_.model, .machine = {}, .rows = {},
                       .many_threads = threads.size() > 1};
    const auto stop = [&] { return interrupts.raised(); };
    console.out.write(report.cpu + "\n\n");
    for (const int n : threads) {
      EngineOptions options = base;
      options.threads = n;
      MachineLimits machine;
      {
        ThreadPool pool(n, options.pin_threads);
        machine = measure_machine(pool, options.isa);
      }
      console.out.write(machine_markdown({machine}) + "\n");
      console.out.flush();
      const auto engine = start_engine(model, options, job, console.log, interrupts);
      for (const BenchCase& what : cases) {
        report.rows.push_back(measure(*engine, what, bench_.repetitions, machine, stop));
        const BenchRow& row = report.rows.back();
        console.log.info(fmt::format("{} depth {} x {}: {:.2f} tokens/s, {:.1f} % of the roof", what.test(), what.depth,
                                     what.batch, row.tokens_per_s, 100 * row.roof_fraction));
      }
      if (report.machine.threads < n) report.machine = machine;
    }
    console.out.write(to_markdown(report));
    return report;
  }

  void check_lengths(int context, const ModelSpec& spec) const {
    if (context <= options_.max_position_embeddings) return;
    refuse(fmt::format("the longest case needs {} tokens of context, more than the {} of the model (config.json: {}); "
                       "use a smaller --prompt-tokens, --depth or --new-tokens",
                       context, options_.max_position_embeddings, spec.max_len));
  }

  void write_files(const BenchReport& report) const {
    if (!bench_.json.empty()) write_file(bench_.json, to_json(report).dump(1) + "\n");
    if (!bench_.csv.empty()) write_file(bench_.csv, to_csv(report));
  }

  int compare_with(const nlohmann::ordered_json& old, const BenchReport& report, double least, Output& out) const {
    const Comparison comparison = compare(report, old, bench_.compare);
    out.write("\n" + comparison.text);
    if (comparison.compared == 0) refuse(fmt::format("{} has none of the rows that were measured", bench_.compare));
    if (comparison.worst >= least) return 0;
    throw Error(Error::Kind::below_threshold,
                fmt::format("the slowest row changed by {:+.1f} %, --fail-if is {}", 100 * comparison.worst, bench_.fail_if));
  }

  std::vector<std::string> positionals_;
  BenchOptions bench_;
  ModelOptions options_;
  ParallelOptions parallel_;
};

}  // namespace

std::unique_ptr<Command> make_bench() { return std::make_unique<BenchCommand>(); }

}  // namespace conclave
