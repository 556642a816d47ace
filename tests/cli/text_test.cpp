// conclave tokenize, detokenize and template.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/process.h"

namespace conclave::testing {
namespace {

using Json = nlohmann::json;

std::vector<Json> json_lines(const std::string& text) {
  std::vector<Json> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(Json::parse(line));
  return lines;
}

// The golden folders' tokenizer has one id per byte and no merges.
Json vocabulary(const std::string& model) {
  return Json::parse(std::ifstream(golden(model) + "/tokenizer.json"))["model"]["vocab"];
}

TEST(Tokenize, PlainAndJsonLines) {
  const Json vocab = vocabulary("mixtral-gqa");
  const std::string a = vocab["a"].dump(), b = vocab["b"].dump();
  EXPECT_EQ(conclave({"tokenize", golden("mixtral-gqa"), "ab", "--no-special-tokens"}).out, a + "," + b + "\n");
  const std::string with_bos = conclave({"tokenize", golden("mixtral-gqa"), "ab"}).out;
  EXPECT_EQ(with_bos, vocab["<s>"].dump() + "," + a + "," + b + "\n");
  EXPECT_EQ(conclave({"tokenize", golden("mixtral-gqa"), "--no-special-tokens"}, "ab").out, a + "," + b + "\n");

  const std::string lines =
      "{\"text\": \"ab\", \"add_special_tokens\": false, \"parse_special\": false}\n\n{\"text\": \"\", "
      "\"add_special_tokens\": false}\n";
  const std::vector<Json> answers =
      json_lines(conclave({"tokenize", golden("mixtral-gqa"), "--jsonl", "-"}, lines).out);
  ASSERT_EQ(answers.size(), 2u);
  EXPECT_EQ(answers[0], Json::parse("{\"ids\": [" + a + "," + b + "], \"decoded\": \"ab\"}"));
  EXPECT_EQ(answers[1], Json::parse("{\"ids\": [], \"decoded\": \"\"}"));
}

TEST(Tokenize, ControlTokensInTextNeedToBeAskedFor) {
  const std::string plain = conclave({"tokenize", golden("mixtral-gqa"), "</s>", "--no-special-tokens"}).out;
  const std::string parsed =
      conclave({"tokenize", golden("mixtral-gqa"), "</s>", "--no-special-tokens", "--parse-special"}).out;
  EXPECT_EQ(std::count(plain.begin(), plain.end(), ','), 3) << plain;
  EXPECT_EQ(parsed, vocabulary("mixtral-gqa")["</s>"].dump() + "\n");
}

TEST(Tokenize, AFolderWithTokenizerFilesIsEnough) {
  const TemporaryFolder folder;
  std::filesystem::copy(golden("mixtral-gqa") + "/tokenizer.json", folder.path / "mine.json");
  const std::string file = (folder.path / "mine.json").string();
  EXPECT_EQ(
      conclave({"tokenize", folder.path.string(), "ab", "--tokenizer-file", file, "--no-special-tokens"}).exit_code, 0);
  const ProcessResult none = conclave({"tokenize", folder.path.string(), "ab"});
  EXPECT_EQ(none.exit_code, 3);
  EXPECT_NE(none.err.find(folder.path.string()), std::string::npos) << none.err;
}

TEST(Tokenize, BadLinesNameFileAndLine) {
  const TemporaryFolder folder;
  const auto error = [&](const std::string& text) {
    const std::string file = folder.write("in.jsonl", text).string();
    const ProcessResult r = conclave({"tokenize", golden("mixtral-gqa"), "--jsonl", file});
    EXPECT_EQ(r.exit_code, 2) << r.err;
    EXPECT_NE(r.err.find("in.jsonl:2"), std::string::npos) << r.err;
    EXPECT_EQ(json_lines(r.out).size(), 1u) << "answers of the lines before";
    return r.err;
  };
  const std::string good = "{\"text\": \"a\"}\n";
  EXPECT_NE(error(good + "{\"text\": \n").find("byte"), std::string::npos);
  EXPECT_NE(error(good + "[1]\n").find("array"), std::string::npos);
  EXPECT_NE(error(good + "{\"txt\": \"a\"}\n").find("\"text\" is missing"), std::string::npos);
  EXPECT_NE(error(good + "{\"text\": 5}\n").find("wanted a string"), std::string::npos);
  EXPECT_NE(error(good + "{\"text\": \"a\", \"parse_special\": 1}\n").find("wanted true or false"), std::string::npos);
  EXPECT_EQ(conclave({"tokenize", golden("mixtral-gqa"), "--jsonl", "/nonexistent"}).exit_code, 2);
}

TEST(Detokenize, IsTheInverse) {
  const ProcessResult ids = conclave({"tokenize", golden("mixtral-gqa"), "héllo wörld", "--no-special-tokens"});
  ASSERT_EQ(ids.exit_code, 0);
  std::string list = ids.out.substr(0, ids.out.size() - 1);
  EXPECT_EQ(conclave({"detokenize", golden("mixtral-gqa"), "--ids", list}).out, "héllo wörld\n");
  EXPECT_EQ(conclave({"detokenize", golden("mixtral-gqa"), "--ids", ""}).exit_code, 0);
  EXPECT_EQ(conclave({"detokenize", golden("mixtral-gqa")}).exit_code, 2);
  EXPECT_EQ(conclave({"detokenize", golden("mixtral-gqa"), "--ids", "1,x"}).exit_code, 2);
}

TEST(TemplateCommand, JsonLinesNeedNoModel) {
  const std::string line = Json({{"template",
                                  "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% "
                                  "if add_generation_prompt %}>{% endif %}{{ x }}"},
                                 {"special_tokens", {{"bos_token", "<s>"}}},
                                 {"messages", {{{"role", "user"}, {"content", "é"}}}},
                                 {"add_generation_prompt", true},
                                 {"extra", {{"x", 7}}},
                                 {"tools", nullptr},
                                 {"now", nullptr}})
                               .dump();
  const std::string broken = Json({{"template", "{% if %}"}, {"messages", Json::array()}}).dump();
  const std::string raised =
      Json({{"template", "{{ raise_exception('roles must alternate') }}"}, {"messages", Json::array()}}).dump();
  const ProcessResult r = conclave({"template", "--jsonl", "-"}, line + "\n" + broken + "\n" + raised + "\n");
  ASSERT_EQ(r.exit_code, 0) << r.err;
  const std::vector<Json> answers = json_lines(r.out);
  ASSERT_EQ(answers.size(), 3u);
  EXPECT_EQ(answers[0], Json({{"text", "<s>[user]é>7"}}));
  EXPECT_TRUE(answers[1].contains("error") && !answers[1].contains("text"));
  EXPECT_NE(answers[2]["error"].get<std::string>().find("roles must alternate"), std::string::npos);
}

TEST(TemplateCommand, RendersTheModelsTemplate) {
  const TemporaryFolder folder;
  folder.write("chat_template.jinja",
               "{% for m in messages %}{{ m.content }};{% endfor %}{{ 'A:' if add_generation_prompt }}{{ k }}");
  const std::string messages = folder.write("m.json", "[{\"role\": \"user\", \"content\": \"hi\"}]").string(),
                    model = folder.path.string();
  EXPECT_EQ(conclave({"template", model, "--messages", messages}).out, "hi;A:");
  EXPECT_EQ(
      conclave({"template", model, "--messages", messages, "--no-generation-prompt", "--kwargs", "{\"k\": \"!\"}"}).out,
      "hi;!");
  const ProcessResult bad =
      conclave({"template", model, "--messages", folder.write("b.json", "[{\"role\": ]").string()});
  EXPECT_NE(bad.exit_code, 0);
  EXPECT_NE(bad.err.find("b.json"), std::string::npos) << bad.err;
  EXPECT_EQ(conclave({"template", model, "--messages", messages, "--kwargs", "[1]"}).exit_code, 2);
  const TemporaryFolder empty;
  EXPECT_EQ(conclave({"template", empty.path.string(), "--messages", messages}).exit_code, 3);
}

}  // namespace
}  // namespace conclave::testing
