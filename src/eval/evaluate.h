#pragma once
// Runs a task over a runner: items in order, many queries at once, one JSON object per item. The objects are the result: tables and files are
// made from them alone, so that a run that was stopped ends with the same bytes as one that was not.
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "eval/task.h"

namespace conclave {

using ItemLine = nlohmann::ordered_json;

struct EvaluateOptions {
  size_t limit = 0;                                   ///< most items; 0: all
  std::vector<ItemLine> finished = {};                ///< lines of the first items, of an earlier run
  std::function<void(const ItemLine&)> on_item = {};  ///< each new line, in order
  std::function<void(size_t done, size_t total)> progress = {};
};

/// One line per item: task, index, group, key, prompt_ids, output_ids, answer, extracted, gold, score and what the task adds. An item that
/// does not fit the context is not asked: its score is null and `skipped` says what it needs. Throws what the runner throws.
std::vector<ItemLine> evaluate(const Task& task, Runner& runner, EvaluateOptions options);

/// Longest query of the first `limit` items that still fits `most` positions; 0 when none does.
size_t longest_query(const Task& task, size_t limit, size_t most);

/// Mean of n values with its standard error (sample standard deviation / sqrt(n); 0 for one value).
struct Estimate {
  size_t count = 0;
  double mean = 0, error = 0, sum = 0;
};
Estimate estimate(std::span<const double> values);

struct SummaryRow {
  enum class Kind : uint8_t { total, category, group } kind;
  std::string name;
  std::vector<Estimate> values;  ///< one per metric
};
struct Summary {
  std::string task, title;
  int shots = 0;
  std::vector<Metric> metrics;
  std::vector<SummaryRow> rows;  ///< the total, categories, groups in the order of their first item
  size_t items = 0;
  std::vector<size_t> skipped;   ///< indices of items that did not fit
  std::vector<std::string> notes;
};
Summary summarize(const Task& task, std::span<const ItemLine> lines);

/// Items of a run on disk. While it runs they stand in `<file>.partial` behind a line that describes the run; finish() writes `file`.
class ItemLog {
 public:
  /// Takes over the complete lines of an earlier run with the same description; bad_input naming the first difference for another one.
  ItemLog(std::filesystem::path file, nlohmann::ordered_json run);
  ~ItemLog();
  ItemLog(const ItemLog&) = delete;
  ItemLog& operator=(const ItemLog&) = delete;
  /// Lines of `task` from the earlier run, at most once.
  std::vector<ItemLine> finished(std::string_view task);
  void add(const ItemLine& line);
  void finish();

 private:
  std::filesystem::path file_, partial_;
  std::vector<ItemLine> earlier_, all_;
  int fd_ = -1;
};

/// One line of JSON, ASCII.
std::string item_text(const ItemLine& line);
/// The items of a finished file, by task and index. Throws bad_input naming file and line.
std::vector<ItemLine> read_items(const std::filesystem::path& file);

}  // namespace conclave
