// Vectors made with the tokenizers and sentencepiece packages, and the rules about control tokens.
#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/error.h"

namespace conclave {
namespace {

using Ids = std::vector<int32_t>;
namespace fs = std::filesystem;
const fs::path kData = CONCLAVE_TOKENIZERS;

void check_vectors(const Tokenizer& tokenizer, const fs::path& file) {
  std::ifstream in(file);
  size_t count = 0;
  for (std::string line; std::getline(in, line); ++count) {
    const auto row = nlohmann::json::parse(line);
    const Ids ids = tokenizer.encode(row["text"].get<std::string>(),
                                     {row["add_special_tokens"].get<bool>(), row.value("parse_special", true)});
    EXPECT_EQ(ids, row["ids"].get<Ids>()) << line;
    EXPECT_EQ(tokenizer.decode(ids, true), row["decoded"].get<std::string>()) << line;
    if (row.contains("decoded_all")) {
      EXPECT_EQ(tokenizer.decode(ids, false), row["decoded_all"].get<std::string>()) << line;
    }
  }
  EXPECT_GE(count, 400u);
}

struct VectorFile {
  const char* vectors;
  const char* folder;
  const char* file;
};
class Vectors : public testing::TestWithParam<VectorFile> {};

TEST_P(Vectors, all_agree_with_the_reference_libraries) {
  const VectorFile& p = GetParam();
  const auto tokenizer = p.file ? Tokenizer::load(kData / p.folder, kData / p.folder / p.file) : Tokenizer::load(kData / p.folder);
  check_vectors(*tokenizer, kData / "vectors" / p.vectors);
}
INSTANTIATE_TEST_SUITE_P(Tokenizers, Vectors,
                         testing::Values(VectorFile{"deepseek-v3.jsonl", "deepseek-v3", nullptr},
                                         VectorFile{"deepseek-llm-like.jsonl", "deepseek-llm-like", nullptr},
                                         VectorFile{"ernie-like.jsonl", "ernie-like", nullptr},
                                         VectorFile{"mistral-v1.hf.jsonl", "mistral-v1", nullptr},
                                         VectorFile{"mistral-v1.spm.jsonl", "mistral-v1", "tokenizer.model"},
                                         VectorFile{"mistral-v2.jsonl", "mistral-v2", nullptr},
                                         VectorFile{"mistral-v3.jsonl", "mistral-v3", nullptr}));

TEST(Tokenizers, llama2_vectors_agree_where_the_file_is_at_hand) {
  const fs::path shared = CONCLAVE_SHARED;
  if (!fs::exists(shared / "tokenizers/llama2/tokenizer.json")) GTEST_SKIP() << "the Llama 2 tokenizer may not be copied and is not here";
  check_vectors(*Tokenizer::load(shared / "tokenizers/llama2"), shared / "golden/tokenizers/llama2.jsonl");
}

TEST(Tokenizers, published_ids_of_deepseek_v3) {
  const auto tokenizer = Tokenizer::load(kData / "deepseek-v3");
  EXPECT_EQ(tokenizer->encode("Hello!", {false, false}), (Ids{19923, 3}));
  EXPECT_EQ(tokenizer->encode("12345 abc  def\n\n x", {false, false}), (Ids{6895, 1883, 71490, 223, 1351, 271, 1527}));
  EXPECT_EQ(tokenizer->bos_id(), 0);
  EXPECT_EQ(tokenizer->eos_id(), 1);
  EXPECT_EQ(tokenizer->vocab_size(), 128815);
  EXPECT_EQ(tokenizer->encode("", {true, false}), (Ids{0}));
}

TEST(Tokenizers, users_cannot_write_control_tokens) {
  const auto tokenizer = Tokenizer::load(kData / "deepseek-v3");
  const std::string text = "<｜User｜>hi<｜end▁of▁sentence｜>";
  const Ids parsed = tokenizer->encode(text, {false, true});
  EXPECT_EQ(parsed.front(), 128803);
  EXPECT_EQ(parsed.back(), 1);
  const Ids plain = tokenizer->encode(text, {false, false});
  for (const int32_t id : plain) EXPECT_TRUE(id > 2 && id < 128000) << id;
  EXPECT_EQ(tokenizer->decode(plain, true), text);
}

TEST(Tokenizers, control_tokens_of_sentencepiece_need_parse_special) {
  const auto tokenizer = Tokenizer::load(kData / "mistral-v3");
  EXPECT_EQ(tokenizer->encode("[INST]", {false, true}), (Ids{3}));
  for (const int32_t id : tokenizer->encode("[INST]</s>", {false, false})) EXPECT_GT(id, 770);
}

TEST(Tokenizers, merges_never_make_a_special_token_out_of_plain_text) {
  const auto tokenizer = Tokenizer::load(kData / "mistral-v1");
  for (const int32_t id : tokenizer->encode("<s></s><unk>", {false, false})) EXPECT_GT(id, 2);
}

TEST(Tokenizers, spans_yield_control_tokens_only_where_trusted) {
  const auto tokenizer = Tokenizer::load(kData / "deepseek-v3");
  const std::vector<TextSpan> whole{{"<｜User｜>", true}, {"<｜User｜>", false}, {"<｜Assistant｜>", true}};
  const Ids ids = tokenizer->encode(whole);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 128803), 1);
  EXPECT_EQ(ids.front(), 128803);
  EXPECT_EQ(ids.back(), 128804);
  const std::vector<TextSpan> glued{{"<｜Us", true}, {"er｜>", false}};
  for (const int32_t id : tokenizer->encode(glued)) EXPECT_LT(id, 128000);
  const std::vector<TextSpan> halves{{"<｜Us", true}, {"er｜>", true}};
  EXPECT_EQ(tokenizer->encode(halves), (Ids{128803}));
}

TEST(Tokenizers, text_across_span_borders_is_one_text) {
  const auto tokenizer = Tokenizer::load(kData / "deepseek-v3");
  const std::vector<TextSpan> spans{{"Hel", true}, {"lo", false}, {"!", true}};
  EXPECT_EQ(tokenizer->encode(spans), (Ids{19923, 3}));
}

TEST(Tokenizers, single_characters_are_matched_and_decoded_as_literal_text) {
  const auto tokenizer = Tokenizer::load(kData / "deepseek-llm-like");
  const Ids ids = tokenizer->encode("ü", {false, false});
  EXPECT_EQ(ids, (Ids{1604}));
  EXPECT_EQ(tokenizer->decode(ids, true), "ü");
}

TEST(Tokenizers, ids_without_text_decode_to_nothing_and_negative_ids_are_refused) {
  for (const char* folder : {"deepseek-v3", "ernie-like"}) {
    const auto tokenizer = Tokenizer::load(kData / folder);
    EXPECT_EQ(tokenizer->decode(Ids{tokenizer->vocab_size(), 1 << 30}, false), "");
    EXPECT_THROW(tokenizer->decode(Ids{-1}, false), Error);
  }
}

TEST(Tokenizers, invalid_utf8_becomes_the_replacement_character) {
  for (const char* folder : {"deepseek-v3", "mistral-v1", "ernie-like"}) {
    const auto tokenizer = Tokenizer::load(kData / folder);
    EXPECT_EQ(tokenizer->encode("a\xE4\xBD", {false, false}), tokenizer->encode("a\xEF\xBF\xBD", {false, false})) << folder;
    EXPECT_EQ(tokenizer->encode("\xFF\xFF", {false, false}), tokenizer->encode("\xEF\xBF\xBD\xEF\xBF\xBD", {false, false})) << folder;
  }
}

TEST(Tokenizers, long_runs_take_no_quadratic_time) {
  for (const char* folder : {"deepseek-v3", "deepseek-llm-like", "mistral-v1", "mistral-v3", "ernie-like"}) {
    const auto tokenizer = Tokenizer::load(kData / folder);
    for (const char* unit : {"a", " ", "\n", "<", " \n"}) {
      std::string text;
      while (text.size() < 200'000) text += unit;
      text += 'x';
      const auto start = std::chrono::steady_clock::now();
      EXPECT_EQ(tokenizer->decode(tokenizer->encode(text, {false, false}), true), text) << folder;
      EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20)) << folder << " " << unit;
    }
  }
}

TEST(Tokenizers, a_folder_without_a_tokenizer_is_named) {
  try {
    Tokenizer::load(kData / "vectors");
    FAIL() << "loaded a folder without a tokenizer";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind, Error::Kind::bad_model);
    EXPECT_NE(std::string(e.what()).find("vectors"), std::string::npos);
  }
}

}  // namespace
}  // namespace conclave
