#include "core/json.h"

#include <gtest/gtest.h>

#include <chrono>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "support/temp_folder.h"

namespace conclave {
namespace {

using test::error_of;

std::string refusal(std::string_view text, JsonLimits limits = {}) {
  return error_of([&] { parse_json(text, "f.json", limits); });
}

TEST(Json, KeepsKeyOrderAndValues) {
  const auto json = parse_json(R"({"b": [1, -2, 2.5, true, null, "x\u00e9"], "a": {}})", "f.json");
  EXPECT_EQ(json.begin().key(), "b");
  EXPECT_EQ(json["b"][0], 1);
  EXPECT_EQ(json["b"][1], -2);
  EXPECT_EQ(json["b"][2], 2.5);
  EXPECT_EQ(json["b"][5], "xé");
  EXPECT_TRUE(json["a"].is_object());
  EXPECT_TRUE(json["a"].empty());
}

TEST(Json, RefusesWhatTheGrammarDoesNotAllow) {
  for (const std::string_view text :
       {"",     "{",        "[1,]",      "{\"a\":1,}", "{a:1}", "NaN",        "[Infinity]", "[-NaN]",
        "1 2",  "{} x",     "[1]]",      "// c\n1",    "'a'",   "[01]",       "[1.]",       "[.5]",
        "[+1]", "\"a\nb\"", "\"\\x41\"", "[1e999]",    "tru",   "\"\\ud800\""}) {
    const std::string message = refusal(text);
    EXPECT_NE(message.find("f.json"), std::string::npos) << text << ": " << message;
    EXPECT_NE(message.find("byte"), std::string::npos) << text << ": " << message;
  }
}

TEST(Json, RefusesInvalidUtf8AndNulBytes) {
  for (const std::string_view text :
       {"\"\xff\"", "\"\xc0\xaf\"", "\"\xed\xa0\x80\"", "\"\xe2\x82\"", "\"\xf5\x80\x80\x80\""})
    EXPECT_NE(refusal(text).find("malformed"), std::string::npos);
  using namespace std::string_view_literals;
  EXPECT_NE(refusal("{}\0{"sv).find("NUL"), std::string::npos);
  EXPECT_EQ(parse_json(R"("\u0000")", "f").get<std::string>(), "\0"sv);
}

TEST(Json, NamesLineAndByteOfAMistake) {
  const std::string message = refusal("{\n\"a\": 1,\n\"b\": ?\n}");
  EXPECT_NE(message.find("line 3"), std::string::npos) << message;
  EXPECT_NE(message.find("byte 16"), std::string::npos) << message;
}

TEST(Json, RefusesDuplicateKeysOfOneObjectOnly) {
  EXPECT_NE(refusal(R"({"a": 1, "b": {"k": 1, "k": 2}})").find("\"k\""), std::string::npos);
  EXPECT_EQ(parse_json(R"({"a": {"k": 1}, "b": {"k": 2}})", "f")["b"]["k"], 2);
}

TEST(Json, BoundsDepthAndSize) {
  const std::string deep = std::string(64, '[') + std::string(64, ']');
  EXPECT_NO_THROW(parse_json(deep, "f"));
  EXPECT_NE(refusal("[" + deep + "]").find("deeper than 64"), std::string::npos);
  EXPECT_NE(refusal(std::string(1000000, '[')).find("deeper"), std::string::npos);
  EXPECT_NE(refusal("[1, 2, 3]", {.max_bytes = 5}).find("at most 5"), std::string::npos);
}

TEST(Json, ParsesLargeVocabulariesInLinearTime) {
  std::string text = "{";
  for (int i = 0; i < 200000; ++i) text += fmt::format("{}\"token{}\":{}", i ? "," : "", i, i);
  text += "}";
  const auto start = std::chrono::steady_clock::now();
  const auto json = parse_json(text, "f", {.max_bytes = size_t{64} << 20});
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  EXPECT_EQ(json.size(), 200000u);
  EXPECT_LT(seconds.count(), 20.0);  // a quadratic search of 2 * 10^10 comparisons takes minutes
}

TEST(Json, FilesAreErrorsOfTheModel) {
  const test::TempFolder folder;
  const auto kind = [&](const std::filesystem::path& file) {
    try {
      read_json_file(file);
    } catch (const Error& e) {
      return e.kind;
    }
    return Error::Kind::internal;
  };
  EXPECT_EQ(kind(folder / "missing.json"), Error::Kind::bad_model);
  EXPECT_EQ(kind(folder.write("bad.json", "{")), Error::Kind::bad_model);
  EXPECT_EQ(kind(folder.path()), Error::Kind::bad_model);
  EXPECT_EQ(read_json_file(folder.write("good.json", "[1]"))[0], 1);
}

}  // namespace
}  // namespace conclave
