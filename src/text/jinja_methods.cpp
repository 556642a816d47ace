// Methods of str that map or classify, and those of lists, tuples, dicts and numbers.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "text/jinja_library.h"
#include "text/jinja_unicode.h"

namespace conclave::jinja {
namespace {

using R = Runtime&;
using V = const Value&;
using A = const CallArguments&;

template <Text (*Map)(const Text&)>
Value mapped(R r, V self, A a) {
  bind("method", a, {}, 0);
  r.budget.charge_characters(self.text().size() * 2);
  return Value::string(Map(self.text()), &r.budget);
}

/// True when the text is not empty and every character passes.
template <bool (*Check)(char32_t)>
Value all_are(R r, V self, A a) {
  bind("method", a, {}, 0);
  const std::string& bytes = self.text().bytes();
  r.budget.charge_characters(bytes.size());
  for (size_t i = 0; i < bytes.size();) {
    if (!Check(next_code_point(bytes, i))) return Value::boolean(false);
  }
  return Value::boolean(!bytes.empty());
}

bool is_alnum(char32_t c) { return is_alpha(c) || is_decimal(c) || is_digit(c) || is_numeric(c); }

/// True when some character is cased and none has the other case.
template <bool (*Wanted)(char32_t), bool (*Other)(char32_t)>
Value cased(R r, V self, A) {
  const std::string& bytes = self.text().bytes();
  r.budget.charge_characters(bytes.size());
  bool found = false;
  for (size_t i = 0; i < bytes.size();) {
    const char32_t c = next_code_point(bytes, i);
    if (Other(c) || is_title(c)) return Value::boolean(false);
    found |= Wanted(c);
  }
  return Value::boolean(found);
}

Value istitle(R r, V self, A) {
  const std::string& bytes = self.text().bytes();
  r.budget.charge_characters(bytes.size());
  bool found = false, in_word = false;
  for (size_t i = 0; i < bytes.size();) {
    const char32_t c = next_code_point(bytes, i);
    const bool upper = is_upper(c) || is_title(c), lower = is_lower(c);
    if ((upper && in_word) || (lower && !in_word)) return Value::boolean(false);
    in_word = upper || lower;
    found |= in_word;
  }
  return Value::boolean(found);
}

Value isascii(R r, V self, A) {
  const std::string& bytes = self.text().bytes();
  r.budget.charge_text(bytes.size());
  return Value::boolean(std::all_of(bytes.begin(), bytes.end(), [](char c) { return (c & 0x80) == 0; }));
}

Value isidentifier(R r, V self, A) {
  const std::string& bytes = self.text().bytes();
  r.budget.charge_characters(bytes.size());
  for (size_t i = 0; i < bytes.size();) {
    const bool first = i == 0;
    const char32_t c = next_code_point(bytes, i);
    if (c != '_' && !is_alpha(c) && (first || !is_decimal(c))) return Value::boolean(false);
  }
  return Value::boolean(!bytes.empty());
}

template <char Align>
Value padded(R r, V self, A a) {
  const auto v = bind("just", a, {"width", "fillchar"}, 1);
  const Text fill = v[1] ? text_argument(*v[1], "fill character") : Text(" ", true);
  if (count_code_points(fill.bytes()) != 1) throw Failure("The fill character must be exactly one character long");
  Text out = pad(self.text(), integer_argument(*v[0], "width"), Align, fill);
  r.budget.charge_text(out.size());
  return Value::string(std::move(out), &r.budget);
}

Value zfill(R r, V self, A a) {
  const int64_t width = integer_argument(*bind("zfill", a, {"width"}, 1)[0], "width");
  const Text& text = self.text();
  const bool sign = !text.empty() && (text.bytes()[0] == '-' || text.bytes()[0] == '+');
  Text out = text.slice(0, sign);
  out.append(pad(text.slice(sign, text.size()), width - sign, '>', Text("0", true)));
  r.budget.charge_text(out.size());
  return Value::string(std::move(out), &r.budget);
}

Value expandtabs(R r, V self, A a) {
  const auto v = bind("expandtabs", a, {"tabsize"}, 0);
  const int64_t size = v[0] ? integer_argument(*v[0], "tabsize") : 8;
  const Text& text = self.text();
  Text out;
  int64_t column = 0;
  for (size_t i = 0; i < text.size();) {
    const size_t begin = i;
    const char32_t c = next_code_point(text.bytes(), i);
    r.budget.charge(1);
    if (c == '\t') {
      const int64_t spaces = size > 0 ? size - column % size : 0;
      out.append(pad(Text(), spaces, '<', Text(" ", text.trusted(begin))));
      column += spaces;
    } else {
      out.append(text, begin, i);
      column = c == '\n' || c == '\r' ? 0 : column + 1;
    }
  }
  return Value::string(std::move(out), &r.budget);
}

Value format_method(R r, V self, A a) { return Value::string(format_braces(r, self.text(), a), &r.budget); }

Value encode_method(R, V, A) { throw Failure("str.encode is not available in chat templates: bytes are not supported"); }

Value make_view(const Value& dict, ViewObject::Part part) {
  auto view = std::make_shared<ViewObject>();
  view->part = part;
  view->dict = dict;
  view->nesting = nesting_of(dict);
  return Value::object(Kind::view, std::move(view));
}

Value dict_get(R r, V self, A a) {
  const auto v = bind("get", a, {"key", "default"}, 1);
  const Value* found = self.as<DictObject>().find(*v[0], r.budget);
  return found ? *found : v[1].value_or(Value::none());
}

Value sequence_index(R r, V self, A a) {
  const auto v = bind("index", a, {"value", "start", "stop"}, 1);
  const auto& items = self.items();
  for (size_t i = 0; i < items.size(); ++i) {
    if (equal(items[i], *v[0], r.budget)) return Value::integer(static_cast<int64_t>(i));
  }
  throw Failure(fmt::format("{} is not in {}", repr(*v[0], r.budget).bytes(), type_name(self)));
}

Value sequence_count(R r, V self, A a) {
  const auto v = bind("count", a, {"value"}, 1);
  int64_t count = 0;
  for (const Value& item : self.items()) count += equal(item, *v[0], r.budget);
  return Value::integer(count);
}

Method find_dict_method(std::string_view name) {
  if (name == "get") return dict_get;
  if (name == "items") return [](R, V self, A) { return make_view(self, ViewObject::Part::items); };
  if (name == "keys") return [](R, V self, A) { return make_view(self, ViewObject::Part::keys); };
  if (name == "values") return [](R, V self, A) { return make_view(self, ViewObject::Part::values); };
  if (name == "copy") return [](R, V self, A) { return self; };
  return nullptr;
}

Method find_sequence_method(std::string_view name) {
  if (name == "index") return sequence_index;
  if (name == "count") return sequence_count;
  return nullptr;
}

Method find_method(const Value& object, std::string_view name) {
  switch (object.kind()) {
    case Kind::string: {
      const Method method = find_text_method(name);
      return method ? method : find_string_method(name);
    }
    case Kind::dict: return find_dict_method(name);
    case Kind::list:
      if (name == "copy") return [](R, V self, A) { return self; };
      return find_sequence_method(name);
    case Kind::tuple: return find_sequence_method(name);
    case Kind::number:
      if (name == "is_integer") return [](R, V self, A) { return Value::boolean(std::floor(self.as_number()) == self.as_number()); };
      return nullptr;
    default: return nullptr;
  }
}

}  // namespace

Text pad(const Text& text, int64_t width, char align, const Text& fill) {
  const auto size = static_cast<int64_t>(count_code_points(text.bytes()));
  const int64_t missing = std::max<int64_t>(width - size, 0);
  if (missing > static_cast<int64_t>(kMaxTextBytes)) throw Failure(fmt::format("width {} is too large", width));
  // str.center puts the odd blank left when the width is odd, as CPython does.
  const int64_t left = align == '<' ? 0 : align == '>' ? missing : align == '^' ? missing / 2 : missing / 2 + (missing & width & 1);
  Text out;
  for (int64_t i = 0; i < left; ++i) out.append(fill);
  out.append(text);
  for (int64_t i = left; i < missing; ++i) out.append(fill);
  return out;
}

Method find_string_method(std::string_view name) {
  static constexpr std::pair<std::string_view, Method> kMethods[] = {
      {"lower", mapped<lower>}, {"upper", mapped<upper>}, {"title", mapped<title>}, {"capitalize", mapped<capitalize>},
      {"swapcase", mapped<swapcase>}, {"casefold", mapped<lower>},
      {"isalpha", all_are<is_alpha>}, {"isdigit", all_are<is_digit>}, {"isdecimal", all_are<is_decimal>},
      {"isnumeric", all_are<is_numeric>}, {"isspace", all_are<is_space>}, {"isalnum", all_are<is_alnum>},
      {"islower", cased<is_lower, is_upper>}, {"isupper", cased<is_upper, is_lower>}, {"istitle", istitle},
      {"isascii", isascii}, {"isidentifier", isidentifier},
      {"isprintable", [](R r, V s, A a) { return s.text().empty() ? Value::boolean(true) : all_are<is_printable>(r, s, a); }},
      {"ljust", padded<'<'>}, {"rjust", padded<'>'>}, {"center", padded<'c'>}, {"zfill", zfill},
      {"expandtabs", expandtabs}, {"format", format_method}, {"encode", encode_method},
  };
  for (const auto& [key, method] : kMethods) {
    if (key == name) return method;
  }
  return nullptr;
}

std::optional<Value> method_of(const Value& object, std::string_view name) {
  const Method method = find_method(object, name);
  if (!method) return std::nullopt;
  Value bound = make_function(std::string(name), [object, method](Runtime& r, const CallArguments& a) { return method(r, object, a); },
                              nesting_of(object));
  auto described = std::make_shared<FunctionObject>(bound.as<FunctionObject>());
  described->description = fmt::format("<built-in method {} of {} object>", name, type_name(object));
  return Value::object(Kind::function, std::move(described));
}

}  // namespace conclave::jinja
