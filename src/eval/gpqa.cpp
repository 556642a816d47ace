// GPQA diamond: four options, rotated by the number of the question.
#include <fmt/format.h>

#include <array>

#include "core/error.h"
#include "eval/data_files.h"
#include "eval/extract.h"
#include "eval/tasks.h"

namespace conclave {
namespace {

class Gpqa final : public Task {
 public:
  Gpqa(const TaskOptions& options, const PromptEncoder& encoder) : encoder_(encoder), letters_(LetterFinder::Kind::gpqa) {
    require_no_shots("gpqa", options);
    require_reference_style("gpqa", options);
    const auto file = options.data / "gpqa" / "gpqa_diamond.csv";
    std::error_code error;
    if (!std::filesystem::exists(file, error))
      missing_data("gpqa", options.data / "gpqa", "gpqa_diamond.csv", "https://github.com/idavidrein/gpqa (dataset.zip)");
    const CsvTable table = read_csv_table(file);
    const std::array columns = {table.column("Question"), table.column("Correct Answer"), table.column("Incorrect Answer 1"),
                                table.column("Incorrect Answer 2"), table.column("Incorrect Answer 3")};
    for (const CsvRow& row : table.rows) {
      std::array<std::string, 5> texts;
      for (size_t i = 0; i < texts.size(); ++i) texts[i] = row.fields[columns[i]];
      questions_.push_back(std::move(texts));
    }
    if (questions_.empty()) throw Error(Error::Kind::bad_input, fmt::format("{} has no questions", file.string()));
  }
  std::string name() const override { return "gpqa"; }
  std::string title() const override { return "GPQA"; }
  size_t size() const override { return questions_.size(); }

  ItemPlan plan(size_t index) const override {
    const auto& q = questions_[index];
    const auto option = [&](size_t place) { return q[1 + (index + place) % 4]; };
    const std::string text = fmt::format(
        "What is the correct answer to this question: {}\nChoices:\n(A){}\n(B){}\n(C){}\n(D){}\nFormat your response as follows: \"The correct "
        "answer is (insert answer here)\"", q[0], option(0), option(1), option(2), option(3));
    ItemPlan item{"gpqa_diamond", fmt::format("{}", index), std::string(stripped(text)), {}};
    item.queries.push_back({.prompt = encoder_.prompt(item.text), .max_new_tokens = 512});
    return item;
  }
  Judgement judge(size_t index, std::span<const Reply> replies) const override {
    constexpr const char* kGold[] = {"A", "D", "C", "B"};
    const std::string said = letters_.find(replies[0].text), gold = kGold[index % 4];
    return {{"answer", replies[0].text}, {"extracted", said}, {"gold", gold}, {"score", said == gold ? 1.0 : 0.0}};
  }

 private:
  const PromptEncoder& encoder_;
  LetterFinder letters_;
  std::vector<std::array<std::string, 5>> questions_;  ///< question, correct answer, incorrect ones
};

}  // namespace

std::unique_ptr<Task> make_gpqa(const TaskOptions& options, const PromptEncoder& encoder) { return std::make_unique<Gpqa>(options, encoder); }

}  // namespace conclave
