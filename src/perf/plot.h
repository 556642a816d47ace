#pragma once
// Curves of performance files: reads the CSVs of `conclave perf` (and the reference stack's, whose columns they have) and writes the commands
// that make gnuplot draw them. Text of the files reaches gnuplot only as data, cleaned of everything that it would interpret.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace conclave {

/// A row that holds figures.
struct PlotPoint {
  std::string model;
  double batch = 0, input = 0, output = 0, token_ms = 0, prefill_ms = 0, decode_rate = 0, e2e_rate = 0;
};
/// Throws bad_input naming `file`, line and column for anything that is not such a file. Rows of failed cases are left out.
std::vector<PlotPoint> read_perf_csv(std::string_view text, const std::string& file);

enum class PlotFormat : uint8_t { svg, png };
struct PlotFile {
  std::string name;  ///< shown in the key where two files have figures for the same case
  std::vector<PlotPoint> points;
};
/// Commands with the data in them: four panels (time per token and per prompt, throughput after the first token and over all) by batch size,
/// one curve per model and pair of lengths, and per file where several have the same case; by prompt length where no curve has two batch
/// sizes.
std::string plot_commands(const std::vector<PlotFile>& files, PlotFormat format);

/// Runs gnuplot from PATH on `commands` and gives what it draws. Throws unsupported when there is no gnuplot, internal with its complaint
/// when it fails or takes longer than a minute.
std::string run_gnuplot(const std::string& commands);

}  // namespace conclave
