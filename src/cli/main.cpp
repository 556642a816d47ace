#include <fmt/format.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <exception>
#include <functional>
#include <new>

#include "cli/command.h"
#include "cli/reference_variables.h"
#include "core/error.h"

extern char** environ;  // NOLINT: POSIX

namespace conclave {

std::span<const CommandEntry> commands() {
  static constexpr CommandEntry kCommands[] = {
      {"run", "generate text for prompts", make_run},
      {"chat", "talk to a model", make_chat},
      {"serve", "serve a model over HTTP", make_serve},
      {"dump", "write logits, greedy tokens and inner activations of a prompt to a file", make_dump},
      {"tokenize", "text to token ids", make_tokenize},
      {"detokenize", "token ids to text", make_detokenize},
      {"template", "render a chat template", make_template},
      {"inspect", "show what a model is, its parameters and the memory it needs", make_inspect},
      {"bench", "measure speed against this machine's limits", make_bench},
      {"bench serve", "measure a running server under load", make_bench_serve},
      {"perf", "time prompts and generation at fixed lengths and batch sizes", make_perf},
      {"plot", "draw curves of performance files", make_plot},
      {"eval", "score a model on data sets", make_eval},
      {"ppl", "measure the perplexity of a text", make_ppl},
      {"kl", "measure how far two models are apart on a text", make_kl},
      {"synth", "write a checkpoint with random weights", make_synth},
      {"quantize", "convert a model folder to integer weights", make_quantize},
      {"split", "cut a model folder for a fixed number of ranks, or join it again", make_split},
      {"docs", "print the option reference", make_docs, true},
  };
  return kCommands;
}

OptionTable make_table(const CommandEntry& entry, Command& command, CommonOptions& common) {
  OptionTable table{std::string(entry.name), std::string(entry.summary)};
  table.add("log-level", &common.log_level, "messages to show")
      .choices(Log::levels())
      .reference("MINDIE_LOG_LEVEL", reference_log_level);
  table.add("log-file", &common.log_file, "also write messages to this file")
      .placeholder("FILE")
      .reference("MINDIE_LOG_TO_FILE", reference_log_file);
  table.add("log-stdout", &common.log_stdout, "show messages on standard output, between the results (run without --json, chat)")
      .reference("MINDIE_LOG_TO_STDOUT", reference_log_stdout);
  command.declare(table);
  return table;
}

namespace {

OptionSources sources_for(const CommandEntry& self, std::vector<std::string> arguments) {
  OptionSources sources{.arguments = std::move(arguments)};
  for (char** entry = environ; *entry; ++entry) {
    const std::string_view text = *entry;
    const size_t equals = text.find('=');
    if (equals != std::string_view::npos) sources.variables.emplace(text.substr(0, equals), text.substr(equals + 1));
  }
  for (const CommandEntry& entry : commands()) {
    sources.commands.emplace_back(entry.name);
    if (entry.name == self.name) continue;
    CommonOptions common;
    const auto command = entry.make();
    for (std::string& name : make_table(entry, *command, common).names())
      sources.other_options.push_back(std::move(name));
  }
  return sources;
}

std::string general_help() {
  std::string text =
      "Conclave runs mixture-of-experts language models from Hugging Face folders.\n\nusage: conclave COMMAND "
      "[options]\n\ncommands:\n";
  for (const CommandEntry& entry : commands()) {
    if (!entry.hidden) text += fmt::format("  {:<13}{}\n", entry.name, entry.summary);
  }
  return text +
         "\n`conclave COMMAND --help` explains a command.\n\nexample:\n  conclave run models/demo-mixtral \"Who has "
         "the ball?\"\n";
}

/// Messages must not stand between lines that programs read: a flag that asks for it is refused, a variable of the
/// reference stack gives way.
std::function<void(std::string_view)> log_output(const OptionTable& table, const CommonOptions& common,
                                                 const Command& command, Output& out) {
  if (!common.log_stdout) return {};
  if (!command.prints_prose()) {
    if (table.find("log-stdout").origin() == Origin::alias) return {};
    throw Error(Error::Kind::bad_input,
                fmt::format("--log-stdout: the output of `conclave {}` is for programs here; use --log-file",
                            table.command()));
  }
  return [&out](std::string_view line) {
    out.line(line);
    out.flush();
  };
}

int run_command(const CommandEntry& entry, std::vector<std::string> arguments, Output& out) {
  const auto command = entry.make();
  CommonOptions common;
  OptionTable table = make_table(entry, *command, common);
  table.parse(sources_for(entry, std::move(arguments)));
  if (table.help_asked()) {
    out.write(table.help());
    return 0;
  }
  command->complete(table);
  if (table.print_config_asked()) {
    out.write(table.config_text());
    return 0;
  }
  Log log(common.log_level, common.log_file, log_output(table, common, *command, out));
  for (const std::string& note : table.notes()) log.warning(note);
  Console console{log, out};
  return command->execute(table, console);
}

int dispatch(std::vector<std::string> arguments, Output& out) {
  if (arguments.empty()) { throw Error(Error::Kind::bad_input, "no command given; `conclave --help` lists them"); }
  std::string name = arguments.front();
  arguments.erase(arguments.begin());
  if (name == "--help" || name == "-h" || name == "help") {
    if (name == "help" && !arguments.empty()) {
      arguments.push_back("--help");
      return dispatch(std::move(arguments), out);
    }
    out.write(general_help());
    return 0;
  }
  if (name == "--version" || name == "-V") {
    out.line("conclave " CONCLAVE_VERSION);
    return 0;
  }
  for (const CommandEntry& entry : commands()) {  // "bench serve"
    if (arguments.empty() || entry.name != name + " " + arguments.front()) continue;
    name = entry.name;
    arguments.erase(arguments.begin());
  }
  std::vector<std::string> names;
  for (const CommandEntry& entry : commands()) {
    if (entry.name == name) return run_command(entry, std::move(arguments), out);
    if (!entry.hidden) names.emplace_back(entry.name);
  }
  const std::string near = closest(name, names);
  throw Error(Error::Kind::bad_input, fmt::format("unknown command \"{}\"{}; `conclave --help` lists them", name,
                                                  near.empty() ? "" : fmt::format("; did you mean {}?", near)));
}

/// One line on standard error, whatever the message holds, after the results so far.
int report(Output& out, std::string message, int code) {
  try {
    out.flush();
  } catch (const Error&) {  // the message below is about to say the same
  }
  for (char& c : message) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  }
  fmt::print(stderr, "conclave: error: {}\n", message);
  return code;
}

}  // namespace
}  // namespace conclave

int main(int argc, char** argv) {
  using namespace conclave;
  std::signal(SIGPIPE, SIG_IGN);  // a closed pipe is reported by write()
  Output out;
  try {
    const int code = dispatch({argv + std::min(argc, 1), argv + argc}, out);
    out.flush();
    return code;
  } catch (const Error& e) { return report(out, e.what(), exit_code(e.kind)); } catch (const std::bad_alloc&) {
    return report(out, "out of memory", exit_code(Error::Kind::out_of_memory));
  } catch (const std::exception& e) { return report(out, e.what(), exit_code(Error::Kind::internal)); }
}
