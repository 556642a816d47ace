#pragma once
// From a generated text to the program that is judged: where the text is cut, and what stands before and after it. HumanEval (Chen et al. 2021)
// and HumanEval-X (Zheng et al. 2023), as the reference stack does both.
#include <string>
#include <string_view>

namespace conclave {

/// Up to the first line that is not indented; without one, up to the last of the usual beginnings of something else.
std::string cut_completion(std::string_view text);
/// prompt, completion, test and the call of its check().
std::string humaneval_program(std::string_view prompt, std::string_view completion, std::string_view test, std::string_view entry_point);

/// "// language: C++" and the like; `language` is "cpp", "go", "java", "js" or "python".
std::string language_tag(std::string_view language);
/// What of a generated text belongs to the function in question.
std::string cut_generation(std::string_view text, std::string_view language);

struct PolyglotProblem {
  std::string language, prompt;  ///< the prompt with its language tag
  std::string test, import, test_setup;  ///< the last two of Go alone
};
std::string polyglot_program(const PolyglotProblem& problem, std::string_view generation);

/// Unbiased estimate that one of k of n samples passes when c of them did: 1 - C(n-c, k) / C(n, k).
double pass_at_k(int n, int c, int k);

}  // namespace conclave
