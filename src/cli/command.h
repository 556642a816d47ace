#pragma once
// What every subcommand is: it declares its options, fills in defaults that come from the model, and does its work.
// Results go to `Console::out` (standard output), everything else to `Console::log` (standard error). Errors are
// thrown; main turns them into exit codes.
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "cli/output.h"
#include "core/log.h"
#include "core/options.h"

namespace conclave {

struct Console {
  Log& log;
  Output& out;
};

class Command {
 public:
  virtual ~Command() = default;
  virtual void declare(OptionTable& table) = 0;
  /// After parsing, before --print-config: takes positionals apart and sets defaults that come from the model.
  virtual void complete(OptionTable&) {}
  /// True when standard output is text for people, in which messages may stand.
  virtual bool prints_prose() const { return false; }
  /// Returns the exit code.
  virtual int execute(const OptionTable& table, Console& console) = 0;
};

struct CommandEntry {
  std::string_view name, summary;
  std::unique_ptr<Command> (*make)();
  bool hidden = false;
};
/// All subcommands in the order of `conclave --help`.
std::span<const CommandEntry> commands();

/// The table of one command with the options that every command has (--log-level, --log-file, --log-stdout).
struct CommonOptions {
  std::string log_level = "info", log_file;
  bool log_stdout = false;
};
OptionTable make_table(const CommandEntry& entry, Command& command, CommonOptions& common);

std::unique_ptr<Command> make_run();
std::unique_ptr<Command> make_chat();
std::unique_ptr<Command> make_serve();
std::unique_ptr<Command> make_dump();
std::unique_ptr<Command> make_tokenize();
std::unique_ptr<Command> make_detokenize();
std::unique_ptr<Command> make_template();
std::unique_ptr<Command> make_inspect();
std::unique_ptr<Command> make_bench();
std::unique_ptr<Command> make_bench_serve();
std::unique_ptr<Command> make_perf();
std::unique_ptr<Command> make_plot();
std::unique_ptr<Command> make_eval();
std::unique_ptr<Command> make_ppl();
std::unique_ptr<Command> make_kl();
std::unique_ptr<Command> make_synth();
std::unique_ptr<Command> make_quantize();
std::unique_ptr<Command> make_split();
std::unique_ptr<Command> make_docs();

}  // namespace conclave
