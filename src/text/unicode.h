#pragma once
// UTF-8 and Unicode properties for the text folder. Hides utf8proc. Invalid UTF-8 is cut as Unicode recommends
// (maximal subparts), so replacement gives the same text as Python's decode(errors="replace") and Rust's from_utf8_lossy.
#include <cstddef>
#include <string>
#include <string_view>

namespace conclave {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

struct Utf8Char {
  char32_t code;  ///< U+FFFD when not valid
  size_t bytes;   ///< at least 1; of an invalid sequence, the part that one U+FFFD replaces
  bool valid;
};

/// The character at `position`, which lies inside `text`.
Utf8Char decode_utf8(std::string_view text, size_t position);
/// Appends the UTF-8 form of a valid code point.
void append_utf8(std::string& out, char32_t code);
bool is_valid_utf8(std::string_view text);
/// The text with every invalid sequence replaced by U+FFFD.
std::string lossy_utf8(std::string_view text);
/// How many bytes at the end of `text` are a proper beginning of a character that further bytes could complete.
size_t incomplete_utf8_tail(std::string_view text);
/// Number of code points of valid UTF-8.
size_t count_characters(std::string_view text);

bool is_ascii(std::string_view text);
/// Unicode property White_Space.
bool is_white_space(char32_t code);
/// General categories Nd, Nl, No.
bool is_numeric(char32_t code);
/// General categories Mn, Mc, Me.
bool is_mark(char32_t code);
/// General categories P*, and ASCII punctuation that Unicode calls symbols.
bool is_punctuation(char32_t code);
/// Letters, marks, decimal digits and connectors: what a regular expression calls \w.
bool is_word(char32_t code);
void append_lower(std::string& out, char32_t code);

enum class NormalForm { nfc, nfd, nfkc, nfkd };
/// Unicode normalization of valid UTF-8.
std::string normalize(std::string_view text, NormalForm form);

}  // namespace conclave
