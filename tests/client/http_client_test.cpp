#include "client/http_client.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <thread>

#include "core/error.h"

namespace conclave {
namespace {

/// Answers each connection with its part of a script, keeping what it was sent. One connection after the other.
class ScriptedServer {
 public:
  struct Turn {                     ///< one request of a connection
    std::vector<std::string> send;  ///< pieces, a pause between them; the answer to the request that was read
    bool read = true;
  };
  using Visit = std::vector<Turn>;  ///< one connection, closed after its last turn

  explicit ScriptedServer(std::vector<Visit> visits) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    EXPECT_EQ(::bind(socket_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(::listen(socket_, 8), 0);
    ::getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this, visits = std::move(visits)] {
      for (const Visit& visit : visits) serve(visit);
    });
  }
  ~ScriptedServer() {
    ::shutdown(socket_, SHUT_RDWR);
    thread_.join();
    ::close(socket_);
  }

  HttpUrl url(const std::string& prefix = {}) const { return {"127.0.0.1", std::to_string(port_), prefix}; }
  int visits() const { return visits_; }
  std::string request(size_t i) const {
    const std::lock_guard lock(mutex_);
    return requests_.at(i);
  }

 private:
  void serve(const Visit& visit) {
    const int peer = ::accept(socket_, nullptr, nullptr);
    if (peer < 0) return;
    ++visits_;
    for (const Turn& turn : visit) {
      if (turn.read && !read_request(peer)) break;
      for (const std::string& piece : turn.send) {
        if (::send(peer, piece.data(), piece.size(), MSG_NOSIGNAL) < 0) break;
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      }
    }
    ::shutdown(peer, SHUT_RDWR);
    ::close(peer);
  }
  bool read_request(int peer) {
    std::string text;
    size_t wanted = std::string::npos;
    while (text.size() < wanted) {
      char bytes[4096];
      const ssize_t n = ::recv(peer, bytes, sizeof bytes, 0);
      if (n <= 0) return false;
      text.append(bytes, static_cast<size_t>(n));
      const size_t head = text.find("\r\n\r\n");
      if (head == std::string::npos) continue;
      const size_t length = text.find("Content-Length: ");
      wanted = head + 4 + (length == std::string::npos ? 0 : std::stoul(text.substr(length + 16)));
    }
    const std::lock_guard lock(mutex_);
    requests_.push_back(text);
    return true;
  }

  int socket_;
  int port_ = 0;
  std::atomic<int> visits_{0};
  mutable std::mutex mutex_;  ///< guards requests_
  std::vector<std::string> requests_;
  std::thread thread_;
};

std::string whole(const std::string& body, const std::string& more_head = {}) {
  return "HTTP/1.1 200 OK\r\nContent-Length: " + std::to_string(body.size()) + "\r\n" + more_head + "\r\n" + body;
}
std::string chunk(const std::string& text) {
  char size[20];
  std::snprintf(size, sizeof size, "%zx\r\n", text.size());
  return size + text + "\r\n";
}
const std::string kEventHead = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n";

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(HttpUrl, NamesHostPortAndPrefix) {
  const HttpUrl plain = parse_http_url("http://localhost");
  EXPECT_EQ(plain.host + "|" + plain.port + "|" + plain.prefix, "localhost|80|");
  const HttpUrl full = parse_http_url("http://[::1]:8080/openai/v1/");
  EXPECT_EQ(full.host + "|" + full.port + "|" + full.prefix, "::1|8080|/openai/v1");
  for (const char* bad : {"", "localhost:80", "https://a", "http://", "http://:80", "http://a:", "http://a:0", "http://a:65536", "http://a:8x",
                          "http://u@a", "http://a/?q", "http://a b", "http://[::1", "http://[::1]80", "http://a\n", "http://a:999999999999"})
    EXPECT_THROW(parse_http_url(bad), Error) << bad;
}

TEST(HttpClient, KeepsItsConnection) {
  ScriptedServer server({{{{whole("one", "X-Thing: a\r\n")}}, {{whole("two")}}}});
  HttpClient client(server.url("/api"));
  const HttpAnswer first = client.get("/x", {{"Authorization", "Bearer k"}});
  EXPECT_EQ(first.status, 200);
  EXPECT_EQ(first.body, "one");
  EXPECT_EQ(first.header("x-thing"), "a");
  EXPECT_EQ(first.header("absent"), "");
  EXPECT_EQ(client.post("/y", "{}").body, "two");
  EXPECT_EQ(server.visits(), 1);
  EXPECT_TRUE(server.request(0).starts_with("GET /api/x HTTP/1.1\r\n")) << server.request(0);
  EXPECT_NE(server.request(0).find("Authorization: Bearer k\r\n"), std::string::npos);
  EXPECT_TRUE(server.request(1).ends_with("\r\n\r\n{}")) << server.request(1);
}

TEST(HttpClient, TriesOnceMoreWhenAnIdleConnectionWasClosed) {
  ScriptedServer server({{{{whole("one")}}}, {{{whole("two")}}}});
  HttpClient client(server.url());
  EXPECT_EQ(client.get("/").body, "one");
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(client.get("/").body, "two");
  EXPECT_EQ(server.visits(), 2);
}

TEST(HttpClient, ReportsAFreshConnectionThatIsClosedWithoutAnswer) {
  ScriptedServer server({{{{}}}, {{{whole("never asked for")}}}});
  HttpClient client(server.url());
  EXPECT_NE(message_of([&] { client.get("/"); }).find("waiting for the answer"), std::string::npos);
  EXPECT_EQ(client.get("/").body, "never asked for");
}

TEST(HttpClient, OpensANewConnectionWhereTheServerEndsTheOldOne) {
  ScriptedServer server({{{{whole("one", "Connection: close\r\n")}}}, {{{"HTTP/1.1 200 OK\r\n\r\nto the", " end"}}}, {{{whole("three")}}}});
  HttpClient client(server.url());
  EXPECT_EQ(client.get("/").body, "one");
  EXPECT_EQ(client.get("/").body, "to the end");
  EXPECT_EQ(client.get("/").body, "three");
}

TEST(HttpClient, GivesEventsAsTheyCome) {
  const std::vector<std::string> pieces = {kEventHead, chunk(": beat\n\ndata: {\"a\":"), chunk("1}\n"), chunk("\ndata: x\r"), chunk("\ndata: y\r\n\r\n"),
                                           chunk("data: [DONE]\n\n"), "0\r\n\r\n"};
  ScriptedServer server({{{pieces}, {{whole("after")}}}});
  HttpClient client(server.url());
  std::vector<std::string> events;
  const HttpAnswer response = client.stream("/s", "{}", [&](std::string_view data) {
    events.emplace_back(data);
    return true;
  });
  EXPECT_EQ(events, (std::vector<std::string>{"{\"a\":1}", "x\ny", "[DONE]"}));
  EXPECT_EQ(response.body, "");
  EXPECT_EQ(client.get("/").body, "after");
  EXPECT_EQ(server.visits(), 1);
}

TEST(HttpClient, LeavesAStreamWhenToldTo) {
  ScriptedServer server({{{{kEventHead, chunk("data: 1\n\ndata: 2\n\n"), chunk("data: 3\n\n")}}}, {{{whole("next")}}}});
  HttpClient client(server.url());
  int events = 0;
  EXPECT_EQ(client.stream("/s", "{}", [&](std::string_view) { return ++events < 2; }).status, 200);
  EXPECT_EQ(events, 2);
  EXPECT_EQ(client.get("/").body, "next");
}

TEST(HttpClient, ReturnsAnAnswerThatIsNoStreamWhole) {
  ScriptedServer server({{{{"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"}}}});
  HttpClient client(server.url());
  const HttpAnswer response = client.stream("/s", "{}", [](std::string_view) -> bool { throw std::logic_error("no event was sent"); });
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(response.body, "{}");
}

TEST(HttpClient, NeverTakesACutAnswerForAWholeOne) {
  ScriptedServer server({{{{"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort"}}}, {{{kEventHead, chunk("data: 1\n\n")}}}, {{{"nonsense\r\n\r\n"}}}});
  HttpClient client(server.url());
  EXPECT_NE(message_of([&] { client.get("/"); }).find("reading the answer"), std::string::npos);
  EXPECT_NE(message_of([&] { client.stream("/", "{}", [](std::string_view) { return true; }); }).find("reading the answer"), std::string::npos);
  EXPECT_NE(message_of([&] { client.get("/"); }).find("waiting for the answer"), std::string::npos);
}

TEST(HttpClient, NamesAServerThatIsAwayOrSilent) {
  EXPECT_NE(message_of([] { HttpClient(HttpUrl{"127.0.0.1", "1", ""}).get("/"); }).find("http://127.0.0.1:1: cannot connect"), std::string::npos);
  ScriptedServer server({{{{"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"}}, {{}}}});
  HttpClient client(server.url(), 1);
  EXPECT_NE(message_of([&] { client.get("/"); }).find("no answer for 1 s"), std::string::npos);
}

TEST(HttpClient, SendsNoSecondLineInsideAHeaderOrPath) {
  HttpClient client(HttpUrl{"127.0.0.1", "1", ""});
  EXPECT_NE(message_of([&] { client.get("/", {{"X-A", "b\r\nX-C: d"}}); }).find("header 'X-A'"), std::string::npos);
  EXPECT_NE(message_of([&] { client.get("/a b"); }).find("path"), std::string::npos);
}

}  // namespace
}  // namespace conclave
