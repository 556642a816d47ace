#pragma once
// What is made of item lines: the table for people, the reference stack's CSV files, and the comparison of two runs.
#include <filesystem>
#include <span>
#include <string>

#include "eval/evaluate.h"

namespace conclave {

/// A table with the columns Tasks, N-Shot, Total, Pass, Metric, Value and the standard error; one block per task, then its notes.
std::string summary_table(std::span<const Summary> summaries);

/// "file_name,value,correct,sum", the total first: values between 0 and 1, correct the sum of scores.
std::string result_csv(const Summary& summary);
/// "key,queries,input_token_ids,output_token_ids,test_result,golden_result,pass", one row per item that was asked.
std::string debug_csv(const Task& task, std::span<const ItemLine> lines);

/// Where the reference stack's tree keeps the files of a task.
struct ResultPlace {
  std::filesystem::path folder;  ///< --output
  std::string device, dtype, model;
  int batch_size = 1, ranks = 1;
};
/// Writes results/<device>/precision_test/full/<dtype>/<model>/<Title>_pa_batch<b>_tp<w>_full_result.csv and the debug CSV of the same name
/// under debug/; returns the first one's path.
std::filesystem::path write_result_files(const ResultPlace& place, const Task& task, const Summary& summary, std::span<const ItemLine> lines);

/// Two-sided McNemar test: with `b` items that only the first got right and `c` only the second, exact (binomial) up to 1000 of them together,
/// else chi-square with continuity correction. 1 when they are none.
double mcnemar_p(size_t b, size_t c);
/// Paired difference of the scores of two runs, per task, and the items that changed (at most `most_changes` are named). Throws bad_input when
/// they share no item or an item's prompt differs.
std::string compare_runs(std::span<const ItemLine> first, std::span<const ItemLine> second, size_t most_changes);

}  // namespace conclave
