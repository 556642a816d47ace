// tojson as transformers defines it: json.dumps(value, ensure_ascii=False, ...), keys in their own order.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "text/jinja_library.h"
#include "text/jinja_unicode.h"

namespace conclave::jinja {
namespace {

class JsonWriter {
 public:
  JsonWriter(Runtime& runtime, const CallArguments& arguments) : runtime_(runtime) {
    const auto v = bind("tojson", arguments, {"ensure_ascii", "indent", "separators", "sort_keys"}, 0);
    ascii_ = v[0] && truthy(*v[0]);
    if (v[1] && !v[1]->is(Kind::none)) {
      pretty_ = true;
      indent_ = v[1]->is(Kind::string) ? v[1]->text() : repeat(runtime.budget, Text(" ", false), integer_argument(*v[1], "indent"));
      item_separator_ = Text(",", false);
    }
    if (v[2] && !v[2]->is(Kind::none)) {
      const std::vector<Value> parts = to_list(*v[2], runtime.budget);
      if (parts.size() != 2) throw Failure("tojson: separators must be a pair of strings");
      item_separator_ = text_argument(parts[0], "item separator");
      key_separator_ = text_argument(parts[1], "key separator");
    }
    sort_keys_ = v[3] && truthy(*v[3]);
  }

  Text run(const Value& value) {
    write(value, 0);
    return std::move(out_);
  }

 private:
  void newline(int depth) {
    if (!pretty_) return;
    out_.append("\n", false);
    runtime_.budget.charge_text(indent_.size() * static_cast<size_t>(depth));
    for (int i = 0; i < depth; ++i) out_.append(indent_);
  }

  void write(const Value& value, int depth) {
    runtime_.budget.charge(1);
    switch (value.kind()) {
      case Kind::none: return out_.append("null", false);
      case Kind::boolean: return out_.append(value.as_boolean() ? "true" : "false", value.trusted());
      case Kind::integer: return out_.append(fmt::format("{}", value.as_integer()), value.trusted());
      case Kind::number: return out_.append(number(value.as_number()), value.trusted());
      case Kind::string: return write_string(value.text());
      case Kind::list: case Kind::tuple: return write_list(value.items(), depth);
      case Kind::dict: return write_dict(value.as<DictObject>().entries, depth);
      default: throw Failure(fmt::format("Object of type {} is not JSON serializable", type_name(value)));
    }
  }

  static std::string number(double d) {
    return std::isnan(d) ? "NaN" : std::isinf(d) ? (d < 0 ? "-Infinity" : "Infinity") : repr_of_number(d);
  }

  void write_list(const std::vector<Value>& items, int depth) {
    if (items.empty()) return out_.append("[]", false);
    out_.append("[", false);
    for (size_t i = 0; i < items.size(); ++i) {
      if (i) out_.append(item_separator_);
      newline(depth + 1);
      write(items[i], depth + 1);
    }
    newline(depth);
    out_.append("]", false);
  }

  void write_key(const Value& key) {
    switch (key.kind()) {
      case Kind::string: return write_string(key.text());
      case Kind::none: return out_.append("\"null\"", false);
      case Kind::boolean: return out_.append(key.as_boolean() ? "\"true\"" : "\"false\"", false);
      case Kind::integer: return out_.append(fmt::format("\"{}\"", key.as_integer()), false);
      case Kind::number: return out_.append(fmt::format("\"{}\"", number(key.as_number())), false);
      default: throw Failure(fmt::format("keys must be str, int, float, bool or None, not {}", type_name(key)));
    }
  }

  void write_dict(std::vector<std::pair<Value, Value>> entries, int depth) {
    if (entries.empty()) return out_.append("{}", false);
    if (sort_keys_) {
      std::stable_sort(entries.begin(), entries.end(),
                       [&](const auto& a, const auto& b) { return compare(a.first, b.first, "<", runtime_.budget) == -1; });
    }
    out_.append("{", false);
    for (size_t i = 0; i < entries.size(); ++i) {
      if (i) out_.append(item_separator_);
      newline(depth + 1);
      write_key(entries[i].first);
      out_.append(key_separator_);
      write(entries[i].second, depth + 1);
    }
    newline(depth);
    out_.append("}", false);
  }

  static std::string escape(char32_t c, bool ascii) {
    switch (c) {
      case '"': return "\\\"";
      case '\\': return "\\\\";
      case '\n': return "\\n";
      case '\r': return "\\r";
      case '\t': return "\\t";
      case '\f': return "\\f";
      case '\b': return "\\b";
      default: break;
    }
    const auto n = static_cast<uint32_t>(c);
    if (n < 0x20 || (ascii && n >= 0x7F && n < 0x10000 && n != 0x7F)) return fmt::format("\\u{:04x}", n);
    if (ascii && n >= 0x10000) return fmt::format("\\u{:04x}\\u{:04x}", 0xD7C0 + (n >> 10), 0xDC00 + (n & 0x3FF));
    return "";
  }

  void write_string(const Text& text) {
    runtime_.budget.charge_characters(text.size());
    out_.append("\"", false);
    size_t plain = 0;
    for (size_t i = 0; i < text.size();) {
      const size_t begin = i;
      const std::string escaped = escape(next_code_point(text.bytes(), i), ascii_);
      if (escaped.empty()) continue;
      out_.append(text, plain, begin);
      out_.append(escaped, text.trusted(begin));
      plain = i;
    }
    out_.append(text, plain, text.size());
    out_.append("\"", false);
  }

  Runtime& runtime_;
  Text out_;
  bool ascii_ = false, pretty_ = false, sort_keys_ = false;
  Text indent_;
  Text item_separator_ = Text(", ", false), key_separator_ = Text(": ", false);
};

}  // namespace

Value to_json(Runtime& runtime, const Value& value, const CallArguments& arguments) {
  return Value::string(JsonWriter(runtime, arguments).run(value), &runtime.budget);
}

}  // namespace conclave::jinja
