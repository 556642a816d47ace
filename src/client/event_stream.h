#pragma once
// Server-sent events out of a byte stream (WHATWG HTML, section 9.2.6): lines end in LF, CR or CRLF, comments and other fields than `data`
// are left out, several data lines make one event. Bytes may be cut anywhere. An event that no empty line ends is never given out.
#include <functional>
#include <string>
#include <string_view>

namespace conclave {

class EventStream {
 public:
  /// Gives each event that `bytes` completes to `on_event`; false as soon as that returned false, the rest is then left.
  /// Throws Error::Kind::network where one event passes 64 MiB.
  bool feed(std::string_view bytes, const std::function<bool(std::string_view data)>& on_event);

 private:
  bool take_line(const std::function<bool(std::string_view data)>& on_event);
  std::string line_, data_;
  bool has_data_ = false;
  bool after_cr_ = false;  ///< the last byte was CR: a LF now belongs to it
  bool first_ = true;
};

}  // namespace conclave
