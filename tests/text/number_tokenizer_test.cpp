#include "text/number_tokenizer.h"

#include <gtest/gtest.h>

#include "text/stream_decoder.h"

namespace conclave {
namespace {

TEST(NumberTokenizer, WritesAndReadsIds) {
  const auto tokenizer = number_tokenizer(100);
  const std::vector<int32_t> ids{7, 99, 0};
  EXPECT_EQ(tokenizer->decode(ids, true), "7 99 0");
  EXPECT_EQ(tokenizer->encode("7 99  0", {}), ids);
  StreamDecoder decoder(*tokenizer, {}, true);
  std::string text;
  for (const int32_t id : ids) text += decoder.push(id);
  EXPECT_EQ(text + decoder.finish(), "7 99 0");
}

TEST(NumberTokenizer, OtherWordsAreSomeIdAlwaysTheSame) {
  const auto tokenizer = number_tokenizer(100);
  const auto ids = tokenizer->encode("who has 100 -1 who", {});
  ASSERT_EQ(ids.size(), 5u);
  EXPECT_EQ(ids[0], ids[4]);
  for (const int32_t id : ids) EXPECT_TRUE(id >= 0 && id < 100);
}

}  // namespace
}  // namespace conclave
