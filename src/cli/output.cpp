#include "cli/output.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/error.h"
#include "io/partial_file.h"

namespace conclave {
namespace fs = std::filesystem;
namespace {

constexpr size_t kBufferBytes = 1 << 16;

/// Length of the UTF-8 character at the beginning of `text`, 0 when there is none.
size_t utf8_length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xc2 && lead <= 0xdf   ? 2
                        : (lead & 0xf0) == 0xe0        ? 3
                        : lead >= 0xf0 && lead <= 0xf4 ? 4
                                                       : 0;
  if (length == 0 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  const unsigned char second = byte(1);
  const bool overlong = (lead == 0xe0 && second < 0xa0) || (lead == 0xf0 && second < 0x90);
  const bool outside =
      (lead == 0xed && second > 0x9f) || (lead == 0xf4 && second > 0x8f);  // surrogates, beyond U+10FFFF
  return overlong || outside ? 0 : length;
}

bool is_control(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const bool c1 = byte(at) == 0xc2 && byte(at + 1) >= 0x80 && byte(at + 1) <= 0x9f;  // U+0080 to U+009F
  return c1 || byte(at) == 0x7f || (byte(at) < 0x20 && text[at] != '\n' && text[at] != '\t');
}

}  // namespace

void Output::write(std::string_view text) {
  buffer_ += text;
  if (buffer_.size() >= kBufferBytes) flush();
}

void Output::line(std::string_view text) {
  write(text);
  write("\n");
}

void Output::model_text(std::string_view text) {
  if (!is_terminal()) return write(text);
  for (size_t at = 0; at < text.size(); ++at) {
    if (!is_control(text, at)) {
      buffer_ += text[at];
      continue;
    }
    buffer_ += "\xef\xbf\xbd";
    if (static_cast<unsigned char>(text[at]) == 0xc2) ++at;
  }
}

void Output::flush() {
  const std::string all = std::exchange(buffer_, {});
  for (std::string_view text = all; !text.empty();) {
    const ssize_t written = ::write(STDOUT_FILENO, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0)
      throw Error(Error::Kind::internal, fmt::format("standard output: cannot write: {}", std::strerror(errno)));
    text.remove_prefix(static_cast<size_t>(written));
  }
}

bool Output::is_terminal() const { return ::isatty(STDOUT_FILENO) == 1; }

std::string json_line(const nlohmann::ordered_json& value) {
  return value.dump(-1, ' ', true, nlohmann::ordered_json::error_handler_t::replace);
}

void require_writable(const fs::path& file, std::string_view option) {
  const auto refuse = [&](std::string_view cause) {
    throw Error(Error::Kind::internal, fmt::format("{}: cannot write {}: {}", option, file.string(), cause));
  };
  std::error_code error;
  if (file.filename().empty() || fs::is_directory(file, error)) refuse("it is a folder, wanted a file");
  if (fs::exists(file, error) && !fs::is_regular_file(file, error))
    refuse("it is not a regular file, and would be replaced by one");
  const fs::path folder = file.has_parent_path() ? file.parent_path() : fs::path(".");
  if (!fs::is_directory(folder, error)) refuse(fmt::format("the folder {} does not exist", folder.string()));
  // access() says yes to root even on a read-only file system, so the check is a real file, removed at once.
  try {
    const PartialFile probe(file);
  } catch (const Error& e) { throw Error(e.kind, fmt::format("{}: {}", option, e.what())); }
}

void require_utf8(std::string_view text, std::string_view what) {
  for (size_t at = 0; at < text.size();) {
    const size_t length = utf8_length(text.substr(at));
    if (length == 0) {
      throw Error(Error::Kind::bad_input,
                  fmt::format("{}: byte {} (0x{:02x}) is not UTF-8; convert the text to UTF-8 first", what, at,
                              static_cast<unsigned char>(text[at])));
    }
    at += length;
  }
}

}  // namespace conclave
