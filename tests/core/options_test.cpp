#include "core/options.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "core/error.h"

namespace conclave {
namespace {

struct Fields {
  std::string model;
  bool chat = false;
  int length = 20;
  float temperature = 0.0f;
  uint64_t seed = 0;
  std::string kv = "paged";
  std::vector<std::string> prompts, rest;
  std::optional<std::string> benchmark;
  std::optional<uint64_t> random;
};

OptionTable table_for(Fields& f) {
  OptionTable t("run", "Runs.");
  t.positionals("MODEL [PROMPT...]", f.rest, 99);
  t.group("Model");
  t.add("model", &f.model, "folder").placeholder("DIR");
  t.add("chat", &f.chat, "use the template");
  t.add("max-output-length", &f.length, "new tokens")
      .placeholder("N")
      .range(1, 1000)
      .also("max-new-tokens")
      .reference("OLD_LENGTH");
  t.add("temperature", &f.temperature, "randomness").placeholder("X").range(0, 10);
  t.add("seed", &f.seed, "of the sampler").placeholder("N");
  t.add("kv", &f.kv, "cache layout")
      .choices({"paged", "contiguous"})
      .reference("OLD_KV", [](const std::string& v, const auto&) -> std::optional<std::string> {
        if (v == "1") return "contiguous";
        return std::nullopt;
      });
  t.add("prompt", &f.prompts, "text").placeholder("TEXT");
  t.add("benchmark", &f.benchmark, "times").placeholder("FILE").implicit("bench.csv");
  t.add("random-weights", &f.random, "no files").placeholder("SEED").implicit("7");
  return t;
}

struct TomlFile {
  std::filesystem::path path;
  explicit TomlFile(const std::string& text)
      : path(std::filesystem::temp_directory_path() / ("options_test_" + std::to_string(::getpid()) + ".toml")) {
    std::ofstream(path) << text;
  }
  ~TomlFile() { std::filesystem::remove(path); }
};

std::string error_of(const OptionSources& sources) {
  Fields f;
  OptionTable t = table_for(f);
  try {
    t.parse(sources);
  } catch (const Error& e) {
    EXPECT_EQ(exit_code(e.kind), 2);
    return e.what();
  }
  return "";
}

void expect_contains(const std::string& text, std::initializer_list<std::string_view> parts) {
  for (const std::string_view part : parts)
    EXPECT_NE(text.find(part), std::string::npos) << "\"" << part << "\" not in: " << text;
}

TEST(Options, PrecedenceIsFlagVariableAliasFileModelDefault) {
  const TomlFile file("max_output_length = 4\n");
  OptionSources s{.arguments = {"--config", file.path.string(), "--max-output-length", "1"},
                  .variables = {{"CONCLAVE_MAX_OUTPUT_LENGTH", "2"}, {"OLD_LENGTH", "3"}}};
  const int expected[] = {1, 2, 3, 4, 5, 20};
  const Origin origins[] = {Origin::flag, Origin::variable, Origin::alias,
                            Origin::file, Origin::model,    Origin::built_in};
  for (int stage = 0; stage < 6; ++stage) {
    if (stage == 1) s.arguments.resize(2);
    if (stage == 2) s.variables.erase("CONCLAVE_MAX_OUTPUT_LENGTH");
    if (stage == 3) s.variables.clear();
    if (stage == 4) s.arguments.clear();
    Fields f;
    OptionTable t = table_for(f);
    t.parse(s);
    if (stage < 5) t.model_default("max-output-length", "5", "config.json");
    EXPECT_EQ(f.length, expected[stage]) << "stage " << stage;
    EXPECT_EQ(t.find("max-output-length").origin(), origins[stage]) << "stage " << stage;
  }
}

TEST(Options, ConfigTextSaysWhereEveryValueCameFrom) {
  const TomlFile file("[run]\nseed = 9\n[serve]\nport = 1\n");
  Fields f;
  OptionTable t = table_for(f);
  t.parse({.arguments = {"--chat", "--prompt", "a \"b\"", "--prompt=c"},
           .variables = {{"CONCLAVE_CONFIG", file.path.string()}, {"OLD_KV", "1"}, {"CONCLAVE_TEMPERATURE", "0.5"}},
           .commands = {"run", "serve"}});
  t.model_default("max-output-length", "64", "generation_config.json");
  const std::string text = t.config_text();
  const auto line = [&](const std::string& key) {
    const size_t at = text.find("\n" + key + " ") + 1;
    return text.substr(at, text.find('\n', at) - at);
  };
  expect_contains(line("chat"), {"chat = true", "# flag"});
  expect_contains(line("prompt"), {"prompt = [\"a \\\"b\\\"\", \"c\"]", "# flag"});
  expect_contains(line("seed"), {"seed = 9", "file " + file.path.string() + ":2"});
  expect_contains(line("kv"), {"kv = \"contiguous\"", "variable OLD_KV"});
  expect_contains(line("temperature"), {"temperature = 0.5", "variable CONCLAVE_TEMPERATURE"});
  expect_contains(line("max_output_length"), {"= 64", "model: generation_config.json"});
  expect_contains(text, {"# benchmark is not set"});
}

TEST(Options, PositionalsMixWithFlagsAndKeepBracketsAndDashes) {
  Fields f;
  OptionTable t = table_for(f);
  t.parse({.arguments = {"folder", "[INST] one, two [/INST]", "--max-new-tokens=3", "-", "--", "--not-a-flag", "-5"}});
  EXPECT_EQ(f.rest, (std::vector<std::string>{"folder", "[INST] one, two [/INST]", "-", "--not-a-flag", "-5"}));
  EXPECT_EQ(f.length, 3);
}

TEST(Options, ValuesInBracketsOrWithLeadingDashesAreTakenWhole) {
  Fields f;
  OptionTable t = table_for(f);
  t.parse({.arguments = {"--prompt", "[a,b]", "--prompt", "-x", "--temperature", "1e-1"}});
  EXPECT_EQ(f.prompts, (std::vector<std::string>{"[a,b]", "-x"}));
  EXPECT_FLOAT_EQ(f.temperature, 0.1f);
}

TEST(Options, ImplicitValuesNeedAnEqualsSignToBeReplaced) {
  Fields f;
  OptionTable t = table_for(f);
  t.parse({.arguments = {"--benchmark", "folder", "--random-weights"}});
  EXPECT_EQ(f.benchmark, "bench.csv");
  EXPECT_EQ(f.random, 7u);
  EXPECT_EQ(f.rest, std::vector<std::string>{"folder"});
  Fields g;
  OptionTable u = table_for(g);
  u.parse({.arguments = {"--benchmark=x.csv", "--random-weights=12"}, .variables = {{"CONCLAVE_BENCHMARK", "1"}}});
  EXPECT_EQ(g.benchmark, "x.csv");
  EXPECT_EQ(g.random, 12u);
  Fields h;
  OptionTable v = table_for(h);
  v.parse({.variables = {{"CONCLAVE_BENCHMARK", "1"}, {"CONCLAVE_RANDOM_WEIGHTS", "1"}}});
  EXPECT_EQ(h.benchmark, "bench.csv");
  EXPECT_EQ(h.random, 1u);
}

TEST(Options, UnknownFlagsGetASuggestion) {
  expect_contains(error_of({.arguments = {"--max-output-lenght=5"}}),
                  {"--max-output-lenght", "did you mean --max-output-length?"});
  expect_contains(error_of({.arguments = {"--tempratur", "1"}}), {"--tempratur", "--temperature"});
  expect_contains(error_of({.arguments = {"-n"}}), {"unknown option -n"});
}

TEST(Options, BadValuesNameOptionValueAndWhatIsAllowed) {
  expect_contains(error_of({.arguments = {"--max-output-length", "abc"}}),
                  {"--max-output-length", "\"abc\"", "from 1 to 1000"});
  expect_contains(error_of({.arguments = {"--max-output-length", "0"}}),
                  {"--max-output-length", "\"0\"", "from 1 to 1000"});
  expect_contains(error_of({.arguments = {"--seed", "-1"}}), {"--seed", "\"-1\"", "whole number"});
  expect_contains(error_of({.arguments = {"--seed", "99999999999999999999"}}), {"--seed"});
  expect_contains(error_of({.arguments = {"--temperature", "nan"}}), {"--temperature", "\"nan\"", "from 0 to 10"});
  expect_contains(error_of({.arguments = {"--kv", "pages"}}),
                  {"--kv", "\"pages\"", "paged, contiguous", "did you mean paged?"});
  expect_contains(error_of({.arguments = {"--seed"}}), {"--seed"});
  expect_contains(error_of({.arguments = {"--chat=maybe"}}), {"--chat", "maybe"});
  expect_contains(error_of({.variables = {{"CONCLAVE_SEED", "x"}}}), {"--seed", "CONCLAVE_SEED", "\"x\""});
}

TEST(Options, FileErrorsNameFileLineAndKey) {
  const TomlFile typo("seed = 1\nmax_output_lenght = 5\n");
  expect_contains(error_of({.arguments = {"--config", typo.path.string()}}),
                  {typo.path.string() + ":2", "unknown key max_output_lenght", "did you mean max_output_length?"});
  const TomlFile value("\nkv = \"disk\"\n");
  expect_contains(error_of({.arguments = {"--config", value.path.string()}}),
                  {value.path.string() + ":2", "disk", "paged"});
  const TomlFile broken("seed = = 1\n");
  expect_contains(error_of({.arguments = {"--config", broken.path.string()}}), {broken.path.string() + ":1"});
  const TomlFile table("[rnu]\nseed = 1\n");
  expect_contains(error_of({.arguments = {"--config", table.path.string()}, .commands = {"run", "chat"}}),
                  {"rnu", "did you mean run?"});
  expect_contains(error_of({.arguments = {"--config", "/nonexistent.toml"}}), {"/nonexistent.toml"});
}

TEST(Options, OtherCommandsKeysAreAllowedOnlyAtTheTopOfAFile) {
  const TomlFile top("port = 1\n");
  EXPECT_EQ(error_of({.arguments = {"--config", top.path.string()}, .other_options = {"port"}}), "");
  const TomlFile inside("[run]\nport = 1\n");
  expect_contains(
      error_of({.arguments = {"--config", inside.path.string()}, .commands = {"run"}, .other_options = {"port"}}),
      {"unknown key port"});
}

TEST(Options, VariablesThatNoCommandKnowsAreNoted) {
  Fields f;
  OptionTable t = table_for(f);
  t.parse(
      {.variables = {{"CONCLAVE_TEMPERATUR", "1"}, {"CONCLAVE_PORT", "1"}, {"HOME", "/"}}, .other_options = {"port"}});
  ASSERT_EQ(t.notes().size(), 1u);
  expect_contains(t.notes()[0], {"CONCLAVE_TEMPERATUR", "--temperature"});
}

TEST(Options, TooManyPositionalsAreRefused) {
  std::vector<std::string> rest;
  OptionTable t("inspect", "Shows.");
  t.positionals("MODEL", rest, 1);
  EXPECT_THROW(t.parse({.arguments = {"a", "b"}}), Error);
}

TEST(Options, ACommandMayUseACommonNameForItself) {
  std::string shape;
  OptionTable t("synth", "Writes.");
  t.add("config", &shape, "shape");
  t.parse({.arguments = {"--config", "no-such-file"}});
  EXPECT_EQ(shape, "no-such-file");
}

TEST(Options, HelpListsEveryOptionAndIgnoresTheRest) {
  Fields f;
  OptionTable t = table_for(f);
  t.example("conclave run models/demo \"Hello\"");
  t.parse({.arguments = {"--bogus", "--help"}});
  EXPECT_TRUE(t.help_asked());
  for (const std::string& name : t.names()) expect_contains(t.help(), {"--" + name});
  expect_contains(t.help(),
                  {"usage: conclave run MODEL [PROMPT...]", "conclave run models/demo \"Hello\"", "(default 20)"});
}

}  // namespace
}  // namespace conclave
