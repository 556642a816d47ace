// API keys: the file, the hash (checked against sha256sum), quotas over a given clock.
#include "server/keys.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "core/error.h"
#include "support/temp_folder.h"

namespace conclave {
namespace {

using namespace std::chrono_literals;
// printf %s secret | sha256sum
constexpr const char* kSecret = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
// printf %s other | sha256sum
constexpr const char* kOther = "d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa";

TEST(Keys, FindsByHash) {
  KeyStore keys;
  EXPECT_TRUE(keys.empty());
  EXPECT_EQ(keys.find(""), 0u);
  keys.parse(std::string("# people\n\nalice ") + kSecret + " requests_per_minute=60 priority=2\nbob " + kOther + " admin  # us\n",
             "keys");
  EXPECT_EQ(keys.find("secret"), 1u);
  EXPECT_EQ(keys.find("other"), 2u);
  EXPECT_EQ(keys.find("Secret"), 0u);
  EXPECT_EQ(keys.find(""), 0u);
  EXPECT_EQ(keys.name(1), "alice");
  EXPECT_EQ(keys.limits(1).best_priority, 2);
  EXPECT_FALSE(keys.limits(1).admin);
  EXPECT_TRUE(keys.limits(2).admin);
}

TEST(Keys, RefusesBadFilesAndKeepsTheOldOnes) {
  KeyStore keys;
  keys.parse(std::string("alice ") + kSecret, "keys");
  for (const std::string& text :
       {std::string(), std::string("# nothing"), std::string("bob"), std::string("bob abc"),
        std::string("bob ") + std::string(64, 'g'), std::string("bob ") + kOther + " fast",
        std::string("bob ") + kOther + " priority=0", std::string("bob ") + kOther + " priority=6",
        std::string("bob ") + kOther + " requests_per_minute=-1", std::string("bob ") + kOther + " requests_per_minute=nan",
        std::string("bob ") + kOther + "\nbob " + kSecret}) {
    EXPECT_THROW(keys.parse(text, "keys"), Error) << text;
    EXPECT_EQ(keys.find("secret"), 1u);
  }
}

TEST(Keys, RefusesFilesThatOthersMayRead) {
  const test::TempFolder folder;
  const auto file = folder.write("keys", std::string("alice ") + kSecret + "\n");
  KeyStore keys;
  ASSERT_EQ(chmod(file.c_str(), 0644), 0);
  EXPECT_NE(test::error_of([&] { keys.load(file.string()); }).find("chmod 600"), std::string::npos);
  ASSERT_EQ(chmod(file.c_str(), 0600), 0);
  keys.load(file.string());
  EXPECT_EQ(keys.find("secret"), 1u);
  EXPECT_NE(test::error_of([&] { keys.load((folder / "none").string()); }).find("none"), std::string::npos);
}

TEST(Keys, RequestsPerMinuteRunOutAndComeBack) {
  KeyStore keys;
  keys.parse(std::string("alice ") + kSecret + " requests_per_minute=2", "keys");
  const auto now = KeyStore::Clock::now() + 1h;
  EXPECT_EQ(keys.take(1, now), 0);
  EXPECT_EQ(keys.take(1, now), 0);
  EXPECT_NEAR(keys.take(1, now), 30000, 1);
  EXPECT_NEAR(keys.take(1, now + 10s), 20000, 1);
  EXPECT_EQ(keys.take(1, now + 31s), 0);
  EXPECT_GT(keys.take(1, now + 31s), 0);
  EXPECT_EQ(keys.take(0, now), 0) << "without keys nobody is limited";
}

TEST(Keys, TokensPerDayRunOut) {
  KeyStore keys;
  keys.parse(std::string("alice ") + kSecret + " tokens_per_day=1000", "keys");
  const auto now = KeyStore::Clock::now();
  EXPECT_EQ(keys.take(1, now), 0);
  keys.settle(1, 0, 1500, now);
  EXPECT_GT(keys.take(1, now), 500.0 / 1000 * 86'400'000 - 1);
  EXPECT_EQ(keys.take(1, now + 13h), 0);
}

TEST(Keys, ReloadingDoesNotRefill) {
  KeyStore keys;
  const std::string text = std::string("alice ") + kSecret + " requests_per_minute=1";
  keys.parse(text, "keys");
  const auto now = KeyStore::Clock::now();
  EXPECT_EQ(keys.take(1, now), 0);
  keys.parse(text, "keys");
  EXPECT_GT(keys.take(1, now), 0);
}

TEST(Keys, TokensAreTakenBeforeTheyAreUsed) {
  KeyStore keys;
  keys.parse(std::string("alice ") + kSecret + " tokens_per_day=1000 requests_at_once=2", "keys");
  const auto now = KeyStore::Clock::now();
  EXPECT_EQ(keys.reserve(1, 1001, now), -1) << "more than a day's";
  EXPECT_EQ(keys.reserve(1, 600, now), 0);
  EXPECT_NEAR(keys.reserve(1, 500, now), 100.0 / 1000 * 86'400'000, 1) << "400 are left";
  EXPECT_EQ(keys.reserve(1, 300, now), 0);
  EXPECT_GT(keys.reserve(1, 1, now), 0) << "two at once";
  keys.settle(1, 600, 10, now);
  EXPECT_EQ(keys.reserve(1, 690, now), 0) << "590 came back to the 100 that were left";
  EXPECT_EQ(keys.reserve(0, 1e9, now), 0) << "without keys nobody is limited";
}

TEST(Keys, NumbersAreNeverReused) {
  KeyStore keys;
  keys.parse(std::string("alice ") + kSecret, "keys");
  const uint64_t alice = keys.find("secret");
  keys.parse(std::string("bob ") + kOther + "\nalice " + kSecret, "keys");
  EXPECT_EQ(keys.find("secret"), alice);
  const uint64_t bob = keys.find("other");
  EXPECT_NE(bob, alice);
  keys.parse(std::string("alice ") + kOther, "keys");
  EXPECT_NE(keys.find("other"), bob) << "another name";
  EXPECT_EQ(keys.name(alice), "-");
}

TEST(Keys, ReadsTheHeadersThatClientsSend) {
  HttpRequest r;
  r.headers = {{"authorization", "Bearer abc"}};
  EXPECT_EQ(bearer_of(r), "abc");
  r.headers = {{"authorization", "bearer abc"}};
  EXPECT_EQ(bearer_of(r), "abc");
  r.headers = {{"authorization", "Basic abc"}};
  EXPECT_EQ(bearer_of(r), "");
  r.headers = {{"x-api-key", "abc"}};
  EXPECT_EQ(bearer_of(r), "abc");
  r.headers = {{"api-key", "abc"}};
  EXPECT_EQ(bearer_of(r), "abc");
}

}  // namespace
}  // namespace conclave
