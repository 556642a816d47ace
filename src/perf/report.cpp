#include "perf/report.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

namespace conclave {
namespace {

using Json = nlohmann::ordered_json;

struct Column {
  const char *name, *table_name;
  size_t width;
};
constexpr Column kColumns[] = {{"Model", "Model", 15},
                               {"Batchsize", "Batchsize", 15},
                               {"In_seq", "In_seq", 15},
                               {"Out_seq", "Out_seq", 15},
                               {"Total time(s)", "Total time(s)", 15},
                               {"Prefill all time(ms)", "Prefill all time(ms)", 25},
                               {"Prefill average time(ms)", "Prefill average time(ms)", 25},
                               {"Non-first token time(ms)", "Non-first token time(ms)", 25},
                               {"Non-first token Throughput(Tokens/s)", "Non-first token Throughput(Tokens/s)", 36},
                               {"Throughput(Tokens/s)", "E2E Throughput(Tokens/s)", 25},
                               {"Non-first token Throughput Average(Tokens/s)", "Non-first token Throughput Average(Tokens/s)", 45},
                               {"E2E Throughput Average(Tokens/s)", "E2E Throughput Average(Tokens/s)", 35}};
constexpr size_t kFigures = 6;  ///< columns between the lengths and the averages

using Row = std::vector<std::string>;

std::string number(double value) { return fmt::format("{}", std::round(value * 1e10) / 1e10); }

/// As many cells as the row has: one with averages all of them, one with an error four and the error.
std::vector<Row> rows_of(const PerfReport& report) {
  std::vector<Row> rows;
  double decode = 0, e2e = 0;
  int succeeded = 0;
  for (const PerfResult& r : report.results) {
    Row row{report.model, fmt::format("{}", r.what.batch), fmt::format("{}", r.what.input), fmt::format("{}", r.what.output)};
    if (!r.error.empty()) {
      row.push_back(r.error);
    } else {
      for (const double figure : {r.e2e_s, r.prefill_ms(), r.prefill_average_ms(), r.decode_ms(), r.decode_rate(), r.e2e_rate()})
        row.push_back(number(figure));
      decode += r.decode_rate(), e2e += r.e2e_rate(), ++succeeded;
    }
    rows.push_back(std::move(row));
  }
  if (!rows.empty()) {
    if (!report.results.back().error.empty()) rows.back().resize(4 + kFigures);
    rows.back().push_back(number(decode / std::max(1, succeeded)));
    rows.back().push_back(number(e2e / std::max(1, succeeded)));
  }
  return rows;
}

std::string csv_cell(const std::string& cell) {
  if (cell.find_first_of(",\"\n\r") == std::string::npos) return cell;
  std::string text = "\"";
  for (const char c : cell) text += c == '"' ? std::string("\"\"") : std::string(1, c);
  return text + "\"";
}

Json milliseconds(const std::vector<double>& seconds) {
  Json list = Json::array();
  for (const double s : seconds) list.push_back(s * 1000);
  return list;
}

Json json_of(const PerfResult& r) {
  Json object{{"batch", r.what.batch}, {"input", r.what.input}, {"output", r.what.output}};
  if (!r.error.empty()) {
    object["error"] = r.error;
    return object;
  }
  object["runs"] = r.runs;
  object["mean_input"] = r.mean_input;
  object["e2e_ms"] = r.e2e_s * 1000;
  object["prefill_ms"] = r.prefill_ms();
  object["prefill_average_ms"] = r.prefill_average_ms();
  object["token_ms"] = r.decode_ms();
  for (const auto& [name, share] : {std::pair("token_ms_p50", 0.5), {"token_ms_p90", 0.9}, {"token_ms_p99", 0.99}})
    object[name] = quantile(r.decode_s, share) * 1000;
  object["token_tokens_per_s"] = r.decode_rate();
  object["e2e_tokens_per_s"] = r.e2e_rate();
  object["first_token_ms"] = milliseconds(r.first_token_s);
  object["prefill_step_ms"] = milliseconds(r.prefill_s);
  object["decode_step_ms"] = milliseconds(r.decode_s);
  return object;
}

}  // namespace

std::string perf_csv(const PerfReport& report) {
  std::string text;
  for (const Column& column : kColumns) text += (text.empty() ? "" : ",") + std::string(column.name);
  for (Row& row : rows_of(report)) {
    row.resize(std::size(kColumns));  // every line has all columns
    for (std::string& cell : row) cell = csv_cell(cell);
    text += fmt::format("\n{}", fmt::join(row, ","));
  }
  return text + "\n";
}

std::string perf_table(const PerfReport& report) {
  std::string text;
  const auto cell = [&](const std::string& value, size_t column) {
    std::string line = value;
    std::replace_if(line.begin(), line.end(), [](char c) { return c == '|' || c == '\n' || c == '\r'; }, ' ');
    text += fmt::format("{}{:<{}}", column > 0 ? "|" : "", line, kColumns[column].width);
  };
  for (size_t i = 0; i < std::size(kColumns); ++i) cell(kColumns[i].table_name, i);
  for (const Row& row : rows_of(report)) {
    text += "\n";
    for (size_t i = 0; i < row.size(); ++i) cell(row[i], i);
  }
  return text + "\n";
}

nlohmann::ordered_json perf_json(const PerfReport& report) {
  Json cases = Json::array();
  for (const PerfResult& result : report.results) cases.push_back(json_of(result));
  return {{"model", report.model}, {"cases", cases}};
}

double quantile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const double at = share * static_cast<double>(values.size() - 1);
  const auto below = static_cast<size_t>(at);
  const size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (values[above] - values[below]) * (at - static_cast<double>(below));
}

}  // namespace conclave
