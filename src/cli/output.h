#pragma once
// Standard output, and checks of outputs and texts. A result that cannot be written is an error, never silence: a full
// disk or a closed pipe throws.
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace conclave {

/// Standard output of the process; buffered until flush(). One per program.
class Output {
 public:
  /// Throws internal when standard output is closed or full.
  void write(std::string_view text);
  void line(std::string_view text);
  /// Text from a model: a terminal gets no control characters but line ends and tabs, everything else gets it as it is.
  void model_text(std::string_view text);
  void flush();
  bool is_terminal() const;

 private:
  std::string buffer_;
};

/// One line of JSON in ASCII: some readers also end lines at U+0085 or U+2028. Broken UTF-8 becomes U+FFFD.
std::string json_line(const nlohmann::ordered_json& value);

/// Throws internal naming option, path and cause when `file` could not be created: called before long work.
void require_writable(const std::filesystem::path& file, std::string_view option);

/// Throws bad_input naming `what` and the byte offset where `text` stops being UTF-8.
void require_utf8(std::string_view text, std::string_view what);

}  // namespace conclave
