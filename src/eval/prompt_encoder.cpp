#include "eval/prompt_encoder.h"

#include "core/error.h"
#include "text/unicode.h"

namespace conclave {
namespace {

bool is_python_space(char32_t c) { return is_white_space(c) || (c >= 0x1c && c <= 0x1f); }

}  // namespace

std::vector<int32_t> PromptEncoder::prompt(std::string_view text) const {
  if (!chat_) return plain(text);
  return conversation({{{"role", "user"}, {"content", text}}});
}

std::vector<int32_t> PromptEncoder::conversation(const nlohmann::ordered_json& messages) const {
  if (!chat_) throw Error(Error::Kind::internal, "a conversation was asked for without a chat template");
  return tokenizer_.encode(chat_->render({messages, true, nullptr, nullptr, nullptr, ""}));
}

PromptEncoder::Continued PromptEncoder::continued(std::string_view context, std::string_view continuation) const {
  const std::string_view head = stripped_right(context);
  const std::vector<int32_t> first = plain(head);
  std::string whole(context);
  whole += continuation;
  return {plain(whole), first.size()};
}

std::string_view stripped_left(std::string_view text) {
  while (!text.empty()) {
    const Utf8Char c = decode_utf8(text, 0);
    if (!is_python_space(c.code)) break;
    text.remove_prefix(c.bytes);
  }
  return text;
}

std::string_view stripped_right(std::string_view text) {
  while (!text.empty()) {
    size_t start = text.size() - 1;
    while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xc0) == 0x80) --start;
    if (!is_python_space(decode_utf8(text, start).code)) break;
    text.remove_suffix(text.size() - start);
  }
  return text;
}

std::string_view stripped(std::string_view text) { return stripped_right(stripped_left(text)); }

std::string replaced(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  for (size_t at = 0;;) {
    const size_t found = text.find(from, at);
    out += text.substr(at, found == std::string_view::npos ? found : found - at);
    if (found == std::string_view::npos) return out;
    out += to;
    at = found + from.size();
  }
}

}  // namespace conclave
