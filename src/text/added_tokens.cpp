#include "text/added_tokens.h"

#include <algorithm>

#include "text/unicode.h"

namespace conclave {
namespace {

bool word_before(std::string_view text, size_t position) {
  if (position == 0) return false;
  size_t start = position - 1;
  while (start > 0 && (text[start] & 0xC0) == 0x80) --start;
  return is_word(decode_utf8(text, start).code);
}

bool word_after(std::string_view text, size_t position) {
  return position < text.size() && is_word(decode_utf8(text, position).code);
}

size_t spaces_begin(std::string_view text, size_t end) {
  while (end > 0) {
    size_t start = end - 1;
    while (start > 0 && (text[start] & 0xC0) == 0x80) --start;
    if (!is_white_space(decode_utf8(text, start).code)) break;
    end = start;
  }
  return end;
}

size_t spaces_end(std::string_view text, size_t begin) {
  while (begin < text.size()) {
    const Utf8Char c = decode_utf8(text, begin);
    if (!is_white_space(c.code)) break;
    begin += c.bytes;
  }
  return begin;
}

}  // namespace

bool AddedToken::control() const { return special || count_characters(content) > 1; }

bool MarkedText::trusted_range(size_t begin, size_t end) const {
  return trust.empty() ? trusted : std::string_view(trust).substr(begin, end - begin).find('\0') == std::string_view::npos;
}

MarkedText MarkedText::slice(size_t begin, size_t end) const {
  return {bytes.substr(begin, end - begin), trust.empty() ? std::string() : trust.substr(begin, end - begin), trusted};
}

void AddedTokenMatcher::add(std::string_view pattern, const AddedToken& token) {
  if (pattern.empty()) return;
  starts_[static_cast<unsigned char>(pattern[0])] = true;
  uint32_t node = 0;
  for (const char c : pattern) {
    const uint64_t key = uint64_t{node} << 8 | static_cast<unsigned char>(c);
    const auto [edge, fresh] = edges_.try_emplace(key, static_cast<uint32_t>(ends_.size()));
    if (fresh) ends_.push_back(nullptr);
    node = edge->second;
  }
  if (!ends_[node]) ends_[node] = &token;
}

const AddedToken* AddedTokenMatcher::longest_at(const MarkedText& text, size_t begin, size_t& end) const {
  const AddedToken* found = nullptr;
  uint32_t node = 0;
  for (size_t i = begin; i < text.bytes.size(); ++i) {
    const auto edge = edges_.find(uint64_t{node} << 8 | static_cast<unsigned char>(text.bytes[i]));
    if (edge == edges_.end()) break;
    node = edge->second;
    const AddedToken* token = ends_[node];
    if (!token || (token->control() && !text.trusted_range(begin, i + 1))) continue;
    found = token;
    end = i + 1;
  }
  return found;
}

std::vector<AddedTokenMatcher::Part> AddedTokenMatcher::split(const MarkedText& text) const {
  std::vector<Part> parts;
  size_t done = 0;  // everything before it lies in parts
  const auto gap = [&](size_t end) {
    if (end > done) parts.push_back({done, end, nullptr});
  };
  for (size_t i = 0; i < text.bytes.size();) {
    size_t end = 0;
    const AddedToken* token = starts_[static_cast<unsigned char>(text.bytes[i])] ? longest_at(text, i, end) : nullptr;
    if (!token) {
      ++i;
      continue;
    }
    const size_t match_end = end;
    if (token->single_word && (word_before(text.bytes, i) || word_after(text.bytes, end))) {
      i = match_end;
      continue;
    }
    size_t begin = i;
    if (token->lstrip) begin = std::max(done, spaces_begin(text.bytes, begin));
    if (token->rstrip) end = spaces_end(text.bytes, end);
    gap(begin);
    parts.push_back({begin, end, token});
    done = end;
    i = std::max(match_end, end);
  }
  gap(text.bytes.size());
  return parts;
}

}  // namespace conclave
