#pragma once
// Multiple-choice examinations: subjects with questions of four options. Readers of the published layouts, and what is known about subjects.
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace conclave {

struct ExamQuestion {
  std::string question;
  std::string options[4];
  std::string answer;  ///< "A" to "D"
};

struct Subject {
  std::string id;       ///< name of its files
  std::string shown;    ///< as prompts name it
  std::vector<std::string> categories;
  std::vector<ExamQuestion> questions, examples;
};

/// `folder`/{test,dev}/<subject>_{test,dev}.csv, without a header and with letters, or with a header and the answer's index; the subjects
/// and their order come from subject_mapping.json where there is one ("mmlu_all_sets"). Throws bad_input.
std::vector<Subject> read_mmlu(const std::filesystem::path& folder, int shots);
/// `folder`/{val,dev}/<subject>_{val,dev}.csv and subject_mapping.json (subject -> [English, Chinese, category]).
std::vector<Subject> read_ceval(const std::filesystem::path& folder, int shots);
/// `folder`/{test,dev}/<subject>.csv.
std::vector<Subject> read_cmmlu(const std::filesystem::path& folder, int shots);

/// "stem", "humanities", "social sciences" or "other"; empty for unknown subjects (Hendrycks et al. 2021).
std::string mmlu_category(std::string_view subject);

struct CmmluSubject {
  std::string_view id, chinese, categories;  ///< categories with '|' between them
};
/// Null for unknown subjects (Li et al. 2023).
const CmmluSubject* find_cmmlu_subject(std::string_view id);

}  // namespace conclave
