#pragma once
// The scores of LongBench (Bai et al. 2023) for one answer: 0 to 1. Chinese texts are cut into characters where the published scripts cut
// words with a dictionary.
#include <string>
#include <string_view>
#include <vector>

namespace conclave {

/// Score of `prediction` for the sub-set `dataset` ("narrativeqa", "trec", ...): the best over `answers`; first lines alone count for trec,
/// triviaqa, samsum and lsht. Throws bad_input for an unknown sub-set.
double longbench_score(std::string_view dataset, std::string_view prediction, const std::vector<std::string>& answers,
                       const std::vector<std::string>& all_classes);

/// The 21 sub-sets, or the 13 of LongBench-E.
std::vector<std::string> longbench_datasets(bool e);
/// Whether the score of a sub-set differs from the published one for want of a dictionary.
bool longbench_by_characters(std::string_view dataset);

}  // namespace conclave
