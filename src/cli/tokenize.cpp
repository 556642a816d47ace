// conclave tokenize and conclave detokenize.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/json_lines.h"
#include "cli/token_ids.h"
#include "core/error.h"
#include "text/tokenizer.h"

namespace conclave {
namespace {

using Json = nlohmann::ordered_json;

std::unique_ptr<Tokenizer> load_tokenizer(const std::string& folder, const std::string& file) {
  return Tokenizer::load(folder, file.empty() ? std::nullopt : std::optional<std::filesystem::path>(file));
}

[[noreturn]] void missing_model(const std::string& command) {
  throw Error(Error::Kind::bad_input,
              fmt::format("no model given; usage: conclave {} MODEL, a folder with tokenizer files", command));
}

class TokenizeCommand : public Command {
 public:
  void declare(OptionTable& table) override {
    table.positionals("MODEL [TEXT]", positionals_, 2);
    table.group("Text");
    table
        .add("jsonl", &jsonl_,
             "answer every line {\"text\", \"add_special_tokens\", \"parse_special\"} of this file (- is standard "
             "input) "
             "by a line {\"ids\", \"decoded\"}")
        .placeholder("FILE");
    table.add("add-special-tokens", &add_, "add the tokens that the model's tokenizer adds (BOS, EOS); the default");
    table.add("no-special-tokens", &bare_, "add none");
    table.add("parse-special", &parse_special_, "recognise control tokens written in the text");
    table.add("tokenizer-file", &tokenizer_file_, "use this file of the several in the folder").placeholder("FILE");
    table.add("json", &json_, "print {\"ids\", \"decoded\"} instead of ids only");
    table.example("conclave tokenize models/demo-mixtral \"Hello world\"");
    table.example("conclave tokenize models/demo-mixtral --jsonl texts.jsonl");
  }

  int execute(const OptionTable& table, Console& console) override {
    if (positionals_.empty()) missing_model(table.command());
    if (add_ && bare_)
      throw Error(Error::Kind::bad_input, "--add-special-tokens and --no-special-tokens exclude each other");
    if (!jsonl_.empty() && positionals_.size() > 1) {
      throw Error(Error::Kind::bad_input, fmt::format("TEXT (\"{}\") and --jsonl exclude each other", positionals_[1]));
    }
    const auto tokenizer = load_tokenizer(positionals_[0], tokenizer_file_);
    const EncodeOptions defaults{.add_special_tokens = !bare_, .parse_special = parse_special_};
    if (jsonl_.empty()) {
      const std::string text = positionals_.size() > 1 ? positionals_[1] : read_input("-", "TEXT");
      require_utf8(text, positionals_.size() > 1 ? "TEXT" : "standard input");
      const std::vector<int32_t> ids = tokenizer->encode(text, defaults);
      console.out.line(json_ ? answer(*tokenizer, ids) : join_ids(ids));
      return 0;
    }
    for_each_json_line(jsonl_, [&](const Json& line, const std::string& where) {
      require_object(line, where);
      if (!line.contains("text")) throw Error(Error::Kind::bad_input, fmt::format("{}: \"text\" is missing", where));
      const EncodeOptions options{
          .add_special_tokens = boolean_or(line, "add_special_tokens", defaults.add_special_tokens, where),
          .parse_special = boolean_or(line, "parse_special", defaults.parse_special, where)};
      console.out.line(answer(*tokenizer, tokenizer->encode(text_or(line, "text", "", where), options)));
    });
    return 0;
  }

 private:
  static std::string answer(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
    return json_line({{"ids", ids}, {"decoded", tokenizer.decode(ids, true)}});
  }

  std::vector<std::string> positionals_;
  std::string jsonl_, tokenizer_file_;
  bool add_ = false, bare_ = false, parse_special_ = false, json_ = false;
};

class DetokenizeCommand : public Command {
 public:
  void declare(OptionTable& table) override {
    table.positionals("MODEL", positionals_, 1);
    table.group("Text");
    table.add("ids", &ids_, "token ids; lists separated by spaces give one line of text each")
        .placeholder("\"1,2,3 4,5\"");
    table.add("keep-special-tokens", &keep_special_, "print control tokens too");
    table.add("tokenizer-file", &tokenizer_file_, "use this file of the several in the folder").placeholder("FILE");
    table.example("conclave detokenize models/demo-mixtral --ids \"1,2,3\"");
  }

  int execute(const OptionTable& table, Console& console) override {
    if (positionals_.empty()) missing_model(table.command());
    if (!table.given("ids"))
      throw Error(Error::Kind::bad_input, "no ids given; usage: conclave detokenize MODEL --ids \"1,2,3\"");
    const auto tokenizer = load_tokenizer(positionals_[0], tokenizer_file_);
    for (const auto& ids : parse_id_lists(ids_, "--ids")) console.out.line(tokenizer->decode(ids, !keep_special_));
    return 0;
  }

 private:
  std::vector<std::string> positionals_;
  std::string ids_, tokenizer_file_;
  bool keep_special_ = false;
};

}  // namespace

std::unique_ptr<Command> make_tokenize() { return std::make_unique<TokenizeCommand>(); }
std::unique_ptr<Command> make_detokenize() { return std::make_unique<DetokenizeCommand>(); }

}  // namespace conclave
