#include "eval/text_metrics.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "core/error.h"
#include "eval/prompt_encoder.h"
#include "text/regex.h"
#include "text/unicode.h"

namespace conclave {
namespace {

using Words = std::vector<std::string>;

void require_bounded(size_t a, size_t b) {
  constexpr size_t kMostSteps = size_t{1} << 28;
  if (a != 0 && b > kMostSteps / a)
    throw Error(Error::Kind::bad_input, fmt::format("texts of {} and {} units are too long to be compared", a, b));
}

/// Matches of two characters become `before` + first + " " + second + `after`; of one, " " + it + " ".
std::string spaced(const std::string& text, const char* pattern, std::string_view before, std::string_view after) {
  RegexScratch scratch;
  std::vector<Range> matches;
  Regex(pattern, "sacrebleu's tokenizer").find_all(text, scratch, matches);
  std::string out;
  size_t at = 0;
  for (const auto& [begin, end] : matches) {
    const size_t first = decode_utf8(text, begin).bytes;
    out += text.substr(at, begin - at) + std::string(before) + text.substr(begin, first);
    if (begin + first < end) out += " " + text.substr(begin + first, end - begin - first);
    out += after;
    at = end;
  }
  return out + text.substr(at);
}

Words international_words(std::string_view text) {
  std::string line(text);
  line = spaced(line, R"(\P{N}\p{P})", "", " ");
  line = spaced(line, R"(\p{P}\P{N})", " ", "");
  line = spaced(line, R"(\p{S})", " ", " ");
  return words_of(line);
}

std::map<Words, size_t> ngrams(const Words& words, size_t n) {
  std::map<Words, size_t> counts;
  for (size_t i = 0; i + n <= words.size(); ++i)
    ++counts[Words(words.begin() + static_cast<std::ptrdiff_t>(i), words.begin() + static_cast<std::ptrdiff_t>(i + n))];
  return counts;
}

size_t overlap(const std::map<Words, size_t>& a, const std::map<Words, size_t>& b) {
  size_t common = 0;
  for (const auto& [gram, count] : a)
    if (const auto found = b.find(gram); found != b.end()) common += std::min(count, found->second);
  return common;
}

double f_measure(double common, double predicted, double wanted) {
  if (predicted == 0 || wanted == 0 || common == 0) return 0;
  const double precision = common / predicted, recall = common / wanted;
  return 2 * precision * recall / (precision + recall);
}

/// Lengths of the longest common subsequences of all beginnings, row by row.
class LcsTable {
 public:
  template <class Sequence>
  LcsTable(const Sequence& a, const Sequence& b) : columns_(b.size() + 1) {
    require_bounded(a.size() + 1, columns_);
    cells_.resize((a.size() + 1) * columns_);
    for (size_t i = 1; i <= a.size(); ++i)
      for (size_t j = 1; j <= b.size(); ++j)
        cells_[i * columns_ + j] = a[i - 1] == b[j - 1] ? at(i - 1, j - 1) + 1 : std::max(at(i - 1, j), at(i, j - 1));
  }
  uint32_t at(size_t i, size_t j) const { return cells_[i * columns_ + j]; }

 private:
  size_t columns_;
  std::vector<uint32_t> cells_;
};

/// Positions in `a` of one longest common subsequence; where both ways are as long, `shorten_a` decides which text is shortened.
std::vector<size_t> common_positions(const Words& a, const Words& b, bool shorten_a) {
  const LcsTable table(a, b);
  std::vector<size_t> found;
  for (size_t i = a.size(), j = b.size(); i > 0 && j > 0;) {
    const uint32_t up = table.at(i - 1, j), left = table.at(i, j - 1);
    if (a[i - 1] == b[j - 1]) {
      found.push_back(--i);
      --j;
    } else if (shorten_a ? up >= left : up > left) {
      --i;
    } else {
      --j;
    }
  }
  return found;
}

Words alphanumeric_words(std::string_view text) {
  std::string lower;
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = decode_utf8(text, at);
    append_lower(lower, c.code);
    at += c.bytes;
  }
  Words words(1);
  for (const char c : lower) {
    if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9')) words.back() += c;
    else if (!words.back().empty()) words.emplace_back();
  }
  if (words.back().empty()) words.pop_back();
  return words;
}

std::vector<Words> sentences_of(std::string_view text) {
  std::vector<Words> sentences;
  const std::string split = replaced(text, " . ", " .\n");
  for (size_t at = 0; at <= split.size();) {
    const size_t end = std::min(split.find('\n', at), split.size());
    if (end > at) sentences.push_back(alphanumeric_words(std::string_view(split).substr(at, end - at)));
    at = end + 1;
  }
  return sentences;
}

/// Words of the target that the union of its common subsequences with the prediction's sentences covers, each at most as often as both have it.
double rouge_lsum(const std::vector<Words>& prediction, const std::vector<Words>& target) {
  std::map<std::string, size_t> left_p, left_t;
  size_t predicted = 0, wanted = 0, hits = 0;
  for (const Words& s : prediction)
    for (const std::string& w : s) ++left_p[w], ++predicted;
  for (const Words& s : target)
    for (const std::string& w : s) ++left_t[w], ++wanted;
  for (const Words& sentence : target) {
    std::set<size_t> positions;
    for (const Words& other : prediction)
      for (const size_t i : common_positions(sentence, other, true)) positions.insert(i);
    for (const size_t i : positions) {
      size_t &p = left_p[sentence[i]], &t = left_t[sentence[i]];
      if (p == 0 || t == 0) continue;
      ++hits, --p, --t;
    }
  }
  return f_measure(static_cast<double>(hits), static_cast<double>(predicted), static_cast<double>(wanted));
}

/// Sentences of the rouge package: between points, white space made one space; an empty one is one empty word.
std::vector<Words> pointed_sentences(std::string_view text) {
  std::vector<Words> sentences;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find('.', at), text.size());
    if (end > at) {
      sentences.push_back(words_of(text.substr(at, end - at)));
      if (sentences.back().empty()) sentences.back().emplace_back();
    }
    at = end + 1;
  }
  return sentences;
}

}  // namespace

std::vector<std::string> words_of(std::string_view text) {
  std::vector<std::string> words;
  for (text = stripped_left(text); !text.empty(); text = stripped_left(text)) {
    std::string word;
    while (!text.empty() && stripped_left(text).size() == text.size()) {
      const size_t bytes = decode_utf8(text, 0).bytes;
      word += text.substr(0, bytes);
      text.remove_prefix(bytes);
    }
    words.push_back(std::move(word));
  }
  return words;
}

std::u32string characters_of(std::string_view text) {
  std::u32string out;
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = decode_utf8(text, at);
    out += c.code;
    at += c.bytes;
  }
  return out;
}

double sentence_bleu(std::string_view prediction, std::string_view target) {
  const Words p = international_words(prediction), t = international_words(target);
  constexpr size_t kOrder = 4;
  double log_sum = 0, smooth = 1;
  bool any = false;
  for (size_t n = 1; n <= kOrder; ++n) {
    const size_t total = p.size() >= n ? p.size() - n + 1 : 0;
    if (total == 0) return 0;
    const size_t correct = overlap(ngrams(p, n), ngrams(t, n));
    any = any || correct > 0;
    if (correct == 0) smooth *= 2;
    log_sum += std::log(correct == 0 ? 100.0 / (smooth * static_cast<double>(total)) : 100.0 * static_cast<double>(correct) / static_cast<double>(total));
  }
  if (!any) return 0;
  const double ratio = static_cast<double>(t.size()) / static_cast<double>(p.size());
  return (p.size() < t.size() ? std::exp(1 - ratio) : 1.0) * std::exp(log_sum / kOrder);
}

RougeScores rouge_scores(std::string_view prediction, std::string_view target) {
  const Words p = alphanumeric_words(prediction), t = alphanumeric_words(target);
  RougeScores scores;
  const auto of_order = [&](size_t n) {
    const auto grams = [&](const Words& words) { return words.size() >= n ? static_cast<double>(words.size() - n + 1) : 0.0; };
    return f_measure(static_cast<double>(overlap(ngrams(p, n), ngrams(t, n))), grams(p), grams(t));
  };
  scores.rouge1 = of_order(1);
  scores.rouge2 = of_order(2);
  scores.rouge_lsum = rouge_lsum(sentences_of(prediction), sentences_of(target));
  return scores;
}

double rouge_l_f(std::string_view prediction, std::string_view target) {
  const std::vector<Words> hypothesis = pointed_sentences(prediction), reference = pointed_sentences(target);
  if (hypothesis.empty() || reference.empty()) return 0;
  std::set<std::string> predicted, wanted, covered;
  for (const Words& s : hypothesis) predicted.insert(s.begin(), s.end());
  for (const Words& s : reference) {
    wanted.insert(s.begin(), s.end());
    for (const Words& other : hypothesis)
      for (const size_t i : common_positions(s, other, false)) covered.insert(s[i]);
  }
  const auto common = static_cast<double>(covered.size());
  const double precision = common / static_cast<double>(predicted.size()), recall = common / static_cast<double>(wanted.size());
  return 2 * (precision * recall) / (precision + recall + 1e-8);
}

size_t edit_distance(std::string_view a_text, std::string_view b_text) {
  const std::u32string a = characters_of(a_text), b = characters_of(b_text);
  require_bounded(a.size() + 1, b.size() + 1);
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
      diagonal = above;
    }
  }
  return row.back();
}

int similarity_percent(std::string_view a_text, std::string_view b_text) {
  const std::u32string a = characters_of(a_text), b = characters_of(b_text);
  if (a.empty() || b.empty()) return 0;
  const double common = LcsTable(a, b).at(a.size(), b.size());
  return static_cast<int>(std::nearbyint(100 * 2 * common / static_cast<double>(a.size() + b.size())));
}

double bag_f1(const std::vector<std::string>& prediction, const std::vector<std::string>& target) {
  return f_measure(static_cast<double>(overlap(ngrams(prediction, 1), ngrams(target, 1))), static_cast<double>(prediction.size()),
                   static_cast<double>(target.size()));
}

}  // namespace conclave
