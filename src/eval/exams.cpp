#include "eval/exams.h"

#include <fmt/format.h>

#include "core/error.h"
#include "core/json.h"
#include "eval/data_files.h"

namespace conclave {
namespace {
namespace fs = std::filesystem;

constexpr size_t kOptions = 4, kMostMappingBytes = size_t{4} << 20;

[[noreturn]] void refuse(const std::string& message) { throw Error(Error::Kind::bad_input, message); }

/// "A" to "D", or with `indices` "0" to "3".
std::string letter_of(const std::string& text, bool indices, const std::string& where) {
  const char first = indices ? '0' : 'A';
  if (text.size() != 1 || text[0] < first || text[0] >= first + static_cast<int>(kOptions))
    refuse(fmt::format("{}: the answer is \"{}\", wanted {}", where, text, indices ? "0 to 3" : "A to D"));
  return std::string(1, static_cast<char>('A' + (text[0] - first)));
}

ExamQuestion question_of(const CsvRow& row, size_t first, bool indices) {
  if (row.fields.size() < first + kOptions + 2)
    refuse(fmt::format("{}: the row has {} fields, wanted a question, four options and an answer", row.where, row.fields.size()));
  ExamQuestion q{row.fields[first], {}, letter_of(row.fields[first + kOptions + 1], indices, row.where)};
  for (size_t i = 0; i < kOptions; ++i) q.options[i] = row.fields[first + 1 + i];
  return q;
}

std::vector<ExamQuestion> read_mmlu_file(const fs::path& file) {
  const std::vector<CsvRow> rows = read_csv(file);
  const std::vector<std::string> header = {"question", "choice0", "choice1", "choice2", "choice3", "answer"};
  const bool headed = rows[0].fields == header;
  std::vector<ExamQuestion> questions;
  for (size_t i = headed ? 1 : 0; i < rows.size(); ++i) {
    if (rows[i].fields.size() != header.size())
      refuse(fmt::format("{}: the row has {} fields, wanted 6: question, four options, answer", rows[i].where, rows[i].fields.size()));
    questions.push_back(question_of(rows[i], 0, headed));
  }
  return questions;
}

/// CEval and CMMLU: an index column first, then question, A, B, C, D, answer; more columns may follow.
std::vector<ExamQuestion> read_indexed_file(const fs::path& file) {
  const CsvTable table = read_csv_table(file);
  if (table.columns.size() < kOptions + 3) refuse(fmt::format("{}:1: wanted the columns index, question, A, B, C, D, answer", file.string()));
  std::vector<ExamQuestion> questions;
  for (const CsvRow& row : table.rows) questions.push_back(question_of(row, 1, false));
  return questions;
}

using Reader = std::vector<ExamQuestion> (*)(const fs::path&);

void read_examples(Subject& subject, const fs::path& file, int shots, Reader read) {
  if (shots == 0) return;
  std::error_code error;
  if (!fs::exists(file, error)) refuse(fmt::format("{} is missing: --shots {} takes its examples from there", file.string(), shots));
  subject.examples = read(file);
  if (subject.examples.size() < static_cast<size_t>(shots))
    refuse(fmt::format("{} has {} examples, --shots wants {}", file.string(), subject.examples.size(), shots));
  subject.examples.resize(static_cast<size_t>(shots));
}

nlohmann::ordered_json read_mapping(const fs::path& folder) {
  const fs::path file = folder / "subject_mapping.json";
  std::error_code error;
  if (!fs::exists(file, error)) return nullptr;
  return parse_json(read_text_file(file, kMostMappingBytes), file.string());
}

/// Subject names of files "<subject><suffix>" in the folder, in the order of `list` (an array, or an object's keys) where it is given.
std::vector<std::string> subject_ids(const fs::path& folder, const std::string& suffix, const nlohmann::ordered_json& list) {
  std::vector<std::string> ids;
  if (list.is_object()) {
    for (const auto& [key, value] : list.items()) ids.push_back(key);
  } else if (list.is_array()) {
    for (const auto& one : list)
      if (one.is_string()) ids.push_back(one.get<std::string>());
  } else {
    for (const fs::path& file : files_ending(folder, suffix)) {
      const std::string name = file.filename().string();
      ids.push_back(name.substr(0, name.size() - suffix.size()));
    }
  }
  return ids;
}

}  // namespace

std::vector<Subject> read_mmlu(const fs::path& folder, int shots) {
  const nlohmann::ordered_json mapping = read_mapping(folder);
  const nlohmann::ordered_json list = mapping.is_object() && mapping.contains("mmlu_all_sets") ? mapping["mmlu_all_sets"] : nullptr;
  std::vector<Subject> subjects;
  for (const std::string& id : subject_ids(folder / "test", "_test.csv", list)) {
    const std::string category = mmlu_category(id);
    Subject subject{id, id, {}, read_mmlu_file(folder / "test" / (id + "_test.csv")), {}};
    if (!category.empty()) subject.categories.push_back(category);
    read_examples(subject, folder / "dev" / (id + "_dev.csv"), shots, read_mmlu_file);
    subjects.push_back(std::move(subject));
  }
  if (subjects.empty())
    missing_data("mmlu", folder, "test/<subject>_test.csv and for --shots dev/<subject>_dev.csv",
                 "https://people.eecs.berkeley.edu/~hendrycks/data.tar (https://github.com/hendrycks/test)");
  return subjects;
}

std::vector<Subject> read_ceval(const fs::path& folder, int shots) {
  const nlohmann::ordered_json mapping = read_mapping(folder);
  if (!mapping.is_object() || files_ending(folder / "val", "_val.csv").empty())
    missing_data("ceval", folder, "subject_mapping.json, val/<subject>_val.csv and for --shots dev/<subject>_dev.csv",
                 "https://huggingface.co/datasets/ceval/ceval-exam (subject_mapping.json: https://github.com/hkust-nlp/ceval)");
  std::vector<Subject> subjects;
  for (const auto& [id, names] : mapping.items()) {
    if (!names.is_array() || names.size() < 3 || !names[1].is_string() || !names[2].is_string())
      refuse(fmt::format("{}: \"{}\" is no list of English name, Chinese name and category", (folder / "subject_mapping.json").string(), id));
    Subject subject{id, names[1].get<std::string>(), {names[2].get<std::string>()}, read_indexed_file(folder / "val" / (id + "_val.csv")), {}};
    read_examples(subject, folder / "dev" / (id + "_dev.csv"), shots, read_indexed_file);
    subjects.push_back(std::move(subject));
  }
  return subjects;
}

std::vector<Subject> read_cmmlu(const fs::path& folder, int shots) {
  const nlohmann::ordered_json mapping = read_mapping(folder);
  const nlohmann::ordered_json list = mapping.is_object() && mapping.contains("cmmlu_all_sets") ? mapping["cmmlu_all_sets"] : nullptr;
  std::vector<Subject> subjects;
  for (const std::string& id : subject_ids(folder / "test", ".csv", list)) {
    const CmmluSubject* known = find_cmmlu_subject(id);
    Subject subject{id, known ? std::string(known->chinese) : "未知主题", {}, read_indexed_file(folder / "test" / (id + ".csv")), {}};
    for (std::string_view rest = known ? known->categories : ""; !rest.empty();) {
      const size_t end = std::min(rest.find('|'), rest.size());
      subject.categories.emplace_back(rest.substr(0, end));
      rest.remove_prefix(std::min(end + 1, rest.size()));
    }
    read_examples(subject, folder / "dev" / (id + ".csv"), shots, read_indexed_file);
    subjects.push_back(std::move(subject));
  }
  if (subjects.empty())
    missing_data("cmmlu", folder, "test/<subject>.csv and for --shots dev/<subject>.csv", "https://huggingface.co/datasets/haonan-li/cmmlu");
  return subjects;
}

}  // namespace conclave
