// conclave plot: latency and throughput curves of performance files.
#include "perf/plot.h"

#include <fmt/format.h>

#include <limits>

#include "cli/command.h"
#include "cli/json_lines.h"
#include "core/error.h"
#include "io/partial_file.h"

namespace conclave {
namespace {

constexpr size_t kMaxBytes = size_t{64} << 20;

class PlotCommand : public Command {
 public:
  void declare(OptionTable& table) override {
    table.positionals("FILE.csv...", files_, std::numeric_limits<size_t>::max());
    table.group("Output");
    table.add("out", &out_, "picture to write; its ending .svg or .png is its format").placeholder("FILE").also("o");
    table.example("conclave plot outputs/results/CPU/performance_test/performance/bf16/mixtral/*_tp1_result.csv --out mixtral.svg");
  }

  int execute(const OptionTable&, Console& console) override {
    if (files_.empty()) throw Error(Error::Kind::bad_input, "no file given; wanted one or more CSVs of `conclave perf`");
    const bool svg = out_.ends_with(".svg");
    if (!svg && !out_.ends_with(".png")) throw Error(Error::Kind::bad_input, fmt::format("--out is \"{}\", wanted a name that ends in .svg or .png", out_));
    require_writable(out_, "--out");
    std::vector<PlotFile> files;
    size_t points = 0;
    for (const std::string& file : files_) {
      files.push_back({std::filesystem::path(file).stem().string(), read_perf_csv(read_input(file, "FILE.csv", kMaxBytes), file)});
      points += files.back().points.size();
    }
    if (points == 0) throw Error(Error::Kind::bad_input, "there is nothing to draw: no row of these files has figures");
    write_file(out_, run_gnuplot(plot_commands(files, svg ? PlotFormat::svg : PlotFormat::png)));
    console.log.info(fmt::format("{} points drawn into {}", points, out_));
    return 0;
  }

 private:
  std::vector<std::string> files_;
  std::string out_ = "performance.svg";
};

}  // namespace

std::unique_ptr<Command> make_plot() { return std::make_unique<PlotCommand>(); }

}  // namespace conclave
