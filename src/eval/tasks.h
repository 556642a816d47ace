#pragma once
// The tasks by family, for make_task() alone. Each reads its data when it is made.
#include "eval/task.h"

namespace conclave {

std::unique_ptr<Task> make_boolq(const TaskOptions& options, const PromptEncoder& encoder);
std::unique_ptr<Task> make_mmlu(const TaskOptions& options, const PromptEncoder& encoder);
std::unique_ptr<Task> make_ceval(const TaskOptions& options, const PromptEncoder& encoder);
std::unique_ptr<Task> make_cmmlu(const TaskOptions& options, const PromptEncoder& encoder);
std::unique_ptr<Task> make_gpqa(const TaskOptions& options, const PromptEncoder& encoder);
std::unique_ptr<Task> make_gsm8k(const TaskOptions& options, const PromptEncoder& encoder);
std::unique_ptr<Task> make_truthfulqa(const TaskOptions& options, const PromptEncoder& encoder);
std::unique_ptr<Task> make_aime(const TaskOptions& options, const PromptEncoder& encoder);
std::unique_ptr<Task> make_humaneval(const TaskOptions& options, const PromptEncoder& encoder);
std::unique_ptr<Task> make_humaneval_x(const TaskOptions& options, const PromptEncoder& encoder);
std::unique_ptr<Task> make_longbench(const TaskOptions& options, const PromptEncoder& encoder);
std::unique_ptr<Task> make_longbench_e(const TaskOptions& options, const PromptEncoder& encoder);
std::unique_ptr<Task> make_needlebench(const TaskOptions& options, const PromptEncoder& encoder);
std::unique_ptr<Task> make_demo(const TaskOptions& options, const PromptEncoder& encoder);

/// The last ids of a carrier sentence that ends with " yes" and of one that ends with " no".
std::pair<int32_t, int32_t> yes_no_ids(const PromptEncoder& encoder);
/// Throws bad_input: the task has no examples to put before a question.
void require_no_shots(std::string_view task, const TaskOptions& options);
/// Throws bad_input: the task has no form of its own in lm-evaluation-harness that local files suffice for.
void require_reference_style(std::string_view task, const TaskOptions& options);

}  // namespace conclave
