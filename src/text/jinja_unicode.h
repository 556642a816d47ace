#pragma once
// Unicode as Python's str methods see it: code points, case mapping and character classes over valid UTF-8.
// Pure functions; the only part of the template engine that knows utf8proc.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/jinja_value.h"

namespace conclave::jinja {

bool valid_utf8(std::string_view bytes);
/// Code point at byte `i` of valid UTF-8; advances `i` past it.
char32_t next_code_point(std::string_view bytes, size_t& i);
std::string encode_utf8(char32_t code_point);
size_t count_code_points(std::string_view bytes);
/// Byte offsets of all code points, and one more: the size.
std::vector<size_t> code_point_offsets(std::string_view bytes);
/// Byte offset of code point `index` (the size when there are fewer).
size_t offset_of(std::string_view bytes, size_t index);

enum class Case { lower, upper, title };
std::string map_case(char32_t c, Case to);
Text lower(const Text& text);
Text upper(const Text& text);
Text capitalize(const Text& text);
Text title(const Text& text);
Text swapcase(const Text& text);

bool is_space(char32_t c);
bool is_alpha(char32_t c);
bool is_decimal(char32_t c);
bool is_digit(char32_t c);
bool is_numeric(char32_t c);
bool is_upper(char32_t c);
bool is_lower(char32_t c);
bool is_title(char32_t c);
bool is_printable(char32_t c);
/// Starts a line for str.splitlines.
bool is_line_break(char32_t c);

}  // namespace conclave::jinja
