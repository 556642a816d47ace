// MMLU, CEval and CMMLU.
#include <fmt/format.h>

#include <algorithm>

#include "core/error.h"
#include "eval/exams.h"
#include "eval/extract.h"
#include "eval/tasks.h"

namespace conclave {
namespace {

constexpr const char* kLetters[] = {"A", "B", "C", "D"};

std::string with_options(std::string text, const ExamQuestion& q) {
  for (size_t i = 0; i < 4; ++i) text += fmt::format("\n{}. {}", kLetters[i], q.options[i]);
  return text;
}

size_t most_likely(const std::vector<float>& logprobs) {
  return static_cast<size_t>(std::max_element(logprobs.begin(), logprobs.end()) - logprobs.begin());
}

/// What the three have in common: subjects with numbered questions.
class Exam : public Task {
 public:
  Exam(std::vector<Subject> subjects, const TaskOptions& options, const PromptEncoder& encoder)
      : subjects_(std::move(subjects)), encoder_(encoder), shots_(options.shots) {
    for (size_t s = 0; s < subjects_.size(); ++s)
      for (size_t q = 0; q < subjects_[s].questions.size(); ++q) places_.emplace_back(s, q);
  }
  int shots() const override { return shots_; }
  size_t size() const override { return places_.size(); }
  std::vector<std::string> categories(std::string_view group) const override {
    for (const Subject& s : subjects_)
      if (s.id == group) return s.categories;
    return {};
  }

 protected:
  const Subject& subject(size_t index) const { return subjects_[places_[index].first]; }
  const ExamQuestion& question(size_t index) const { return subject(index).questions[places_[index].second]; }
  ItemPlan plan_of(size_t index) const {
    return {subject(index).id, fmt::format("{}_{}", subject(index).id, places_[index].second), {}, {}};
  }
  Judgement judged(size_t index, const std::string& answer, const std::string& extracted) const {
    const std::string& gold = question(index).answer;
    return {{"answer", answer}, {"extracted", extracted}, {"gold", gold}, {"score", extracted == gold ? 1.0 : 0.0}};
  }
  /// Judges by the log-probabilities of the four letters.
  Judgement judged_by_letters(size_t index, const Reply& reply) const {
    const std::string letter = kLetters[most_likely(reply.logprobs)];
    Judgement result = judged(index, letter, letter);
    result["logprobs"] = reply.logprobs;
    return result;
  }

  std::vector<Subject> subjects_;
  const PromptEncoder& encoder_;
  int shots_;

 private:
  std::vector<std::pair<size_t, size_t>> places_;  ///< subject and question of each item
};

/// MMLU and CEval: free text without examples, the next character after examples.
class Written : public Exam {
 public:
  Written(std::vector<Subject> subjects, const TaskOptions& options, const PromptEncoder& encoder)
      : Exam(std::move(subjects), options, encoder), style_(options.style), letters_(LetterFinder::Kind::exam) {}

  ItemPlan plan(size_t index) const override {
    ItemPlan item = plan_of(index);
    if (style_ == Style::lm_eval) {
      plan_likelihood(index, item);
    } else if (shots_ == 0) {
      item.text = open_question(subject(index), question(index));
      item.queries.push_back({.prompt = encoder_.prompt(item.text), .max_new_tokens = 256});
    } else {
      item.text = with_examples(subject(index), question(index), format_subject(subject(index).id));
      const bool chat = encoder_.chat();
      item.queries.push_back({.prompt = chat ? encoder_.conversation(dialogue(index)) : encoder_.plain(item.text), .max_new_tokens = 20});
    }
    return item;
  }

  Judgement judge(size_t index, std::span<const Reply> replies) const override {
    if (style_ == Style::lm_eval) {
      if (replies.size() == 1) return judged_by_letters(index, replies[0]);
      Reply sums;
      for (const Reply& reply : replies) {
        double total = 0;
        for (const float x : reply.logprobs) total += static_cast<double>(x);
        sums.logprobs.push_back(static_cast<float>(total));
      }
      return judged_by_letters(index, sums);
    }
    const std::string& said = replies[0].text;
    return judged(index, said, shots_ == 0 ? letters_.find(said) : first_character(said));
  }

 protected:
  virtual std::string open_question(const Subject& subject, const ExamQuestion& q) const = 0;

 private:
  /// "high_school_physics" -> " high school physics": the space before the first word belongs to the published prompt.
  static std::string format_subject(std::string_view id) { return " " + replaced(id, "_", " "); }
  static std::string header(const std::string& subject) {
    return fmt::format("The following are multiple choice questions (with answers) about {}.\n\n", subject);
  }
  static std::string asked(const ExamQuestion& q) { return with_options(q.question, q) + "\nAnswer:"; }
  static std::string with_examples(const Subject& subject, const ExamQuestion& q, const std::string& name) {
    std::string text = header(name);
    for (const ExamQuestion& example : subject.examples) text += asked(example) + " " + example.answer + "\n\n";
    return text + asked(q);
  }

  nlohmann::ordered_json dialogue(size_t index) const {
    const auto message = [](const char* role, std::string content) {
      return nlohmann::ordered_json{{"role", role}, {"content", std::move(content)}};
    };
    auto messages = nlohmann::ordered_json::array({message("system", header(format_subject(subject(index).id)))});
    for (const ExamQuestion& example : subject(index).examples) {
      messages.push_back(message("user", asked(example)));
      messages.push_back(message("assistant", example.answer));
    }
    messages.push_back(message("user", asked(question(index))));
    return messages;
  }

  /// lm-evaluation-harness: the likelihood of " A" to " D" after the prompt, in one query where each is one id.
  void plan_likelihood(size_t index, ItemPlan& item) const {
    ExamQuestion q = question(index);
    q.question = std::string(stripped(q.question));
    Subject s = subject(index);
    for (ExamQuestion& example : s.examples) example.question = std::string(stripped(example.question));
    item.text = with_examples(s, q, replaced(s.id, "_", " "));
    std::vector<int32_t> ids;
    for (const char* letter : kLetters) {
      PromptEncoder::Continued c = encoder_.continued(item.text, fmt::format(" {}", letter));
      if (c.ids.size() == c.first + 1) ids.push_back(c.ids.back());
      item.queries.push_back({.prompt = std::move(c.ids), .scored_from = c.first});
    }
    if (ids.size() < item.queries.size()) return;
    std::vector<int32_t> prompt = item.queries[0].prompt;
    prompt.pop_back();
    for (const Query& query : item.queries)
      if (!std::equal(prompt.begin(), prompt.end(), query.prompt.begin())) return;
    item.queries.clear();
    item.queries.push_back({.prompt = std::move(prompt), .candidates = std::move(ids)});
  }

  Style style_;
  LetterFinder letters_;
};

class Mmlu final : public Written {
 public:
  Mmlu(const TaskOptions& options, const PromptEncoder& encoder) : Written(read_mmlu(options.data / "mmlu", options.shots), options, encoder) {}
  std::string name() const override { return "mmlu"; }
  std::string title() const override { return "MMLU"; }

 private:
  std::string open_question(const Subject& s, const ExamQuestion& q) const override {
    return fmt::format("\nThere is a single choice question about {}. Answer the question by replying A, B, C or D.\n{}\nLet's think step by step. A: ",
                       replaced(s.shown, "_", " "), with_options("Q: " + q.question, q));
  }
};

class CEval final : public Written {
 public:
  CEval(const TaskOptions& options, const PromptEncoder& encoder) : Written(read_ceval(options.data / "ceval", options.shots), options, encoder) {
    require_reference_style("ceval", options);
  }
  std::string name() const override { return "ceval"; }
  std::string title() const override { return "CEval"; }

 private:
  std::string open_question(const Subject& s, const ExamQuestion& q) const override {
    return fmt::format("\n以下是中国关于{}考试的单项选择题，请选出其中的正确答案。\n{}\n让我们一步一步思考。答案: ", s.shown,
                       with_options(q.question, q));
  }
};

/// The likeliest of the ids of the four letters after the prompt.
class Cmmlu final : public Exam {
 public:
  Cmmlu(const TaskOptions& options, const PromptEncoder& encoder)
      : Exam(read_cmmlu(options.data / "cmmlu", options.shots), options, encoder) {
    require_reference_style("cmmlu", options);
    for (const char* letter : kLetters) {
      const std::optional<int32_t> id = encoder.tokenizer().id_of(letter);
      if (!id) throw Error(Error::Kind::unsupported, fmt::format("the tokenizer has no token \"{}\": cmmlu cannot be scored", letter));
      ids_.push_back(*id);
    }
  }
  std::string name() const override { return "cmmlu"; }
  std::string title() const override { return "CMMLU"; }
  Total total() const override { return Total::groups; }

  ItemPlan plan(size_t index) const override {
    ItemPlan item = plan_of(index);
    item.text = prompt_of(subject(index), question(index));
    item.queries.push_back({.prompt = encoder_.prompt(item.text), .candidates = ids_});
    return item;
  }
  Judgement judge(size_t index, std::span<const Reply> replies) const override { return judged_by_letters(index, replies[0]); }

 private:
  static std::string asked(const ExamQuestion& q) { return with_options("题目：" + q.question, q) + "\n答案是："; }

  /// Examples are left out, the longest first, until header, question and examples fit 2048 tokens.
  std::string prompt_of(const Subject& s, const ExamQuestion& q) const {
    constexpr size_t kMostTokens = 2048;
    const std::string header = fmt::format("以下是关于{}的单项选择题，请直接给出正确答案的选项。\n\n", s.shown), end = asked(q);
    const size_t fixed = encoder_.plain(header).size() + encoder_.plain(end).size();
    if (fixed > kMostTokens) return end;
    std::vector<std::pair<std::string, size_t>> examples;
    size_t total = 0, longest = 0;
    for (const ExamQuestion& example : s.examples) {
      std::string text = fmt::format("{}{}\n\n", asked(example), example.answer);
      const size_t tokens = encoder_.plain(text).size();
      examples.emplace_back(std::move(text), tokens);
      total += tokens;
    }
    while (!examples.empty() && total >= kMostTokens - fixed) {
      longest = 0;
      for (const auto& example : examples) longest = std::max(longest, example.second);
      total -= longest * static_cast<size_t>(std::erase_if(examples, [&](const auto& e) { return e.second == longest; }));
    }
    std::string prompt = header;
    for (const auto& example : examples) prompt += example.first;
    return prompt + end;
  }

  std::vector<int32_t> ids_;
};

}  // namespace

std::unique_ptr<Task> make_mmlu(const TaskOptions& options, const PromptEncoder& encoder) { return std::make_unique<Mmlu>(options, encoder); }
std::unique_ptr<Task> make_ceval(const TaskOptions& options, const PromptEncoder& encoder) { return std::make_unique<CEval>(options, encoder); }
std::unique_ptr<Task> make_cmmlu(const TaskOptions& options, const PromptEncoder& encoder) { return std::make_unique<Cmmlu>(options, encoder); }

}  // namespace conclave
