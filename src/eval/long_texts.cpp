// LongBench, LongBench-E and NeedleBench.
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "core/error.h"
#include "core/json.h"
#include "eval/data_files.h"
#include "eval/longbench_metrics.h"
#include "eval/tasks.h"
#include "eval/text_metrics.h"
#include "text/unicode.h"

namespace conclave {
namespace {
namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

[[noreturn]] void refuse(const std::string& message) { throw Error(Error::Kind::bad_input, message); }

/// Python's str.format with named fields alone.
std::string filled(const std::string& pattern, const JsonRow& row, const std::string& where) {
  std::string out;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if ((c == '{' || c == '}') && i + 1 < pattern.size() && pattern[i + 1] == c) {
      out += pattern[++i];
    } else if (c == '{') {
      const size_t end = pattern.find('}', i);
      if (end == std::string::npos) refuse(fmt::format("{}: the prompt has a brace that is not closed", where));
      out += row.text(pattern.substr(i + 1, end - i - 1).c_str());
      i = end;
    } else {
      out += c;
    }
  }
  return out;
}

class LongBench final : public Task {
 public:
  LongBench(bool e, const TaskOptions& options, const PromptEncoder& encoder) : e_(e), encoder_(encoder), most_input_(options.max_input) {
    require_no_shots("longbench", options);
    require_reference_style("longbench", options);
    const fs::path folder = options.data / "longbench";
    const auto settings = [&](const char* name) {
      std::error_code error;
      if (!fs::exists(folder / name, error))
        missing_data("longbench", folder, "dataset2prompt.json, dataset2maxlen.json and data/<sub-set>.jsonl (<sub-set>_e.jsonl for longbench_e)",
                     "https://huggingface.co/datasets/THUDM/LongBench (the two .json: https://github.com/THUDM/LongBench)");
      return parse_json(read_text_file(folder / name, size_t{4} << 20), (folder / name).string());
    };
    prompts_ = settings("dataset2prompt.json");
    lengths_ = settings("dataset2maxlen.json");
    std::error_code error;
    if (fs::exists(folder / "model2maxlen.json", error)) {
      const Json limits = settings("model2maxlen.json");
      if (limits.contains(options.model_type) && limits[options.model_type].is_number_unsigned()) most_input_ = limits[options.model_type].get<size_t>();
    }
    for (const std::string& name : longbench_datasets(e)) {
      const fs::path file = folder / "data" / (name + (e ? "_e.jsonl" : ".jsonl"));
      if (!fs::exists(file, error)) {
        missing_.push_back(name);
        continue;
      }
      if (!prompts_.contains(name) || !prompts_[name].is_string() || !lengths_.contains(name) || !lengths_[name].is_number_unsigned())
        refuse(fmt::format("{}: dataset2prompt.json or dataset2maxlen.json has no entry for {}", folder.string(), name));
      for (JsonRow& row : read_json_lines(file)) rows_.push_back({name, std::move(row)});
    }
    if (rows_.empty()) missing_data("longbench", folder, "data/<sub-set>.jsonl", "https://huggingface.co/datasets/THUDM/LongBench");
  }

  std::string name() const override { return e_ ? "longbench_e" : "longbench"; }
  std::string title() const override { return e_ ? "LongBench-E" : "LongBench"; }
  size_t size() const override { return rows_.size(); }
  std::vector<Metric> metrics() const override { return {{"score", "score", 100}}; }
  Total total() const override { return e_ ? Total::weighted_categories : Total::items; }
  std::vector<std::string> categories(std::string_view group) const override {
    if (!e_) return {};
    return {std::string(group.substr(0, group.rfind(' ')))};
  }

  ItemPlan plan(size_t index) const override {
    const auto& [dataset, row] = rows_[index];
    ItemPlan item{group_of(index), fmt::format("{}_{}", dataset, index), filled(prompts_[dataset].get<std::string>(), row, dataset), {}};
    const std::vector<int32_t> ids = encoder_.plain(item.text);
    if (ids.size() > most_input_) {
      const size_t half = most_input_ / 2;
      const auto text = [&](std::span<const int32_t> part) { return encoder_.tokenizer().decode(part, true); };
      item.text = text(std::span(ids).first(half)) + text(std::span(ids).last(half));
    }
    item.queries.push_back({.prompt = encoder_.prompt(item.text), .max_new_tokens = lengths_[dataset].get<int>()});
    return item;
  }

  Judgement judge(size_t index, std::span<const Reply> replies) const override {
    const auto& [dataset, row] = rows_[index];
    const std::vector<std::string> answers = row.texts("answers");
    const std::vector<std::string> classes = row.has("all_classes") ? row.texts("all_classes") : std::vector<std::string>();
    return {{"answer", replies[0].text},
            {"extracted", replies[0].text},
            {"gold", answers},
            {"score", longbench_score(dataset, replies[0].text, answers, classes)},
            {"length", row.has("length") ? row.integer("length") : 0}};
  }

  std::vector<std::string> notes() const override {
    std::vector<std::string> notes;
    std::set<std::string> by_characters;
    for (const auto& [dataset, row] : rows_)
      if (longbench_by_characters(dataset)) by_characters.insert(dataset);
    for (const std::string& dataset : by_characters)
      notes.push_back(fmt::format("{} is scored over characters; the published scripts cut words with jieba's dictionary", dataset));
    for (const std::string& dataset : missing_) notes.push_back(fmt::format("{} is not there and not in the total", dataset));
    notes.push_back(fmt::format("prompts of more than {} tokens lose their middle", most_input_));
    return notes;
  }

 private:
  std::string group_of(size_t index) const {
    const auto& [dataset, row] = rows_[index];
    if (!e_) return dataset;
    const int64_t length = row.integer("length");
    return fmt::format("{} {}", dataset, length < 4000 ? "0-4k" : length < 8000 ? "4-8k" : "8k+");
  }

  bool e_;
  const PromptEncoder& encoder_;
  size_t most_input_;
  Json prompts_, lengths_;
  std::vector<std::pair<std::string, JsonRow>> rows_;
  std::vector<std::string> missing_;
};

/// `text` up to 1.2 times the reference's length, and no further than the reference's last character where that stands behind 0.8 times.
std::u32string trimmed(const std::u32string& text, const std::u32string& reference) {
  const auto part = [&](double share) { return static_cast<size_t>(share * static_cast<double>(reference.size())); };
  std::u32string out = text.substr(0, part(1.2));
  if (reference.empty() || out.size() <= part(0.8)) return out;
  const size_t at = out.find(reference.back(), part(0.8));
  return at == std::u32string::npos ? out : out.substr(0, at + 1);
}

std::string without_spaces(std::string_view text) {
  std::string out;
  for (const std::string& word : words_of(text)) out += word;
  return out;
}

class NeedleBench final : public Task {
 public:
  NeedleBench(const TaskOptions& options, const PromptEncoder& encoder) : encoder_(encoder) {
    require_no_shots("needlebench", options);
    require_reference_style("needlebench", options);
    const fs::path file = options.data / "needlebench" / fmt::format("prompts_{}.jsonl", options.context);
    std::error_code error;
    if (!fs::exists(file, error))
      missing_data("needlebench", options.data / "needlebench",
                   fmt::format("prompts_{0}.jsonl, which tools/needlebench_prompts.py --context {0} makes from needles.jsonl, PaulGrahamEssays.jsonl and "
                               "zh_finance.jsonl", options.context),
                   "https://huggingface.co/datasets/opencompass/NeedleBench");
    rows_ = read_json_lines(file);
  }
  std::string name() const override { return "needlebench"; }
  std::string title() const override { return "NeedleBench"; }
  size_t size() const override { return rows_.size(); }

  ItemPlan plan(size_t index) const override {
    ItemPlan item{rows_[index].text("name"), fmt::format("{}", index), rows_[index].text("prompt"), {}};
    item.queries.push_back({.prompt = encoder_.prompt(item.text), .max_new_tokens = 256});
    return item;
  }

  /// 1 when the key word is there, else a fifth of the likeness to the needle.
  Judgement judge(size_t index, std::span<const Reply> replies) const override {
    const std::string gold = rows_[index].text("answer"), &said = replies[0].text;
    const size_t star = gold.find('*');
    if (star == std::string::npos) refuse(fmt::format("{}: \"answer\" has no '*' between needle and key word", rows_[index].where));
    const std::string keyword = gold.substr(star + 1, gold.find('*', star + 1) - star - 1);
    const std::u32string reference = characters_of(without_spaces(gold.substr(0, star)));
    const std::u32string cut = trimmed(characters_of(without_spaces(said)), reference);
    std::string cut_text, reference_text;
    for (const char32_t c : cut) append_utf8(cut_text, c);
    for (const char32_t c : reference) append_utf8(reference_text, c);
    const size_t longest = std::max(cut.size(), reference.size());
    double score = longest == 0 ? 1.0 : 1 - static_cast<double>(edit_distance(cut_text, reference_text)) / static_cast<double>(longest);
    score = said.find(keyword) != std::string::npos ? 1.0 : 0.2 * score;
    return {{"answer", said}, {"extracted", cut_text}, {"gold", gold}, {"score", score}};
  }

 private:
  const PromptEncoder& encoder_;
  std::vector<JsonRow> rows_;
};

}  // namespace

std::unique_ptr<Task> make_longbench(const TaskOptions& options, const PromptEncoder& encoder) {
  return std::make_unique<LongBench>(false, options, encoder);
}
std::unique_ptr<Task> make_longbench_e(const TaskOptions& options, const PromptEncoder& encoder) {
  return std::make_unique<LongBench>(true, options, encoder);
}
std::unique_ptr<Task> make_needlebench(const TaskOptions& options, const PromptEncoder& encoder) {
  return std::make_unique<NeedleBench>(options, encoder);
}

}  // namespace conclave
