// str(), repr() and type names of values.
#include <fmt/format.h>

#include <charconv>
#include <cmath>

#include "text/jinja_unicode.h"
#include "text/jinja_value.h"

namespace conclave::jinja {
namespace {

Text repr_at(const Value& value, Budget& budget, int depth);

Text repr_of_string(const Text& text) {
  const bool double_quoted =
      text.bytes().find('\'') != std::string::npos && text.bytes().find('"') == std::string::npos;
  const char quote = double_quoted ? '"' : '\'';
  Text out(std::string_view(&quote, 1), false);
  for (size_t i = 0; i < text.size();) {
    const size_t begin = i;
    const char32_t c = next_code_point(text.bytes(), i);
    std::string escaped;
    if (c == static_cast<char32_t>(quote) || c == '\\') escaped = fmt::format("\\{}", static_cast<char>(c));
    else if (c == '\n') escaped = "\\n";
    else if (c == '\r') escaped = "\\r";
    else if (c == '\t') escaped = "\\t";
    else if (!is_printable(c)) {
      const auto n = static_cast<uint32_t>(c);
      escaped = c < 0x100 ? fmt::format("\\x{:02x}", n) : c < 0x10000 ? fmt::format("\\u{:04x}", n) : fmt::format("\\U{:08x}", n);
    }
    if (escaped.empty()) out.append(text, begin, i);
    else out.append(escaped, text.trusted(begin));
  }
  out.append(std::string_view(&quote, 1), false);
  return out;
}

Text repr_of_items(const std::vector<Value>& items, std::string_view open, std::string_view close, Budget& budget,
                   int depth) {
  Text out(open, false);
  for (size_t i = 0; i < items.size(); ++i) {
    if (i) out.append(", ", false);
    out.append(repr_at(items[i], budget, depth + 1));
  }
  out.append(close, false);
  return out;
}

Text repr_of_entries(const std::vector<std::pair<Value, Value>>& entries, Budget& budget, int depth) {
  Text out("{", false);
  for (size_t i = 0; i < entries.size(); ++i) {
    if (i) out.append(", ", false);
    out.append(repr_at(entries[i].first, budget, depth + 1));
    out.append(": ", false);
    out.append(repr_at(entries[i].second, budget, depth + 1));
  }
  out.append("}", false);
  return out;
}

Text repr_of_space(const SpaceObject& space, Budget& budget, int depth) {
  std::vector<std::pair<Value, Value>> entries;
  for (const auto& [name, value] : space.attributes) entries.emplace_back(make_string(name, false, budget), value);
  Text out("<Namespace ", false);
  out.append(repr_of_entries(entries, budget, depth));
  out.append(">", false);
  return out;
}

std::string repr_of_range(const RangeObject& r) {
  return r.step == 1 ? fmt::format("range({}, {})", r.start, r.stop) : fmt::format("range({}, {}, {})", r.start, r.stop, r.step);
}

Text repr_of_view(const Value& value, Budget& budget, int depth) {
  static constexpr std::string_view kOpen[] = {"dict_keys([", "dict_values([", "dict_items(["};
  return repr_of_items(to_list(value, budget), kOpen[static_cast<int>(value.as<ViewObject>().part)], "])", budget, depth);
}

Text repr_at(const Value& value, Budget& budget, int depth) {
  budget.charge(1);
  if (depth > kMaxNesting) throw Failure("maximum recursion depth exceeded while getting the repr of an object");
  switch (value.kind()) {
    case Kind::undefined: return Text("Undefined", false);
    case Kind::none: return Text("None", value.trusted());
    case Kind::boolean: return Text(value.as_boolean() ? "True" : "False", value.trusted());
    case Kind::integer: return Text(fmt::format("{}", value.as_integer()), value.trusted());
    case Kind::number: return Text(repr_of_number(value.as_number()), value.trusted());
    case Kind::string:
      budget.charge_characters(value.text().size() * 4);
      return repr_of_string(value.text());
    case Kind::list: return repr_of_items(value.items(), "[", "]", budget, depth);
    case Kind::tuple: return repr_of_items(value.items(), "(", value.items().size() == 1 ? ",)" : ")", budget, depth);
    case Kind::dict: return repr_of_entries(value.as<DictObject>().entries, budget, depth);
    case Kind::space: return repr_of_space(value.as<SpaceObject>(), budget, depth);
    case Kind::range: return Text(repr_of_range(value.as<RangeObject>()), false);
    case Kind::view: return repr_of_view(value, budget, depth);
    case Kind::iterator: return Text(fmt::format("<{} object>", value.as<IteratorObject>().type_name), false);
    case Kind::function: return Text(value.as<FunctionObject>().description, false);
    case Kind::loop: {
      const auto& loop = value.as<LoopObject>();
      return Text(fmt::format("<LoopContext {}/{}>", loop.index0 + 1, loop.items.size()), false);
    }
    case Kind::cycler: return Text("<Cycler object>", false);
  }
  return {};
}

}  // namespace

std::string repr_of_number(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific).ptr;
  const std::string scientific(buffer, end);
  const size_t e = scientific.find('e');
  const int exponent = std::stoi(scientific.substr(e + 1));
  const bool negative = scientific[0] == '-';
  std::string digits;
  for (const char c : scientific.substr(0, e)) {
    if (c >= '0' && c <= '9') digits += c;
  }
  std::string out;
  if (exponent < -4 || exponent >= 16) {
    out = digits.substr(0, 1);
    if (digits.size() > 1) out += "." + digits.substr(1);
    out += fmt::format("e{}{:02}", exponent < 0 ? '-' : '+', std::abs(exponent));
  } else if (exponent < 0) {
    out = "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  } else {
    const auto whole = static_cast<size_t>(exponent) + 1;
    if (digits.size() < whole) digits.append(whole - digits.size(), '0');
    out = digits.substr(0, whole) + "." + (digits.size() > whole ? digits.substr(whole) : "0");
  }
  return (negative ? "-" : "") + out;
}

Text to_text(const Value& value, Budget& budget) {
  if (value.is(Kind::string)) return value.text();
  if (value.is(Kind::undefined)) return {};
  return repr_at(value, budget, 0);
}

Text repr(const Value& value, Budget& budget) { return repr_at(value, budget, 0); }

std::string_view type_name(const Value& value) {
  switch (value.kind()) {
    case Kind::undefined: return "Undefined";
    case Kind::none: return "NoneType";
    case Kind::boolean: return "bool";
    case Kind::integer: return "int";
    case Kind::number: return "float";
    case Kind::string: return "str";
    case Kind::list: return "list";
    case Kind::tuple: return "tuple";
    case Kind::dict: return "dict";
    case Kind::space: return "Namespace";
    case Kind::range: return "range";
    case Kind::view:
      switch (value.as<ViewObject>().part) {
        case ViewObject::Part::keys: return "dict_keys";
        case ViewObject::Part::values: return "dict_values";
        default: return "dict_items";
      }
    case Kind::iterator: return value.as<IteratorObject>().type_name;
    case Kind::function: return "function";
    case Kind::loop: return "LoopContext";
    case Kind::cycler: return "Cycler";
  }
  return "object";
}

std::string object_name(const Value& value) {
  return value.is(Kind::none) ? "None" : fmt::format("{} object", type_name(value));
}

}  // namespace conclave::jinja
