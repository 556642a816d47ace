// conclave split: a checkpoint cut for a fixed number of ranks, and back.
#include "model/split.h"

#include <fmt/format.h>

#include "cli/command.h"
#include "cli/model_files.h"
#include "cli/progress.h"
#include "cli/rank_job.h"
#include "cli/signals.h"
#include "core/error.h"

namespace conclave {
namespace {

class SplitCommand : public Command {
 public:
  void declare(OptionTable& table) override {
    table.positionals("", positionals_, 0);
    table.group("Split");
    table.add("in", &in_, "model folder to read; with --join a split one").placeholder("DIR");
    table.add("out", &out_, "folder to write; an unfinished split for the same ranks is continued").placeholder("DIR");
    table.add("world", &world_, "number of ranks; 0 follows from --tp, --pp, --dp and --moe-ep").placeholder("N").range(0, 4096);
    table.add("join", &join_, "write the original tensors of a split folder as one checkpoint");
    declare_parallel_options(table, parallel_);
    table.example("conclave split --in DIR --out DIR-8 --world 8");
    table.example("conclave split --in DIR --out DIR-4 --tp 2 --pp 2");
    table.example("conclave split --join --in DIR-8 --out DIR");
  }

  int execute(const OptionTable&, Console& console) override {
    if (in_.empty()) throw Error(Error::Kind::bad_input, "no --in given: the model folder to read");
    if (out_.empty()) throw Error(Error::Kind::bad_input, "no --out given: the folder to write");
    const Interrupts interrupts;
    SplitReport report;
    {
      Progress bar(join_ ? "joining" : "splitting", console.log);
      const auto progress = [&](size_t done, size_t total) {
        if (interrupts.raised())
          throw Error(Error::Kind::cancelled, fmt::format("interrupted; {}", join_ ? "empty --out and try again" : "the same command continues " + out_));
        bar.update(done, total);
      };
      if (join_) {
        report = join_folder(in_, out_, progress);
      } else {
        const Checkpoint checkpoint(in_);
        const ModelSpec spec = parse_spec(checkpoint.config(), in_ + "/config.json");
        const ParallelLayout layout = resolve_layout(spec, request_of(parallel_), world_);
        report = split_folder(checkpoint, spec, {.in = in_, .out = out_, .layout = layout, .progress = progress});
      }
    }
    if (report.resumed > 0) console.log.info(fmt::format("{} files were finished before", report.resumed));
    console.out.line(fmt::format("{}: {:.3f} GB in {} file{}", out_, static_cast<double>(report.bytes) / 1e9, report.files + report.resumed,
                                 report.files + report.resumed == 1 ? "" : "s"));
    return 0;
  }

 private:
  std::vector<std::string> positionals_;
  ParallelOptions parallel_;
  std::string in_, out_;
  int world_ = 0;
  bool join_ = false;
};

}  // namespace

std::unique_ptr<Command> make_split() { return std::make_unique<SplitCommand>(); }

}  // namespace conclave
