#include "cli/eval_options.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "bench/cases.h"
#include "core/error.h"

namespace conclave {

void declare_eval_options(OptionTable& table, EvalOptions& o) {
  table.group("Evaluation");
  table.add("tasks", &o.tasks, fmt::format("data sets to score: {}", fmt::join(task_names(), ", "))).placeholder("NAME,...");
  table.add("data", &o.data, "folder that holds one folder per data set (boolq/dev.jsonl, mmlu/test/*.csv, ...)").placeholder("DIR");
  table.add("shots", &o.shots, "examples before each question").placeholder("N").range(0, 100);
  table.add("chat", &o.chat, "make each prompt a user message of the model's chat template");
  table.add("batch-size", &o.batch_size, "queries computed at once; results do not depend on it").placeholder("N").range(1, 1024).also("b");
  table.add("limit", &o.limit, "only the first items of each task; 0: all").placeholder("N").range(0, 1 << 30);
  table.add("style", &o.style, "whose prompts and scores: the reference stack's or lm-evaluation-harness's").choices({"reference", "lm-eval"});
  table.add("server", &o.server, "ask this OpenAI-compatible server instead of loading the model; MODEL gives tokenizer and template").placeholder("URL");
  table.add("samples", &o.samples, "programs per problem (humaneval)").placeholder("N").range(1, 1000);
  table.add("temperature", &o.temperature, "of those programs; 0 with one sample is greedy").placeholder("X").range(0, 100);
  table.add("pass-at", &o.pass_at, "numbers of programs of which one must pass (humaneval)").placeholder("K,...");
  table.add("context", &o.context, "length of the texts (needlebench): 4k, 8k, 32k, 128k, 200k, 256k, 1000k").placeholder("LENGTH");
  table.add("max-input", &o.max_input, "longbench: tokens of a prompt above which its middle is left out").placeholder("N").range(16, 1 << 30);
  table.group("Output");
  table.add("items", &o.items, "one JSON line per item; a run that was stopped goes on where FILE.partial ends").placeholder("FILE.jsonl");
  table.add("output", &o.output, "folder for the reference stack's result and debug CSV files").placeholder("DIR");
  table.add("model-name", &o.model_name, "the model's name in the paths under --output; default: its folder's name").placeholder("NAME");
  table.add("compare", &o.compare, "compare the items of two earlier runs instead: --compare FIRST.jsonl SECOND.jsonl").placeholder("FIRST.jsonl");
}

std::vector<std::string> split_names(const std::string& list) {
  std::vector<std::string> names;
  for (size_t at = 0; at <= list.size();) {
    const size_t end = std::min(list.find(',', at), list.size());
    const std::string name = list.substr(at, end - at);
    if (name.empty() || std::find(names.begin(), names.end(), name) != names.end())
      throw Error(Error::Kind::bad_input, fmt::format("--tasks \"{}\": {}", list, name.empty() ? "an empty name" : name + " stands twice"));
    names.push_back(name);
    at = end + 1;
  }
  return names;
}

TaskOptions task_options_of(const EvalOptions& o, const ModelSpec& spec) {
  TaskOptions t{.data = o.data};
  t.shots = o.shots;
  t.style = o.style == "lm-eval" ? Style::lm_eval : Style::reference;
  t.samples = o.samples;
  t.temperature = o.temperature;
  t.pass_at = parse_numbers(o.pass_at, "--pass-at", 1, 1000);
  t.context = o.context;
  t.max_input = static_cast<size_t>(o.max_input);
  t.model_type = spec.family;
  return t;
}

}  // namespace conclave
