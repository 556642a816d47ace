#include "text/jinja_unicode.h"

#include <utf8proc.h>

#include <algorithm>

namespace conclave::jinja {
namespace {

struct SpecialCase {
  char32_t from;
  std::string_view lower, upper, title;  // empty: the simple mapping
};

// Unicode's SpecialCasing.txt, unconditional mappings to several characters that occur outside ancient Greek.
constexpr SpecialCase kSpecialCases[] = {
    {0xDF, "", "SS", "Ss"},      {0x130, "i\u0307", "", ""},          {0x149, "", "\u02BCN", "\u02BCN"},
    {0x1F0, "", "J\u030C", "J\u030C"}, {0x587, "", "\u0535\u0552", "\u0535\u0582"},
    {0x1E96, "", "H\u0331", "H\u0331"}, {0x1E97, "", "T\u0308", "T\u0308"}, {0x1E98, "", "W\u030A", "W\u030A"},
    {0x1E99, "", "Y\u030A", "Y\u030A"}, {0x1E9A, "", "A\u02BE", "A\u02BE"}, {0xFB00, "", "FF", "Ff"},
    {0xFB01, "", "FI", "Fi"},    {0xFB02, "", "FL", "Fl"},            {0xFB03, "", "FFI", "Ffi"},
    {0xFB04, "", "FFL", "Ffl"},  {0xFB05, "", "ST", "St"},            {0xFB06, "", "ST", "St"},
};

utf8proc_category_t category(char32_t c) { return utf8proc_category(static_cast<utf8proc_int32_t>(c)); }

bool is_cased(char32_t c) { return is_upper(c) || is_lower(c) || is_title(c); }

bool is_case_ignorable(char32_t c) {
  switch (category(c)) {
    case UTF8PROC_CATEGORY_MN: case UTF8PROC_CATEGORY_ME: case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_LM: case UTF8PROC_CATEGORY_SK: return true;
    default: return c == '\'' || c == '.' || c == ':' || c == 0xB7 || c == 0x2019;
  }
}

/// A capital sigma ends a word when a cased letter precedes it and none follows (case-ignorable characters aside).
bool is_final_sigma(std::string_view bytes, size_t begin, size_t end) {
  bool before = false;
  for (size_t i = begin; i > 0;) {
    do --i; while (i > 0 && (bytes[i] & 0xC0) == 0x80);
    size_t at = i;
    const char32_t c = next_code_point(bytes, at);
    if (is_case_ignorable(c)) continue;
    before = is_cased(c);
    break;
  }
  for (size_t i = end; before && i < bytes.size();) {
    const char32_t c = next_code_point(bytes, i);
    if (!is_case_ignorable(c)) return !is_cased(c);
  }
  return before;
}

void append_cased(Text& out, const Text& text, size_t begin, size_t end, Case to) {
  size_t i = begin;
  const char32_t c = next_code_point(text.bytes(), i);
  if (c == 0x3A3 && to == Case::lower && is_final_sigma(text.bytes(), begin, end)) {
    out.append("\u03C2", text.trusted(begin));
  } else {
    out.append(map_case(c, to), text.trusted(begin));
  }
}

/// Maps every character; `pick` sees the character and chooses.
template <class Pick>
Text map_text(const Text& text, Pick pick) {
  Text out;
  for (size_t i = 0; i < text.size();) {
    const size_t begin = i;
    const char32_t c = next_code_point(text.bytes(), i);
    append_cased(out, text, begin, i, pick(c));
  }
  return out;
}

}  // namespace

bool valid_utf8(std::string_view bytes) {
  for (size_t i = 0; i < bytes.size();) {
    utf8proc_int32_t c = 0;
    const auto n = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(bytes.data()) + i,
                                    static_cast<utf8proc_ssize_t>(std::min<size_t>(bytes.size() - i, 4)), &c);
    if (n <= 0) return false;
    i += static_cast<size_t>(n);
  }
  return true;
}

char32_t next_code_point(std::string_view bytes, size_t& i) {
  const auto first = static_cast<unsigned char>(bytes[i++]);
  if (first < 0x80) return first;
  const int extra = first >= 0xF0 ? 3 : first >= 0xE0 ? 2 : 1;
  char32_t c = first & (0x3F >> extra);
  for (int k = 0; k < extra && i < bytes.size(); ++k) c = (c << 6) | (static_cast<unsigned char>(bytes[i++]) & 0x3F);
  return c;
}

std::string encode_utf8(char32_t code_point) {
  utf8proc_uint8_t buffer[4];
  const auto n = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code_point), buffer);
  return std::string(reinterpret_cast<const char*>(buffer), static_cast<size_t>(n));
}

size_t count_code_points(std::string_view bytes) {
  return static_cast<size_t>(std::count_if(bytes.begin(), bytes.end(), [](char b) { return (b & 0xC0) != 0x80; }));
}

std::vector<size_t> code_point_offsets(std::string_view bytes) {
  std::vector<size_t> offsets;
  for (size_t i = 0; i < bytes.size(); ++i) {
    if ((bytes[i] & 0xC0) != 0x80) offsets.push_back(i);
  }
  offsets.push_back(bytes.size());
  return offsets;
}

size_t offset_of(std::string_view bytes, size_t index) {
  for (size_t i = 0; i < bytes.size(); ++i) {
    if ((bytes[i] & 0xC0) != 0x80 && index-- == 0) return i;
  }
  return bytes.size();
}

std::string map_case(char32_t c, Case to) {
  for (const SpecialCase& s : kSpecialCases) {
    if (s.from != c) continue;
    const std::string_view mapped = to == Case::lower ? s.lower : to == Case::upper ? s.upper : s.title;
    if (!mapped.empty()) return std::string(mapped);
  }
  const auto point = static_cast<utf8proc_int32_t>(c);
  const auto mapped = to == Case::lower ? utf8proc_tolower(point)
                      : to == Case::upper ? utf8proc_toupper(point) : utf8proc_totitle(point);
  return encode_utf8(static_cast<char32_t>(mapped));
}

Text lower(const Text& text) { return map_text(text, [](char32_t) { return Case::lower; }); }
Text upper(const Text& text) { return map_text(text, [](char32_t) { return Case::upper; }); }

Text capitalize(const Text& text) {
  bool first = true;
  return map_text(text, [&](char32_t) { return std::exchange(first, false) ? Case::title : Case::lower; });
}

Text title(const Text& text) {
  bool in_word = false;
  return map_text(text, [&](char32_t c) { return std::exchange(in_word, is_cased(c)) ? Case::lower : Case::title; });
}

Text swapcase(const Text& text) {
  return map_text(text, [](char32_t c) { return is_upper(c) ? Case::lower : Case::upper; });
}

bool is_space(char32_t c) {
  return (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x1F) || c == ' ' || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool is_alpha(char32_t c) {
  const auto k = category(c);
  return k == UTF8PROC_CATEGORY_LU || k == UTF8PROC_CATEGORY_LL || k == UTF8PROC_CATEGORY_LT ||
         k == UTF8PROC_CATEGORY_LM || k == UTF8PROC_CATEGORY_LO;
}

bool is_decimal(char32_t c) { return category(c) == UTF8PROC_CATEGORY_ND; }

bool is_digit(char32_t c) {
  return is_decimal(c) || c == 0xB2 || c == 0xB3 || c == 0xB9 || c == 0x2070 || (c >= 0x2074 && c <= 0x2079) ||
         (c >= 0x2080 && c <= 0x2089) || (c >= 0x2460 && c <= 0x2468) || (c >= 0x2474 && c <= 0x247C) ||
         (c >= 0x2488 && c <= 0x2490) || c == 0x24EA || (c >= 0x24F5 && c <= 0x24FD) || c == 0x24FF ||
         (c >= 0x2776 && c <= 0x277E) || (c >= 0x2780 && c <= 0x2788) || (c >= 0x278A && c <= 0x2792);
}

bool is_numeric(char32_t c) {
  const auto k = category(c);
  return is_digit(c) || k == UTF8PROC_CATEGORY_NL || k == UTF8PROC_CATEGORY_NO;
}

bool is_upper(char32_t c) {
  return category(c) == UTF8PROC_CATEGORY_LU || (c >= 0x2160 && c <= 0x216F) || (c >= 0x24B6 && c <= 0x24CF);
}

bool is_lower(char32_t c) {
  return category(c) == UTF8PROC_CATEGORY_LL || c == 0xAA || c == 0xBA || (c >= 0x2170 && c <= 0x217F) ||
         (c >= 0x24D0 && c <= 0x24E9);
}

bool is_title(char32_t c) { return category(c) == UTF8PROC_CATEGORY_LT; }

bool is_printable(char32_t c) {
  switch (category(c)) {
    case UTF8PROC_CATEGORY_CC: case UTF8PROC_CATEGORY_CF: case UTF8PROC_CATEGORY_CS: case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN: case UTF8PROC_CATEGORY_ZL: case UTF8PROC_CATEGORY_ZP: return false;
    case UTF8PROC_CATEGORY_ZS: return c == ' ';
    default: return true;
  }
}

bool is_line_break(char32_t c) {
  return (c >= 10 && c <= 13) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

}  // namespace conclave::jinja
