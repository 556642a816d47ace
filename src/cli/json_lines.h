#pragma once
// Input from the user's files or standard input ("-"): whole, or one JSON value per line. Errors name source and line.
#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace conclave {

/// Calls `visit` with every non-blank line's value and "<source>:<line>". Throws bad_input when the source cannot be
/// read or a line is not JSON.
void for_each_json_line(
    const std::string& file,
    const std::function<void(const nlohmann::ordered_json& value, const std::string& where)>& visit);

/// A file's (or with "-" standard input's) bytes. Throws bad_input naming `option`, the file and the cause.
std::string read_input(const std::string& file, std::string_view option, size_t max_bytes = size_t{64} << 20);

/// Typed members of a JSON object from the user: missing or null gives the fallback; another kind throws bad_input
/// naming `where`.
bool boolean_or(const nlohmann::ordered_json& object, const char* key, bool fallback, const std::string& where);
std::string text_or(const nlohmann::ordered_json& object, const char* key, std::string fallback,
                    const std::string& where);
/// Throws bad_input unless `value` is an object.
void require_object(const nlohmann::ordered_json& value, const std::string& where);

}  // namespace conclave
