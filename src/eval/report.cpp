#include "eval/report.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "core/error.h"
#include "eval/data_files.h"
#include "io/partial_file.h"

namespace conclave {
namespace {

using Cells = std::vector<std::vector<std::string>>;

/// Characters, not bytes: file names may hold any.
size_t width_of(const std::string& text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}

std::string table_text(const Cells& rows) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()), 3);
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], width_of(row[i]));
  }
  std::string out;
  for (size_t r = 0; r < rows.size(); ++r) {
    for (size_t i = 0; i < widths.size(); ++i) out += fmt::format("| {}{} ", rows[r][i], std::string(widths[i] - width_of(rows[r][i]), ' '));
    out += "|\n";
    if (r > 0) continue;
    for (const size_t width : widths) out += fmt::format("|{}", std::string(width + 2, '-'));
    out += "|\n";
  }
  return out;
}

std::string shown_sum(double sum) { return sum == std::floor(sum) ? fmt::format("{:.0f}", sum) : fmt::format("{:.2f}", sum); }

}  // namespace

std::string summary_table(std::span<const Summary> summaries) {
  Cells cells = {{"Tasks", "N-Shot", "Total", "Pass", "Metric", "Value", "Stderr"}};
  std::string notes;
  for (const Summary& s : summaries) {
    for (const SummaryRow& row : s.rows) {
      if (row.kind == SummaryRow::Kind::group && s.rows.size() == 2) continue;  // one group says what the total says
      const std::string name = row.kind == SummaryRow::Kind::total ? s.task : fmt::format("  {}{}", row.kind == SummaryRow::Kind::category ? "* " : "", row.name);
      for (size_t m = 0; m < s.metrics.size(); ++m) {
        const Estimate& e = row.values[m];
        cells.push_back({m == 0 ? name : "", m == 0 ? fmt::format("{}", s.shots) : "", fmt::format("{}", e.count),
                         s.metrics[m].scale == 1 ? shown_sum(e.sum) : "", s.metrics[m].name,
                         e.count == 0 ? "-" : fmt::format("{:.4f}", e.mean), e.count == 0 ? "-" : fmt::format("{:.4f}", e.error)});
      }
    }
    for (const std::string& note : s.notes) notes += fmt::format("{}: {}\n", s.task, note);
    if (s.skipped.empty()) continue;
    constexpr size_t kMostNamed = 20;
    const auto named = std::span(s.skipped).first(std::min(kMostNamed, s.skipped.size()));
    notes += fmt::format("{}: {} of {} items do not fit the context and are not in the score: {}{}\n", s.task, s.skipped.size(), s.items,
                         fmt::join(named, ", "), s.skipped.size() > kMostNamed ? ", ..." : "");
  }
  return table_text(cells) + (notes.empty() ? "" : "\n" + notes);
}

std::string result_csv(const Summary& summary) {
  std::string out = "file_name,value,correct,sum\n";
  for (const SummaryRow& row : summary.rows) {
    if (row.kind == SummaryRow::Kind::category) continue;
    const Estimate& e = row.values.at(0);
    const double scale = summary.metrics[0].scale;
    out += fmt::format("{},{},{},{}\n", csv_field(row.name), e.mean / scale, shown_sum(e.sum / scale), e.count);
  }
  return out;
}

std::string debug_csv(const Task& task, std::span<const ItemLine> lines) {
  std::string out = "key,queries,input_token_ids,output_token_ids,test_result,golden_result,pass\n";
  const auto plain = [](const ItemLine& value) { return value.is_string() ? value.get<std::string>() : value.dump(-1, ' ', false, ItemLine::error_handler_t::replace); };
  for (const ItemLine& line : lines) {
    if (line.contains("skipped")) continue;
    const ItemPlan plan = task.plan(line.at("index").get<size_t>());
    const double score = line.at("score").is_null() ? 0.0 : line.at("score").get<double>();
    const std::string pass = score == 1.0 ? "True" : score == 0.0 ? "False" : fmt::format("{}", score);
    const std::string fields[] = {plan.key,
                                  plan.text,
                                  fmt::format("[{}]", fmt::join(line.at("prompt_ids").get<std::vector<int32_t>>(), ", ")),
                                  fmt::format("[{}]", fmt::join(line.at("output_ids").get<std::vector<int32_t>>(), ", ")),
                                  plain(line.at("extracted")),
                                  plain(line.at("gold")),
                                  pass};
    for (size_t i = 0; i < std::size(fields); ++i) out += (i > 0 ? "," : "") + csv_field(fields[i]);
    out += '\n';
  }
  return out;
}

std::filesystem::path write_result_files(const ResultPlace& place, const Task& task, const Summary& summary, std::span<const ItemLine> lines) {
  const std::filesystem::path branch = std::filesystem::path(place.device) / "precision_test" / "full" / place.dtype / place.model;
  const std::string stem = fmt::format("{}_pa_batch{}_tp{}_", summary.title, place.batch_size, place.ranks);
  const std::filesystem::path result = place.folder / "results" / branch / (stem + "full_result.csv");
  const std::filesystem::path debug = place.folder / "debug" / branch / (stem + "debug_info.csv");
  const auto write = [](const std::filesystem::path& file, const std::string& text) {
    std::error_code error;
    std::filesystem::create_directories(file.parent_path(), error);
    if (error) throw Error(Error::Kind::internal, fmt::format("--output: cannot make {}: {}", file.parent_path().string(), error.message()));
    write_file(file, text);
  };
  write(result, result_csv(summary));
  write(debug, debug_csv(task, lines));
  for (const TextFile& file : task.files(lines, place.model)) write(place.folder / "data" / branch / file.name, file.content);
  return result;
}

double mcnemar_p(size_t b, size_t c) {
  const size_t n = b + c, least = std::min(b, c);
  if (n == 0) return 1;
  if (n > 1000) {
    const double difference = std::abs(static_cast<double>(b) - static_cast<double>(c)) - 1;
    return std::erfc(std::sqrt(std::max(0.0, difference) * std::max(0.0, difference) / static_cast<double>(n) / 2));
  }
  double tail = 0;
  for (size_t k = 0; k <= least; ++k) {
    const auto nd = static_cast<double>(n), kd = static_cast<double>(k);
    tail += std::exp(std::lgamma(nd + 1) - std::lgamma(kd + 1) - std::lgamma(nd - kd + 1) - nd * std::log(2.0));
  }
  return std::min(1.0, 2 * tail);
}

std::string compare_runs(std::span<const ItemLine> first, std::span<const ItemLine> second, size_t most_changes) {
  std::map<std::pair<std::string, size_t>, const ItemLine*> known;
  const auto name_of = [](const ItemLine& line) { return std::pair(line.at("task").get<std::string>(), line.at("index").get<size_t>()); };
  const auto scored = [](const ItemLine& line) { return line.contains("score") && line["score"].is_number(); };
  for (const ItemLine& line : first)
    if (scored(line)) known[name_of(line)] = &line;

  struct Pairs {
    std::vector<double> a, b, differences;
    size_t only_a = 0, only_b = 0;
    std::vector<std::string> changes;
  };
  std::map<std::string, Pairs> tasks;
  std::vector<std::string> order;
  for (const ItemLine& line : second) {
    const auto other = scored(line) ? known.find(name_of(line)) : known.end();
    if (other == known.end()) continue;
    const ItemLine& before = *other->second;
    const std::string& task = other->first.first;
    if (before.value("prompt_ids", ItemLine()) != line.value("prompt_ids", ItemLine()))
      throw Error(Error::Kind::bad_input, fmt::format("item {} of {} has another prompt in the second run: the runs cannot be compared", other->first.second, task));
    if (!tasks.contains(task)) order.push_back(task);
    Pairs& pairs = tasks[task];
    const double a = before["score"].get<double>(), b = line["score"].get<double>();
    pairs.a.push_back(a);
    pairs.b.push_back(b);
    pairs.differences.push_back(b - a);
    pairs.only_a += a > b;
    pairs.only_b += b > a;
    if (a == b) continue;
    const auto said = [](const ItemLine& l) { return l.value("extracted", ItemLine()).dump(-1, ' ', true, ItemLine::error_handler_t::replace); };
    pairs.changes.push_back(fmt::format("  {} {}: {} -> {} (gold {}), score {} -> {}", task, other->first.second, said(before), said(line),
                                        line.value("gold", ItemLine()).dump(-1, ' ', true, ItemLine::error_handler_t::replace), a, b));
  }
  if (order.empty()) throw Error(Error::Kind::bad_input, "--compare: the two files share no scored item");
  Cells cells = {{"Tasks", "Items", "First", "Second", "Difference", "Stderr", "Only first", "Only second", "McNemar p"}};
  std::string changes;
  for (const std::string& task : order) {
    const Pairs& p = tasks[task];
    const Estimate d = estimate(p.differences);
    cells.push_back({task, fmt::format("{}", d.count), fmt::format("{:.4f}", estimate(p.a).mean), fmt::format("{:.4f}", estimate(p.b).mean),
                     fmt::format("{:+.4f}", d.mean), fmt::format("{:.4f}", d.error), fmt::format("{}", p.only_a), fmt::format("{}", p.only_b),
                     fmt::format("{:.4f}", mcnemar_p(p.only_a, p.only_b))});
    for (size_t i = 0; i < std::min(most_changes, p.changes.size()); ++i) changes += p.changes[i] + "\n";
    if (p.changes.size() > most_changes) changes += fmt::format("  ... and {} more of {}\n", p.changes.size() - most_changes, task);
  }
  return table_text(cells) + (changes.empty() ? "no item changed\n" : "\nitems that changed:\n" + changes);
}

}  // namespace conclave
