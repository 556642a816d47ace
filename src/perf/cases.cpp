#include "perf/cases.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "core/error.h"
#include "core/json.h"

namespace conclave {
namespace {

using Json = nlohmann::ordered_json;
constexpr int kMostTokens = 1 << 24, kMostSequences = 1 << 16;
constexpr size_t kMostCases = 1000;

[[noreturn]] void refuse(const std::string& message) { throw Error(Error::Kind::bad_input, message); }

/// A list of the notation; brackets around the whole may be left out.
Json list_of(std::string_view text, std::string_view option) {
  const bool bracketed = !text.empty() && text.front() == '[';
  return parse_json(bracketed ? std::string(text) : fmt::format("[{}]", text), option);
}

int number_of(const Json& value, int most, std::string_view option, std::string_view text) {
  if (!value.is_number_integer() || value.get<int64_t>() < 1 || value.get<int64_t>() > most)
    refuse(fmt::format("{} is {}: {} stands where a whole number of 1 to {} is wanted", option, text, value.dump(), most));
  return value.get<int>();
}

std::vector<int> numbers_of(const Json& list, std::string_view option, std::string_view text) {
  std::vector<int> numbers;
  for (const Json& value : list) numbers.push_back(number_of(value, kMostSequences, option, text));
  if (numbers.empty()) refuse(fmt::format("{} is {}: a list is empty", option, text));
  return numbers;
}

bool is_nested(const Json& list) { return !list.empty() && list.front().is_array(); }

void check_nested(const Json& list, size_t cases, std::string_view option, std::string_view text) {
  if (list.size() != cases)
    refuse(fmt::format("{} is {}: {} lists for {} cases, wanted one per case", option, text, list.size(), cases));
  for (const Json& inner : list)
    if (!inner.is_array()) refuse(fmt::format("{} is {}: {} stands where a list is wanted", option, text, inner.dump()));
}

}  // namespace

std::vector<PerfCase> parse_cases(std::string_view text) {
  constexpr std::string_view option = "--cases";
  const Json list = list_of(text, option);
  std::vector<PerfCase> cases;
  for (const Json& pair : is_nested(list) ? list : Json::array({list})) {
    if (!pair.is_array() || pair.size() != 2)
      refuse(fmt::format("{} is {}: {} stands where [input length, output length] is wanted, as in [[2048,2048],[256,256]]", option, text,
                         pair.dump()));
    cases.push_back({.batch = 1, .input = number_of(pair[0], kMostTokens, option, text), .output = number_of(pair[1], kMostTokens, option, text)});
  }
  if (cases.size() > kMostCases) refuse(fmt::format("{}: {} cases, at most {} are run at once", option, cases.size(), kMostCases));
  return cases;
}

std::vector<PerfCase> with_batches(const std::vector<PerfCase>& cases, std::string_view text) {
  constexpr std::string_view option = "--batch";
  const Json list = list_of(text, option);
  std::vector<PerfCase> all;
  const auto add = [&](PerfCase what, int batch) {
    what.batch = batch;
    all.push_back(what);
    if (all.size() > kMostCases) refuse(fmt::format("{} and --cases: more than {} combinations", option, kMostCases));
  };
  if (!is_nested(list)) {
    for (const int batch : numbers_of(list, option, text))
      for (const PerfCase& what : cases) add(what, batch);
    return all;
  }
  check_nested(list, cases.size(), option, text);
  std::vector<std::set<int>> of_case;
  std::set<int> sizes;
  for (const Json& inner : list) {
    const std::vector<int> numbers = numbers_of(inner, option, text);
    of_case.emplace_back(numbers.begin(), numbers.end());
    sizes.insert(numbers.begin(), numbers.end());
  }
  for (const int batch : sizes)
    for (size_t i = 0; i < cases.size(); ++i)
      if (of_case[i].contains(batch)) add(cases[i], batch);
  return all;
}

std::vector<BatchRange> parse_ranges(std::string_view text, size_t cases) {
  constexpr std::string_view option = "--max-batch";
  const Json list = list_of(text, option);
  const bool nested = is_nested(list);
  if (nested) check_nested(list, cases, option, text);
  std::vector<BatchRange> ranges;
  for (size_t i = 0; i < cases; ++i) {
    const std::vector<int> ends = numbers_of(nested ? list[i] : list, option, text);
    if (ends.size() != 2 || ends[0] > ends[1]) refuse(fmt::format("{} is {}, wanted the smallest and the largest batch: 1,64", option, text));
    ranges.push_back({ends[0], ends[1]});
  }
  return ranges;
}

}  // namespace conclave
