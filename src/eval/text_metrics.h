#pragma once
// Scores of a text against a reference text: BLEU as sacrebleu computes it, ROUGE as rouge-score and as the rouge package do, edit distance,
// F1 over words. All take valid UTF-8 and are bounded: texts whose comparison would take more than 2^28 steps are refused (bad_input).
#include <string>
#include <string_view>
#include <vector>

namespace conclave {

/// corpus_bleu of one pair: tokenize "intl", smoothing "exp", no effective order; 0 to 100.
double sentence_bleu(std::string_view prediction, std::string_view target);

struct RougeScores {
  double rouge1 = 0, rouge2 = 0, rouge_lsum = 0;  ///< F-measures, 0 to 1
};
/// The rouge-score package without stemming; lines are sentences.
RougeScores rouge_scores(std::string_view prediction, std::string_view target);

/// "rouge-l" F of the rouge package: sentences end at '.', sets of words; 0 where it raises an error.
double rouge_l_f(std::string_view prediction, std::string_view target);

/// Insertions, deletions and replacements of characters.
size_t edit_distance(std::string_view a, std::string_view b);
/// 2 * longest common subsequence / both lengths, in characters, in whole percent (fuzzywuzzy's ratio with python-Levenshtein).
int similarity_percent(std::string_view a, std::string_view b);

/// F1 of two bags of words.
double bag_f1(const std::vector<std::string>& prediction, const std::vector<std::string>& target);

/// Words between white space.
std::vector<std::string> words_of(std::string_view text);
std::u32string characters_of(std::string_view text);

}  // namespace conclave
