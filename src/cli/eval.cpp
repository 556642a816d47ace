// conclave eval: scores of a model on data sets, in this process or against a running server.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/engine_start.h"
#include "cli/eval_options.h"
#include "cli/judge.h"
#include "cli/model_files.h"
#include "cli/model_options.h"
#include "cli/progress.h"
#include "cli/rank_job.h"
#include "cli/reference_variables.h"
#include "core/error.h"
#include "eval/evaluate.h"
#include "eval/report.h"
#include "model/spec.h"

namespace conclave {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw Error(Error::Kind::bad_input, message); }

class EvalCommand : public Command {
 public:
  void declare(OptionTable& table) override {
    table.positionals("MODEL", positionals_, 2);
    declare_eval_options(table, eval_);
    declare_model_options(table, options_, "exact");
    declare_parallel_options(table, parallel_);
    table.example("conclave eval MODEL --tasks boolq,mmlu --data DIR --batch-size 16 --items items.jsonl");
    table.example("conclave eval MODEL --tasks mmlu --data DIR --shots 5 --style lm-eval");
    table.example("conclave eval MODEL --tasks gsm8k --data DIR --chat --server http://127.0.0.1:1025");
    table.example("conclave eval --compare before.jsonl after.jsonl");
  }

  void complete(OptionTable& table) override {
    if (!eval_.compare.empty()) return;
    take_model(table, options_, positionals_);
    if (!positionals_.empty()) refuse(fmt::format("unexpected argument \"{}\"", positionals_[0]));
    if (table.print_config_asked() && options_.model.empty()) return;
    table.model_default("max-position-embeddings", fmt::format("{}", read_spec(options_).max_len), "config.json");
  }

  int execute(const OptionTable&, Console& console) override {
    explain_reference_variables(console.log);
    if (!eval_.compare.empty()) return compare(console);
    if (eval_.tasks.empty()) refuse(fmt::format("no --tasks given; there are {}", fmt::join(task_names(), ", ")));
    if (eval_.data.empty()) refuse("no --data DIR given: the folder that holds one folder per data set");
    RankJob job(parallel_, options_);
    if (job.follows()) return job.follow(open_model(options_, console.log)), 0;
    tp_ = job.layout().tp;
    const Interrupts interrupts;
    const ModelFiles model = open_model(options_, console.log);
    const std::unique_ptr<Tokenizer> tokenizer = open_tokenizer(model);
    if (!tokenizer) refuse("the model has no tokenizer; evaluation needs texts");
    const PromptEncoder encoder(*tokenizer, chat_template(model, console));
    std::vector<std::unique_ptr<Task>> tasks;
    TaskOptions task_options = task_options_of(eval_, model.spec);
    for (const std::string& name : split_names(eval_.tasks)) {
      if (name.starts_with("humaneval") && !task_options.judge) task_options.judge = make_judge([&] { return interrupts.raised(); });
      tasks.push_back(make_task(name, task_options, encoder));
    }
    const auto [engine, runner] = open_runner(model, *tokenizer, tasks, job, interrupts, console);
    try {
      return run(tasks, *runner, model, console);
    } catch (const Error& e) {
      if (e.kind != Error::Kind::cancelled || eval_.items.empty()) throw;
      throw Error(e.kind, fmt::format("{}; the same command goes on from {}.partial", e.what(), eval_.items));
    }
  }

 private:
  int compare(Console& console) const {
    if (positionals_.size() != 1) refuse("--compare wants two files: --compare FIRST.jsonl SECOND.jsonl");
    console.out.write(compare_runs(read_items(eval_.compare), read_items(positionals_[0]), 50));
    return 0;
  }

  std::optional<ChatTemplate> chat_template(const ModelFiles& model, Console& console) const {
    if (!eval_.chat) return std::nullopt;
    std::optional<ChatTemplate> found = open_template(model, false, console.log);
    if (!found)
      refuse(fmt::format("--chat: {} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json); leave --chat out for a base model",
                         options_.model));
    return found;
  }

  struct Opened {
    std::unique_ptr<Engine> engine;
    std::unique_ptr<Runner> runner;
  };
  Opened open_runner(const ModelFiles& model, const Tokenizer& tokenizer, const std::vector<std::unique_ptr<Task>>& tasks, RankJob& job,
                     const Interrupts& interrupts, Console& console) const {
    RunnerOptions runner{eval_.batch_size, eos_ids_of(model, &tokenizer), [&] { return interrupts.raised(); }};
    if (!eval_.server.empty()) return {nullptr, make_server_runner(parse_http_url(eval_.server), tokenizer, std::move(runner))};
    size_t longest = 2;
    for (const auto& task : tasks)
      longest = std::max(longest, longest_query(*task, limit(), static_cast<size_t>(options_.max_position_embeddings)));
    EngineOptions engine_wanted = engine_options(options_);
    engine_wanted.max_context = static_cast<int>(longest);
    engine_wanted.max_sequences = eval_.batch_size;
    Opened opened;
    opened.engine = start_engine(model, engine_wanted, job, console.log, interrupts);
    opened.runner = make_engine_runner(*opened.engine, tokenizer, std::move(runner));
    return opened;
  }

  size_t limit() const { return static_cast<size_t>(eval_.limit); }

  /// What must be equal for items of two runs to belong together; neither batch size nor place of computation is.
  nlohmann::ordered_json description() const {
    return {{"model", options_.model}, {"tasks", eval_.tasks},  {"data", eval_.data},           {"shots", eval_.shots},   {"chat", eval_.chat},
            {"limit", eval_.limit},    {"style", eval_.style},  {"samples", eval_.samples},     {"temperature", eval_.temperature},
            {"context", eval_.context}, {"max_input", eval_.max_input}, {"precision", options_.precision}, {"dtype", options_.dtype},
            {"activations", options_.activations}, {"kv_dtype", options_.kv_dtype}, {"max_position_embeddings", options_.max_position_embeddings}};
  }

  int run(const std::vector<std::unique_ptr<Task>>& tasks, Runner& runner, const ModelFiles& model, Console& console) {
    std::optional<ItemLog> log;
    if (!eval_.items.empty()) log.emplace(eval_.items, description());
    std::vector<Summary> summaries;
    for (const auto& task : tasks) {
      EvaluateOptions how{.limit = limit()};
      if (log) how.finished = log->finished(task->name());
      if (!how.finished.empty()) console.log.info(fmt::format("{}: going on after {} items of an earlier run", task->name(), how.finished.size()));
      Progress progress(task->name(), console.log, Progress::Unit::items);
      how.progress = [&](size_t done, size_t total) { progress.update(done, total); };
      how.on_item = [&](const ItemLine& line) {
        if (log) log->add(line);
      };
      const std::vector<ItemLine> lines = evaluate(*task, runner, std::move(how));
      summaries.push_back(summarize(*task, lines));
      if (!eval_.output.empty()) console.log.info(fmt::format("results: {}", write_result_files(place(model), *task, summaries.back(), lines).string()));
    }
    if (log) log->finish();
    console.out.write(summary_table(summaries));
    return 0;
  }

  ResultPlace place(const ModelFiles& model) const {
    const DType dtype = engine_options(options_).arithmetic.value_or(model.spec.dtype);
    const std::string name = dtype == DType::f16 ? "fp16" : dtype == DType::bf16 ? "bf16" : "fp32";
    std::string folder = std::filesystem::path(options_.model).lexically_normal().filename().string();
    if (folder.empty()) folder = std::filesystem::path(options_.model).lexically_normal().parent_path().filename().string();
    return {eval_.output, "CPU", name, eval_.model_name.empty() ? folder : eval_.model_name, eval_.batch_size, tp_};
  }

  std::vector<std::string> positionals_;
  EvalOptions eval_;
  ModelOptions options_;
  ParallelOptions parallel_;
  int tp_ = 1;
};

}  // namespace

std::unique_ptr<Command> make_eval() { return std::make_unique<EvalCommand>(); }

}  // namespace conclave
