// What a rank does with messages that no sound rank would send: a transport of the test's own plays the other rank.
#include <deque>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "comm/transport.h"
#include "core/error.h"

namespace conclave {
namespace {

using comm::Bytes;
using comm::ControlMessage;

/// What the test's other rank, rank 1, says.
struct Script {
  std::mutex mutex;
  std::deque<std::string> data;
  std::deque<ControlMessage> control;
};

class ScriptedTransport final : public comm::Transport {
 public:
  explicit ScriptedTransport(Script& script) : script_(script) {}
  std::string_view name() const override { return "scripted"; }
  int rank() const override { return 0; }
  int size() const override { return 2; }
  bool ends_together() const override { return false; }
  bool send(int, uint32_t, Bytes, Bytes) override { return true; }
  std::optional<Bytes> receive(int, uint32_t, std::chrono::milliseconds wait) override {
    const std::lock_guard lock(script_.mutex);
    if (script_.data.empty()) {
      std::this_thread::sleep_for(wait / 10);
      return std::nullopt;
    }
    current_ = script_.data.front();
    script_.data.pop_front();
    return std::as_bytes(std::span(current_));
  }
  bool pending(std::optional<uint32_t>) override { return false; }
  void tell(int, std::string_view) override {}
  std::optional<ControlMessage> hear() override {
    const std::lock_guard lock(script_.mutex);
    if (script_.control.empty()) return std::nullopt;
    const ControlMessage message = script_.control.front();
    script_.control.pop_front();
    return message;
  }
  void finish(bool) override {}

 private:
  Script& script_;
  std::string current_;
};

/// The message of a call as src/comm/peers.cpp lays it out: 20 bytes of name, its number, the length of the body.
std::string message(const std::string& call, uint32_t number, uint64_t bytes, const std::string& body) {
  std::string text = call;
  text.resize(20);
  text.append(reinterpret_cast<const char*>(&number), sizeof number);
  text.append(reinterpret_cast<const char*>(&bytes), sizeof bytes);
  return text + body;
}

/// The error that ends an all_reduce of two floats after rank 1 has sent `data`; "" if none.
std::string end_of_all_reduce(const std::string& data) {
  Script script;
  script.data.push_back(data);
  const auto rank = comm::make_peers(std::make_unique<ScriptedTransport>(script), {.call_ms = 500, .silence_ms = 60'000});
  std::vector<float> row(2);
  try {
    rank->all_reduce_sum(row);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(Peers, AcceptTheMessageOfTheirCall) { EXPECT_EQ(end_of_all_reduce(message("all_reduce_sum", 1, 8, std::string(8, '\0'))), ""); }

TEST(Peers, RefuseMessagesOfOtherCallsAndLengths) {
  const auto says = [](const std::string& data, const std::string& part) {
    const std::string end = end_of_all_reduce(data);
    EXPECT_NE(end.find(part), std::string::npos) << end;
  };
  says("", "message of 0 bytes");
  says(std::string(31, 'x'), "message of 31 bytes");
  says(message("all_reduce_sum", 1, 8, "1234567"), "sent 7 bytes and announced 8");
  says(message("all_reduce_sum", 1, ~uint64_t{0}, "12345678"), "announced 18446744073709551615");
  says(message("all_reduce_sum", 1, 12, "123456789abc"), "brings 12 bytes");
  says(message("barrier", 1, 0, ""), "calls barrier (its call 1)");
  says(message("all_reduce_sum", 2, 8, "12345678"), "(its call 2)");
  says(message(std::string(20, 'A'), 1, 8, "12345678"), "calls AAAAAAAAAAAAAAAAAAA (");
}

TEST(Peers, SurviveAnyControlMessage) {
  Script script;
  std::mt19937 random(3);
  for (int i = 0; i < 3000; ++i) {
    std::string text(random() % 40, '\0');
    for (char& c : text) c = static_cast<char>(random());
    if (!text.empty() && text[0] == 'e') text[0] = 'b';  // the end of the job is the next test's
    if (!text.empty() && text[0] == 'y') text[0] = 'b';
    script.control.push_back({static_cast<int>(random() % 5) - 2, text});
  }
  script.control.push_back({1, "b999999999999999999999 step"});
  script.control.push_back({1, "b"});
  const auto rank = comm::make_peers(std::make_unique<ScriptedTransport>(script), {.call_ms = 300, .silence_ms = 60'000});
  EXPECT_THROW(rank->barrier(), Error);  // rank 1 never comes
  EXPECT_TRUE(script.control.empty());
}

TEST(Peers, EndWithTheReasonThatAnotherRankGives) {
  Script script;
  script.control.push_back({1, "erank 1 (phase loading) ended: no space left"});
  const auto rank = comm::make_peers(std::make_unique<ScriptedTransport>(script), {.call_ms = 0, .silence_ms = 60'000});
  try {
    rank->barrier();
    FAIL() << "the barrier was passed";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind, Error::Kind::network);
    EXPECT_STREQ(e.what(), "rank 1 (phase loading) ended: no space left");
  }
}

TEST(Peers, NameARankThatFallsSilent) {
  Script script;
  script.control.push_back({1, "b-1 step"});
  const auto rank = comm::make_peers(std::make_unique<ScriptedTransport>(script), {.call_ms = 0, .silence_ms = 300});
  try {
    rank->barrier();
    FAIL() << "the barrier was passed";
  } catch (const Error& e) {
    EXPECT_EQ(std::string(e.what()).find("rank 1 (phase step) has not been heard of for 300 ms"), 0u) << e.what();
  }
}

}  // namespace
}  // namespace conclave
