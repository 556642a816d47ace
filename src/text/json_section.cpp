#include "text/json_section.h"

#include <fmt/format.h>

#include "core/error.h"
#include "text/regex.h"
#include "text/unicode.h"

namespace conclave {

using Json = nlohmann::json;

JsonSection::JsonSection(const Json& object, std::string where) : object_(object), where_(std::move(where)) {
  if (!object.is_object()) throw Error(Error::Kind::bad_model, fmt::format("{}: found {}, wanted an object", where_, object.type_name()));
}

bool JsonSection::has(std::string_view key) const {
  const auto it = object_.find(key);
  return it != object_.end() && !it->is_null();
}

const Json& JsonSection::value(std::string_view key) const {
  const auto it = object_.find(key);
  if (it == object_.end()) throw Error(Error::Kind::bad_model, fmt::format("{}: the key \"{}\" is missing", where_, key));
  return *it;
}

void JsonSection::wrong(std::string_view key, std::string_view wanted) const {
  std::string found = value(key).dump(-1, ' ', false, Json::error_handler_t::replace);
  if (found.size() > 80) found = found.substr(0, 80) + "...";
  throw Error(Error::Kind::bad_model, fmt::format("{}.{}: found {}, wanted {}", where_, key, found, wanted));
}

void JsonSection::unsupported_type(std::string_view supported) const {
  throw Error(Error::Kind::unsupported, fmt::format("{}: the type \"{}\" is not supported; supported: {}", where_, type(), supported));
}

std::string JsonSection::text(std::string_view key) const {
  const Json& v = value(key);
  if (!v.is_string()) wrong(key, "a string");
  return v.get<std::string>();
}

std::string JsonSection::text_or(std::string_view key, std::string fallback) const { return has(key) ? text(key) : std::move(fallback); }

bool JsonSection::flag_or(std::string_view key, bool fallback) const {
  if (!has(key)) return fallback;
  if (!value(key).is_boolean()) wrong(key, "true or false");
  return value(key).get<bool>();
}

int64_t JsonSection::integer(std::string_view key) const {
  const Json& v = value(key);
  if (!v.is_number_integer() || (v.is_number_unsigned() && v.get<uint64_t>() > uint64_t{INT64_MAX})) wrong(key, "an integer");
  return v.get<int64_t>();
}

int64_t JsonSection::integer_or(std::string_view key, int64_t fallback) const { return has(key) ? integer(key) : fallback; }

std::string JsonSection::character_or(std::string_view key, std::string fallback) const {
  std::string found = text_or(key, std::move(fallback));
  if (count_characters(found) != 1) wrong(key, "a string of one character");
  return found;
}

const Json& JsonSection::array(std::string_view key) const {
  if (!value(key).is_array()) wrong(key, "an array");
  return value(key);
}

std::string pattern_of(const JsonSection& section, std::string_view key) {
  const Json& v = section.value(key);
  if (v.is_object() && v.size() == 1 && v.begin()->is_string()) {
    if (v.begin().key() == "String") return escape_regex(v.begin()->get<std::string>());
    if (v.begin().key() == "Regex") return v.begin()->get<std::string>();
  }
  section.wrong(key, "{\"String\": ...} or {\"Regex\": ...}");
}

}  // namespace conclave
