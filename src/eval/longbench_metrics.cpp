#include "eval/longbench_metrics.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.h"
#include "eval/prompt_encoder.h"
#include "eval/text_metrics.h"
#include "text/unicode.h"

namespace conclave {
namespace {

constexpr std::string_view kPunctuation = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";
constexpr std::string_view kChinesePunctuation =
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏.";

std::string lower(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = decode_utf8(text, at);
    append_lower(out, c.code);
    at += c.bytes;
  }
  return out;
}

/// Lower case, no ASCII punctuation, no articles.
std::vector<std::string> answer_words(std::string_view text) {
  std::string plain;
  for (const char c : lower(text))
    if (kPunctuation.find(c) == std::string_view::npos) plain += c;
  std::vector<std::string> words = words_of(plain);
  std::erase_if(words, [](const std::string& w) { return w == "a" || w == "an" || w == "the"; });
  return words;
}

/// Characters without white space and punctuation, lower case.
std::vector<std::string> answer_characters(std::string_view text) {
  std::vector<std::string> out;
  for (const char32_t c : characters_of(lower(text))) {
    std::string one;
    append_utf8(one, c);
    const bool punctuation = kPunctuation.find(one) != std::string_view::npos || kChinesePunctuation.find(one) != std::string_view::npos;
    if (!punctuation && !stripped(one).empty()) out.push_back(std::move(one));
  }
  return out;
}

std::string spaced_characters(std::string_view text) {
  std::string out;
  for (const char32_t c : characters_of(text)) {
    append_utf8(out, c);
    out += ' ';
  }
  return out;
}

std::vector<std::string> numbers_of(std::string_view text) {
  std::vector<std::string> numbers(1);
  for (const char c : text) {
    if (c >= '0' && c <= '9') numbers.back() += c;
    else if (!numbers.back().empty()) numbers.emplace_back();
  }
  if (numbers.back().empty()) numbers.pop_back();
  return numbers;
}

/// Share of the numbers in the prediction that are `wanted`.
double number_share(std::string_view prediction, const std::string& wanted) {
  const std::vector<std::string> numbers = numbers_of(prediction);
  if (numbers.empty()) return 0;
  return static_cast<double>(std::count(numbers.begin(), numbers.end(), wanted)) / static_cast<double>(numbers.size());
}

/// The number after `word` in the answer.
double retrieval(std::string_view prediction, std::string_view answer, std::string_view word) {
  const size_t at = answer.find(word);
  const std::vector<std::string> numbers = at == std::string_view::npos ? std::vector<std::string>() : numbers_of(answer.substr(at));
  return numbers.empty() ? 0 : number_share(prediction, numbers[0]);
}

double code_similarity(std::string_view prediction, std::string_view answer) {
  while (prediction.starts_with('\n')) prediction.remove_prefix(1);
  for (size_t at = 0; at <= prediction.size();) {
    const size_t end = std::min(prediction.find('\n', at), prediction.size());
    const std::string_view line = prediction.substr(at, end - at);
    if (line.find_first_of("`#") == std::string_view::npos && line.find("//") == std::string_view::npos) return similarity_percent(line, answer) / 100.0;
    at = end + 1;
  }
  return similarity_percent("", answer) / 100.0;
}

/// The list is shortened while it is walked over, as the published script does: the element after a removed one is passed over.
double classification(std::string_view prediction, std::string_view answer, const std::vector<std::string>& classes) {
  std::vector<std::string> found;
  for (const std::string& name : classes)
    if (prediction.find(name) != std::string_view::npos) found.push_back(name);
  for (size_t i = 0; i < found.size(); ++i)
    if (answer.find(found[i]) != std::string_view::npos && found[i] != answer) found.erase(std::find(found.begin(), found.end(), found[i]));
  return std::find(found.begin(), found.end(), answer) == found.end() ? 0.0 : 1.0 / static_cast<double>(found.size());
}

enum class Kind : uint8_t { qa, qa_zh, rouge, rouge_zh, classes, retrieval, retrieval_zh, count, code };
struct Dataset {
  std::string_view name;
  Kind kind;
  bool e, first_line;
};
constexpr Dataset kDatasets[] = {
    {"narrativeqa", Kind::qa, false, false}, {"qasper", Kind::qa, true, false},         {"multifieldqa_en", Kind::qa, true, false},
    {"multifieldqa_zh", Kind::qa_zh, false, false}, {"hotpotqa", Kind::qa, true, false}, {"2wikimqa", Kind::qa, true, false},
    {"musique", Kind::qa, false, false},     {"dureader", Kind::rouge_zh, false, false}, {"gov_report", Kind::rouge, true, false},
    {"qmsum", Kind::rouge, false, false},    {"multi_news", Kind::rouge, true, false},  {"vcsum", Kind::rouge_zh, false, false},
    {"trec", Kind::classes, true, true},     {"triviaqa", Kind::qa, true, true},        {"samsum", Kind::rouge, true, true},
    {"lsht", Kind::classes, false, true},    {"passage_count", Kind::count, true, false}, {"passage_retrieval_en", Kind::retrieval, true, false},
    {"passage_retrieval_zh", Kind::retrieval_zh, false, false}, {"lcc", Kind::code, true, false}, {"repobench-p", Kind::code, true, false},
};

const Dataset& dataset_named(std::string_view name) {
  for (const Dataset& d : kDatasets)
    if (d.name == name) return d;
  throw Error(Error::Kind::bad_input, fmt::format("LongBench has no sub-set \"{}\"", name));
}

double score_one(const Dataset& d, std::string_view prediction, const std::string& answer, const std::vector<std::string>& classes) {
  switch (d.kind) {
    case Kind::qa: return bag_f1(answer_words(prediction), answer_words(answer));
    case Kind::qa_zh: return bag_f1(answer_characters(prediction), answer_characters(answer));
    case Kind::rouge: return rouge_l_f(prediction, answer);
    case Kind::rouge_zh: return rouge_l_f(spaced_characters(prediction), spaced_characters(answer));
    case Kind::classes: return classification(prediction, answer, classes);
    case Kind::retrieval: return retrieval(prediction, answer, "Paragraph ");
    case Kind::retrieval_zh: return retrieval(prediction, answer, "段落");
    case Kind::count: return number_share(prediction, answer);
    case Kind::code: return code_similarity(prediction, answer);
  }
  return 0;
}

}  // namespace

double longbench_score(std::string_view dataset, std::string_view prediction, const std::vector<std::string>& answers,
                       const std::vector<std::string>& all_classes) {
  const Dataset& d = dataset_named(dataset);
  if (d.first_line) {
    while (prediction.starts_with('\n')) prediction.remove_prefix(1);
    prediction = prediction.substr(0, prediction.find('\n'));
  }
  double best = 0;
  for (const std::string& answer : answers) best = std::max(best, score_one(d, prediction, answer, all_classes));
  return best;
}

std::vector<std::string> longbench_datasets(bool e) {
  std::vector<std::string> names;
  for (const Dataset& d : kDatasets)
    if (!e || d.e) names.emplace_back(d.name);
  return names;
}

bool longbench_by_characters(std::string_view dataset) {
  const Kind kind = dataset_named(dataset).kind;
  return kind == Kind::qa_zh || kind == Kind::rouge_zh;
}

}  // namespace conclave
