// The demo models' own test set: questions about short stories, as a conversation or as a completion.
#include "eval/data_files.h"
#include "eval/tasks.h"

namespace conclave {
namespace {

struct Question {
  std::string kind, prompt, plain_answer, answer;
  nlohmann::ordered_json messages;
  bool yes_or_no() const { return plain_answer == "yes" || plain_answer == "no"; }
};

std::string first_word(const std::string& text) { return text.substr(0, text.find_first_of(" ,.")); }

class Demo final : public Task {
 public:
  Demo(const TaskOptions& options, const PromptEncoder& encoder) : encoder_(encoder) {
    require_no_shots("demo", options);
    require_reference_style("demo", options);
    const auto file = options.data / "demo" / "test_set.jsonl";
    std::error_code error;
    if (!std::filesystem::exists(file, error)) missing_data("demo", options.data / "demo", "test_set.jsonl", "tests/data/demo of Conclave's repository");
    for (const JsonRow& row : read_json_lines(file))
      questions_.push_back({row.text("kind"), row.text("prompt"), row.text("plain_answer"), row.text("answer"),
                            row.value.value("messages", nlohmann::ordered_json::array())});
    if (!encoder.chat()) ids_ = yes_no_ids(encoder);
  }

  std::string name() const override { return "demo"; }
  std::string title() const override { return "Demo"; }
  size_t size() const override { return questions_.size(); }

  ItemPlan plan(size_t index) const override {
    const Question& q = questions_[index];
    ItemPlan item{q.kind, std::to_string(index), q.prompt, {}};
    Query query{.prompt = encoder_.chat() ? encoder_.conversation(q.messages) : encoder_.plain(q.prompt), .max_new_tokens = 24};
    if (!encoder_.chat() && q.yes_or_no()) query.candidates = {ids_.first, ids_.second};
    item.queries.push_back(std::move(query));
    return item;
  }

  /// Whole sentences count; of yes and no the first word does, in completions the likelier one.
  Judgement judge(size_t index, std::span<const Reply> replies) const override {
    const Question& q = questions_[index];
    const Reply& reply = replies[0];
    std::string said(stripped(reply.text));
    std::string gold = encoder_.chat() ? q.answer : q.plain_answer;
    if (!reply.logprobs.empty()) {
      said = reply.logprobs[0] > reply.logprobs[1] ? "yes" : "no";
    } else if (q.yes_or_no()) {
      said = first_word(said);
      gold = first_word(gold);
    }
    return {{"answer", reply.text}, {"extracted", said}, {"gold", gold}, {"score", said == gold ? 1.0 : 0.0}};
  }

 private:
  const PromptEncoder& encoder_;
  std::vector<Question> questions_;
  std::pair<int32_t, int32_t> ids_ = {0, 0};
};

}  // namespace

std::unique_ptr<Task> make_demo(const TaskOptions& options, const PromptEncoder& encoder) { return std::make_unique<Demo>(options, encoder); }

}  // namespace conclave
