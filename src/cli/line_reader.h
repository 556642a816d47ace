#pragma once
// Lines from the user: with editing and a history file on a terminal, plain lines from a pipe. Hides the editing
// library.
#include <filesystem>
#include <string>

namespace conclave {

class LineReader {
 public:
  enum class Result { line, interrupted, end };

  /// `history`: read now and written at the end; empty for none.
  explicit LineReader(std::filesystem::path history);
  ~LineReader();
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  /// `prompt` is shown on a terminal only. `interrupted`: a signal came while waiting.
  Result read(const std::string& prompt, std::string& line);
  bool interactive() const { return interactive_; }

  /// $XDG_STATE_HOME/conclave/chat_history, or the same below ~/.local/state; empty without a home.
  static std::filesystem::path default_history();

 private:
  std::filesystem::path history_;
  bool interactive_;
};

}  // namespace conclave
