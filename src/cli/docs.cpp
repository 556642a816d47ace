// conclave docs: the option reference (docs/options.md) from the tables themselves.
#include "cli/command.h"

namespace conclave {
namespace {

class DocsCommand : public Command {
 public:
  void declare(OptionTable&) override {}

  int execute(const OptionTable&, Console& console) override {
    console.out.write(
        "# Options\n\nWritten by `conclave docs`; a test checks that this page is current.\n\n"
        "Every option is a flag, a `CONCLAVE_*` variable and a key of the TOML file given by `--config` "
        "(`--block-size`, `CONCLAVE_BLOCK_SIZE`,\n"
        "`block_size`, at the top of the file or in a table named after the command). A flag beats a `CONCLAVE_*` "
        "variable, which beats a variable\n"
        "of the reference stack, which beats the file, which beats the model's own default, which beats the built-in "
        "one. `--print-config` shows\n"
        "every value and where it came from.\n\n"
        "Exit codes: 0 success, 1 other failures (also an interruption), 2 wrong usage or input, 3 a model that cannot "
        "be used, 4 not enough memory,\n"
        "5 device, 6 network or peer rank, 7 below a threshold that was asked for.\n");
    for (const CommandEntry& entry : commands()) {
      if (entry.hidden) continue;
      const auto command = entry.make();
      CommonOptions common;
      console.out.write("\n" + make_table(entry, *command, common).markdown());
    }
    return 0;
  }
};

}  // namespace

std::unique_ptr<Command> make_docs() { return std::make_unique<DocsCommand>(); }

}  // namespace conclave
