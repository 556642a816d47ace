#pragma once
// Pre-tokenizers of tokenizer.json: cut a text into the pieces that the model may merge within.
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "text/regex.h"

namespace conclave {

/// A text under way: pieces are byte ranges of `text`, in order.
struct PieceList {
  std::string text;
  std::vector<Range> pieces;
  bool starts_input = true;  ///< the first byte of `text` is the first byte of the whole input
  RegexScratch& scratch;
};

class Pretokenizer {
 public:
  virtual ~Pretokenizer() = default;
  virtual void apply(PieceList& list) const = 0;
};

/// Reads the `pre_tokenizer` section; null gives one that does nothing. Throws unsupported naming `source` and the type.
std::unique_ptr<Pretokenizer> make_pretokenizer(const nlohmann::json& section, const std::string& source);

/// UTF-8 of the characters that GPT-2's byte-level vocabularies write the 256 bytes as.
const std::string& byte_level_character(unsigned char byte);
/// The byte that a code point stands for, -1 for none.
int byte_level_byte(char32_t code);

}  // namespace conclave
