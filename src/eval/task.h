#pragma once
// A task: a data set, the prompts it becomes, and the judgement of the answers. Items are numbered from 0; plan() and judge() are pure
// functions of the number, so that a run can stop anywhere and go on, and the same data give the same bytes on any runner.
#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "eval/prompt_encoder.h"
#include "eval/runner.h"

namespace conclave {

enum class Style : uint8_t {
  reference,  ///< prompts, extraction and scores of the reference stack
  lm_eval,    ///< those of lm-evaluation-harness
};

/// Judges a program that a model wrote; set by whoever can run untrusted programs.
struct Program {
  std::string language;  ///< "python", "cpp", "go", "java", "js"
  std::string source;
  double timeout_s = 3;
};
struct Verdict {
  bool passed = false;
  std::string result;  ///< "passed", "timed out" or what failed
};
using Judge = std::function<Verdict(const Program&)>;

struct TaskOptions {
  std::filesystem::path data;   ///< the folder that holds one folder per data set
  int shots = 0;
  Style style = Style::reference;
  int samples = 1;              ///< HumanEval: programs per problem
  float temperature = 0;        ///< of those samples
  std::vector<int> pass_at = {1};
  std::string context = "4k";   ///< NeedleBench
  size_t max_input = 76839;     ///< LongBench: longer prompts lose their middle
  std::string model_type = {};  ///< LongBench: a key of model2maxlen.json
  Judge judge = {};
};

struct ItemPlan {
  std::string group;  ///< file or subject: a row of the result
  std::string key;    ///< the reference stack's name of the item
  std::string text;   ///< the prompt before any chat template; what it could not be encoded for is told in `skipped`
  std::vector<Query> queries;
};

/// What the fields of a judgement are: answer, extracted, gold, score and whatever else the task gives.
using Judgement = nlohmann::ordered_json;

struct Metric {
  std::string key;   ///< field of the judgement
  std::string name;  ///< as tables show it
  double scale = 1;  ///< of the mean that is shown
};

struct TextFile {
  std::string name, content;
};

class Task {
 public:
  virtual ~Task() = default;
  virtual std::string name() const = 0;       ///< as --tasks spells it
  virtual std::string title() const = 0;      ///< as the reference stack's files spell it
  virtual int shots() const { return 0; }
  virtual size_t size() const = 0;
  virtual ItemPlan plan(size_t index) const = 0;
  virtual Judgement judge(size_t index, std::span<const Reply> replies) const = 0;
  virtual std::vector<Metric> metrics() const { return {{"score", "accuracy"}}; }
  virtual std::vector<std::string> categories(std::string_view) const { return {}; }
  /// What totals and categories are the mean of.
  enum class Total : uint8_t {
    items,
    groups,               ///< of the groups' means
    weighted_categories,  ///< categories of their groups' means, the total of the categories by their numbers of items
  };
  virtual Total total() const { return Total::items; }
  /// Further files that the reference stack writes for this task; `model` as its columns are named.
  virtual std::vector<TextFile> files(std::span<const nlohmann::ordered_json>, std::string_view) const { return {}; }
  /// What the reader of the score must know ("1200 of 3270 items have no title").
  virtual std::vector<std::string> notes() const { return {}; }
};

/// Names that make_task() knows, in the order of the help.
std::vector<std::string> task_names();
/// Throws bad_input for an unknown name, missing or malformed data, and options that the task does not have. `encoder` must outlive it.
std::unique_ptr<Task> make_task(std::string_view name, const TaskOptions& options, const PromptEncoder& encoder);

}  // namespace conclave
