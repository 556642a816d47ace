#pragma once
// A plain HTTP/1.1 client over one connection that it keeps open: what load generation and evaluation against a running server need. Calls
// block; one thread uses one client at a time. Errors are Error::Kind::network naming the address, what was being done and the cause.
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace conclave {

/// "http://host:port/prefix"; port 80 by default. Throws bad_input for anything else, https included.
struct HttpUrl {
  std::string host, port, prefix;
};
HttpUrl parse_http_url(std::string_view text);

struct HttpAnswer {
  int status = 0;
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;  ///< empty when it was given to on_event piece by piece
  /// The first header of that name, whatever its case; empty when there is none.
  std::string_view header(std::string_view name) const;
};

class HttpClient {
 public:
  using Headers = std::vector<std::pair<std::string, std::string>>;
  /// Connects at the first request. `timeout_s` bounds each wait for the peer.
  explicit HttpClient(HttpUrl url, int timeout_s = 600);
  ~HttpClient();
  HttpAnswer get(std::string_view path, const Headers& headers = {});
  HttpAnswer post(std::string_view path, std::string_view body, const Headers& headers = {});
  /// Server-sent events as they come: `on_event` gets the data of each (comments left out) and ends the exchange by returning false, which
  /// closes the connection. An answer that is no event stream comes back whole in `body`.
  HttpAnswer stream(std::string_view path, std::string_view body, const std::function<bool(std::string_view data)>& on_event,
                      const Headers& headers = {});

 private:
  struct Connection;
  std::unique_ptr<Connection> connection_;
};

}  // namespace conclave
