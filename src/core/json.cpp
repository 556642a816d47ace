#include "core/json.h"

#include <fmt/format.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "core/error.h"

namespace conclave {
namespace {

using Json = nlohmann::ordered_json;

/// Line of a byte offset, counted from 1.
size_t line_of(std::string_view text, size_t offset) {
  size_t line = 1;
  for (size_t i = 0; i < std::min(offset, text.size()); ++i) line += text[i] == '\n';
  return line;
}

}  // namespace

Json parse_json(std::string_view text, std::string_view source, JsonLimits limits) {
  if (text.size() > limits.max_bytes)
    throw Error(Error::Kind::bad_input,
                fmt::format("{}: {} bytes of JSON, at most {} are read", source, text.size(), limits.max_bytes));
  std::vector<std::set<std::string>> keys;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth >= limits.max_depth)
      throw Error(Error::Kind::bad_input, fmt::format("{}: JSON nested deeper than {} levels", source, limits.max_depth));
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key && !keys.back().insert(parsed.get<std::string>()).second)
      throw Error(Error::Kind::bad_input, fmt::format("{}: key \"{}\" occurs twice in one object; keep one of them", source,
                                                      parsed.get<std::string>()));
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), watch);
  } catch (const Json::parse_error& e) {
    throw Error(Error::Kind::bad_input,
                fmt::format("{}: malformed JSON at byte {} (line {}): {}", source, e.byte, line_of(text, e.byte), e.what()));
  } catch (const Json::exception& e) {
    throw Error(Error::Kind::bad_input, fmt::format("{}: malformed JSON: {}", source, e.what()));
  }
}

std::string read_text_file(const std::filesystem::path& file, size_t max_bytes) {
  std::error_code status;
  if (!std::filesystem::is_regular_file(file, status))
    throw Error(Error::Kind::bad_model, fmt::format("{}: no such file", file.string()));
  const auto size = std::filesystem::file_size(file, status);
  if (status) throw Error(Error::Kind::bad_model, fmt::format("{}: {}", file.string(), status.message()));
  if (size > max_bytes)
    throw Error(Error::Kind::bad_model, fmt::format("{}: {} bytes, at most {} are read", file.string(), size, max_bytes));
  std::ifstream in(file, std::ios::binary);
  std::string text(size, '\0');
  if (!in.read(text.data(), static_cast<std::streamsize>(size)))
    throw Error(Error::Kind::bad_model, fmt::format("{}: cannot be read; check its permissions", file.string()));
  return text;
}

Json read_json_file(const std::filesystem::path& file, JsonLimits limits) {
  const std::string text = read_text_file(file, limits.max_bytes);
  try {
    return parse_json(text, file.string(), limits);
  } catch (const Error& e) {
    throw Error(Error::Kind::bad_model, e.what());
  }
}

}  // namespace conclave
