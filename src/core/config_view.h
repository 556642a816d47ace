#pragma once
// Strict, typed view over one JSON object of a configuration file. Every error names the file and the key, the value found and
// the kind of value wanted. Integers may be written as floats without fraction (40.0); booleans only as true/false.
#include <initializer_list>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace conclave {

class ConfigView {
 public:
  /// `object` must outlive the view. `where` opens messages ("path/config.json").
  ConfigView(const nlohmann::ordered_json& object, std::string where);

  /// True when the key exists and is not null.
  bool has(std::string_view key) const;
  /// Required values: throw bad_model when missing, null or of another kind. Integers must fit int.
  int integer(std::string_view key) const;
  float number(std::string_view key) const;
  std::string text(std::string_view key) const;
  bool boolean(std::string_view key) const;
  /// Optional values: missing or null gives the fallback; a wrong kind still throws.
  int integer(std::string_view key, int fallback) const;
  float number(std::string_view key, float fallback) const;
  std::string text(std::string_view key, std::string_view fallback) const;
  bool boolean(std::string_view key, bool fallback) const;
  /// Sub-object, or nothing when missing or null.
  std::optional<ConfigView> object(std::string_view key) const;
  /// Throws bad_model: "<file>: <key> is <value>, wanted <wanted>".
  [[noreturn]] void refuse(std::string_view key, std::string_view wanted) const;

  const nlohmann::ordered_json& json() const { return *object_; }
  const std::string& where() const { return where_; }

 private:
  const nlohmann::ordered_json* object_;
  std::string where_;
};

}  // namespace conclave
