// BoolQ: the more likely of the ids of "yes" and "no" after the prompt.
#include <fmt/format.h>

#include "core/error.h"
#include "eval/data_files.h"
#include "eval/tasks.h"

namespace conclave {
namespace {

struct Question {
  std::string file, question, passage;
  std::optional<std::string> title;
  bool answer;
  size_t index_in_file;
};

class BoolQ final : public Task {
 public:
  BoolQ(const TaskOptions& options, const PromptEncoder& encoder) : encoder_(encoder), style_(options.style) {
    require_no_shots("boolq", options);
    const auto folder = options.data / "boolq";
    for (const auto& file : files_ending(folder, ".jsonl")) {
      if (file.filename() == "train.jsonl") continue;
      size_t index = 0;
      for (const JsonRow& row : read_json_lines(file)) {
        std::optional<std::string> title;
        if (row.has("title")) title = row.text("title");
        else ++untitled_;
        questions_.push_back({file.filename().string(), row.text("question"), row.text("passage"), title, row.boolean("answer"), index++});
      }
    }
    if (questions_.empty())
      missing_data("boolq", folder, "dev.jsonl (or any other .jsonl but train.jsonl) with title, question, passage, answer",
                   "https://github.com/google-research-datasets/boolean-questions");
    ids_ = yes_no_ids(encoder);
  }

  std::string name() const override { return "boolq"; }
  std::string title() const override { return "BoolQ"; }
  size_t size() const override { return questions_.size(); }

  ItemPlan plan(size_t index) const override {
    const Question& q = questions_[index];
    ItemPlan item{q.file, fmt::format("{}", q.index_in_file), {}, {}};
    const std::string asked = fmt::format("{}\nQuestion: {}?\nAnswer:", q.passage, q.question);
    item.text = q.title && style_ == Style::reference ? *q.title + " -- " + asked : asked;
    if (style_ == Style::reference) {
      item.queries.push_back({.prompt = encoder_.prompt(item.text), .candidates = {ids_.first, ids_.second}});
      return item;
    }
    for (const char* answer : {" yes", " no"}) {
      PromptEncoder::Continued c = encoder_.continued(item.text, answer);
      item.queries.push_back({.prompt = std::move(c.ids), .scored_from = c.first});
    }
    return item;
  }

  Judgement judge(size_t index, std::span<const Reply> replies) const override {
    const bool reference = style_ == Style::reference;
    const auto sum = [](const Reply& reply) {
      double total = 0;
      for (const float x : reply.logprobs) total += static_cast<double>(x);
      return total;
    };
    const double yes = reference ? static_cast<double>(replies[0].logprobs[0]) : sum(replies[0]);
    const double no = reference ? static_cast<double>(replies[0].logprobs[1]) : sum(replies[1]);
    const bool said = yes > no;
    return {{"answer", said ? "yes" : "no"},
            {"extracted", said},
            {"gold", questions_[index].answer},
            {"score", said == questions_[index].answer ? 1.0 : 0.0},
            {"logprob_yes", yes},
            {"logprob_no", no}};
  }

  std::vector<std::string> notes() const override {
    if (untitled_ == 0 || style_ == Style::lm_eval) return {};
    return {fmt::format("{} of {} items have no title: their prompts begin with the passage (another variant than the titled one)", untitled_,
                        questions_.size())};
  }

 private:
  const PromptEncoder& encoder_;
  Style style_;
  std::vector<Question> questions_;
  size_t untitled_ = 0;
  std::pair<int32_t, int32_t> ids_;
};

}  // namespace

std::pair<int32_t, int32_t> yes_no_ids(const PromptEncoder& encoder) {
  const auto last = [&](const char* word) { return encoder.bare(fmt::format("How can we learning machine learning: {}", word)).back(); };
  const std::pair ids(last("yes"), last("no"));
  if (ids.first == ids.second)
    throw Error(Error::Kind::unsupported,
                fmt::format("the tokenizer ends \"yes\" and \"no\" with the same id {}: yes-or-no questions cannot be scored", ids.first));
  return ids;
}

std::unique_ptr<Task> make_boolq(const TaskOptions& options, const PromptEncoder& encoder) {
  return std::make_unique<BoolQ>(options, encoder);
}

}  // namespace conclave
