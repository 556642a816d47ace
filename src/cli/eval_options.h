#pragma once
// Options of `conclave eval` and their translation into a task's terms.
#include <string>
#include <vector>

#include "core/options.h"
#include "eval/task.h"
#include "model/spec.h"

namespace conclave {

struct EvalOptions {
  std::string tasks, data, items, output, compare, server, style = "reference", context = "4k", pass_at = "1", model_name;
  int shots = 0, batch_size = 1, limit = 0, samples = 1, max_input = 76839;
  float temperature = 0;
  bool chat = false;
};
void declare_eval_options(OptionTable& table, EvalOptions& options);

/// "a,b" -> {"a", "b"}; throws bad_input for empty and repeated names.
std::vector<std::string> split_names(const std::string& list);
TaskOptions task_options_of(const EvalOptions& options, const ModelSpec& spec);

}  // namespace conclave
