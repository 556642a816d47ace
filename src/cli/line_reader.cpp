#include "cli/line_reader.h"

#include <editline/readline.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <clocale>
#include <cstdlib>
#include <iostream>
#include <memory>

namespace conclave {
namespace fs = std::filesystem;
namespace {
constexpr int kHistoryLines = 1000;
}

fs::path LineReader::default_history() {
  const char* state = std::getenv("XDG_STATE_HOME");
  const char* home = std::getenv("HOME");
  if (state && *state) return fs::path(state) / "conclave" / "chat_history";
  if (home && *home) return fs::path(home) / ".local" / "state" / "conclave" / "chat_history";
  return {};
}

LineReader::LineReader(fs::path history) : history_(std::move(history)), interactive_(::isatty(STDIN_FILENO) == 1) {
  if (!interactive_) return;
  // Editing needs to know what a character is; a system without a chosen locale still types UTF-8.
  if (!std::setlocale(LC_CTYPE, "") || MB_CUR_MAX == 1) std::setlocale(LC_CTYPE, "C.UTF-8");
  using_history();
  stifle_history(kHistoryLines);
  if (!history_.empty()) read_history(history_.c_str());
}

LineReader::~LineReader() {
  if (!interactive_ || history_.empty()) return;
  std::error_code error;
  fs::create_directories(history_.parent_path(), error);
  if (!error && write_history(history_.c_str()) == 0) ::chmod(history_.c_str(), 0600);
}

LineReader::Result LineReader::read(const std::string& prompt, std::string& line) {
  if (!interactive_) {
    errno = 0;
    if (std::getline(std::cin, line)) return Result::line;
    return errno == EINTR ? Result::interrupted : Result::end;
  }
  errno = 0;
  const std::unique_ptr<char, decltype(&std::free)> text(::readline(prompt.c_str()), &std::free);
  if (!text) return errno == EINTR ? Result::interrupted : Result::end;
  line = text.get();
  if (!line.empty()) add_history(text.get());
  return Result::line;
}

}  // namespace conclave
