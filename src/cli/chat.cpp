// conclave chat: a conversation at the terminal, or line by line from a pipe.
#include <fmt/format.h>

#include <random>

#include "cli/command.h"
#include "cli/dialogue.h"
#include "cli/engine_start.h"
#include "cli/json_lines.h"
#include "cli/line_reader.h"
#include "cli/model_files.h"
#include "cli/model_options.h"
#include "cli/prompts.h"
#include "cli/reference_variables.h"
#include "cli/report.h"
#include "cli/sampling_options.h"
#include "core/error.h"
#include "core/json.h"
#include "io/partial_file.h"

namespace conclave {
namespace {

constexpr int kDefaultContext = 4096;
constexpr std::string_view kHelp =
    "/help           this list\n"
    "/exit           leave (also Ctrl-D)\n"
    "/clear          begin a new dialogue\n"
    "/regen          make the last reply anew\n"
    "/system TEXT    set the system message; without TEXT remove it\n"
    "/save FILE      write the dialogue as JSON\n"
    "/load FILE      continue a saved dialogue\n"
    "/stats          tokens and speed of the last reply\n"
    "Ctrl-C stops a reply.\n";

class ChatCommand : public Command {
 public:
  void declare(OptionTable& table) override {
    table.positionals("MODEL", positionals_, 1);
    table.group("Chat");
    table.add("system", &prompt_.system, "system message").placeholder("TEXT");
    table.add("chat-template", &prompt_.chat_template, "use this chat template instead of the model's")
        .placeholder("TEXT|FILE");
    table.add("max-output-length", &max_output_length_, "most new tokens of a reply")
        .placeholder("N")
        .range(1, 1 << 30)
        .also("max-new-tokens");
    table.add("max-context", &max_context_, "tokens that a dialogue may have").placeholder("N").range(2, 1 << 30);
    table.add("stop", &stop_, "end a reply before this string; may be repeated").placeholder("TEXT");
    table.add("history", &history_, "file of earlier input lines; empty for none").placeholder("FILE");
    declare_sampling_options(table, sampling_);
    options_.block_size = 16;  // the next turn takes over whole blocks of the last one
    declare_model_options(table, options_);
    declare_parallel_options(table, parallel_);
    table.example("conclave chat models/demo-mixtral");
    table.example("echo \"Hello\" | conclave chat models/demo-mixtral --temperature 0");
  }

  void complete(OptionTable& table) override {
    take_model(table, options_, positionals_);
    if (!positionals_.empty())
      throw Error(Error::Kind::bad_input, fmt::format("unexpected argument \"{}\"", positionals_[0]));
    if (!table.given("history"))
      table.model_default("history", LineReader::default_history().string(), "XDG state directory");
    if (table.print_config_asked() && options_.model.empty()) return;
    const int model_len = read_spec(options_).max_len;
    table.model_default("max-position-embeddings", fmt::format("{}", model_len), "config.json");
    if (max_context_ > options_.max_position_embeddings && table.given("max-context")) {
      throw Error(Error::Kind::bad_input,
                  fmt::format("--max-context is {}, more than the model's longest sequence of {} tokens", max_context_,
                              model_len));
    }
    if (max_context_ > options_.max_position_embeddings) {
      table.model_default("max-context", fmt::format("{}", options_.max_position_embeddings), "config.json");
    }
    take_generation_defaults(table);
  }

  bool prints_prose() const override { return true; }

  int execute(const OptionTable& table, Console& console) override {
    explain_reference_variables(console.log);
    RankJob job(parallel_, options_);
    if (job.follows()) return job.follow(open_model(options_, console.log)), 0;
    Interrupts interrupts;
    const ModelFiles model = open_model(options_, console.log);
    const auto tokenizer = open_tokenizer(model);
    if (!tokenizer) throw Error(Error::Kind::bad_input, "chat needs a tokenizer, and the model has none");
    const auto chat = choose_template(prompt_, model, true, console.log);
    EngineOptions options = engine_options(options_);
    options.max_context = max_context_;
    const auto engine = start_engine(model, options, job, console.log, interrupts);
    if (!table.given("seed")) sampling_.seed = std::random_device{}();
    Dialogue dialogue({*engine, *tokenizer, *chat}, {.sampling = sampling_,
                                                     .max_new_tokens = max_output_length_,
                                                     .eos_ids = eos_ids_of(model, tokenizer.get()),
                                                     .stop = stop_});
    dialogue.set_system(prompt_.system);
    return converse({dialogue, *engine, interrupts, console});
  }

 private:
  struct Session {
    Dialogue& dialogue;
    const Engine& engine;
    Interrupts& interrupts;
    Console& console;
  };

  /// As in transformers, the file's sampling values hold only when it says that sampling is on.
  void take_generation_defaults(OptionTable& table) {
    const GenerationDefaults d = read_generation_config(options_.model);
    if (!d.do_sample) return;
    const std::string file = "generation_config.json";
    table.model_default("temperature", fmt::format("{}", d.temperature.value_or(1.0f)), file);
    if (d.top_k) table.model_default("top-k", fmt::format("{}", *d.top_k), file);
    if (d.top_p) table.model_default("top-p", fmt::format("{}", *d.top_p), file);
    if (d.min_p) table.model_default("min-p", fmt::format("{}", *d.min_p), file);
    if (d.repetition_penalty) table.model_default("repetition-penalty", fmt::format("{}", *d.repetition_penalty), file);
  }

  /// Until the end of input. On a terminal errors are shown and the conversation goes on; from a pipe they decide the
  /// exit code.
  int converse(Session session) {
    LineReader reader(history_);
    if (reader.interactive()) session.console.log.info("/help lists the commands");
    int code = 0;
    for (std::string line;;) {
      const LineReader::Result result = reader.read("> ", line);
      if (result == LineReader::Result::interrupted) {
        if (!reader.interactive()) throw Error(Error::Kind::cancelled, "interrupted");
        session.interrupts.clear();
        session.console.out.line("");
        session.console.out.flush();
        continue;
      }
      if (result == LineReader::Result::end) break;
      if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
      try {
        require_utf8(line, "input");
        if (line == "/exit" || line == "/quit") return code;
        if (line.front() == '/')
          obey(session, line);
        else
          show(session, [&](const auto& on_text) { return session.dialogue.say(line, session.interrupts, on_text); });
      } catch (const Error& e) {
        session.console.log.error(e.what());
        if (!reader.interactive()) code = exit_code(e.kind);
      }
    }
    if (reader.interactive()) session.console.out.line("");
    return code;
  }

  void obey(Session& session, const std::string& line) {
    const size_t space = line.find(' '), begin = line.find_first_not_of(' ', space);
    const std::string name = line.substr(0, space), argument = begin == std::string::npos ? "" : line.substr(begin);
    const auto need_file = [&] {
      if (argument.empty()) throw Error(Error::Kind::bad_input, fmt::format("{} needs a file name", name));
    };
    if (name == "/help") return say(session, kHelp);
    if (name == "/clear") return session.dialogue.clear();
    if (name == "/regen")
      return show(session, [&](const auto& on_text) { return session.dialogue.again(session.interrupts, on_text); });
    if (name == "/system") return session.dialogue.set_system(argument);
    if (name == "/stats") return say(session, stats(session.engine) + "\n");
    if (name == "/save") {
      need_file();
      require_writable(argument, "/save");
      return write_file(
          argument,
          session.dialogue.messages().dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
    }
    if (name == "/load") {
      need_file();
      return session.dialogue.load(parse_json(read_input(argument, "/load"), argument));
    }
    const std::string near =
        closest(name, {"/help", "/exit", "/clear", "/regen", "/system", "/save", "/load", "/stats"});
    throw Error(Error::Kind::bad_input, fmt::format("unknown command {}{}; /help lists them", name,
                                                    near.empty() ? "" : fmt::format("; did you mean {}?", near)));
  }

  static void say(Session& session, std::string_view text) {
    session.console.out.write(text);
    session.console.out.flush();
  }

  template <class Speak>
  void show(Session& session, const Speak& speak) {
    const bool interactive = session.console.out.is_terminal();
    last_ = speak([&](std::string_view piece) {
      session.console.out.model_text(piece);
      session.console.out.flush();
    });
    say(session, "\n");
    if (last_->finish_reason == "cancelled") {
      session.interrupts.clear();
      session.console.log.info("stopped; the reply so far is kept");
    } else if (last_->finish_reason == "length" && interactive) {
      session.console.log.info(
          fmt::format("the reply reached {} tokens; --max-output-length allows more", last_->output_ids.size()));
    }
  }

  std::string stats(const Engine& engine) const {
    if (!last_) return "no reply yet";
    const AnswerFigures f = figures_of(*last_, engine);
    const RequestStats& s = last_->stats;
    return fmt::format(
        "{} tokens in the dialogue, {} of them from the cache; {:.1f} tokens/s prefill; {} new tokens, {:.1f} tokens/s "
        "decode; "
        "{:.2f} GB/s of weights read; context {}",
        s.prompt_tokens + s.new_tokens, s.cached_tokens, f.prefill_tokens_per_s, s.new_tokens, f.decode_tokens_per_s,
        f.weight_gb_per_s, engine.options().max_context);
  }

  std::vector<std::string> positionals_, stop_;
  ModelOptions options_;
  ParallelOptions parallel_;
  PromptOptions prompt_;
  Sampling sampling_;
  std::string history_;
  int max_output_length_ = 512, max_context_ = kDefaultContext;
  std::optional<Answer> last_;
};

}  // namespace

std::unique_ptr<Command> make_chat() { return std::make_unique<ChatCommand>(); }

}  // namespace conclave
