#pragma once
// Prompts of data sets -> token ids. Texts are encoded as transformers' tokenizers encode them: with the begin token the tokenizer adds, and
// control tokens that a text spells out recognised. With a chat template, texts become the content of messages, which can forge nothing.
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/chat.h"
#include "text/tokenizer.h"

namespace conclave {

class PromptEncoder {
 public:
  /// `chat`: the template to wrap prompts in; nothing for plain prompts. The tokenizer must outlive the encoder.
  PromptEncoder(const Tokenizer& tokenizer, std::optional<ChatTemplate> chat) : tokenizer_(tokenizer), chat_(std::move(chat)) {}

  bool chat() const { return chat_.has_value(); }
  const Tokenizer& tokenizer() const { return tokenizer_; }

  /// The text as it is, special tokens added.
  std::vector<int32_t> plain(std::string_view text) const { return tokenizer_.encode(text, {.add_special_tokens = true, .parse_special = true}); }
  /// The text alone, nothing added.
  std::vector<int32_t> bare(std::string_view text) const { return tokenizer_.encode(text, {.add_special_tokens = false, .parse_special = true}); }
  /// One user message with a chat template, else plain().
  std::vector<int32_t> prompt(std::string_view text) const;
  /// A list of {role, content}, the answer still to come. Needs a chat template.
  std::vector<int32_t> conversation(const nlohmann::ordered_json& messages) const;

  struct Continued {
    std::vector<int32_t> ids;
    size_t first;  ///< where the continuation's ids begin
  };
  /// Context and continuation encoded as one text and cut at the length of the encoded context; spaces at the context's end belong to the
  /// continuation (lm-evaluation-harness, `_encode_pair`).
  Continued continued(std::string_view context, std::string_view continuation) const;

 private:
  const Tokenizer& tokenizer_;
  std::optional<ChatTemplate> chat_;
};

/// Text without white space (as Python's str.isspace) at its beginning, its end, or both.
std::string_view stripped_left(std::string_view text);
std::string_view stripped_right(std::string_view text);
std::string_view stripped(std::string_view text);
/// `text` with every `from` replaced.
std::string replaced(std::string_view text, std::string_view from, std::string_view to);

}  // namespace conclave
