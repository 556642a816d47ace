#include "core/config_view.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/error.h"

namespace conclave {
namespace {

using Json = nlohmann::ordered_json;

/// The value as JSON text, short enough for a message.
std::string shown(const Json& value) {
  constexpr size_t kLongest = 120;
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > kLongest) text = text.substr(0, kLongest) + "...";
  return text;
}

const Json* find(const Json& object, std::string_view key) {
  const auto found = object.find(std::string(key));
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

const Json& require(const ConfigView& view, std::string_view key, std::string_view wanted) {
  const Json* value = find(view.json(), key);
  if (!value) view.refuse(key, wanted);
  return *value;
}

constexpr std::string_view kInteger = "an integer", kNumber = "a finite number", kText = "text",
                           kBoolean = "true or false";

}  // namespace

ConfigView::ConfigView(const Json& object, std::string where) : object_(&object), where_(std::move(where)) {
  if (!object.is_object())
    throw Error(Error::Kind::bad_model, fmt::format("{} holds {}, wanted a JSON object", where_, shown(object)));
}

bool ConfigView::has(std::string_view key) const { return find(*object_, key) != nullptr; }

int ConfigView::integer(std::string_view key) const {
  const Json& value = require(*this, key, kInteger);
  if (!value.is_number()) refuse(key, kInteger);
  const double number = value.get<double>();  // exact for every int
  constexpr double kLeast = std::numeric_limits<int>::min(), kMost = std::numeric_limits<int>::max();
  if (!(number >= kLeast && number <= kMost))
    refuse(key, fmt::format("an integer of at most {}", std::numeric_limits<int>::max()));
  if (number != std::trunc(number)) refuse(key, kInteger);
  return static_cast<int>(number);
}

float ConfigView::number(std::string_view key) const {
  const Json& value = require(*this, key, kNumber);
  if (!value.is_number()) refuse(key, kNumber);
  const double wide = value.get<double>();
  if (!(std::fabs(wide) <= std::numeric_limits<float>::max())) refuse(key, kNumber);
  return static_cast<float>(wide);
}

std::string ConfigView::text(std::string_view key) const {
  const Json& value = require(*this, key, kText);
  if (!value.is_string()) refuse(key, kText);
  return value.get<std::string>();
}

bool ConfigView::boolean(std::string_view key) const {
  const Json& value = require(*this, key, kBoolean);
  if (!value.is_boolean()) refuse(key, kBoolean);
  return value.get<bool>();
}

int ConfigView::integer(std::string_view key, int fallback) const { return has(key) ? integer(key) : fallback; }
float ConfigView::number(std::string_view key, float fallback) const { return has(key) ? number(key) : fallback; }
std::string ConfigView::text(std::string_view key, std::string_view fallback) const {
  return has(key) ? text(key) : std::string(fallback);
}
bool ConfigView::boolean(std::string_view key, bool fallback) const { return has(key) ? boolean(key) : fallback; }

std::optional<ConfigView> ConfigView::object(std::string_view key) const {
  const Json* value = find(*object_, key);
  if (!value) return std::nullopt;
  if (!value->is_object()) refuse(key, "an object");
  return ConfigView(*value, fmt::format("{}: {}", where_, key));
}

void ConfigView::refuse(std::string_view key, std::string_view wanted) const {
  const auto found = object_->find(std::string(key));
  const std::string value = found == object_->end() ? "missing" : shown(*found);
  throw Error(Error::Kind::bad_model, fmt::format("{}: {} is {}, wanted {}", where_, key, value, wanted));
}

}  // namespace conclave
