#pragma once
// The `decoder` section of tokenizer.json as a rule for one token at a time: what bytes a token adds to a text. Decoders whose
// result for a token depends on later tokens are refused, so that streaming and whole-text decoding agree by construction.
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace conclave {

class TokenDecoder {
 public:
  /// Reads the section; null joins tokens with spaces, as the file format defines. Throws unsupported naming `source`.
  TokenDecoder(const nlohmann::json& section, const std::string& source);

  /// Bytes of one token. `at_start`: nothing was written before it. `literal`: an added token, whose text is never
  /// read as byte-level characters.
  std::string bytes(std::string_view token, bool at_start, bool literal) const;
  bool strips_leading_space() const;

 private:
  enum class Kind { byte_level, byte_fallback, replace, fuse, strip, metaspace, join };
  struct Step {
    Kind kind;
    std::string from, to;        ///< replace; metaspace and strip: the character in `from`
    size_t start = 0, stop = 0;  ///< strip
    bool whole_text = false;     ///< strip after Fuse; metaspace that prepends
  };
  void add(const nlohmann::json& section, const std::string& source, bool& fused);
  std::vector<Step> steps_;
};

/// The byte that a token of the form <0xNN> stands for, -1 for others.
int byte_of_token(std::string_view token);
std::string replace_all(std::string_view text, std::string_view from, std::string_view to);

}  // namespace conclave
