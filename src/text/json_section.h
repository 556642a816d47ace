#pragma once
// Typed reading of the small JSON objects of a tokenizer file: every error names file, key, value found and value wanted.
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace conclave {

class JsonSection {
 public:
  /// `where` names the file and the path of the object. Throws bad_model when it is not an object.
  JsonSection(const nlohmann::json& object, std::string where);

  const std::string& where() const { return where_; }
  std::string type() const { return text("type"); }
  bool has(std::string_view key) const;  ///< present and not null
  std::string text(std::string_view key) const;
  std::string text_or(std::string_view key, std::string fallback) const;
  bool flag_or(std::string_view key, bool fallback) const;
  int64_t integer(std::string_view key) const;
  int64_t integer_or(std::string_view key, int64_t fallback) const;
  /// A string of exactly one character.
  std::string character_or(std::string_view key, std::string fallback) const;
  const nlohmann::json& array(std::string_view key) const;
  const nlohmann::json& value(std::string_view key) const;  ///< must be there

  [[noreturn]] void wrong(std::string_view key, std::string_view wanted) const;
  /// Refuses the section's type, naming what is supported.
  [[noreturn]] void unsupported_type(std::string_view supported) const;

 private:
  const nlohmann::json& object_;
  std::string where_;
};

/// {"String": s} or {"Regex": s} as a regular expression.
std::string pattern_of(const JsonSection& section, std::string_view key);

}  // namespace conclave
