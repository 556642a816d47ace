#pragma once
// What `conclave perf` measures: batches of prompts of one length that all generate the same number of tokens; and the notations of the
// reference stack's harness for lists of them.
#include <string>
#include <string_view>
#include <vector>

namespace conclave {

struct PerfCase {
  int batch = 1, input = 1, output = 1;
  bool operator==(const PerfCase&) const = default;
};

/// "[[2048,2048],[256,256]]": input and output lengths; batches are 1. Throws bad_input naming the option and what is wrong.
std::vector<PerfCase> parse_cases(std::string_view text);

/// `cases` with every batch size, in the order in which they are run: all cases of one batch size, then of the next. `text`: "1,4", "[1,4]"
/// (for every case, in that order) or "[[1,4],[16]]" (a list per case; ascending). Throws bad_input.
std::vector<PerfCase> with_batches(const std::vector<PerfCase>& cases, std::string_view text);

struct BatchRange {
  int low = 1, high = 1;
};
/// "1,64" for every case or "[[1,64],[1,200]]", one per case. Throws bad_input.
std::vector<BatchRange> parse_ranges(std::string_view text, size_t cases);

}  // namespace conclave
