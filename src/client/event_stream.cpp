#include "client/event_stream.h"

#include <fmt/format.h>

#include <utility>

#include "core/error.h"

namespace conclave {
namespace {

constexpr size_t kMaxEvent = size_t{64} << 20;

}  // namespace

bool EventStream::feed(std::string_view bytes, const std::function<bool(std::string_view)>& on_event) {
  while (!bytes.empty()) {
    if (std::exchange(after_cr_, false) && bytes.front() == '\n') {
      bytes.remove_prefix(1);
      continue;
    }
    const size_t end = bytes.find_first_of("\r\n");
    line_.append(bytes.substr(0, end));
    if (line_.size() + data_.size() > kMaxEvent)
      throw Error(Error::Kind::network, fmt::format("event stream: one event is longer than {} bytes; the peer does not end it", kMaxEvent));
    if (end == std::string_view::npos) return true;
    after_cr_ = bytes[end] == '\r';
    bytes.remove_prefix(end + 1);
    if (!take_line(on_event)) return false;
  }
  return true;
}

bool EventStream::take_line(const std::function<bool(std::string_view)>& on_event) {
  std::string line = std::exchange(line_, {});
  if (std::exchange(first_, false) && line.starts_with("\xEF\xBB\xBF")) line.erase(0, 3);
  if (line.empty()) {
    const std::string event = std::exchange(data_, {});
    return !std::exchange(has_data_, false) || on_event(event);
  }
  const size_t colon = line.find(':');
  if (std::string_view(line).substr(0, colon) != "data") return true;
  if (std::exchange(has_data_, true)) data_ += '\n';
  if (colon != std::string::npos) data_ += line.substr(colon + (line.substr(colon + 1).starts_with(' ') ? 2 : 1));
  return true;
}

}  // namespace conclave
