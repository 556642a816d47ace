#include "server/http_parser.h"

#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>

#include <algorithm>
#include <limits>

namespace conclave {
namespace {

namespace http = boost::beast::http;
using Parser = http::request_parser<http::string_body>;

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + 32);
  return out;
}

/// Bytes of "0\r\n\r\n". The library asserts that a last chunk that it has begun to read comes to it with no fewer; whatever else begins with
/// a zero in a body is followed by more.
constexpr size_t kLastChunk = 5;

HttpFault fault_of(const boost::beast::error_code& error) {
  if (error == http::error::header_limit) return HttpFault::header_too_large;
  return HttpFault::malformed;
}

/// The library accepts what a proxy before us might read differently.
bool framing_is_clear(const HttpRequest& head) {
  const size_t codings = head.count("transfer-encoding"), lengths = head.count("content-length");
  if (codings > 1 || lengths > 1 || codings + lengths > 1) return false;
  if (codings == 1 && (lower(head.header("transfer-encoding")) != "chunked" || head.version < 11)) return false;
  const size_t hosts = head.count("host");
  return hosts == 1 || (hosts == 0 && head.version < 11);
}

}  // namespace

struct HttpParser::State {
  std::optional<Parser> parser;
};

HttpParser::HttpParser(const ServerLimits& limits) : limits_(limits), state_(std::make_unique<State>()) { reset(); }
HttpParser::~HttpParser() = default;

void HttpParser::reset() {
  state_->parser.emplace();
  state_->parser->header_limit(static_cast<uint32_t>(limits_.header_bytes));
  state_->parser->body_limit(std::numeric_limits<uint64_t>::max());  // checked here, where the request is known already
  state_->parser->eager(false);
  head_ = {};
  fault_.reset();
}

bool HttpParser::has_head() const { return !fault_ && state_->parser->is_header_done(); }
bool HttpParser::done() const { return !fault_ && state_->parser->is_done(); }
bool HttpParser::expects_continue() const { return lower(head_.header("expect")) == "100-continue"; }

void HttpParser::feed(std::string& bytes) {
  Parser& parser = *state_->parser;
  size_t used = 0;
  while (!fault_ && !parser.is_done() && used < bytes.size()) {
    const bool had_head = parser.is_header_done();
    if (had_head && parser.chunked() && bytes[used] == '0' && bytes.size() - used < kLastChunk) break;
    boost::beast::error_code error;
    const size_t n = parser.put(boost::asio::buffer(bytes.data() + used, bytes.size() - used), error);
    used += n;
    if (parser.is_header_done() && !had_head) {
      read_head();
      if (!error) parser.eager(true);
    }
    if (error == http::error::need_more) break;
    if (error) fault_ = fault_of(error);
    else if (parser.get().body().size() > limits_.body_bytes) fault_ = HttpFault::body_too_large;
    else if (n == 0) break;
  }
  bytes.erase(0, used);
  if (!fault_ && !parser.is_done() && bytes.size() > limits_.header_bytes)  // a chunk header or trailer without end
    fault_ = parser.is_header_done() ? HttpFault::malformed : HttpFault::header_too_large;
}

void HttpParser::read_head() {
  const auto& message = state_->parser->get();
  head_.method = std::string(message.method_string());
  head_.version = static_cast<int>(message.version());
  head_.keep_alive = message.keep_alive();
  for (const auto& field : message) {
    const auto name = field.name_string(), value = field.value();
    head_.headers.emplace_back(lower({name.data(), name.size()}), std::string(value.data(), value.size()));
  }
  const auto target = message.target();
  if (!accept_target({target.data(), target.size()}) || !framing_is_clear(head_)) fault_ = HttpFault::malformed;
  else if (const auto length = state_->parser->content_length(); length && *length > limits_.body_bytes)
    fault_ = HttpFault::body_too_large;
}

bool HttpParser::accept_target(std::string_view target) {
  for (const std::string_view scheme : {"http://", "https://"}) {
    if (!target.starts_with(scheme)) continue;
    target.remove_prefix(scheme.size());
    target.remove_prefix(std::min(target.find('/'), target.size()));
  }
  if (target.empty() || target.front() != '/') return false;
  target = target.substr(0, target.find('#'));
  const size_t question = std::min(target.find('?'), target.size());
  auto path = percent_decode(target.substr(0, question));
  if (!path) return false;
  head_.path = std::move(*path);
  head_.query = std::string(target.substr(std::min(question + 1, target.size())));
  return true;
}

HttpRequest HttpParser::take() {
  head_.body = std::move(state_->parser->get().body());
  return std::move(head_);
}

}  // namespace conclave
