#include "eval/task.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/error.h"
#include "eval/tasks.h"

namespace conclave {
namespace {

struct Entry {
  std::string_view name;
  std::unique_ptr<Task> (*make)(const TaskOptions&, const PromptEncoder&);
};
constexpr Entry kTasks[] = {
    {"boolq", make_boolq}, {"mmlu", make_mmlu}, {"ceval", make_ceval}, {"cmmlu", make_cmmlu},
    {"gsm8k", make_gsm8k}, {"gpqa", make_gpqa}, {"truthfulqa", make_truthfulqa}, {"aime2024", make_aime}, {"humaneval", make_humaneval}, {"humaneval_x", make_humaneval_x}, {"longbench", make_longbench},
    {"longbench_e", make_longbench_e}, {"needlebench", make_needlebench}, {"demo", make_demo},
};

}  // namespace

std::vector<std::string> task_names() {
  std::vector<std::string> names;
  for (const Entry& entry : kTasks) names.emplace_back(entry.name);
  return names;
}

std::unique_ptr<Task> make_task(std::string_view name, const TaskOptions& options, const PromptEncoder& encoder) {
  for (const Entry& entry : kTasks)
    if (entry.name == name) return entry.make(options, encoder);
  throw Error(Error::Kind::bad_input, fmt::format("--tasks: there is no task \"{}\"; there are {}", name, fmt::join(task_names(), ", ")));
}

void require_no_shots(std::string_view task, const TaskOptions& options) {
  if (options.shots != 0) throw Error(Error::Kind::bad_input, fmt::format("--shots is {}, but {} takes no examples", options.shots, task));
}

void require_reference_style(std::string_view task, const TaskOptions& options) {
  if (options.style != Style::reference)
    throw Error(Error::Kind::unsupported, fmt::format("--style lm-eval: {} is scored in the reference stack's form only", task));
}

}  // namespace conclave
