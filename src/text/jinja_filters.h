#pragma once
// The half of the filter table that works on text and numbers.
#include "text/jinja_library.h"

namespace conclave::jinja {

Filter find_text_filter(std::string_view name);
/// int(text) and float(text) as Python reads them; nothing when malformed.
std::optional<int64_t> parse_integer(std::string_view text, int base = 10);
std::optional<double> parse_number(std::string_view text);

}  // namespace conclave::jinja
