// conclave template: renders chat templates, the model's or given ones.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/json_lines.h"
#include "core/error.h"
#include "core/json.h"
#include "text/chat.h"
#include "text/jinja.h"

namespace conclave {
namespace {

using Json = nlohmann::ordered_json;

Json member(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found == object.end() ? Json(nullptr) : *found;
}

class TemplateCommand : public Command {
 public:
  void declare(OptionTable& table) override {
    table.positionals("[MODEL]", positionals_, 1);
    table.group("Messages");
    table.add("messages", &messages_, "list of {\"role\", \"content\"} to render (- is standard input)")
        .placeholder("FILE.json");
    table.add("no-generation-prompt", &no_generation_prompt_, "do not open the assistant's turn at the end");
    table.add("kwargs", &kwargs_, "more variables, a JSON object").placeholder("JSON");
    table.add("chat-template", &name_, "which one of several named templates of the model").placeholder("NAME");
    table
        .add("jsonl", &jsonl_,
             "answer every line {\"template\", \"special_tokens\", \"messages\", \"tools\", \"documents\", "
             "\"add_generation_prompt\", \"extra\", \"now\"} of this file (- is standard input) by {\"text\"} or "
             "{\"error\"}; without "
             "\"template\" the model's is used")
        .placeholder("FILE");
    table.example("conclave template models/demo-mixtral --messages dialogue.json");
    table.example("conclave template --jsonl cases.jsonl");
  }

  int execute(const OptionTable&, Console& console) override {
    if (messages_.empty() == jsonl_.empty()) {
      throw Error(Error::Kind::bad_input, "wanted one of --messages FILE.json and --jsonl FILE");
    }
    if (!messages_.empty()) {
      if (positionals_.empty())
        throw Error(Error::Kind::bad_input, "no model given; usage: conclave template MODEL --messages FILE.json");
      render_one(console);
      return 0;
    }
    for_each_json_line(jsonl_, [&](const Json& line, const std::string& where) {
      require_object(line, where);
      Json answer;
      try {
        answer["text"] = render_line(line, where);
      } catch (const Error& e) { answer["error"] = e.what(); }
      console.out.line(json_line(answer));
    });
    return 0;
  }

 private:
  ChatTemplate model_template() const {
    auto found = ChatTemplate::from_folder(positionals_.at(0), name_.empty() ? "default" : name_);
    if (!found) {
      throw Error(Error::Kind::bad_model,
                  fmt::format("{}: neither chat_template.jinja nor tokenizer_config.json holds a chat template",
                              positionals_[0]));
    }
    return std::move(*found);
  }

  void render_one(Console& console) {
    const std::string source = messages_ == "-" ? "standard input" : messages_;
    const Json messages = parse_json(read_input(messages_, "--messages"), source);
    if (!messages.is_array()) {
      throw Error(Error::Kind::bad_input, fmt::format("{}: found {}, wanted a list of {{\"role\", \"content\"}}",
                                                      source, messages.type_name()));
    }
    const Json extra = kwargs_.empty() ? Json::object() : parse_json(kwargs_, "--kwargs");
    require_object(extra, "--kwargs");
    const ChatTemplate chat = model_template();
    console.log.info(chat.origin());
    console.out.write(concatenate(chat.render({.messages = messages,
                                               .add_generation_prompt = !no_generation_prompt_,
                                               .tools = nullptr,
                                               .documents = nullptr,
                                               .extra = &extra,
                                               .now = ""})));
    if (console.out.is_terminal()) console.out.write("\n");
  }

  std::string render_line(const Json& line, const std::string& where) const {
    const Json messages = member(line, "messages"), tools = member(line, "tools"),
               documents = member(line, "documents");
    const Json extra = line.contains("extra") && !line["extra"].is_null() ? line["extra"] : Json::object();
    require_object(extra, where + ": \"extra\"");
    const bool open_turn = boolean_or(line, "add_generation_prompt", !no_generation_prompt_, where);
    const std::string now = text_or(line, "now", "", where);
    if (!line.contains("template")) {
      if (positionals_.empty())
        throw Error(Error::Kind::bad_input, fmt::format("{}: \"template\" is missing and no MODEL is given", where));
      return concatenate(model_template().render({.messages = messages,
                                                  .add_generation_prompt = open_turn,
                                                  .tools = tools.is_null() ? nullptr : &tools,
                                                  .documents = documents.is_null() ? nullptr : &documents,
                                                  .extra = &extra,
                                                  .now = now}));
    }
    Json variables = {
        {"messages", messages}, {"tools", tools}, {"documents", documents}, {"add_generation_prompt", open_turn}};
    variables.update(extra);
    const Json given_tokens = member(line, "special_tokens");
    if (!given_tokens.is_null()) require_object(given_tokens, where + ": \"special_tokens\"");
    std::map<std::string, std::string> special_tokens;
    for (const auto& [name, token] : given_tokens.items()) {
      if (token.is_string()) special_tokens[name] = token.get<std::string>();
    }
    return concatenate(
        Template(text_or(line, "template", "", where)).render({variables, std::move(special_tokens), now}));
  }

  std::vector<std::string> positionals_;
  std::string messages_, kwargs_, jsonl_, name_;
  bool no_generation_prompt_ = false;
};

}  // namespace

std::unique_ptr<Command> make_template() { return std::make_unique<TemplateCommand>(); }

}  // namespace conclave
