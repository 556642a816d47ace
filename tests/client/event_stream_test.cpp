#include "client/event_stream.h"

#include <gtest/gtest.h>

#include "core/error.h"

namespace conclave {
namespace {

using Events = std::vector<std::string>;

Events events_of(std::string_view bytes, size_t piece) {
  EventStream stream;
  Events events;
  for (; !bytes.empty(); bytes.remove_prefix(std::min(piece, bytes.size())))
    stream.feed(bytes.substr(0, piece), [&](std::string_view data) {
      events.emplace_back(data);
      return true;
    });
  return events;
}

// The examples of WHATWG HTML, section 9.2.6, and what its text derives from them.
TEST(EventStream, ReadsTheExamplesOfTheStandardHoweverTheyAreCut) {
  const std::vector<std::pair<std::string, Events>> cases = {
      {"data: YHOO\ndata: +2\ndata: 10\n\n", {"YHOO\n+2\n10"}},
      {": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n", {"first event", "second event"}},
      {"data\n\ndata\ndata\n\ndata:", {"", "\n"}},
      {"data:test\n\ndata: test\n\n", {"test", "test"}},
      {"data: a\r\n\r\ndata: b\r\rdata: c\n\n", {"a", "b", "c"}},
      {"\xEF\xBB\xBF" "data: marked\n\n", {"marked"}},
      {"event: done\n\nretry: 5\n\n", {}},
      {"data: \xC3\xA4\xE4\xBD\xA0:\n\n", {"\xC3\xA4\xE4\xBD\xA0:"}},
      {"dat: x\ndatas: y\n\n", {}},
  };
  for (const auto& [bytes, expected] : cases)
    for (size_t piece = 1; piece <= bytes.size(); ++piece) EXPECT_EQ(events_of(bytes, piece), expected) << bytes << " cut by " << piece;
}

TEST(EventStream, StopsWhenTheReceiverHasEnough) {
  EventStream stream;
  int seen = 0;
  EXPECT_FALSE(stream.feed("data: 1\n\ndata: 2\n\ndata: 3\n\n", [&](std::string_view) { return ++seen < 2; }));
  EXPECT_EQ(seen, 2);
}

TEST(EventStream, RefusesAnEventWithoutEnd) {
  EventStream stream;
  const std::string piece(size_t{1} << 20, 'x');
  const auto feed = [&] {
    for (int i = 0; i < 65; ++i) stream.feed(piece, [](std::string_view) { return true; });
  };
  EXPECT_THROW(feed(), Error);
}

}  // namespace
}  // namespace conclave
