#include "client/http_client.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <chrono>

#include "client/event_stream.h"
#include "core/error.h"

namespace conclave {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using asio::ip::tcp;
using ErrorCode = boost::system::error_code;
using Parser = http::response_parser<http::string_body>;
using OnEvent = std::function<bool(std::string_view)>;

constexpr uint32_t kHeadLimit = 64 << 10;
constexpr uint64_t kBodyLimit = uint64_t{1} << 30;

bool is_plain(std::string_view text) {
  return std::none_of(text.begin(), text.end(), [](unsigned char c) { return c < 0x20 || c == 0x7F; });
}
bool equal_caseless(std::string_view a, std::string_view b) {
  return beast::iequals({a.data(), a.size()}, {b.data(), b.size()});
}
std::string_view view(beast::string_view text) { return {text.data(), text.size()}; }

}  // namespace

HttpUrl parse_http_url(std::string_view text) {
  const auto refuse = [&](std::string_view why) {
    throw Error(Error::Kind::bad_input, fmt::format("URL '{}': {}; wanted http://HOST[:PORT][/PREFIX]", text, why));
  };
  constexpr std::string_view kScheme = "http://";
  if (text.starts_with("https://")) refuse("https is not offered; put a proxy that ends TLS on this machine");
  if (!text.starts_with(kScheme)) refuse("it does not start with http://");
  if (!is_plain(text) || text.find_first_of(" ?#@") != std::string_view::npos) refuse("user, query, fragment and blanks have no place in it");
  std::string_view place = text.substr(kScheme.size());
  HttpUrl url;
  const size_t slash = std::min(place.find('/'), place.size());
  url.prefix = place.substr(slash);
  while (url.prefix.ends_with('/')) url.prefix.pop_back();
  place = place.substr(0, slash);
  const bool literal = place.starts_with('[');  // an IPv6 address
  const size_t host_end = literal ? place.find(']') : std::min(place.find(':'), place.size());
  if (host_end == std::string_view::npos) refuse("'[' without ']'");
  url.host = place.substr(literal, host_end - literal);
  if (url.host.empty()) refuse("the host is missing");
  place.remove_prefix(host_end + literal);
  url.port = "80";
  if (place.empty()) return url;
  url.port = place.substr(1);
  const bool digits = !url.port.empty() && url.port.size() <= 5 && url.port.find_first_not_of("0123456789") == std::string::npos;
  if (place.front() != ':' || !digits || std::stoi(url.port) < 1 || std::stoi(url.port) > 65535) refuse("the port is no number of 1..65535");
  return url;
}

std::string_view HttpAnswer::header(std::string_view name) const {
  const auto found = std::find_if(headers.begin(), headers.end(), [&](const auto& h) { return equal_caseless(h.first, name); });
  return found == headers.end() ? std::string_view() : std::string_view(found->second);
}

struct HttpClient::Connection {
  HttpUrl url;
  std::chrono::seconds timeout;
  asio::io_context io{1};
  beast::tcp_stream stream{io};
  beast::flat_buffer buffer;

  Connection(HttpUrl u, int timeout_s) : url(std::move(u)), timeout(timeout_s) {}

  HttpAnswer exchange(http::request<http::string_body> request, const Headers& headers, const OnEvent* on_event);
  void dress(http::request<http::string_body>& request, const Headers& headers) const;
  /// Runs one asynchronous operation to its end or to the time limit.
  template <class Start>
  ErrorCode await(Start&& start);
  bool send(const http::request<http::string_body>& request, bool reused);
  void connect();
  HttpAnswer read_answer(Parser& parser, const OnEvent* on_event);
  void close();
  [[noreturn]] void fail(std::string_view doing, const ErrorCode& cause) const;
};

template <class Start>
ErrorCode HttpClient::Connection::await(Start&& start) {
  ErrorCode result;
  stream.expires_after(timeout);
  start([&result](ErrorCode e, auto&&...) { result = e; });
  io.restart();
  io.run();
  return result;
}

void HttpClient::Connection::fail(std::string_view doing, const ErrorCode& cause) const {
  const std::string why = cause == beast::error::timeout ? fmt::format("no answer for {} s", timeout.count()) : cause.message();
  throw Error(Error::Kind::network,
              fmt::format("http://{}:{}: {}: {}; check that the server runs there and its log", url.host, url.port, doing, why));
}

void HttpClient::Connection::close() {
  ErrorCode ignored;
  stream.socket().close(ignored);
  buffer.clear();
}

void HttpClient::Connection::connect() {
  close();
  ErrorCode e;
  tcp::resolver resolver(io);
  const auto places = resolver.resolve(url.host, url.port, e);
  if (e) fail("cannot find the host", e);
  e = await([&](auto done) { stream.async_connect(places, done); });
  if (e) fail("cannot connect", e);
  stream.socket().set_option(tcp::no_delay(true), e);
}

void HttpClient::Connection::dress(http::request<http::string_body>& request, const Headers& headers) const {
  const bool literal = url.host.find(':') != std::string::npos;
  const std::string host = literal ? fmt::format("[{}]", url.host) : url.host;
  request.set(http::field::host, url.port == "80" ? host : fmt::format("{}:{}", host, url.port));
  request.set(http::field::user_agent, "conclave");
  request.set(http::field::accept, "*/*");
  if (request.method() == http::verb::post) request.set(http::field::content_type, "application/json");
  for (const auto& [name, value] : headers) {
    if (name.empty() || !is_plain(name) || !is_plain(value) || name.find_first_of(" :") != std::string::npos)
      throw Error(Error::Kind::bad_input, fmt::format("header '{}': its name or value cannot be sent; wanted one line of text", name));
    request.set(name, value);
  }
  request.prepare_payload();
}

/// False: a connection kept open turned out to be closed before it took the request.
bool HttpClient::Connection::send(const http::request<http::string_body>& request, bool reused) {
  const ErrorCode e = await([&](auto done) { http::async_write(stream, request, done); });
  if (e && (!reused || e == beast::error::timeout)) fail("sending the request", e);
  return !e;
}

HttpAnswer HttpClient::Connection::exchange(http::request<http::string_body> request, const Headers& headers, const OnEvent* on_event) {
  if (!is_plain(view(request.target())) || request.target().find(' ') != beast::string_view::npos)
    throw Error(Error::Kind::bad_input, fmt::format("path '{}': blanks and control characters cannot be sent", view(request.target())));
  dress(request, headers);
  struct Closer {  // after an error or an abandoned answer nothing is known about the bytes to come
    Connection* connection;
    ~Closer() {
      if (connection) connection->close();
    }
  } closer{this};
  bool reused = stream.socket().is_open();
  while (true) {
    if (!reused) connect();
    Parser parser;
    parser.header_limit(kHeadLimit);
    parser.body_limit(kBodyLimit);
    if (send(request, reused)) {
      const ErrorCode e = await([&](auto done) { http::async_read_header(stream, buffer, parser, done); });
      if (!e) {
        HttpAnswer response = read_answer(parser, on_event);
        if (parser.is_done() && parser.keep_alive()) closer.connection = nullptr;
        return response;
      }
      if (!reused || parser.got_some() || e == beast::error::timeout) fail("waiting for the answer", e);
    }
    reused = false;
  }
}

HttpAnswer HttpClient::Connection::read_answer(Parser& parser, const OnEvent* on_event) {
  HttpAnswer response;
  response.status = parser.get().result_int();
  for (const auto& field : parser.get())
    response.headers.emplace_back(view(field.name_string()), view(field.value()));
  const bool events = on_event && response.header("content-type").starts_with("text/event-stream");
  EventStream stream_of_events;
  std::string& body = parser.get().body();
  while (true) {
    if (events) {
      if (!stream_of_events.feed(body, *on_event)) return response;
      body.clear();
    }
    if (parser.is_done()) break;
    const ErrorCode e = await([&](auto done) { http::async_read_some(stream, buffer, parser, done); });
    if (e) fail("reading the answer", e);
  }
  response.body = std::move(body);
  return response;
}

HttpClient::HttpClient(HttpUrl url, int timeout_s) : connection_(std::make_unique<Connection>(std::move(url), timeout_s)) {}
HttpClient::~HttpClient() = default;

HttpAnswer HttpClient::get(std::string_view path, const Headers& headers) {
  const std::string target = connection_->url.prefix + std::string(path);
  return connection_->exchange({http::verb::get, target, 11}, headers, nullptr);
}

HttpAnswer HttpClient::post(std::string_view path, std::string_view body, const Headers& headers) {
  const std::string target = connection_->url.prefix + std::string(path);
  return connection_->exchange({http::verb::post, target, 11, std::string(body)}, headers, nullptr);
}

HttpAnswer HttpClient::stream(std::string_view path, std::string_view body, const std::function<bool(std::string_view)>& on_event,
                                const Headers& headers) {
  const std::string target = connection_->url.prefix + std::string(path);
  return connection_->exchange({http::verb::post, target, 11, std::string(body)}, headers, &on_event);
}

}  // namespace conclave
