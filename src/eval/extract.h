#pragma once
// Answers out of generated text, as the reference stack finds them. Hides the cascades of patterns (published with OpenCompass,
// `first_option_postprocess`); matching is bounded.
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/regex.h"

namespace conclave {

/// The letter A to D that a text decides for: the first pattern of the cascade whose match holds one, in the end any letter. "" for none.
class LetterFinder {
 public:
  enum class Kind { exam, gpqa };
  explicit LetterFinder(Kind kind);
  std::string find(std::string_view text) const;

 private:
  struct Pattern {
    Regex regex;
    size_t skip;  ///< bytes of a match that cannot hold the letter
    bool last;    ///< the group is one letter, the last one of the match
  };
  void add(std::string_view pattern, bool last = false, size_t skip = 0);
  std::vector<Pattern> patterns_;
  bool strip_;
};

/// The last number of a text without commas and plus sign.
class NumberFinder {
 public:
  NumberFinder();
  std::optional<std::string> last(std::string_view text) const;

 private:
  Regex regex_;
};
/// Equal within 1e-4.
bool same_number(std::string_view a, std::string_view b);

/// The first character after white space, "-1" when there is none.
std::string first_character(std::string_view text);

}  // namespace conclave
