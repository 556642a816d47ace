#include "text/token_decoder.h"

#include <fmt/format.h>

#include "core/error.h"
#include "text/json_section.h"
#include "text/pretokenizer.h"
#include "text/unicode.h"

namespace conclave {
namespace {

constexpr std::string_view kSupported = "Sequence, ByteLevel, ByteFallback, Replace (of a string), Fuse, Strip, Metaspace";

std::string from_byte_level(std::string_view token) {
  std::string bytes;
  for (size_t i = 0; i < token.size();) {
    const Utf8Char c = decode_utf8(token, i);
    const int byte = byte_level_byte(c.code);
    if (byte < 0) return std::string(token);
    bytes += static_cast<char>(byte);
    i += c.bytes;
  }
  return bytes;
}

std::string strip(std::string_view text, std::string_view character, size_t start, size_t stop) {
  for (size_t i = 0; i < start && text.starts_with(character); ++i) text.remove_prefix(character.size());
  for (size_t i = 0; i < stop && text.ends_with(character); ++i) text.remove_suffix(character.size());
  return std::string(text);
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

}  // namespace

int byte_of_token(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  const int high = hex_digit(token[3]), low = hex_digit(token[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  if (from.empty()) return std::string(text);
  std::string out;
  for (;;) {
    const size_t at = text.find(from);
    out += text.substr(0, at);
    if (at == std::string_view::npos) return out;
    out += to;
    text.remove_prefix(at + from.size());
  }
}

TokenDecoder::TokenDecoder(const nlohmann::json& section, const std::string& source) {
  bool fused = false;
  if (section.is_null()) steps_.push_back({Kind::join, " ", {}});
  else add(section, source, fused);
}

void TokenDecoder::add(const nlohmann::json& section, const std::string& source, bool& fused) {
  const JsonSection s(section, source);
  const std::string type = s.type();
  if (type == "Sequence") {
    for (const auto& [index, step] : s.array("decoders").items()) {
      if (step.is_object() && step.contains("type") && step["type"] == "Sequence")
        throw Error(Error::Kind::unsupported, fmt::format("{}: a Sequence of decoders inside a Sequence is not supported", source));
      add(step, fmt::format("{}.decoders[{}]", source, index), fused);
    }
    return;
  }
  if (fused && type != "Strip" && type != "Fuse")
    throw Error(Error::Kind::unsupported, fmt::format("{}: {} after Fuse is not supported; only Strip is", source, type));
  if (type == "ByteLevel") {
    steps_.push_back({Kind::byte_level, {}, {}});
  } else if (type == "ByteFallback") {
    steps_.push_back({Kind::byte_fallback, {}, {}});
  } else if (type == "Fuse") {
    fused = true;
  } else if (type == "Metaspace") {
    const bool never = s.text_or("prepend_scheme", "always") == "never" || !s.flag_or("add_prefix_space", true);
    steps_.push_back({Kind::metaspace, s.character_or("replacement", "▁"), " ", 0, 0, !never});
  } else if (type == "Strip") {
    const int64_t start = s.integer("start"), stop = s.integer("stop");
    if (start < 0 || (fused && start > 1)) s.wrong("start", fused ? "0 or 1 after Fuse" : "0 or more");
    if (stop < 0 || (fused && stop > 0)) s.wrong("stop", fused ? "0 after Fuse" : "0 or more");
    steps_.push_back({Kind::strip, s.character_or("content", " "), {}, static_cast<size_t>(start), static_cast<size_t>(stop), fused});
  } else if (type == "Replace") {
    const nlohmann::json& pattern = s.value("pattern");
    if (!pattern.is_object() || !pattern.contains("String") || !pattern["String"].is_string()) s.wrong("pattern", "{\"String\": ...}");
    steps_.push_back({Kind::replace, pattern["String"].get<std::string>(), s.text("content")});
  } else {
    s.unsupported_type(kSupported);
  }
}

std::string TokenDecoder::bytes(std::string_view token, bool at_start, bool literal) const {
  std::string text(token);
  for (const Step& step : steps_) {
    switch (step.kind) {
      case Kind::byte_level:
        if (!literal) text = from_byte_level(text);
        break;
      case Kind::byte_fallback:
        if (const int byte = byte_of_token(text); byte >= 0) text = std::string(1, static_cast<char>(byte));
        break;
      case Kind::replace: text = replace_all(text, step.from, step.to); break;
      case Kind::metaspace: text = replace_all(text, step.from, at_start && step.whole_text ? "" : " "); break;
      case Kind::strip:
        if (!step.whole_text || at_start) text = strip(text, step.from, step.start, step.stop);
        break;
      case Kind::join:
        if (!at_start) text.insert(text.begin(), ' ');
        break;
      case Kind::fuse: break;
    }
  }
  return text;
}

bool TokenDecoder::strips_leading_space() const {
  for (const Step& step : steps_)
    if (step.whole_text && (step.kind == Kind::metaspace || (step.kind == Kind::strip && step.from == " " && step.start > 0))) return true;
  return false;
}

}  // namespace conclave
