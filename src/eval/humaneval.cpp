// HumanEval and HumanEval-X: programs that a judge runs.
#include <fmt/format.h>

#include <algorithm>

#include "core/error.h"
#include "eval/data_files.h"
#include "eval/programs.h"
#include "eval/tasks.h"

namespace conclave {
namespace {

struct Problem {
  std::string group, id, entry_point;
  PolyglotProblem text;
};

class Programming : public Task {
 public:
  Programming(std::string_view task, const TaskOptions& options, const PromptEncoder& encoder) : encoder_(encoder), options_(options) {
    require_no_shots(task, options);
    const auto refuse = [](const std::string& message) { throw Error(Error::Kind::bad_input, message); };
    if (options.samples > 1 && options.temperature == 0)
      refuse(fmt::format("--samples is {} with --temperature 0: all programs would be the same; give a temperature", options.samples));
    for (const int k : options.pass_at)
      if (k > options.samples) refuse(fmt::format("--pass-at {} needs at least as many --samples, there are {}", k, options.samples));
    if (!options.judge)
      throw Error(Error::Kind::unsupported, fmt::format("{} runs programs that the model writes, and there is nothing here to run them in safely", task));
  }

  size_t size() const override { return problems_.size(); }
  std::vector<Metric> metrics() const override {
    std::vector<Metric> metrics;
    for (const int k : options_.pass_at) metrics.push_back({fmt::format("pass@{}", k), fmt::format("pass@{}", k)});
    return metrics;
  }

  ItemPlan plan(size_t index) const override {
    const Problem& p = problems_[index];
    ItemPlan item{p.group, p.id, prompt_of(p), {}};
    for (int i = 0; i < options_.samples; ++i)
      item.queries.push_back({.prompt = encoder_.prompt(item.text), .max_new_tokens = most_tokens(), .stop = stops(),
                              .temperature = options_.temperature, .seed = index * 1000 + static_cast<uint64_t>(i)});
    return item;
  }

  Judgement judge(size_t index, std::span<const Reply> replies) const override {
    const Problem& p = problems_[index];
    Judgement out = {{"answer", replies[0].text}, {"extracted", cut(p, replies[0].text)}, {"gold", "passed"}, {"score", nullptr}};
    auto results = nlohmann::ordered_json::array();
    int passed = 0;
    for (const Reply& reply : replies) {
      const Verdict verdict = options_.judge({p.text.language, program(p, cut(p, reply.text)), timeout_s()});
      passed += verdict.passed;
      results.push_back(verdict.result);
    }
    for (const int k : options_.pass_at) out[fmt::format("pass@{}", k)] = pass_at_k(static_cast<int>(replies.size()), passed, k);
    out["score"] = out[fmt::format("pass@{}", options_.pass_at.front())];
    out["results"] = std::move(results);
    return out;
  }

  std::vector<TextFile> files(std::span<const nlohmann::ordered_json> lines, std::string_view) const override {
    std::string text;
    for (const auto& line : lines) {
      if (line.contains("skipped")) continue;
      const nlohmann::ordered_json row = {{"task_id", line.at("key")}, {"completion", line.at("extracted")}};
      text += row.dump(-1, ' ', true, nlohmann::ordered_json::error_handler_t::replace) + "\n";
    }
    return {{title() + "_infer.jsonl", std::move(text)}};
  }

 protected:
  virtual std::string prompt_of(const Problem& p) const = 0;
  virtual std::string cut(const Problem& p, const std::string& text) const = 0;
  virtual std::string program(const Problem& p, const std::string& completion) const = 0;
  virtual std::vector<std::string> stops() const { return {}; }
  virtual int most_tokens() const = 0;
  virtual double timeout_s() const = 0;

  const PromptEncoder& encoder_;
  TaskOptions options_;
  std::vector<Problem> problems_;
};

class HumanEval final : public Programming {
 public:
  HumanEval(const TaskOptions& options, const PromptEncoder& encoder) : Programming("humaneval", options, encoder) {
    const auto folder = options.data / "humaneval";
    for (const char* name : {"human-eval.jsonl", "HumanEval.jsonl"}) {
      std::error_code error;
      if (!problems_.empty() || !std::filesystem::exists(folder / name, error)) continue;
      for (const JsonRow& row : read_json_lines(folder / name))
        problems_.push_back({name, row.text("task_id"), row.text("entry_point"), {"python", row.text("prompt"), row.text("test"), "", ""}});
    }
    if (problems_.empty())
      missing_data("humaneval", folder, "HumanEval.jsonl or human-eval.jsonl with task_id, prompt, entry_point, test",
                   "https://github.com/openai/human-eval");
  }
  std::string name() const override { return "humaneval"; }
  std::string title() const override { return "HumanEval"; }

 private:
  bool lm_eval() const { return options_.style == Style::lm_eval; }
  std::string prompt_of(const Problem& p) const override { return lm_eval() ? p.text.prompt : std::string(stripped(p.text.prompt)); }
  std::string cut(const Problem&, const std::string& text) const override { return lm_eval() ? text : cut_completion(text); }
  std::string program(const Problem& p, const std::string& completion) const override {
    return humaneval_program(p.text.prompt, completion, p.text.test, p.entry_point);
  }
  std::vector<std::string> stops() const override {
    if (!lm_eval()) return {};
    return {"\nclass", "\ndef", "\n#", "\nif", "\nprint"};
  }
  int most_tokens() const override { return lm_eval() ? 1024 : 512; }
  double timeout_s() const override { return 3; }
};

class HumanEvalX final : public Programming {
 public:
  HumanEvalX(const TaskOptions& options, const PromptEncoder& encoder) : Programming("humaneval_x", options, encoder) {
    require_reference_style("humaneval_x", options);
    const auto folder = options.data / "humaneval_x";
    for (const char* language : {"cpp", "go", "java", "js", "python"}) {
      const auto file = folder / language / "data" / fmt::format("data_{}_data_humaneval.jsonl", language);
      std::error_code error;
      if (!std::filesystem::exists(file, error)) continue;
      const bool go = std::string_view(language) == "go";
      for (const JsonRow& row : read_json_lines(file))
        problems_.push_back({language, row.text("task_id"), "",
                             {language, language_tag(language) + "\n" + row.text("prompt"), row.text("test"), go ? row.text("import") : "",
                              go ? row.text("test_setup") : ""}});
    }
    if (problems_.empty())
      missing_data("humaneval_x", folder, "<language>/data/data_<language>_data_humaneval.jsonl for cpp, go, java, js, python (those that are there are scored)",
                   "https://huggingface.co/datasets/THUDM/humaneval-x");
  }
  std::string name() const override { return "humaneval_x"; }
  std::string title() const override { return "HumanEval_X"; }
  Total total() const override { return Total::groups; }

 private:
  std::string prompt_of(const Problem& p) const override { return p.text.prompt; }
  std::string cut(const Problem& p, const std::string& text) const override { return cut_generation(text, p.text.language); }
  std::string program(const Problem& p, const std::string& completion) const override { return polyglot_program(p.text, completion); }
  int most_tokens() const override { return 1024; }
  double timeout_s() const override { return 500; }
};

}  // namespace

std::unique_ptr<Task> make_humaneval(const TaskOptions& options, const PromptEncoder& encoder) { return std::make_unique<HumanEval>(options, encoder); }
std::unique_ptr<Task> make_humaneval_x(const TaskOptions& options, const PromptEncoder& encoder) { return std::make_unique<HumanEvalX>(options, encoder); }

}  // namespace conclave
