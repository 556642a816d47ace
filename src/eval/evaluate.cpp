#include "eval/evaluate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <map>

#include "core/error.h"

namespace conclave {
namespace {

/// Gives out the queries of one item after the other and puts replies back together; lines leave in the order of the items.
class Run {
 public:
  Run(const Task& task, const Runner& runner, EvaluateOptions& options)
      : task_(task), context_(runner.max_context()), options_(options), lines_(std::move(options.finished)) {
    total_ = options.limit == 0 ? task.size() : std::min(options.limit, task.size());
    if (lines_.size() > total_) lines_.resize(total_);
    next_item_ = lines_.size();
  }

  std::optional<Query> next() {
    while (queue_.empty() && next_item_ < total_) open(next_item_++);
    if (queue_.empty()) return std::nullopt;
    Query query = std::move(queue_.front().second);
    places_.push_back(queue_.front().first);
    queue_.pop_front();
    return query;
  }

  void done(size_t query, Reply&& reply) {
    const auto [index, part] = places_[query];
    Open& item = open_.at(index);
    item.replies[part] = std::move(reply);
    if (--item.missing > 0) return;
    const Judgement judgement = task_.judge(index, item.replies);
    for (const auto& [key, value] : judgement.items()) item.line[key] = value;
    item.line["output_ids"] = item.replies[0].tokens;
    flush();
  }

  std::vector<ItemLine> take() {
    flush();
    return std::move(lines_);
  }

 private:
  struct Open {
    ItemLine line;
    std::vector<Reply> replies;
    size_t missing = 0;
  };

  void open(size_t index) {
    ItemPlan plan = task_.plan(index);
    Open item;
    item.line = {{"task", task_.name()}, {"index", index},      {"group", plan.group},    {"key", plan.key}, {"prompt_ids", plan.queries.at(0).prompt},
                 {"output_ids", ItemLine::array()}, {"answer", nullptr}, {"extracted", nullptr}, {"gold", nullptr}, {"score", nullptr}};
    size_t longest = 0;
    for (const Query& query : plan.queries) longest = std::max(longest, query.length());
    if (longest > context_) {
      item.line["skipped"] = fmt::format("needs {} tokens of context, there are {}", longest, context_);
    } else {
      item.missing = plan.queries.size();
      item.replies.resize(plan.queries.size());
      for (size_t i = 0; i < plan.queries.size(); ++i) queue_.emplace_back(std::pair(index, i), std::move(plan.queries[i]));
    }
    open_.emplace(index, std::move(item));
  }

  void flush() {
    for (auto it = open_.begin(); it != open_.end() && it->first == lines_.size() && it->second.missing == 0; it = open_.erase(it)) {
      lines_.push_back(std::move(it->second.line));
      if (options_.on_item) options_.on_item(lines_.back());
      if (options_.progress) options_.progress(lines_.size(), total_);
    }
  }

  const Task& task_;
  size_t context_, total_ = 0, next_item_ = 0;
  EvaluateOptions& options_;
  std::vector<ItemLine> lines_;
  std::map<size_t, Open> open_;
  std::deque<std::pair<std::pair<size_t, size_t>, Query>> queue_;
  std::vector<std::pair<size_t, size_t>> places_;  ///< item and part of every query that was given out
};

double value_of(const ItemLine& line, const std::string& key) {
  const auto found = line.find(key);
  if (found != line.end() && found->is_boolean()) return found->get<bool>() ? 1.0 : 0.0;
  if (found == line.end() || !found->is_number())
    throw Error(Error::Kind::bad_input, fmt::format("item {} of {} has no number \"{}\"", line.at("index").dump(), line.at("task").dump(), key));
  return found->get<double>();
}

SummaryRow row_of(SummaryRow::Kind kind, std::string name, const std::vector<Metric>& metrics, const std::vector<const ItemLine*>& lines) {
  SummaryRow row{kind, std::move(name), {}};
  for (const Metric& metric : metrics) {
    std::vector<double> values;
    for (const ItemLine* line : lines)
      if (!line->at(metric.key).is_null()) values.push_back(metric.scale * value_of(*line, metric.key));
    row.values.push_back(estimate(values));
  }
  return row;
}

/// Mean of the rows' means, each counted once or by its number of items, with the error that follows from theirs.
SummaryRow mean_of(SummaryRow::Kind kind, std::string name, const std::vector<const SummaryRow*>& rows, size_t metrics, bool by_items) {
  SummaryRow out{kind, std::move(name), std::vector<Estimate>(metrics)};
  for (size_t m = 0; m < metrics; ++m) {
    Estimate& e = out.values[m];
    double weights = 0;
    for (const SummaryRow* row : rows) {
      const Estimate& one = row->values[m];
      const double weight = one.count == 0 ? 0 : by_items ? static_cast<double>(one.count) : 1;
      e.count += one.count;
      e.sum += one.sum;
      e.mean += weight * one.mean;
      e.error += weight * weight * one.error * one.error;
      weights += weight;
    }
    if (weights > 0) e.mean /= weights;
    e.error = weights > 0 ? std::sqrt(e.error) / weights : 0;
  }
  return out;
}

}  // namespace

std::vector<ItemLine> evaluate(const Task& task, Runner& runner, EvaluateOptions options) {
  Run run(task, runner, options);
  runner.run([&] { return run.next(); }, [&](size_t index, Reply&& reply) { run.done(index, std::move(reply)); });
  return run.take();
}

size_t longest_query(const Task& task, size_t limit, size_t most) {
  size_t longest = 0;
  const size_t count = limit == 0 ? task.size() : std::min(limit, task.size());
  for (size_t i = 0; i < count; ++i)
    for (const Query& query : task.plan(i).queries)
      if (query.length() <= most) longest = std::max(longest, query.length());
  return longest;
}

Estimate estimate(std::span<const double> values) {
  Estimate out{values.size(), 0, 0, 0};
  for (const double x : values) out.sum += x;
  if (values.empty()) return out;
  const auto n = static_cast<double>(values.size());
  out.mean = out.sum / n;
  double squares = 0;
  for (const double x : values) squares += (x - out.mean) * (x - out.mean);
  if (values.size() > 1) out.error = std::sqrt(squares / (n - 1) / n);
  return out;
}

Summary summarize(const Task& task, std::span<const ItemLine> lines) {
  Summary summary{task.name(), task.title(), task.shots(), task.metrics(), {}, lines.size(), {}, task.notes()};
  std::vector<const ItemLine*> all;
  std::vector<std::string> order, category_order;
  std::map<std::string, std::vector<const ItemLine*>> groups, category_lines;
  for (const ItemLine& line : lines) {
    if (line.contains("skipped")) {
      summary.skipped.push_back(line.at("index").get<size_t>());
      continue;
    }
    const auto group = line.at("group").get<std::string>();
    if (groups[group].empty()) order.push_back(group);
    groups[group].push_back(&line);
    all.push_back(&line);
  }
  std::vector<SummaryRow> group_rows;
  for (const std::string& group : order) group_rows.push_back(row_of(SummaryRow::Kind::group, group, summary.metrics, groups[group]));
  std::map<std::string, std::vector<const SummaryRow*>> category_rows;
  std::vector<const SummaryRow*> every_row;
  for (const SummaryRow& row : group_rows) {
    every_row.push_back(&row);
    for (const std::string& category : task.categories(row.name)) {
      if (category_rows[category].empty()) category_order.push_back(category);
      category_rows[category].push_back(&row);
      auto& into = category_lines[category];
      into.insert(into.end(), groups[row.name].begin(), groups[row.name].end());
    }
  }
  const size_t n = summary.metrics.size();
  const bool macro = task.total() != Task::Total::items;
  summary.rows.push_back(macro ? mean_of(SummaryRow::Kind::total, "total", every_row, n, false)
                               : row_of(SummaryRow::Kind::total, "total", summary.metrics, all));
  for (const std::string& category : category_order)
    summary.rows.push_back(macro ? mean_of(SummaryRow::Kind::category, category, category_rows[category], n, false)
                                 : row_of(SummaryRow::Kind::category, category, summary.metrics, category_lines[category]));
  if (task.total() == Task::Total::weighted_categories) {
    std::vector<const SummaryRow*> rows;
    for (size_t i = 1; i < summary.rows.size(); ++i) rows.push_back(&summary.rows[i]);
    summary.rows[0] = mean_of(SummaryRow::Kind::total, "total", rows, n, true);
  }
  for (SummaryRow& row : group_rows) summary.rows.push_back(std::move(row));
  return summary;
}

}  // namespace conclave
