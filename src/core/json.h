#pragma once
// Strict JSON for untrusted files and requests: bounded size and depth, duplicate keys refused, and every error
// names the source and the byte position. The rest of the code sees only nlohmann::json values made here.
#include <cstddef>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace conclave {

struct JsonLimits {
  size_t max_bytes = size_t{4} << 20;
  int max_depth = 64;
};

/// Parses `text`; `source` (a file name or a phrase) opens every error message.
/// Throws bad_input with line and byte offset on malformed, too deep, too large or duplicate-key JSON, and on invalid UTF-8.
nlohmann::ordered_json parse_json(std::string_view text, std::string_view source, JsonLimits limits = {});

/// Reads and parses a file. Throws bad_model when it is missing, unreadable or malformed.
nlohmann::ordered_json read_json_file(const std::filesystem::path& file, JsonLimits limits = {});

/// Whole file as bytes. Throws bad_model when it is missing, unreadable or larger than `max_bytes`.
std::string read_text_file(const std::filesystem::path& file, size_t max_bytes);

}  // namespace conclave
