#pragma once
// Added tokens: whole strings that are cut out of a text before the model sees it, leftmost and longest first. Also decides
// what a user may write: control tokens are found only where the caller allows them.
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace conclave {

struct AddedToken {
  int32_t id = -1;
  std::string content;
  bool special = false, normalized = false;
  bool lstrip = false, rstrip = false, single_word = false;
  /// A control token is recognised in trusted text only: special ones and those longer than one character.
  bool control() const;
};

/// Text with the provenance of each byte.
struct MarkedText {
  std::string bytes;
  std::string trust;       ///< one of '\0' / '\1' per byte; empty = all bytes are as `trusted` says
  bool trusted = false;
  bool trusted_range(size_t begin, size_t end) const;
  MarkedText slice(size_t begin, size_t end) const;
};

class AddedTokenMatcher {
 public:
  /// A part of the text: an added token, or the text between two of them (token null).
  struct Part {
    size_t begin, end;
    const AddedToken* token;
  };
  /// `pattern` is the token's text as it occurs (normalized content). The token must outlive the matcher.
  void add(std::string_view pattern, const AddedToken& token);
  /// Cuts the text into parts; empty texts in between are left out.
  std::vector<Part> split(const MarkedText& text) const;

 private:
  const AddedToken* longest_at(const MarkedText& text, size_t begin, size_t& end) const;
  std::unordered_map<uint64_t, uint32_t> edges_;  ///< (node << 8 | byte) -> node
  std::vector<const AddedToken*> ends_{nullptr};  ///< per node: the token that ends there
  bool starts_[256] = {};
};

}  // namespace conclave
