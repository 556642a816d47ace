// Bytes to requests. Expected outcomes follow RFC 9112: what has two readings is refused.
#include "server/http_parser.h"

#include <vector>

#include <gtest/gtest.h>

namespace conclave {
namespace {

struct Parsed {
  std::optional<HttpFault> fault;
  bool done = false;
  HttpRequest request;
  std::string rest;
};

Parsed parse(const std::string& bytes, size_t step, const ServerLimits& limits = {}) {
  HttpParser parser(limits);
  Parsed result;
  for (size_t at = 0; at < bytes.size() && !parser.fault() && !parser.done(); at += step) {
    result.rest += bytes.substr(at, step);
    parser.feed(result.rest);
  }
  result.fault = parser.fault();
  result.done = parser.done();
  result.request = parser.take();
  return result;
}

TEST(HttpParser, ReadsARequestHoweverItIsCut) {
  const std::string bytes = "POST /v1/x%20y?a=b%20c&d HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nX-Thing: One\r\n\r\nabcGET";
  for (const size_t step : {size_t{1}, size_t{2}, size_t{7}, bytes.size()}) {
    const Parsed p = parse(bytes, step);
    EXPECT_FALSE(p.fault);
    ASSERT_TRUE(p.done) << step;
    EXPECT_EQ(p.request.method, "POST");
    EXPECT_EQ(p.request.path, "/v1/x y");
    EXPECT_EQ(query_value(p.request.query, "a"), "b c");
    EXPECT_EQ(query_value(p.request.query, "d"), "");
    EXPECT_EQ(query_value(p.request.query, "e"), std::nullopt);
    EXPECT_EQ(p.request.header("x-thing"), "One");
    EXPECT_EQ(p.request.body, "abc");
    if (step == bytes.size()) {
      EXPECT_EQ(p.rest, "GET");
    }
  }
}

TEST(HttpParser, ReadsAnEmptyChunkedBodyHoweverItIsCut) {
  for (const std::string body : {"0\r\n\r\n", "000;a=b\r\n\r\n", "0\r\nTrailer: x\r\n\r\n", "1\r\n0\r\n0\r\n\r\n"}) {
    const std::string whole = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + body;
    for (size_t piece = 1; piece <= whole.size(); ++piece) {
      HttpParser parser{ServerLimits{}};
      std::string held;
      for (size_t at = 0; at < whole.size(); at += piece) {
        held += whole.substr(at, piece);
        parser.feed(held);
      }
      EXPECT_TRUE(parser.done()) << body << " cut by " << piece;
      EXPECT_EQ(parser.take().body, body.front() == '1' ? "0" : "");
    }
  }
}

TEST(HttpParser, JoinsChunks) {
  const Parsed p = parse(
      "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: t\r\n\r\n", 1);
  EXPECT_FALSE(p.fault);
  ASSERT_TRUE(p.done);
  EXPECT_EQ(p.request.body, "abcde");
}

TEST(HttpParser, RefusesWhatHasTwoReadings) {
  const std::string host = "Host: h\r\n";
  for (const std::string& bytes : std::vector<std::string>{
           "POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
           "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
           "POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
           "POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
           "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip, chunked\r\n\r\n",
           "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: xchunked\r\n\r\n",
           "POST / HTTP/1.0\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
           "POST / HTTP/1.1\r\n" + host + "Content-Length: -1\r\n\r\n",
           "POST / HTTP/1.1\r\n" + host + "Content-Length: 1 2\r\n\r\nab",
           "POST / HTTP/1.1\r\n" + host + "Content-Length: 99999999999999999999999\r\n\r\n",
           "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
           "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
           "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\nzz\r\n",
           std::string("GET / HTTP/1.1\r\n\r\n"),
           "GET / HTTP/1.1\r\n" + host + host + "\r\n",
           "GET / HTTP/1.1\r\nHost : h\r\n\r\n",
           "GET / HTTP/2.0\r\n" + host + "\r\n",
           "GET  / HTTP/1.1\r\n" + host + "\r\n",
           "GET x HTTP/1.1\r\n" + host + "\r\n",
           "GET /%zz HTTP/1.1\r\n" + host + "\r\n",
           "GET /%00 HTTP/1.1\r\n" + host + "\r\n",
           "GET /%ff HTTP/1.1\r\n" + host + "\r\n",
           "GET /a\x01 HTTP/1.1\r\n" + host + "\r\n",
           std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11),
       }) {
    for (const size_t step : {size_t{1}, bytes.size()}) {
      const Parsed p = parse(bytes, step);
      ASSERT_TRUE(p.fault) << bytes;
      EXPECT_EQ(*p.fault, HttpFault::malformed) << bytes;
      EXPECT_FALSE(p.done);
    }
  }
}

TEST(HttpParser, HoldsNoMoreThanTheLimits) {
  ServerLimits limits;
  limits.header_bytes = 1000;
  limits.body_bytes = 100;
  const std::string head = "POST /p HTTP/1.1\r\nHost: h\r\n";
  EXPECT_EQ(parse(head + "A: " + std::string(2000, 'x') + "\r\n\r\n", 64, limits).fault, HttpFault::header_too_large);
  EXPECT_EQ(parse("GET /" + std::string(2000, 'x'), 64, limits).fault, HttpFault::header_too_large);
  const Parsed declared = parse(head + "Content-Length: 101\r\n\r\n", 64, limits);
  EXPECT_EQ(declared.fault, HttpFault::body_too_large);
  EXPECT_EQ(declared.request.path, "/p") << "so that the answer has the endpoint's form";
  EXPECT_FALSE(parse(head + "Content-Length: 100\r\n\r\n" + std::string(100, 'b'), 64, limits).fault);
  std::string chunks;
  for (int i = 0; i < 200; ++i) chunks += "1\r\nx\r\n";
  EXPECT_EQ(parse(head + "Transfer-Encoding: chunked\r\n\r\n" + chunks, 64, limits).fault, HttpFault::body_too_large);
  EXPECT_EQ(parse(head + "Transfer-Encoding: chunked\r\n\r\n1;" + std::string(5000, 'e'), 64, limits).fault,
            HttpFault::malformed);
}

TEST(HttpParser, KeepsHeadersOfAnswersOnTheirLines) {
  HttpResponse response;
  response.headers = {{"X-Given", "a\r\nSet-Cookie: b"}};
  const std::string head = head_bytes(response, {}, 0, false);
  EXPECT_EQ(head.find("\r\nSet-Cookie"), std::string::npos);
  EXPECT_NE(head.find("X-Given: a  Set-Cookie: b\r\n"), std::string::npos);
}

}  // namespace
}  // namespace conclave
