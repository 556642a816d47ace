// SentencePiece models: small ones with ids from the sentencepiece package (tools/make_tokenizer_cases.py), and broken files.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "core/error.h"
#include "core/json.h"
#include "text/tokenizer_policy.h"

namespace conclave {
namespace {

using Json = nlohmann::json;

std::string from_base64(std::string_view text) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  uint32_t value = 0;
  int bits = 0;
  for (const char c : text) {
    const size_t digit = kDigits.find(c);
    if (digit == std::string_view::npos) break;
    value = value << 6 | static_cast<uint32_t>(digit);
    if ((bits += 6) >= 8) out += static_cast<char>(value >> (bits -= 8) & 255);
  }
  return out;
}

Json small_models() {
  std::ifstream in(std::string(CONCLAVE_TEST_DATA) + "/tokenizers/small.json");
  Json models = Json::array();
  Json all = Json::parse(in);
  for (Json& item : all)
    if (item.contains("model")) models.push_back(std::move(item));
  return models;
}

TEST(TokenizerModel, small_models_agree_with_the_sentencepiece_package) {
  size_t cases = 0;
  for (const Json& item : small_models()) {
    const auto tokenizer = make_sentencepiece_tokenizer(from_base64(item["model"].get<std::string>()), "x", {});
    for (const Json& row : item["rows"]) {
      const auto ids = tokenizer->encode(row[0].get<std::string>(), {false, false});
      EXPECT_EQ(ids, row[1].get<std::vector<int32_t>>()) << item["name"] << " " << row[0];
      EXPECT_EQ(tokenizer->decode(ids, true), row[2].get<std::string>()) << item["name"] << " " << row[0];
      ++cases;
    }
  }
  EXPECT_GT(cases, 300u);
}

TEST(TokenizerModel, truncated_and_damaged_files_never_crash) {
  const std::string good = from_base64(small_models()[0]["model"].get<std::string>());
  for (size_t size = 0; size < good.size(); size += 7) {
    try {
      make_sentencepiece_tokenizer(std::string_view(good).substr(0, size), "x", {})->encode("ab c", {true, true});
    } catch (const Error& e) {
      EXPECT_EQ(exit_code(e.kind), 3) << e.what();
    }
  }
  std::mt19937 random(5);
  for (int round = 0; round < 3000; ++round) {
    std::string bad = good;
    for (int k = 0; k < 4; ++k) bad[random() % bad.size()] = static_cast<char>(random());
    try {
      const auto tokenizer = make_sentencepiece_tokenizer(bad, "x", {});
      tokenizer->decode(tokenizer->encode("ab \xC3\xA9 the cat", {true, true}), true);
    } catch (const Error& e) {
      EXPECT_EQ(exit_code(e.kind), 3) << e.what();
    }
  }
}

TEST(TokenizerModel, other_files_are_refused) {
  for (const char* text : {"", "x", "\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "{}", "\x0a\x00"})
    EXPECT_THROW(make_sentencepiece_tokenizer(text, "x", {}), Error);
  EXPECT_THROW(make_sentencepiece_tokenizer(std::string(1000, '\0'), "x", {}), Error);
}

TEST(TokenizerModel, added_tokens_may_not_contradict_the_vocabulary) {
  const std::string good = from_base64(small_models()[0]["model"].get<std::string>());
  TokenizerPolicy policy;
  policy.source = "x/added_tokens.json";
  policy.added.push_back({.id = 1, .content = "<other>", .special = true});
  EXPECT_THROW(make_sentencepiece_tokenizer(good, "x", policy), Error);
}

}  // namespace
}  // namespace conclave
