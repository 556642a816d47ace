#pragma once
// Regular expressions of tokenizer files. Hides PCRE2. Patterns are written for Oniguruma (Ruby syntax, Unicode), so they are
// translated first: \s, \w, \b, \h, script names, `$` at line ends, class intersections. Matching is bounded, never hangs.
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace conclave {

/// A match: first byte and one past the last.
using Range = std::pair<size_t, size_t>;

/// Memory for matching; one per thread at a time, reused over many matches.
class RegexScratch {
 public:
  RegexScratch();
  ~RegexScratch();
  RegexScratch(const RegexScratch&) = delete;
  RegexScratch& operator=(const RegexScratch&) = delete;

 private:
  friend class Regex;
  struct State;
  std::unique_ptr<State> state_;
};

class Regex {
 public:
  /// Throws unsupported, naming `source` (file and key) and the pattern, for what cannot be expressed.
  Regex(std::string_view pattern, std::string source);
  ~Regex();
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;

  /// Appends all non-overlapping matches in `text` (valid UTF-8), leftmost first; empty matches are included.
  /// Throws bad_input when matching exceeds its limits.
  void find_all(std::string_view text, RegexScratch& scratch, std::vector<Range>& matches) const;

 private:
  struct Code;
  std::unique_ptr<Code> code_;
  std::string source_;
};

/// The pattern in PCRE2's syntax. Throws unsupported. Exposed for tests.
std::string translate_oniguruma(std::string_view pattern, std::string_view source);
/// Escapes a literal string for use inside a pattern.
std::string escape_regex(std::string_view text);

}  // namespace conclave
