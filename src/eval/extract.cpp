#include "eval/extract.h"

#include <array>
#include <cmath>
#include <cstdlib>

#include "eval/prompt_encoder.h"
#include "text/unicode.h"

namespace conclave {
namespace {

// "@" stands for the letters. Python's "$" is written \Z, "^" is written \A: in the pattern engine's syntax both mean lines otherwise.
// The ninth and tenth pattern of the published list lack a comma between them and are one pattern.
constexpr std::array kExam = {
    R"(答案是?\s?([@]))",         R"(答案是?\s?：([@]))",       R"(答案是?\s?:([@]))",          R"(答案应该?是\s?([@]))",
    R"(答案应该?选\s?([@]))",     R"(答案为\s?([@]))",          R"(答案选\s?([@]))",            R"(选择?\s?([@]))",
    R"(故选?\s?([@])只有选?项?\s?([@])\s?是?对)",               R"(只有选?项?\s?([@])\s?是?错)", R"(只有选?项?\s?([@])\s?不?正确)",
    R"(只有选?项?\s?([@])\s?错误)", R"(说法不?对选?项?的?是\s?([@]))", R"(说法不?正确选?项?的?是\s?([@]))",
    R"(说法错误选?项?的?是\s?([@]))", R"(([@])\s?是正确的)",      R"(([@])\s?是正确答案)",        R"(选项\s?([@])\s?正确)",
    R"(所以答\s?([@]))",          R"(所以\s?([@][.。$]?\Z))",   R"(所有\s?([@][.。$]?\Z))",     R"([\s，：:,]([@])[。，,\.]?\Z)",
    R"([\s，,：:][故即]([@])[。\.]?\Z)", R"([\s，,：:]因此([@])[。\.]?\Z)", R"([是为。]\s?([@])[。\.]?\Z)",
    R"(因此\s?([@])[。\.]?\Z)",   R"(显然\s?([@])[。\.]?\Z)",   R"(答案是\s?(\S+)(?:。|\Z))",   R"(答案应该是\s?(\S+)(?:。|\Z))",
    R"(答案为\s?(\S+)(?:。|\Z))", R"([Tt]he answer is \(?([@])\)?)", R"([Tt]he answer is option \(?([@])\)?)",
    R"([Tt]he correct answer is \(?([@])\)?)", R"([Tt]he correct answer is option \(?([@])\)?)",
    R"([Tt]he answer to the question is \(?([@])\)?)", R"(\A选项\s?([@]))", R"(\A([@])\s?选?项)", R"((\s|\A)[@][\s。，,：:\.$])",
    R"((\s|\A)[@](\s|\Z))",       R"(1.\s?(.*?)\Z)",            R"(1.\s?([@])[.。$]?\Z)",       R"(([@]):)",
    R"([@])",
};

/// A pattern of the GPQA cascade: the group decides, not the whole match.
struct GpqaPattern {
  const char* text;
  bool last;    ///< the group is the last letter of the match
  size_t skip;  ///< bytes before the group
};
constexpr GpqaPattern kGpqa[] = {
    {R"(答案是?\s*([@]))", true, 0},
    {R"(答案是?\s*：\s*([@]))", true, 0},
    {R"(答案是?\s*:\s*([@]))", true, 0},
    {R"(答案选项应?该?是\s*([@]))", true, 0},
    {R"(答案选项应?该?为\s*([@]))", true, 0},
    {R"(答案应该?是\s*([@]))", true, 0},
    {R"(答案应该?选\s*([@]))", true, 0},
    {R"(答案选项为?\s*：\s*([@]))", true, 0},
    {R"(答案选项为?\s+\(?\*?\*?([@])\*?\*?\)?)", true, 0},
    {R"(答案选项是?\s*:\s*([@]))", true, 0},
    {R"(答案为\s*([@]))", true, 0},
    {R"(答案选\s*([@]))", true, 0},
    {R"(选择?\s*([@]))", true, 0},
    {R"(故选?\s*([@])(?=只有选?项?\s?([@])\s?是?对))", true, 0},
    {R"(只有选?项?\s?([@])\s?是?错)", true, 0},
    {R"(只有选?项?\s?([@])\s?不?正确)", true, 0},
    {R"(只有选?项?\s?([@])\s?错误)", true, 0},
    {R"(说法不?对选?项?的?是\s?([@]))", true, 0},
    {R"(说法不?正确选?项?的?是\s?([@]))", true, 0},
    {R"(说法错误选?项?的?是\s?([@]))", true, 0},
    {R"(([@])\s?是正确的)", true, 0},
    {R"(([@])\s?是正确答案)", true, 0},
    {R"(选项\s?([@])\s?正确)", true, 0},
    {R"(所以答\s?([@]))", true, 0},
    {R"(所以\s?([@][.。$]?\Z))", true, 0},
    {R"(所有\s?([@][.。$]?\Z))", true, 0},
    {R"([\s，：:,]([@])[。，,\.]?\Z)", true, 0},
    {R"([\s，,：:][故即]([@])[。\.]?\Z)", true, 0},
    {R"([\s，,：:]因此([@])[。\.]?\Z)", true, 0},
    {R"([是为。]\s?([@])[。\.]?\Z)", true, 0},
    {R"(因此\s?([@])[。\.]?\Z)", true, 0},
    {R"(显然\s?([@])[。\.]?\Z)", true, 0},
    {R"(答案是\s?(\S+)(?:。|\Z))", false, 9},
    {R"(答案应该是\s?(\S+)(?:。|\Z))", false, 15},
    {R"(答案为\s?(\S+)(?:。|\Z))", false, 9},
    {R"((?i:ANSWER\s*:\s*[@]))", true, 6},
    {R"([Tt]he answer is:?\s+\(?([@])\)?)", true, 0},
    {R"([Tt]he answer is:?\s+\(?\*?\*?([@])\*?\*?\)?)", true, 0},
    {R"([Tt]he answer is option:?\s+\(?([@])\)?)", true, 0},
    {R"([Tt]he correct answer is:?\s+\(?([@])\)?)", true, 0},
    {R"([Tt]he correct answer is option:?\s+\(?([@])\)?)", true, 0},
    {R"([Tt]he correct answer is:?(?m:.*?)boxed\{([@])\})", true, 0},
    {R"([Tt]he correct option is:?(?m:.*?)boxed\{([@])\})", true, 0},
    {R"([Tt]he correct answer option is:?(?m:.*?)boxed\{([@])\})", true, 0},
    {R"([Tt]he answer to the question is:?\s+\(?([@])\)?)", true, 0},
    {R"(\A选项\s?([@]))", true, 0},
    {R"(\A([@])\s?选?项)", true, 0},
    {R"(\A[@][\s。，,：:\.$])", true, 0},  // elsewhere the group before the letter decides, and it holds none
    {R"(1(?m:.)\s?(?m:.*?)\Z)", false, 2},
    {R"(1(?m:.)\s?([@])[.。$]?\Z)", true, 0},
    {R"(([@]):)", true, 0},
    {R"([@])", true, 0},
};

constexpr std::string_view kLetters = "ABCD";

}  // namespace

LetterFinder::LetterFinder(Kind kind) : strip_(kind == Kind::gpqa) {
  if (kind == Kind::exam)
    for (const char* pattern : kExam) add(pattern);
  else
    for (const GpqaPattern& pattern : kGpqa) add(pattern.text, pattern.last, pattern.skip);
}

void LetterFinder::add(std::string_view pattern, bool last, size_t skip) {
  patterns_.push_back({Regex(replaced(pattern, "@", kLetters), "letter pattern"), skip, last});
}

std::string LetterFinder::find(std::string_view text) const {
  const std::string valid = lossy_utf8(strip_ ? stripped(text) : text);
  RegexScratch scratch;
  std::vector<Range> matches;
  for (const Pattern& pattern : patterns_) {
    matches.clear();
    pattern.regex.find_all(valid, scratch, matches);
    if (matches.empty()) continue;
    const auto [begin, end] = matches.front();
    const size_t from = std::min(begin + pattern.skip, end);
    const std::string_view match = std::string_view(valid).substr(from, end - from);
    if (pattern.last) {
      const size_t at = match.find_last_of(kLetters);
      if (at != std::string_view::npos) return std::string(1, match[at]);
      continue;
    }
    for (const char letter : kLetters)
      if (match.find(letter) != std::string_view::npos) return std::string(1, letter);
  }
  return "";
}

NumberFinder::NumberFinder()
    : regex_(R"(([+-])?(?=([0-9]|\.[0-9]))(0|([1-9](\d{0,2}(,\d{3})*)|\d*))?(\.\d*)?(?=\D|$))", "number pattern") {}

std::optional<std::string> NumberFinder::last(std::string_view text) const {
  RegexScratch scratch;
  std::vector<Range> matches;
  const std::string valid = lossy_utf8(text);
  regex_.find_all(valid, scratch, matches);
  if (matches.empty()) return std::nullopt;
  const auto [begin, end] = matches.back();
  return replaced(replaced(std::string_view(valid).substr(begin, end - begin), ",", ""), "+", "");
}

bool same_number(std::string_view a, std::string_view b) {
  const auto value = [](std::string_view text, double& out) {
    const std::string copy(text);
    char* end = nullptr;
    out = std::strtod(copy.c_str(), &end);
    return !copy.empty() && end == copy.c_str() + copy.size() && !std::isnan(out);
  };
  double x = 0, y = 0;
  return value(a, x) && value(b, y) && (x == y || std::abs(x - y) <= 1e-4);
}

std::string first_character(std::string_view text) {
  const std::string_view rest = stripped_left(text);
  if (rest.empty()) return "-1";
  return std::string(rest.substr(0, decode_utf8(rest, 0).bytes));
}

}  // namespace conclave
