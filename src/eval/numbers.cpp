// GSM8K and AIME 2024: questions whose answer is a number.
#include <fmt/format.h>

#include "core/error.h"
#include "eval/data_files.h"
#include "eval/extract.h"
#include "eval/tasks.h"

namespace conclave {
namespace {

struct Sum {
  std::string file, question, answer, where;
  size_t index_in_file;
};

Judgement judged(const std::string& said, const std::optional<std::string>& found, const std::optional<std::string>& gold) {
  const bool right = found && gold && same_number(*gold, *found);
  return {{"answer", said},
          {"extracted", found ? nlohmann::ordered_json(*found) : nlohmann::ordered_json(nullptr)},
          {"gold", gold ? nlohmann::ordered_json(*gold) : nlohmann::ordered_json(nullptr)},
          {"score", right ? 1.0 : 0.0}};
}

class Gsm8k final : public Task {
 public:
  Gsm8k(const TaskOptions& options, const PromptEncoder& encoder)
      : encoder_(encoder), style_(options.style), shots_(options.shots),
        strict_(R"(#### -?[0-9.,]+)", "GSM8K's answer line"), flexible_(R"(-?[$0-9.,]{2,}|-?[0-9]+)", "GSM8K's last number") {
    const auto folder = options.data / "gsm8k";
    if (style_ == Style::reference) require_no_shots("gsm8k (but with --style lm-eval)", options);
    for (const auto& file : files_ending(folder, ".jsonl")) {
      size_t index = 0;
      if (file.filename() == "train.jsonl") continue;
      for (const JsonRow& row : read_json_lines(file))
        sums_.push_back({file.filename().string(), row.text("question"), row.text("answer"), row.where, index++});
    }
    if (sums_.empty())
      missing_data("gsm8k", folder, "test.jsonl with question, answer (and train.jsonl for --style lm-eval --shots)",
                   "https://github.com/openai/grade-school-math");
    if (shots_ > 0) read_examples(folder / "train.jsonl");
  }

  std::string name() const override { return "gsm8k"; }
  std::string title() const override { return "GSM8K"; }
  int shots() const override { return shots_; }
  size_t size() const override { return sums_.size(); }
  std::vector<Metric> metrics() const override {
    if (style_ == Style::reference) return {{"score", "accuracy"}};
    return {{"score", "exact_match (strict)"}, {"flexible", "exact_match (flexible)"}};
  }

  ItemPlan plan(size_t index) const override {
    const Sum& sum = sums_[index];
    ItemPlan item{sum.file, fmt::format("{}", sum.index_in_file), sum.question, {}};
    if (style_ == Style::reference) {
      item.queries.push_back({.prompt = encoder_.prompt(item.text), .max_new_tokens = 512});
      return item;
    }
    item.text = examples_ + fmt::format("Question: {}\nAnswer:", sum.question);
    item.queries.push_back({.prompt = encoder_.prompt(item.text), .max_new_tokens = 256, .stop = {"Question:", "</s>", "<|im_end|>"}});
    return item;
  }

  Judgement judge(size_t index, std::span<const Reply> replies) const override {
    const std::string& said = replies[0].text;
    if (style_ == Style::reference) return judged(said, finder_.last(said), finder_.last(sums_[index].answer));
    const std::string gold = plain_number(matched(strict_, sums_[index].answer, true));
    const std::string strict = plain_number(matched(strict_, said, true)), flexible = plain_number(matched(flexible_, said, false));
    return {{"answer", said},
            {"extracted", strict},
            {"gold", gold},
            {"score", strict == gold ? 1.0 : 0.0},
            {"extracted_flexible", flexible},
            {"flexible", flexible == gold ? 1.0 : 0.0}};
  }

 private:
  void read_examples(const std::filesystem::path& file) {
    const std::vector<JsonRow> rows = read_json_lines(file);
    if (rows.size() < static_cast<size_t>(shots_))
      throw Error(Error::Kind::bad_input, fmt::format("{} has {} examples, --shots wants {}", file.string(), rows.size(), shots_));
    for (size_t i = 0; i < static_cast<size_t>(shots_); ++i)
      examples_ += fmt::format("Question: {}\nAnswer: {}\n\n", rows[i].text("question"), rows[i].text("answer"));
  }

  /// The first or last match, "[invalid]" when there is none.
  static std::string matched(const Regex& regex, const std::string& text, bool first) {
    RegexScratch scratch;
    std::vector<Range> matches;
    regex.find_all(text, scratch, matches);
    if (matches.empty()) return "[invalid]";
    const Range range = first ? matches.front() : matches.back();
    return text.substr(range.first, range.second - range.first);
  }
  /// Without "#### ", commas, "$" and the point at the end, as the harness compares them.
  static std::string plain_number(std::string text) {
    if (text.starts_with("####")) text = std::string(stripped_left(std::string_view(text).substr(4)));
    text = replaced(replaced(text, ",", ""), "$", "");
    if (text.ends_with('.')) text.pop_back();
    return text;
  }

  const PromptEncoder& encoder_;
  Style style_;
  int shots_;
  Regex strict_, flexible_;
  NumberFinder finder_;
  std::vector<Sum> sums_;
  std::string examples_;
};

class Aime final : public Task {
 public:
  Aime(const TaskOptions& options, const PromptEncoder& encoder) : encoder_(encoder) {
    require_no_shots("aime2024", options);
    require_reference_style("aime2024", options);
    const auto folder = options.data / "aime2024";
    for (const auto& file : files_ending(folder, ".jsonl")) {
      size_t index = 0;
      for (const JsonRow& row : read_json_lines(file))
        sums_.push_back({file.filename().string(), row.text("Problem"), row.text("Answer"), row.where, index++});
    }
    if (sums_.empty())
      missing_data("aime2024", folder, "a .jsonl with Problem, Answer (tools/parquet_to_jsonl.py makes it from the published parquet file)",
                   "https://huggingface.co/datasets/Maxwell-Jia/AIME_2024");
  }
  std::string name() const override { return "aime2024"; }
  std::string title() const override { return "AIME2024"; }
  size_t size() const override { return sums_.size(); }

  ItemPlan plan(size_t index) const override {
    const Sum& sum = sums_[index];
    ItemPlan item{sum.file, fmt::format("{}", sum.index_in_file), sum.question + "\nPlease reason step by step, and put your final answer within \\boxed{}.", {}};
    item.queries.push_back({.prompt = encoder_.prompt(item.text), .max_new_tokens = 512});
    return item;
  }
  Judgement judge(size_t index, std::span<const Reply> replies) const override {
    return judged(replies[0].text, finder_.last(replies[0].text), sums_[index].answer);
  }

 private:
  const PromptEncoder& encoder_;
  NumberFinder finder_;
  std::vector<Sum> sums_;
};

}  // namespace

std::unique_ptr<Task> make_gsm8k(const TaskOptions& options, const PromptEncoder& encoder) { return std::make_unique<Gsm8k>(options, encoder); }
std::unique_ptr<Task> make_aime(const TaskOptions& options, const PromptEncoder& encoder) { return std::make_unique<Aime>(options, encoder); }

}  // namespace conclave
