// conclave run: prompts in, text out.
#include <fmt/format.h>

#include <chrono>
#include <limits>

#include "bench/measure.h"
#include "cli/benchmark.h"
#include "cli/command.h"
#include "cli/engine_start.h"
#include "cli/generate.h"
#include "cli/model_files.h"
#include "cli/model_options.h"
#include "cli/prompts.h"
#include "cli/records.h"
#include "cli/reference_variables.h"
#include "cli/report.h"
#include "cli/run_options.h"
#include "cli/sampling_options.h"
#include "cli/token_ids.h"
#include "core/error.h"
#include "io/partial_file.h"

namespace conclave {
namespace {
namespace fs = std::filesystem;

[[noreturn]] void refuse(const std::string& message) { throw Error(Error::Kind::bad_input, message); }

class RunCommand : public Command {
 public:
  void declare(OptionTable& table) override {
    table.positionals("MODEL [PROMPT...]", prompts_, std::numeric_limits<size_t>::max());
    declare_prompt_options(table, prompt_options_);
    declare_run_options(table, run_);
    declare_record_options(table, record_options_);
    declare_sampling_options(table, sampling_);
    declare_model_options(table, model_options_);
    declare_parallel_options(table, parallel_);
    declare_refused_options(table, refused_);
    table.example("conclave run models/demo-mixtral \"Who has the ball?\"");
    table.example("conclave run --model DIR --prompt \"Hello\" --max-output-length 100 --temperature 0.7 --json");
    table.example(
        "conclave run mixtral-8x7b --random-weights --layers 4 --format w8a8 --prompt-ids \"1,2,3\" --benchmark");
  }

  void complete(OptionTable& table) override {
    take_model(table, model_options_, prompts_);
    if (table.given("prompt-ids") && prompt_options_.prompt_ids.empty())
      refuse("--prompt-ids is empty; wanted \"1,2,3\", several prompts separated by spaces");
    refuse_options(table);
    if (run_.do_sample && !table.given("temperature")) table.model_default("temperature", "1", "--do-sample");
    if (table.print_config_asked() && model_options_.model.empty()) return;
    fit_lengths(table, read_spec(model_options_).max_len);
  }

  bool prints_prose() const override { return !run_.json; }

  int execute(const OptionTable& table, Console& console) override {
    explain_reference_variables(console.log);
    RankJob job(parallel_, model_options_);
    if (job.follows()) return job.follow(open_model(model_options_, console.log)), 0;
    if (run_.benchmark) prepare_benchmark(*run_.benchmark);
    if (!run_.results_file.empty()) require_writable(run_.results_file, "--results-save-path");
    if (!run_.dump_ids.empty()) fs::create_directories(run_.dump_ids);
    Records records(record_options_);
    const Interrupts interrupts;
    const ModelFiles model = open_model(model_options_, console.log);
    const auto tokenizer = run_.no_tokenizer ? nullptr : open_tokenizer(model, !prompt_options_.prompt_ids.empty());
    if (!tokenizer && !run_.stop.empty()) refuse("--stop needs a tokenizer");
    for (const std::string& text : run_.stop)
      if (text.empty()) refuse("--stop is empty; wanted the text to stop at");
    const PromptSet prompts = build_prompts(prompt_options_, prompts_, model, tokenizer.get(), console.log);
    const std::vector<Request> requests = make_requests(prompts, model, tokenizer.get());
    if (!table.given("max-batch-size"))
      run_.max_batch_size = static_cast<int>(std::min<size_t>(requests.size(), kMostAtOnce));
    check_lengths(prompts, model.spec);
    const double available = static_cast<double>(available_memory());
    const auto engine = start_engine(model, batch_options(), job, console.log, interrupts);
    if (run_.compat_output) say_memory(*engine, available, console.log);
    if (warms_up()) warm_up(*engine, interrupts, console.log);
    const uint64_t logits_hash = run_.benchmark ? dummy_pass(*engine, requests.front().prompt) : 0;
    records.observe(*engine);
    Generator generator(*engine, tokenizer.get(), run_.stop, interrupts);
    generator.prompts_first = run_.benchmark.has_value();
    return report(generator, requests, {*engine, records, tokenizer == nullptr, model.random, logits_hash}, console);
  }

 private:
  static constexpr size_t kMostAtOnce = 64;
  struct Context {
    const Engine& engine;
    Records& records;
    bool ids_only, random;
    uint64_t logits_hash;
  };

  bool warms_up() const {
    return run_.warm_up == "on" || (run_.warm_up == "auto" && (run_.benchmark || run_.compat_output));
  }

  /// One prefill of the longest prompts that the options allow, so that the first request finds every page of cache
  /// and buffers present and every thread awake.
  void warm_up(Engine& engine, const Interrupts& interrupts, const Log& log) const {
    const int prompts = std::min(prefill_batch(), run_.max_batch_size);
    log.info(fmt::format("begin warm-up: {} prompt{} of {} tokens, 1 new token", prompts, prompts == 1 ? "" : "s",
                         run_.max_input_length));
    const auto start = std::chrono::steady_clock::now();
    run_requests(engine, random_requests({.sequences = prompts, .prompt_tokens = run_.max_input_length},
                                         engine.spec().vocab_size),
                 [&] { return interrupts.raised(); });
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
    log.info(fmt::format("end warm-up: {:.0f} ms", took.count()));
  }

  static void say_memory(const Engine& engine, double available, const Log& log) {
    const MemoryPlan& memory = engine.memory();
    const auto gb = [](size_t bytes) { return static_cast<double>(bytes) / 1e9; };
    log.info(fmt::format("memory: {:.3f} GB available, {:.3f} GB used; KV cache {:.3f} GB", available / 1e9, gb(memory.total()),
                         gb(memory.kv_cache)));
  }

  int prefill_batch() const {
    return run_.max_prefill_batch_size > 0 ? run_.max_prefill_batch_size : run_.max_batch_size;
  }

  /// Input and output must fit the model; only a default gives way silently.
  void fit_lengths(OptionTable& table, int model_len) {
    if (model_options_.max_position_embeddings > model_len) {
      refuse(fmt::format("--max-position-embeddings is {}, more than the {} of the model's config.json",
                         model_options_.max_position_embeddings, model_len));
    }
    table.model_default("max-position-embeddings", fmt::format("{}", model_len), "config.json");
    const int limit = model_options_.max_position_embeddings, room = limit - run_.max_output_length;
    if (room < 1)
      refuse(fmt::format(
          "--max-output-length is {}, but the model's longest sequence has {} tokens and needs a prompt too",
          run_.max_output_length, limit));
    if (run_.max_input_length > room && table.given("max-input-length")) {
      refuse(fmt::format(
          "--max-input-length {} and --max-output-length {} exceed the model's longest sequence of {} tokens",
          run_.max_input_length, run_.max_output_length, limit));
    }
    if (run_.max_input_length > room)
      table.model_default("max-input-length", fmt::format("{}", room),
                          "config.json's longest sequence less --max-output-length");
  }

  void check_lengths(const PromptSet& prompts, const ModelSpec& spec) const {
    const auto blocks = [&](int64_t tokens) {
      return (tokens + model_options_.block_size - 1) / model_options_.block_size;
    };
    const int64_t in = run_.max_input_length, out = run_.max_output_length;
    const int64_t prefill = run_.max_prefill_tokens >= 0 ? run_.max_prefill_tokens : prefill_batch() * (in + out);
    for (size_t i = 0; i < prompts.ids.size(); ++i) {
      const auto& ids = prompts.ids[i];
      const auto length = static_cast<int64_t>(ids.size());
      if (ids.empty()) refuse(fmt::format("prompt {} is empty; give at least one token", i));
      if (length > in || length > prefill) {
        const char* option = length > in ? "--max-input-length" : "--max-prefill-tokens";
        refuse(fmt::format(
            "prompt {} has {} tokens, more than the {} of {}; with {} new tokens it needs {} cache blocks of {} "
            "positions and {} are "
            "planned per request; shorten it or raise the option (the model's longest sequence has {} tokens)",
            i, length, std::min(in, prefill), option, out, blocks(length + out), model_options_.block_size,
            blocks(in + out), spec.max_len));
      }
      for (size_t at = 0; at < ids.size(); ++at) {
        if (ids[at] >= spec.vocab_size)
          refuse(fmt::format("prompt {}: token {} is {}, wanted 0 to {} (the model's vocabulary)", i, at, ids[at],
                             spec.vocab_size - 1));
      }
    }
  }

  std::vector<Request> make_requests(const PromptSet& prompts, const ModelFiles& model,
                                     const Tokenizer* tokenizer) const {
    std::vector<Request> requests;
    const size_t copies = prompts.ids.size() == 1 ? static_cast<size_t>(run_.max_batch_size) : 1;
    const std::vector<std::vector<int32_t>> stops = parse_id_lists(run_.stop_token_ids, "--stop-token-ids");
    if (stops.size() > 1) refuse("--stop-token-ids: wanted one list, ids separated by commas");
    const std::vector<int32_t> eos = run_.ignore_eos ? std::vector<int32_t>{} : eos_ids_of(model, tokenizer);
    for (const auto& ids : prompts.ids) {
      requests.insert(requests.end(), copies,
                      Request{.prompt = ids,
                              .sampling = sampling_,
                              .max_new_tokens = run_.max_output_length,
                              .eos_ids = eos,
                              .stop_token_ids = stops.empty() ? std::vector<int32_t>{} : stops.front()});
    }
    return requests;
  }

  EngineOptions batch_options() const {
    EngineOptions options = engine_options(model_options_);
    options.share_prefixes = false;  // copies of a prompt are there to be measured
    options.max_sequences = run_.max_batch_size;
    options.max_context = run_.max_input_length + run_.max_output_length;
    return options;
  }

  int report(Generator& generator, const std::vector<Request>& requests, const Context& context, Console& console) {
    TextReport text(console.out,
                    {.requests = requests.size(), .cumulative = run_.compat_output, .ids_only = context.ids_only});
    if (run_.json) {
      generator.on_answer = [&](size_t i, const Answer& a) {
        console.out.line(answer_json(i, a, context.engine));
        console.out.flush();
      };
    } else {
      if (context.random) console.out.line("[random weights: the text below means nothing]");
      generator.on_text = [&](size_t i, std::string_view piece) { text.text(i, piece); };
      generator.on_answer = [&](size_t i, const Answer& a) { text.answer(i, a); };
      text.begin();
    }
    if (run_.compat_output) console.log.info(fmt::format("{} requests\nbegin inference", requests.size()));
    const std::vector<Answer> answers = generator.run(requests);
    if (run_.compat_output) console.log.info("end inference");
    save_ids(answers);
    save_results(answers, context.engine);
    context.records.finish();
    if (run_.benchmark) {
      console.log.info(write_benchmark({.engine = context.engine,
                                        .answers = answers,
                                        .times = generator.step_times(),
                                        .logits_hash = context.logits_hash,
                                        .batch_size = run_.max_batch_size,
                                        .max_new_tokens = run_.max_output_length,
                                        .random_weights = context.random},
                                       *run_.benchmark));
    }
    console.log.info(figures_line(answers, generator.step_times(), context.engine));
    for (const Answer& a : answers) {
      if (a.finish_reason == "error") throw Error(Error::Kind::bad_model, a.error);
      if (a.finish_reason == "cancelled") throw Error(Error::Kind::cancelled, "interrupted; the output is partial");
    }
    if (run_.compat_output && !run_.json) console.out.line("model run success");
    return 0;
  }

  void save_results(const std::vector<Answer>& answers, const Engine& engine) const {
    if (run_.results_file.empty()) return;
    std::string lines;
    for (size_t i = 0; i < answers.size(); ++i) lines += answer_json(i, answers[i], engine) + "\n";
    write_file(run_.results_file, lines);
  }

  void save_ids(const std::vector<Answer>& answers) const {
    if (run_.dump_ids.empty()) return;
    const auto spaced = [](const std::vector<int32_t>& ids) {
      std::string text = join_ids(ids);
      std::replace(text.begin(), text.end(), ',', ' ');
      return text;
    };
    for (size_t i = 0; i < answers.size(); ++i) {
      write_file(fs::path(run_.dump_ids) / fmt::format("input_ids_{}.txt", i), spaced(answers[i].prompt_ids));
      write_file(fs::path(run_.dump_ids) / fmt::format("output_ids_{}.txt", i), spaced(answers[i].output_ids));
    }
  }

  std::vector<std::string> prompts_;
  ModelOptions model_options_;
  PromptOptions prompt_options_;
  RunOptions run_;
  Sampling sampling_;
  RecordOptions record_options_;
  ParallelOptions parallel_;
  RefusedOptions refused_;
};

}  // namespace

std::unique_ptr<Command> make_run() { return std::make_unique<RunCommand>(); }

}  // namespace conclave
