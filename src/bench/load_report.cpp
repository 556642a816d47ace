#include "bench/load_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "bench/report.h"

namespace conclave {
namespace {

using Json = nlohmann::ordered_json;

Json json_of(const Percentiles& p) { return {{"p50", p.p50}, {"p90", p.p90}, {"p99", p.p99}}; }
std::string cells(const Percentiles& p) { return fmt::format("{:.1f} / {:.1f} / {:.1f}", p.p50, p.p90, p.p99); }
std::string commas(const Percentiles& p) { return fmt::format("{:.3f},{:.3f},{:.3f}", p.p50, p.p90, p.p99); }

bool keeps(const LoadSample& s, const Objective& o) {
  return (o.ttft <= 0 || s.first_ms <= o.ttft) && (o.itl <= 0 || mean(s.gaps_ms) <= o.itl) && (o.e2e <= 0 || s.end_ms <= o.e2e);
}

}  // namespace

Percentiles percentiles(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const auto at = [&](size_t percent) { return values[(percent * values.size() + 99) / 100 - 1]; };
  return {at(50), at(90), at(99)};
}

size_t LoadRow::failed() const {
  size_t all = 0;
  for (const auto& [cause, count] : errors) all += count;
  return all;
}

LoadRow summarize(const std::string& load, const LoadResult& result, const Objective& objective) {
  LoadRow row;
  row.load = load, row.requests = result.samples.size(), row.seconds = result.seconds;
  std::vector<double> first, gaps, ends, outside;
  double prompts = 0, outputs = 0;
  size_t good = 0;
  for (const LoadSample& s : result.samples) {
    if (!s.error.empty()) {
      ++row.errors[s.error];
      continue;
    }
    first.push_back(s.first_ms);
    ends.push_back(s.end_ms);
    gaps.insert(gaps.end(), s.gaps_ms.begin(), s.gaps_ms.end());
    if (s.inside_ms >= 0) outside.push_back(s.first_ms - s.inside_ms);
    prompts += s.prompt_tokens, outputs += s.output_tokens;
    good += keeps(s, objective);
  }
  const double whole = static_cast<double>(ends.size());
  if (row.seconds > 0) {
    row.requests_per_s = whole / row.seconds;
    row.output_tokens_per_s = outputs / row.seconds;
    row.goodput = static_cast<double>(good) / row.seconds;
  }
  if (whole > 0) row.prompt_tokens = prompts / whole, row.output_tokens = outputs / whole;
  row.ttft = percentiles(std::move(first)), row.itl = percentiles(std::move(gaps)), row.e2e = percentiles(std::move(ends));
  row.outside = percentiles(std::move(outside));
  return row;
}

std::string load_markdown(const std::vector<LoadRow>& rows, const Objective& objective) {
  std::string text =
      "| load | requests | errors | requests/s | output tokens/s | TTFT ms p50 / p90 / p99 | ITL ms p50 / p90 / p99 | "
      "whole ms p50 / p90 / p99 | outside the engine ms p50 / p90 / p99 |";
  text += objective.any() ? " within the objective/s |\n" : "\n";
  text += objective.any() ? "|---|---|---|---|---|---|---|---|---|---|\n" : "|---|---|---|---|---|---|---|---|---|\n";
  std::string notes;
  for (const LoadRow& row : rows) {
    text += fmt::format("| {} | {} | {} | {:.3f} | {:.1f} | {} | {} | {} | {} |", row.load, row.requests, row.failed(),
                        row.requests_per_s, row.output_tokens_per_s, cells(row.ttft), cells(row.itl), cells(row.e2e), cells(row.outside));
    text += objective.any() ? fmt::format(" {:.3f} |\n", row.goodput) : "\n";
    for (const auto& [cause, count] : row.errors) notes += fmt::format("{}: {} x {}\n", row.load, count, cause);
  }
  return notes.empty() ? text : text + "\nerrors:\n" + notes;
}

std::string load_csv(const std::vector<LoadRow>& rows) {
  std::string text =
      "load,requests,errors,seconds,requests_per_s,output_tokens_per_s,prompt_tokens,output_tokens,ttft_p50,ttft_p90,ttft_p99,itl_p50,"
      "itl_p90,itl_p99,e2e_p50,e2e_p90,e2e_p99,outside_p50,outside_p90,outside_p99,goodput\n";
  for (const LoadRow& r : rows)
    text += fmt::format("{},{},{},{:.3f},{:.4f},{:.3f},{:.2f},{:.2f},{},{},{},{},{:.4f}\n", r.load, r.requests, r.failed(), r.seconds,
                        r.requests_per_s, r.output_tokens_per_s, r.prompt_tokens, r.output_tokens, commas(r.ttft), commas(r.itl),
                        commas(r.e2e), commas(r.outside), r.goodput);
  return text;
}

Json load_json(const std::vector<LoadRow>& rows, const Objective& objective) {
  Json list = Json::array();
  for (const LoadRow& r : rows) {
    Json errors = Json::object();
    for (const auto& [cause, count] : r.errors) errors[cause] = count;
    list.push_back({{"load", r.load},
                    {"requests", r.requests},
                    {"errors", std::move(errors)},
                    {"seconds", r.seconds},
                    {"requests_per_s", r.requests_per_s},
                    {"output_tokens_per_s", r.output_tokens_per_s},
                    {"prompt_tokens", r.prompt_tokens},
                    {"output_tokens", r.output_tokens},
                    {"ttft_ms", json_of(r.ttft)},
                    {"itl_ms", json_of(r.itl)},
                    {"e2e_ms", json_of(r.e2e)},
                    {"outside_ms", json_of(r.outside)},
                    {"goodput", r.goodput}});
  }
  return {{"objective_ms", {{"ttft", objective.ttft}, {"itl", objective.itl}, {"e2e", objective.e2e}}}, {"rows", std::move(list)}};
}

}  // namespace conclave
