// libFuzzer target: the first byte says in what pieces the rest arrives at the HTTP parser, which reads request after request.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "server/http_parser.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  conclave::ServerLimits limits;
  limits.header_bytes = 512;
  limits.body_bytes = 1024;
  const size_t piece = data[0] % 16 == 0 ? size : data[0] % 16;
  std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  conclave::HttpParser parser(limits);
  for (std::string held; !rest.empty() && !parser.fault();) {
    held += rest.substr(0, piece);
    rest.remove_prefix(std::min(piece, rest.size()));
    while (!held.empty() && !parser.fault()) {
      const size_t before = held.size();
      parser.feed(held);
      if (held.size() > limits.header_bytes + piece && !parser.fault() && !parser.done()) __builtin_trap();
      if (!parser.done()) {
        if (held.size() == before) break;
        continue;
      }
      const conclave::HttpRequest request = parser.take();
      if (request.body.size() > limits.body_bytes || request.path.empty() || request.path.front() != '/') __builtin_trap();
      conclave::query_value(request.query, "mode");
      parser.reset();
    }
  }
  return 0;
}
